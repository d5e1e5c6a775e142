"""Runs on data that are not 8-bit: trained, sampled and measured in their own values."""

import flax.linen as nn
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import ddpm_jax
import gaussian
from ddpm_jax import data, planning
from ddpm_jax.data import pixels
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.inference import bits_per_dim as bits_lib
from ddpm_jax.inference import sample_command
from ddpm_jax.network.trained import Trained
from ddpm_jax.workdir import run_folder
from records import rows
from tiny_run import tiny_config

RANDOM = np.random.default_rng(0)
BOUNDS = (-500, 3595)  # 4,096 values.


def ranged_config(path="", bounds=BOUNDS, **settings):
    return tiny_config(**{
        "data.name": "npz", "data.dir": str(path), "data.range": bounds, "data.image_size": 0,
        "data.channels": 0, "data.holdout": 16, "train.num_steps": 2, "train.sample_every": 2,
        "train.checkpoint_every": 2, "train.eval_every": 2, "sample.num_images": 8,
        "sample.num_steps": 4, "evaluate.ode_steps": 3, "evaluate.metrics": ("bpd",), **settings,
    })


def whole(n=64, channels=2):
    return RANDOM.integers(BOUNDS[0], BOUNDS[1] + 1, (n, 8, 8, channels)).astype(np.int16)


def test_a_run_of_12_bits_and_two_channels(tmp_path, tiny):
    images, workdir = whole(), tmp_path / "run"
    np.savez(tmp_path / "a.npz", train=images[16:], test=images[:16])
    config = ranged_config(tmp_path / "a.npz")
    trained = ddpm_jax.train(config, workdir)
    stored = run_folder.stored_config(workdir)
    assert stored.data.range == BOUNDS and stored.data.range_bins == 4096
    loaded = ddpm_jax.load(workdir)
    assert (loaded.value_range, loaded.bins) == (BOUNDS, 4096)
    assert (trained.value_range, trained.bins) == (BOUNDS, 4096)
    assert np.isfinite(rows(workdir)[-1]["loss"])
    # One image, for the run is short: a tile of 64 pixels a channel, in borders of 2.
    with Image.open(workdir / "samples" / "step_00000002.png") as grid:
        assert grid.size == (2 * 66 + 2, 66 + 2) and grid.mode == "L"

    png, npz = sample_command.run(run_folder.config_for(None, workdir), workdir)
    drawn = np.load(npz)["arr_0"]
    assert drawn.dtype == np.int16 and drawn.min() >= BOUNDS[0] and drawn.max() <= BOUNDS[1]
    settings = dict(num_steps=4)
    x = ddpm_jax.sample(loaded, 0, 8, **settings)
    values = np.round((np.float64(x) + 1) * 4095 / 2) - 500
    assert_array_equal(drawn, values)
    assert_array_equal(ddpm_jax.sample(loaded, 0, 8, output="data", **settings), values)

    (row,) = evaluate_lib.evaluate(run_folder.config_for(None, workdir), workdir)
    assert row["value"] == pytest.approx(row["L_T"] + row["L_1_to_T-1"] + row["L_0"], rel=1e-5)
    in_bits = ddpm_jax.bits_per_dim(loaded, 0, images[:16])
    # Other keys than those of the metric: its spread over images is that of the noise too.
    assert abs(in_bits.mean() - row["value"]) < 6 * row["standard_error"] + 0.05
    # 4,096 bins cost 4 bits more than 256, where only L_0 knows of bins.
    eight = np.round((images[:16].astype(float) + 500) * 255 / 4095).astype(np.uint8)
    coarse = bits_lib.terms(
        loaded.replace(value_range=(), bins=256), 0, data.from_array(eight)
    ).vlb[:, 0]
    fine = bits_lib.terms(loaded, 0, data.from_array(images[:16], value_range=BOUNDS)).vlb[:, 0]
    assert_allclose(fine - coarse, 4, rtol=0, atol=0.1)


def test_the_run_goes_on_and_says_what_does_not_fit(tmp_path, tiny):
    images, workdir = whole(32), tmp_path / "run"
    given = dict(data=data.from_array(images, value_range=BOUNDS))
    config = ranged_config(bounds=(), **{"diffusion.loss": "vlb", "data.holdout": 0})
    ddpm_jax.train(config, workdir, **given)
    assert run_folder.stored_config(workdir).data.range == BOUNDS
    config.train.num_steps = 3
    ddpm_jax.train(config, workdir, **given)
    assert rows(workdir)[-1]["step"] == 3
    with pytest.raises(ValueError, match=r"config.data.range=.*was made with \(-500, 3595\)"):
        ddpm_jax.train(config, workdir, data.from_array(images, value_range=(-500, 3596)))
    config.data.range = (0, 4095)
    with pytest.raises(ValueError, match=r"range=\(0, 4095\) is not that of the data, \(-500"):
        ddpm_jax.train(config, tmp_path / "other", **given)
    loaded = ddpm_jax.load(workdir)
    with pytest.raises(ValueError, match="images have the range"):
        bits_lib.terms(loaded, 0, data.from_array(np.zeros((1, 8, 8, 2), np.uint8)))


