"""Draws summarized by plain loops, and the metric of a run."""

import functools

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.configs import digits_superres
from ddpm_jax.data import loading
from ddpm_jax.evaluation import catalogue, conditional_draws
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.inference import sample_command
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet
from ddpm_jax.workdir import run_folder

RNG = np.random.default_rng(0)
TRUTH = np.uint8(255 * RNG.integers(0, 2, (3, 4, 5, 1)))
DRAWS = np.where(RNG.random((3, 6, 4, 5, 1)) < 0.8, TRUTH[:, None], 255 - TRUTH[:, None])


def test_summary_by_loops():
    summary = conditional_draws.summarize(DRAWS, TRUTH)
    for i in range(3):
        mean = sum(float(1) * draw for draw in DRAWS[i].astype(float)) / 6
        np.testing.assert_allclose(summary.mean[i], mean)
        np.testing.assert_allclose(summary.error[i], np.sqrt(np.mean((mean - TRUTH[i]) ** 2)))
        squares = [np.mean((draw.astype(float) - TRUTH[i]) ** 2) for draw in DRAWS[i]]
        np.testing.assert_allclose(summary.single_error[i], np.sqrt(np.mean(squares)))
        pixel = DRAWS[i, :, 2, 3, 0].astype(float)
        spread = np.sqrt(sum((v - pixel.mean()) ** 2 for v in pixel) / 5)
        np.testing.assert_allclose(summary.disagreement[i, 2, 3, 0], spread)
        both = sum(m >= 127.5 and t == 255 for m, t in zip(mean.ravel(), TRUTH[i].ravel()))
        area = np.sum(mean >= 127.5) + np.sum(TRUTH[i] == 255)
        np.testing.assert_allclose(summary.dice[i], 2 * both / area)
    assert np.all(summary.error < summary.single_error)


def test_dice_is_for_masks_alone_and_1_for_empty_ones():
    assert conditional_draws.summarize(DRAWS, np.maximum(TRUTH, 1)).dice is None
    nothing = np.zeros((1, 2, 4, 5, 1), np.uint8)
    assert conditional_draws.summarize(nothing, nothing[:, 0]).dice == [1.0]


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_row_of_the_picture(channels):
    summary = conditional_draws.summarize(DRAWS, TRUTH)
    condition = RNG.integers(0, 256, (3, 4, 5, channels), np.uint8)
    picture = conditional_draws.picture(condition, DRAWS, summary, TRUTH, shown=2)
    factor, border = 16, 2  # Of 4 pixels until they are 64.
    tile = lambda row, column: picture[
        border + row * (64 + border):, border + column * (80 + border):, 0][:64:factor, :80:factor]
    assert picture.shape == (3 * 66 + 2, 6 * 82 + 2, 1)
    for row in range(3):
        expected = [condition[row, ..., 0], DRAWS[row, 0, ..., 0], DRAWS[row, 1, ..., 0],
                    np.round(summary.mean[row, ..., 0]),
                    np.round(np.minimum(2 * summary.disagreement[row, ..., 0], 255)),
                    TRUTH[row, ..., 0]]
        for column, image in enumerate(expected):
            np.testing.assert_array_equal(tile(row, column), image)


@pytest.mark.slow
def test_a_run_with_labels_and_conditions_is_measured_and_sampled(tmp_path, capsys):
    """Training, evaluation and sampling of a run with labels and conditions."""
    config = digits_superres.get_config()
    config.data.labels = True
    config.model.channels, config.model.channel_multipliers = 4, (1, 1)
    config.model.num_groups = 0
    config.diffusion.num_timesteps, config.diffusion.beta_end = 6, 0.9
    config.train.num_steps = config.train.warmup_steps = 2
    config.train.batch_size, config.train.eval_images, config.train.sample_images = 8, 8, 4
    config.evaluate.metrics, config.evaluate.num_images = ("draws",), 3
    config.evaluate.num_draws, config.sample.num_images = 2, 5
    ddpm_jax.train(config, tmp_path)
    stored = run_folder.parse((tmp_path / "config.json").read_text())
    assert (stored.data.num_classes, stored.data.condition_channels) == (10, 1)
    assert "heldout_loss" in (tmp_path / "metrics.jsonl").read_text()
    measured, = ddpm_jax.evaluate(config, tmp_path)
    assert measured["metric"] == "draws" and measured["n"] == 3 and "dice" not in measured
    assert 0 < measured["value"] < measured["single_draw"] < 255
    assert measured["protocol"]["num_draws"] == 2
    assert ddpm_jax.evaluate(config, tmp_path) == [measured]
    assert "known already" in capsys.readouterr().out
    folder, = (tmp_path / "evaluations" / "step_00000002").glob("draws-*")
    assert (folder / "draws.png").exists()
    sample_command.run(run_folder.config_for(config, tmp_path), tmp_path)
    path, = (tmp_path / "samples").glob("*.npz")
    source = loading.load("digits", split="test", labels=True, condition="low_resolution", factor=2)
    with np.load(path) as arrays:
        assert arrays["arr_0"].shape == (5, 8, 8, 1)
        np.testing.assert_array_equal(arrays["labels"], source.labels[:5])
        np.testing.assert_array_equal(arrays["condition"], source.read_condition(np.arange(5)))
    config.train.num_steps, config.data.labels = 3, False
    with pytest.raises(ValueError, match="config.data.labels=False, but .* was made with True"):
        ddpm_jax.train(config, tmp_path)
    config.data.labels, config.data.num_classes = True, 4
    with pytest.raises(ValueError, match="num_classes=4 is too few: the data have 10 classes"):
        ddpm_jax.train(config, tmp_path)


@pytest.mark.parametrize("setting", ["labels", "condition"])
def test_an_array_without_what_the_config_asks_for_is_refused(tmp_path, setting):
    config = digits_superres.get_config()
    config.data.condition = "stored" if setting == "condition" else ""
    config.data.labels = setting == "labels"
    with pytest.raises(ValueError, match=f"config.data.{setting}=.* the array given has none"):
        ddpm_jax.train(config, tmp_path, np.zeros((4, 8, 8, 1), np.uint8))


def test_draws_are_for_models_that_take_a_condition():
    config = digits_superres.get_config()
    config.evaluate.metrics = ("bpd", "draws")
    settings = evaluate_lib.settings_of(config)
    a_model = functools.partial(Trained, None, schedule=None, diffusion=None, image_shape=(8, 8, 1))
    with pytest.raises(ValueError, match="has 'draws', but this model takes no condition"):
        catalogue.check_model(settings, a_model(model=UNet()))
    catalogue.check_model(settings, a_model(model=UNet(condition_channels=1)))
