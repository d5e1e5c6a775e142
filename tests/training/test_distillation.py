"""`--mode=distill`: its phases (`phases.py`), its objective in the step, and what it refuses."""

import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ddpm_jax
from ddpm_jax import config as config_lib
from ddpm_jax.diffusion import randomness
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.errors import UserError
from ddpm_jax.inference import sample_command
from ddpm_jax.runtime import interruption
from ddpm_jax.samplers import halving
from ddpm_jax.training import distillation, loop, phases
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import step as step_lib
from ddpm_jax.workdir import checkpoints, run_folder
from nonzero import SHAPE, TinyNet, nonzero_params
from tiny_run import tiny_config
from training_step import BATCH, small_config, state_of

IMAGES = np.random.default_rng(0).integers(0, 256, (32, *SHAPE), np.uint8)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The workdir of a run that predicts eps, with a TinyNet."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        folder = tmp_path_factory.mktemp("teacher") / "run"
        ddpm_jax.train(tiny_config(), folder, IMAGES)
    return folder


def use_tiny(patch, **fields):
    from ddpm_jax import validation

    patch.setattr(config_lib, "model", lambda config, channels: TinyNet(**fields))
    patch.setattr(validation, "check_images", lambda config, shape: None)


def config_for(teacher, **settings):
    return tiny_config(**{
        "distill.teacher": str(teacher), "distill.start_steps": 8, "distill.end_steps": 2,
    } | settings)


def saved(folder):
    return max(checkpoints.steps(folder), default=0)


def test_each_phase_is_a_run_of_its_own_taught_by_the_last(tiny, teacher, tmp_path):
    assert phases.distill(config_for(teacher), tmp_path, IMAGES) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["steps_2", "steps_4"]
    for n, taught_by in ((4, teacher), (2, tmp_path / "steps_4")):
        folder = tmp_path / f"steps_{n}"
        stored = json.loads((folder / "config.json").read_text())
        assert stored["distill"]["teacher"] == stored["train"]["warm_start"] == str(taught_by)
        assert stored["diffusion"]["mean"] == "v" and stored["sample"]["num_steps"] == n
        assert saved(folder) == 6 and list((folder / "samples").glob("*.png"))
        rows = ddpm_jax.read_metrics(folder)
        assert all(np.isfinite(row["loss"]) for row in rows) and len(rows) == 6
    trained = ddpm_jax.load(tmp_path / "steps_2")
    expected = ddpm_jax.sample(trained, 0, 4, sampler="ddim", num_steps=2, grid="trailing")
    config = run_folder.config_for(None, tmp_path / "steps_2")
    config.sample.num_images = 4
    *_, npz = sample_command.run(config, tmp_path / "steps_2")
    assert "_ddim_2_" in npz
    near = np.abs(np.load(npz)["arr_0"] / 127.5 - 1 - expected).max()
    assert near < 1 / 127.5  # Rounded to uint8.


def test_it_goes_on_where_it_was_interrupted(tiny, teacher, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    phases.distill(config_for(teacher), whole, IMAGES)
    complete, prepared = loop.complete, []

    def note(run):
        prepared.append(run.workdir.name)
        if prepared == ["steps_4"]:
            return complete(run)
        steps = dataclasses.replace(run.settings, num_steps=3)
        complete(dataclasses.replace(run, settings=steps))
        raise interruption.Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "complete", note)
        with pytest.raises(interruption.Interrupted):
            phases.distill(config_for(teacher), parts, IMAGES)
    assert prepared == ["steps_4", "steps_2"] and saved(parts / "steps_2") == 3
    prepared.clear()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "complete", lambda run: prepared.append(run.workdir.name) or
                      complete(run))
        phases.distill(config_for(teacher), parts, IMAGES)
    assert prepared == ["steps_2"]  # What is complete is left alone.
    for n in (4, 2):
        jax.tree.map(
            assert_array_equal, *(ddpm_jax.load(folder / f"steps_{n}").params
                                  for folder in (whole, parts)))


def student_and_teacher(mean="v", **train):
    """(config, state, teacher, student's network) of a class-conditional student of five steps."""
    config = small_config(**train)
    config.data.labels, config.data.num_classes, config.diffusion.mean = True, 3, mean
    model, schedule = TinyNet(num_classes=3), config_lib.schedule(config)
    trained = ddpm_jax.Trained(
        jax.tree.map(lambda x: 1.3 * x, nonzero_params(model)), model, schedule,
        Parameterization("eps"), SHAPE,
    )
    taught = distillation.Teacher(trained, halving.settings(5), halving.schedule(schedule, 5))
    return config, state_of(config, model), taught, model