def test_a_run_of_floats(tmp_path, tiny):
    images, workdir = RANDOM.uniform(-3, 9, (48, 8, 8, 1)), tmp_path / "run"
    np.savez(tmp_path / "a.npz", train=images)
    config = ranged_config(tmp_path / "a.npz", (-3, 9))
    ddpm_jax.train(config, workdir)
    loaded = ddpm_jax.load(workdir)
    assert (loaded.value_range, loaded.bins) == ((-3, 9), 0)
    drawn = ddpm_jax.sample(loaded, 0, 8, num_steps=4, output="data")
    assert drawn.dtype == np.float32
    again = pixels.to_data(ddpm_jax.sample(loaded, 0, 8, num_steps=4), (-3, 9), 0)
    assert_array_equal(drawn, again)

    stored = run_folder.config_for(None, workdir)
    stored.evaluate.metrics = ("nats_ode", "frechet_pixels")
    stored.evaluate.references = ("train",)
    stored.evaluate.num_samples = 16
    nats, distance = evaluate_lib.evaluate(stored, workdir)
    assert np.isfinite(nats["value"]) and nats["n"] == 16 and distance["reference_n"] == 32
    for metric in ("bpd", "ode_bpd"):
        stored.evaluate.metrics = (metric,)
        with pytest.raises(ValueError, match=f"has '{metric}', which counts .*'nats_ode'"):
            evaluate_lib.evaluate(stored, workdir)
    with pytest.raises(ValueError, match="bits/dim count the bins of whole numbers"):
        ddpm_jax.bits_per_dim(loaded, 0, images[:2])

    config.diffusion.loss = "vlb"
    with pytest.raises(ValueError, match="config.diffusion.loss='vlb' needs pixels of whole"):
        ddpm_jax.train(config, tmp_path / "other")


def test_whole_numbers_have_no_density(tmp_path, tiny):
    workdir = tmp_path / "run"
    config = ranged_config(bounds=())
    ddpm_jax.train(config, workdir, np.zeros((32, 8, 8, 1), np.uint8) + 255)
    stored = run_folder.config_for(None, workdir)
    stored.evaluate.metrics = ("nats_ode",)
    with pytest.raises(ValueError, match="has 'nats_ode', which is a density .*'ode_bpd'"):
        evaluate_lib.evaluate(stored, workdir)


def test_a_plan_without_the_data(tmp_path, tiny):
    config = ranged_config(**{"data.image_size": 8, "data.channels": 3})
    source = planning.stand_in(config, 4)
    assert source.value_range == BOUNDS and source.bins == 4096
    assert source.read(np.arange(4)).dtype == np.float32


class Optimal(nn.Module):
    """The best network for pixels N(M, S^2) on the scale of [-1, 1]."""

    def __call__(self, x, t, *, train):
        return gaussian.optimal(schedule_lib.linear())(x, t)


def test_the_density_of_the_ode_is_that_of_the_datas_own_values():
    """Pixels of N(M, S^2) stretched to 0..1000, whose density is 500 times as low."""
    schedule = schedule_lib.linear()
    model = Trained(
        {}, Optimal(), schedule, Parameterization(), (8, 8, 1), (0, 1000), 0
    )
    x = np.random.default_rng(1).normal(gaussian.M, gaussian.S, (8, 8, 8, 1)).clip(-0.99, 0.99)
    values = 500 * (x + 1)
    nats = bits_lib.by_ode(
        model, 0, data.from_array(values, value_range=(0, 1000)), "nats", num_steps=200
    )
    mean, deviation = 500 * (gaussian.M + 1), 500 * np.hypot(gaussian.S, 0.01)
    squares = np.square((values - mean) / deviation)
    density = -0.5 * (squares + np.log(2 * np.pi)) - np.log(deviation)
    # The ODE of this schedule is 8e-4 off at most (test_ode_likelihood.py) at 400 steps.
    assert_allclose(nats, density.mean(axis=(1, 2, 3)), rtol=0, atol=2e-3)
