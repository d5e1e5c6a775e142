"""Plans: FLOPs and memory against counts by hand, hours against arithmetic."""

import dataclasses
import sys
import types

import jax
import numpy as np
import pytest

from ddpm_jax import planning
from ddpm_jax import config as config_lib
from ddpm_jax.configs import digits
from ddpm_jax.data import loading
from ddpm_jax.runtime import memory, parallel
from ddpm_jax.training import loop, memory_check, sharding
from ddpm_jax.training import run as run_lib
from ddpm_jax.workdir import snapshots
from nonzero import TinyNet
from program import ROOT, SMALL, run
from shipped_configs import NAMES, get_config

BATCH = 16
CONV = 2 * 4 * (3 * 8 - 2) ** 2  # FLOPs of TinyNet's 3x3 convolutions, 1 to 4 channels and back
STEP = planning.Speed(0.5, 7, 3e9, 10 * 2**20)
CALL = planning.Speed(0.25, 9, 1.6e9, 2**20)


def small_config(**settings):
    config = digits.get_config()
    config.train.batch_size = BATCH
    config.diffusion.num_timesteps = 20
    config.diffusion.beta_end = 0.4
    config.update_from_flattened_dict(settings)
    return config


def tiny_run(**settings):
    """A run of TinyNet on digits without a workdir."""
    return dataclasses.replace(
        run_lib.prepare(small_config(**settings), None, None), model=TinyNet()
    )


@pytest.fixture(scope="module", autouse=True)
def briefly():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def timed():
    tiny = tiny_run()
    held, step = planning.time_steps(tiny, sharding.hold(run_lib.fresh_state(tiny), False))
    return tiny, parallel.replicate(sharding.whole(held)), step


def test_flops_of_a_step_are_those_of_its_convolutions(timed):
    # Forward two convolutions; backward two kernels but one input: x_t needs no gradient.
    _, _, step = timed
    convolutions, pixels = 5 * BATCH * CONV, 64 * BATCH
    # About 170 per pixel elsewhere: normal noise, the swish and its slope.
    assert convolutions < step.flops < convolutions + 200 * pixels


def test_flops_of_a_call_are_those_of_its_convolutions(timed):
    tiny, state, _ = timed
    call = planning.time_network(tiny, state.ema_params, "highest")
    assert 2 * BATCH * CONV < call.flops < 1.3 * 2 * BATCH * CONV
    pixels = 8 * 8 * (BATCH // 8)  # a device's share, in as bytes and out as float32
    params = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert params + 5 * pixels <= call.peak < params + 5 * pixels + 50 * 4 * pixels


def test_a_call_is_one_of_those_in_the_loop(timed, monkeypatch):
    tiny, state, _ = timed
    whole = planning.Speed(3.0, 5, 7.0, 11)
    monkeypatch.setattr(planning, "speed", lambda call, lowered, compiled: (call(), whole)[1])
    call = planning.time_network(tiny, state.ema_params, "default")
    assert call == planning.Speed(3.0 / 4, 20, 7.0, 11)


def test_a_network_that_learns_variances_runs_in_the_loop():
    tiny = dataclasses.replace(tiny_run(), model=TinyNet(out_channels=2))
    params = parallel.replicate(run_lib.fresh_state(tiny).params)
    assert planning.time_network(tiny, params, "default").flops > 3 * BATCH * CONV


def test_micro_batches_count_all_although_a_loop_holds_them(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # where they are a loop
    runs = [tiny_run(**{"train.accumulate": accumulate}) for accumulate in (1, 2)]
    whole, parts = (
        planning.time_steps(tiny, sharding.hold(run_lib.fresh_state(tiny), False))[1]
        for tiny in runs
    )
    assert parts.flops == whole.flops


def test_the_steps_are_real_ones(timed):
    tiny, state, step = timed
    assert int(state.step) == 1 + step.num_calls == 3
    fresh = run_lib.fresh_state(tiny)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), state.params, fresh.params)
    assert min(jax.tree.leaves(moved)) > 0
    state_bytes = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(fresh))
    # The state in place, since it is donated, and more for gradients and activations.
    assert state_bytes < step.peak < 2 * state_bytes + 10**6


def test_the_steps_of_devices_that_share_the_state_are_real_ones(monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST", 16)
    tiny = dataclasses.replace(
        tiny_run(**{"train.shard_update": True}), model=TinyNet(channels=8)
    )
    held, step = planning.time_steps(tiny, sharding.hold(run_lib.fresh_state(tiny), True))
    state, fresh = sharding.whole(held), run_lib.fresh_state(tiny)
    assert int(state.step) == 1 + step.num_calls == 3
    assert "gathered parameters" in memory_check.of_state(sharding.merged(*held))
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), state.params, fresh.params)
    assert min(jax.tree.leaves(moved)) > 0