@pytest.mark.parametrize("mean", halving.MEANS)
def test_the_step_minimizes_the_loss_of_halving(mean):
    """By plain steps of the teacher in float64, with x_0 kept in [-1, 1]."""
    config, state, taught, model = student_and_teacher(mean)
    batch = {"images": IMAGES[:BATCH], "labels": np.arange(BATCH) % 3}
    rng, places = jax.random.key(7), jnp.arange(BATCH)
    settings = run_lib.step_settings(config)
    total, (loss, t, _) = step_lib.loss_and_parts(
        state, rng, state.params, batch, places, taught.trained.params,
        schedule=taught.schedule, settings=settings, teacher=taught,
    )
    rng_images, _ = randomness.step_keys(rng, state.step)
    x_0, drawn, _, eps, told = step_lib.draw(
        batch, rng=rng_images, places=places, num_timesteps=5, t_sampling="uniform",
        loss_history={}, random_flip=False, augment=0.0, label_dropout=settings.label_dropout,
        null_label=3,
    )
    assert_array_equal(t, drawn)
    assert set(np.asarray(t)) == set(range(5)) and 3 in told["labels"]  # Some labels are hidden.
    alpha_bar = np.append(1.0, np.cumprod(1 - config_lib.schedule(config).beta))
    signal, sigma = (np.sqrt(x)[:, None, None, None] for x in (alpha_bar, 1 - alpha_bar))
    here = 4 * np.asarray(t) + 4

    def output(params, x, at):
        return np.float64(model.apply(
            {"params": params}, jnp.float32(x), at - 1, train=False, **told))

    def ddim(x, here, before):
        said = np.clip(
            (x - sigma[here] * output(taught.trained.params, x, here)) / signal[here], -1, 1)
        return signal[before] * said + sigma[before] / sigma[here] * (x - signal[here] * said)

    x_t = signal[here] * np.float64(x_0) + sigma[here] * np.float64(eps)
    end = ddim(ddim(x_t, here, here - 2), here - 2, here - 4)
    ratio = sigma[here - 4] / sigma[here]
    wanted = (end - ratio * x_t) / (signal[here - 4] - ratio * signal[here])
    said = output(state.params, x_t, here)
    said = said if mean == "x_0" else signal[here] * x_t - sigma[here] * said
    snr = (signal[here] / sigma[here]).ravel() ** 2
    expected = np.maximum(snr, 1) * np.square(wanted - said).mean((1, 2, 3))
    assert_allclose(loss, expected, rtol=2e-4)  # Float32, through three calls of a network.
    assert_allclose(total, expected.mean(), rtol=2e-4)


@pytest.mark.parametrize("train", [{}, {"shard_update": True}, {"accumulate": 2}])
def test_all_devices_make_one_step_of_it(train):
    config, state, taught, _ = student_and_teacher(**train)
    from ddpm_jax.runtime import parallel
    from ddpm_jax.training import sharding

    settings = run_lib.step_settings(config)
    step = step_lib.pmap_train_step(
        schedule=taught.schedule, learning_rate=config_lib.learning_rate(config),
        settings=settings, teacher=taught,
    )
    batch = {"images": IMAGES[:BATCH], "labels": np.int32(np.arange(BATCH) % 3)}
    total, _ = step_lib.loss_and_parts(
        state, jax.random.key(7), state.params, batch, jnp.arange(BATCH), taught.trained.params,
        schedule=taught.schedule, settings=settings, teacher=taught,
    )
    held = sharding.hold(state, settings.shard_update)  # The step takes it.
    *_, metrics = step(
        *held, parallel.shard(batch), jax.random.key(7), parallel.replicate(taught.trained.params))
    assert_allclose(float(metrics["loss"]), float(total), rtol=1e-4)


