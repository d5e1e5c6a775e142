"""Forecasts: the programs of lowering.py against those that run here, and arithmetic.

The CPU's devices stand in for a target: their programs can also be run and measured.
"""

import dataclasses
import re
import sys

import jax
import numpy as np
import pytest

from ddpm_jax import forecast as forecast_lib
from ddpm_jax import lowering, planning
from ddpm_jax.configs import celebahq256, digits
from ddpm_jax.errors import UserError
from ddpm_jax.inference import batched_map, bits_per_dim
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.runtime import compiled, parallel
from ddpm_jax.runtime.compiled import Block, Operation, Program
from ddpm_jax.runtime.targets import Target
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import sharding
from program import ROOT, SMALL, run

GIB = 2**30


def target(memory=GIB, **fields):
    return Target("cpu", tuple(jax.devices()), memory, **fields)


def small_config(**settings):
    config = digits.get_config()
    config.update_from_flattened_dict({
        "model.channels": 8, "model.channel_multipliers": (1,), "model.attention_resolutions": (),
        "model.num_res_blocks": 1, "model.num_groups": 0, "diffusion.num_timesteps": 20,
        "diffusion.beta_end": 0.4, "train.batch_size": 16, "evaluate.batch_size": 16,
    } | settings)
    return config


@pytest.fixture(scope="module")
def parts():
    return lowering.programs(small_config(), target())


def same_program(lowered, other):
    """Whether two lowered programs are the same but for the places in the sources."""
    return lowered.as_text() == other.as_text()


@pytest.mark.parametrize("shard_update", [False, True])
def test_the_step_is_that_of_training(shard_update):
    config = small_config(**{"train.shard_update": shard_update})
    prepared = run_lib.prepare(config, None, None)
    held = sharding.hold(run_lib.fresh_state(prepared), shard_update)
    batch = parallel.shard(prepared.source.examples(np.arange(16)))
    parts = lowering.programs(config, target())
    ours, real = parts.train(16), planning.lowered_step(prepared, 1, held, batch)
    assert ours.cost_analysis()["flops"] == real.cost_analysis()["flops"]
    if not shard_update:  # Rows that lie on their devices are lowered in other words.
        assert same_program(ours, real)


class Called(Exception):
    """What was about to run."""


@pytest.fixture
def lowered(monkeypatch):
    """Calls a function and returns the program that it wanted to run for its first batch."""
    def run(chain, fixed, inputs, n, batch, **_):
        raise Called(chain.lower(*fixed, *parallel.shard(inputs(np.arange(batch)))))

    def of(function, *args, **kwargs):
        monkeypatch.setattr(batched_map, "run", run)
        with pytest.raises(Called) as called:
            function(*args, **kwargs)
        return called.value.args[0]

    return of


@pytest.fixture
def trained(parts):
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), parts.trained.params)
    return parts.trained.replace(params=params)


def test_the_chain_is_that_of_sampling(parts, trained, lowered):
    chain = lowered(sample_lib.sample, trained, 0, 16, settings=parts.sampler)
    assert same_program(parts.sample(16), chain)


def test_the_bound_is_that_of_bits_per_dim(parts, trained, lowered):
    images = np.zeros((16, 8, 8, 1), np.uint8)
    with jax.default_matmul_precision("highest"):
        bound = lowered(bits_per_dim.bits_per_dim, trained, 0, images)
    assert same_program(parts.bits_per_dim(16), bound)


def test_nothing_is_allocated_for_a_large_network():
    before = sum(array.nbytes for array in jax.live_arrays())
    config = celebahq256.get_config()
    config.train.batch_size = 8 * len(jax.devices())
    config.data.dir = "/nowhere"
    parts = lowering.programs(config, target())
    assert sum(leaf.size for leaf in jax.tree.leaves(parts.state.params)) == 113_673_219
    assert parts.source.image_shape == (256, 256, 3) and len(parts.source) == 1
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 2**20


def test_a_batch_that_does_not_divide_over_the_target_is_refused():
    with pytest.raises(UserError, match="train.batch_size=20 does not divide over 8 devices"):
        lowering.programs(small_config(**{"train.batch_size": 20}), target())


@pytest.mark.parametrize("per_image, state, room, first, largest", [
    (10, 100, 1000, 8, 88), (10, 100, 100 + 8 * 10, 8, 8), (10, 100, 1000, 160, 88),
    (10, 100, 185, 1600, 8), (10, 100, 110, 800, None), (1, 0, 10**9, 8, 512),
])
@pytest.mark.parametrize("tells", [True, False])
def test_the_largest_batch_that_fits(per_image, state, room, first, largest, tells):
    """Within a tenth, from few programs, also where the compiler does not say what it lacks."""
    tried = []

    def need(batch):
        assert batch % 8 == 0 and batch not in tried
        tried.append(batch)
        needed = state + per_image * batch
        return needed if needed <= room or tells else float("inf")

    needs = forecast_lib.largest_batch(need, first, state, room, 8)
    fits = max((batch for batch in needs if needs[batch] <= room), default=None)
    assert list(needs) == tried and len(tried) <= 5
    if tells or first <= 160:  # Within a tenth of what the aim, 0.95 of the room, allows.
        assert fits == largest or largest is not None and largest / 1.2 - 8 < fits <= largest