def test_memory_of_a_state_by_what_it_holds():
    tiny = tiny_run(**{"train.extra_ema_decays": (0.9,), "train.ema_snapshot_every": 9})
    n = 4 * sum(leaf.size for leaf in jax.tree.leaves(run_lib.fresh_state(tiny).params))
    held = memory_check.of_state(run_lib.fresh_state(tiny))
    assert held.pop("optimizer") == 2 * n + 8  # two moments; the counts of Adam and the rate
    assert held == {"parameters": n, "averages": 4 * n, "gradients": n}


class Program:
    """Takes 100 s at first, then `seconds` each, and watches how many are in flight."""

    def __init__(self, seconds):
        self.now, self.seconds, self.calls = 0.0, seconds, 0
        self.waiting, self.most = 0, 0

    def __call__(self):
        self.now += self.seconds if self.calls else 100
        self.calls += 1
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return types.SimpleNamespace(block_until_ready=self.done)

    def done(self):
        self.waiting -= 1


LOWERED = types.SimpleNamespace(cost_analysis=lambda: {"flops": 5.0})
COMPILED = types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(
    argument_size_in_bytes=1000, output_size_in_bytes=200, alias_size_in_bytes=30,
    temp_size_in_bytes=4,
))


@pytest.mark.parametrize("seconds, num_calls", [(0.25, 40), (4.0, 3), (60.0, 2)])
def test_speed_is_measured_for_a_while_and_at_least_twice(monkeypatch, seconds, num_calls):
    monkeypatch.setattr(planning, "SECONDS", 10.0)
    program = Program(seconds)
    speed = planning.speed(program, LOWERED, COMPILED, clock=lambda: program.now)
    assert speed == planning.Speed(seconds, num_calls, 8 * 5.0, 1174)
    assert program.calls == num_calls + 1
    assert program.most == min(loop.IN_FLIGHT + 1, num_calls) and program.waiting == 0


@pytest.fixture
def measured(monkeypatch):
    """Fixed speeds: a network call takes twice as long at "highest"."""
    precise = dataclasses.replace(CALL, seconds=2 * CALL.seconds)
    monkeypatch.setattr(planning, "time_steps", lambda run, state: (state, STEP))
    monkeypatch.setattr(planning, "time_network", lambda run, params, precision: (
        precise if precision == "highest" else CALL))
    state = run_lib.fresh_state(tiny_run())
    monkeypatch.setattr(run_lib, "fresh_state", lambda run: state)


def work(plan):
    return {w.name: (w.num_images, w.num_calls, w.seconds) for w in plan.work}


def test_hours_are_images_times_calls(measured):
    config = small_config(**{"sample.num_steps": 5, "evaluate.num_samples": 320})
    plan = planning.plan(config)
    a_call = CALL.seconds / BATCH
    assert work(plan) == {
        "sample": (64, 5, 64 * 5 * a_call),
        "fid": (320, 5, 320 * 5 * a_call),
        "bpd": (300, 20, 300 * 20 * a_call),  # all of the chain, whatever sampling skips
    }
    assert (plan.num_params, plan.memory["parameters"]) == (85, 4 * 85)
    assert (plan.step, plan.call, plan.batch_size) == (STEP, CALL, BATCH)
    assert plan.data == "1,497 images of 8x8x1"


def test_a_self_conditioned_network_calls_twice_for_bits_and_the_plan_says_so(measured):
    plan = planning.plan(small_config(**{"model.self_condition": True}))
    assert [w.num_calls for w in plan.work] == [20, 20, 40]
    line = "self_condition one more network call in each training step, two for each term"
    assert line in planning.table(plan)
    assert "self_condition" not in planning.table(dataclasses.replace(plan, self_condition=False))


def test_guidance_calls_twice(measured):
    config = small_config(**{"data.labels": True, "sample.guidance": 2.0})
    assert [w.num_calls for w in planning.plan(config).work] == [40, 40, 20]


@pytest.mark.parametrize("settings, num_images", [
    ({"evaluate.num_images": 7}, 7),
    ({"evaluate.num_images": 5000}, 300),
    ({"evaluate.split": "train"}, 1497),
    ({"data.name": "cifar10", "data.dir": "/nowhere"}, 1000),
    ({"data.name": "cifar10", "data.dir": "/nowhere", "evaluate.num_images": 5000}, 5000),
])
def test_images_that_bits_are_planned_for(measured, settings, num_images):
    assert work(planning.plan(small_config(**settings)))["bpd"][0] == num_images