def test_the_devices_are_chosen_before_jax_starts(teacher, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(run_lib, "start_devices", lambda config: called.append("devices"))
    monkeypatch.setattr(run_folder, "stored_config", lambda folder: called.append("stored"))
    monkeypatch.setattr(phases.parallel, "from_first", lambda produce: called.append("jax") or 6)
    phases.distill(config_for(teacher), tmp_path, IMAGES)
    assert called == ["devices", "stored", "jax", "jax"]


def test_it_learns(tiny, teacher, tmp_path):
    phases.distill(config_for(teacher, **{
        "distill.end_steps": 4, "train.num_steps": 60, "train.learning_rate": 3e-3,
        "train.warmup_steps": 1, "train.log_every": 20, "train.sample_images": 1,
    }), tmp_path, IMAGES)
    first, *_, last = (row["loss"] for row in ddpm_jax.read_metrics(tmp_path / "steps_4"))
    assert last < 0.9 * first  # 85 parameters cannot do much more.


@pytest.mark.parametrize("start, end, says", [
    (64, 1, "start_steps=64 is more than the 20 steps of the schedule; write .*start_steps=16"),
    (12, 5, "start_steps=12 cannot be halved down to config.distill.end_steps=5; .*start_steps=10"),
    (8, 8, "cannot be halved down to config.distill.end_steps=8; .*start_steps=16"),
    (4, 8, "cannot be halved"),
])
def test_steps_that_cannot_be_halved(teacher, tmp_path, start, end, says):
    config = config_for(teacher, **{"distill.start_steps": start, "distill.end_steps": end})
    with pytest.raises(UserError, match=says):
        phases.distill(config, tmp_path / "new", IMAGES)
    assert not (tmp_path / "new").exists()


def test_the_halvings():
    assert phases.phases(config_for("", **{
        "distill.start_steps": 16, "distill.end_steps": 1})) == [8, 4, 2, 1]
    assert phases.phases(config_for("", **{
        "distill.start_steps": 12, "distill.end_steps": 3})) == [6, 3]


@pytest.mark.parametrize("settings, says", [
    ({"distill.teacher": ""}, "config.distill.teacher='' is missing: a workdir"),
    ({"distill.teacher": "nowhere"}, "nowhere"),
    ({"diffusion.beta_end": 0.3}, "config.distill.teacher='.*' has another noise schedule"),
])
def test_a_wrong_teacher_is_one_line(tiny, teacher, tmp_path, settings, says):
    with pytest.raises(UserError, match=says) as error:
        phases.distill(config_for(teacher, **settings), tmp_path / "new", IMAGES)
    assert "\n" not in str(error.value)


def test_a_teacher_of_another_network(teacher, tmp_path, monkeypatch):
    use_tiny(monkeypatch, channels=8)
    with pytest.raises(UserError, match="does not suit config.distill.teacher=|teacher='.*fit at"):
        phases.distill(config_for(teacher), tmp_path, IMAGES)


@pytest.mark.parametrize("fields, says", [
    (dict(self_condition=True), "has self-conditioning, which"),
    (dict(out_channels=2), "has a learned variance"),
])
def test_a_teacher_that_cannot_teach(tmp_path, monkeypatch, fields, says):
    use_tiny(monkeypatch, **fields)
    learned = {"diffusion.variance": "learned_range", "diffusion.loss": "hybrid"}
    config = tiny_config(**(learned if "out_channels" in fields else {}), **{
        "model.self_condition": "self_condition" in fields, "train.num_steps": 1})
    ddpm_jax.train(config, tmp_path / "teacher", IMAGES)
    config.update_from_flattened_dict({
        "distill.teacher": str(tmp_path / "teacher"), "distill.start_steps": 8})
    with pytest.raises(UserError, match=says):
        phases.distill(config, tmp_path / "new", IMAGES)


def test_the_workdir_of_the_teacher_is_not_for_students(teacher):
    with pytest.raises(UserError, match="is the workdir too; name another --workdir"):
        phases.distill(config_for(teacher), teacher, IMAGES)


def test_students_of_another_teacher_are_left_alone(tiny, teacher, tmp_path, monkeypatch):
    phases.distill(config_for(teacher, **{"distill.end_steps": 4}), tmp_path / "new", IMAGES)
    shutil.copytree(teacher, tmp_path / "other")
    with pytest.raises(UserError, match=f"other' is not the teacher that .*steps_4 began with; "
                                        f"write --config.distill.teacher={teacher}, or name"):
        phases.distill(config_for(tmp_path / "other"), tmp_path / "new", IMAGES)
    monkeypatch.chdir(teacher.parent)  # The same folder by another path.
    phases.distill(config_for("run", **{"distill.end_steps": 4}), tmp_path / "new", IMAGES)


def test_a_teacher_without_the_mode(tiny, teacher, tmp_path):
    with pytest.raises(UserError, match="is for --mode=distill; add that"):
        ddpm_jax.train(config_for(teacher), tmp_path / "new", IMAGES)
    shutil.rmtree(tmp_path / "new", ignore_errors=True)


def test_debugging_finds_the_layer_of_a_student(teacher, tmp_path, monkeypatch):
    from ddpm_jax.training import nan_search

    config, state, taught, _ = student_and_teacher()
    state = state.replace(params={**state.params, "conv_in": jax.tree.map(
        lambda x: x * np.nan, state.params["conv_in"])})
    batch = {"images": IMAGES[None, :BATCH], "labels": np.zeros((1, BATCH), np.int32)}
    says = nan_search.not_finite(
        state, batch, jax.random.key(0), schedule=taught.schedule,
        settings=run_lib.step_settings(config), teacher=taught,
    )
    assert "conv_in" in says