def test_memory_that_grows_by_less_than_the_first_guess():
    """What a device holds besides the state need not grow with the batch."""
    needs = forecast_lib.largest_batch(lambda batch: 500 + 10 * batch, 8, 100, 1000, 8)
    assert list(needs) == [8, 16, 40, 48]  # Where 50 would, were it a multiple of 8.


def program_of(*, cycles=0, num_bytes=0, times=1):
    body = Block((Operation("fusion", "jit(f)/conv1/add", cycles, num_bytes),), ())
    return Program(Block((), (), ((times, body),)), 3)


def test_the_floor_of_a_time():
    tpu, gpu = target(clock=2e9), target(bandwidth=1e12)
    assert forecast_lib.seconds(program_of(cycles=10**6, times=1000), tpu) == 0.5
    assert forecast_lib.seconds(program_of(num_bytes=10**11, times=10), gpu) == 1.0


@pytest.fixture(scope="module")
def made():
    lines = []
    config = small_config(**{"evaluate.num_images": 100, "evaluate.num_samples": 1000})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast_lib, "MOST", 4)
        forecast = forecast_lib.forecast(
            config, target(bandwidth=1e12), say=lines.append
        )
    return forecast, lines


def test_a_forecast_has_the_memory_of_the_compiled_step(made, parts):
    forecast, lines = made
    assert forecast.need == compiled.program(parts.train(16)).memory
    batch, num_bytes = forecast.largest
    assert forecast.need <= num_bytes <= GIB and batch == 16 * 4
    assert sum(line.startswith("compiling") for line in lines) == 2 + 2
    assert lines[0] == "compiling the training step for batch 16 on cpu"


def test_hours_are_steps_and_calls(made):
    forecast, _ = made
    train, sample, fid, bpd = forecast.work
    assert train.seconds == 1500 * forecast.step.seconds and train.num_images == 1500 * 16
    assert sample.seconds == 64 * forecast.chain.seconds / 64 and sample.num_calls == 20
    assert (bpd.num_images, bpd.num_calls) == (100, 20)
    np.testing.assert_allclose(bpd.seconds, 100 / 16 * forecast.bound.seconds)
    # As many calls per image as bits/dim makes, for ten times the images.
    np.testing.assert_allclose(fid.seconds, 10 * bpd.seconds)


def test_a_forecast_as_a_table(made):
    forecast, _ = made
    table = forecast_lib.table(forecast)
    assert table.startswith("target         cpu: 8 cpu, 1.00 GiB each\n")
    assert "of 1.00 GiB on each device, it fits; the largest batch that does is about 64" in table
    assert re.search(r"exchange: .*all-reduce of .*each device sends", table)
    assert re.search(r"\nbpd +\S.* 100 images, 20 calls each$", table)
    assert max(map(len, table.splitlines())) < 200


def test_a_step_that_does_not_fit(made):
    forecast, _ = made
    smaller = dataclasses.replace(
        forecast, step=None, need=float("inf"), largest=(8, GIB // 2), work=forecast.work[1:]
    )
    table = forecast_lib.table(smaller)
    assert "more than the 1.00 GiB on each device, it does not fit; the largest batch that does " \
        "is about 8 (0.50 GiB)" in table
    none = forecast_lib.table(dataclasses.replace(smaller, need=3 * GIB, largest=None))
    assert "3.00 GiB of 1.00 GiB on each device, it does not fit, and no smaller batch" in none


def test_programs_that_no_device_can_hold_are_one_line():
    with pytest.raises(UserError, match="^--target='cpu' has 0.00 GiB on each device, and the"):
        forecast_lib.forecast(small_config(), target(memory=1000))


def test_the_command_line_refuses_a_target_that_it_cannot_have():
    arguments = ["main.py", f"--config={ROOT}/configs/digits.py", "--target=v5e:8"]
    overrides = [f"--config.{name}={value}" for name, value in SMALL.items()]
    program = [sys.executable, *arguments, *overrides]
    assert "is for --mode=plan" in run([*program, f"--workdir={ROOT}/runs/none"], fails=True)
    [line] = run([*program, "--mode=plan"], fails=True).splitlines()
    assert line.startswith("error: --target='v5e:8' must have the shape of the slice")