def test_measuring_is_timed_at_its_own_precision(measured, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    plan = planning.plan(small_config(**{"evaluate.num_samples": 64}))
    sample, fid, _ = (w.seconds for w in plan.work)
    assert fid == 2 * sample


def test_data_of_ones_own(measured):
    images = np.zeros((40, 8, 8, 1), np.uint8)
    assert planning.plan(small_config(), images).data == "40 images of 8x8x1"


def test_a_plan_is_a_table(measured):
    lines = planning.table(planning.plan(small_config())).splitlines()
    table = {line[:15].strip() or "more": line[15:] for line in lines}
    assert table["training step"] == "3 GFLOP for 16 images, as lowered"
    assert table["network call"] == "0.1 GFLOP per image, as lowered"
    assert table["speed"].startswith(
        "training 32.0 images/s, 0.5 s per step (7 timed), 0.006 TFLOP/s")
    assert table["more"] == "network 64.0 images/s (9 timed)"
    assert table["train"].startswith("12 min 30 s    1,500 steps")
    assert table["sample"] == "20 s           64 images, 20 calls each"
    assert "10.0 MiB at once" in lines[6] and "snapshots" not in table


def test_a_plan_has_the_disk_that_snapshots_take(measured):
    config = small_config(**{"train.ema_snapshot_every": 200})  # TinyNet has 85 numbers.
    plan = planning.plan(config)
    assert (plan.num_snapshots, snapshots.num_bytes(plan.num_params)) == (7, 2 * 2 * 85)
    assert "7 of 0.0 MiB on the disk, in float16: 0.0 MiB in all" in planning.table(plan)


@pytest.mark.parametrize("name", [
    name if name in ("digits", "cifar10") else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
])
def test_random_pixels_stand_in_for_the_data_of_every_config(name, monkeypatch):
    monkeypatch.setattr(memory, "device_total", lambda: 2**40)
    config = get_config(name)
    config.train.batch_size = 8 * BATCH
    source = run_lib.prepare(config, None, planning.stand_in(config)).source
    height, width, channels = config_lib.image_shape(config)
    channels = 1 if config.data.condition == "noisy" else channels
    assert source.image_shape == (height, width, channels)
    assert source.num_classes == (10 if config.data.labels else 0)
    assert bool(source.condition_channels) == bool(config.data.condition)
    images = source.examples(np.arange(3))["images"]
    assert images.shape == (3, height, width, channels) and images.std() > 50


def test_stored_conditions_and_classes_are_made_up_as_many_as_asked():
    config = small_config(**{
        "data.condition": "stored", "data.condition_channels": 2, "data.labels": True,
        "data.num_classes": 7, "data.vectors": ("a", "b"),
    })
    source = planning.stand_in(config)
    model_kwargs = source.model_kwargs(np.arange(500))
    assert model_kwargs["condition"].shape == (500, 8, 8, 2)
    assert model_kwargs["vectors"].shape == (500, 3)
    assert source.num_classes == 7 and set(model_kwargs["labels"]) == set(range(7))


@pytest.mark.parametrize("setting", ["image_size", "channels"])
def test_an_unknown_shape_is_asked_for(setting):
    config = small_config(**{"data.name": "cifar10", "data.dir": "/nowhere"})
    config.data[setting] = 0
    with pytest.raises(ValueError, match=f"config.data.{setting}=0 .* cifar10 is not .*; write --"):
        planning.plan(config)


@pytest.mark.parametrize("settings, says", [
    ({"train.batch_size": 17}, "does not divide over 8"),
    ({"model.num_groups": 3}, "config.model.num_groups=3"),
    ({"sample.sampler": "dpm_solver"}, "needs num_steps"),
    ({"evaluate.metrics": ("fidd",)}, "fidd"),
])
def test_mistakes_are_refused_before_anything_is_compiled(monkeypatch, settings, says):
    monkeypatch.setattr(run_lib, "fresh_state", None)
    with pytest.raises(ValueError, match=says):
        planning.plan(small_config(**settings))


def test_whether_data_are_there(tmp_path):
    assert loading.is_there("digits", "")
    for name in ("image_folder", "npz"):
        assert loading.is_there(name, str(tmp_path))
        assert not loading.is_there(name, str(tmp_path / "none"))
    assert not loading.is_there("mnist", str(tmp_path))
    folder = tmp_path / "mnist" / "1.2.3"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    assert loading.is_there("mnist", str(tmp_path))
    with pytest.raises(ValueError, match="mnist:1.2.3"):
        loading.is_there("mnist:9.9.9", str(tmp_path))


def test_the_command_line_plans_without_a_workdir_and_leaves_nothing(tmp_path):
    flags = [f"--config.{k}={v}" for k, v in SMALL.items()]
    arguments = [sys.executable, str(ROOT / "main.py"), "--mode=plan"]
    output = run([*arguments, f"--config={ROOT}/configs/digits.py", *flags], folder=tmp_path)
    for line in ("1,497 images of 8x8x1", "2 cpu (cpu)", "1,500 steps", "64 images, 20 calls"):
        assert line in output
    assert not list(tmp_path.iterdir())
    assert "--config is missing" in run(arguments, fails=True, folder=tmp_path)
