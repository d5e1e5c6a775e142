"""`plan(config)`: what a run would take, in memory and hours, from a few real steps.

Nothing is written to disk. FLOPs are counted in the lowered program, before optimisation
(multiplying and adding are two); memory is that of the compiled one.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ddpm_jax import config as config_lib
from ddpm_jax.data import batching, image_pairs, loading, pixels
from ddpm_jax.data import source as source_lib
from ddpm_jax.data import value_range as range_lib
from ddpm_jax.diffusion import randomness
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.inference import conditions
from ddpm_jax.network import torso
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.runtime import compilation, memory, parallel
from ddpm_jax.runtime.progress import format_duration
from ddpm_jax.training import loop, memory_check, sharding
from ddpm_jax.training import run as run_lib
from ddpm_jax.training.run import Run
from ddpm_jax.training.sharding import Held
from ddpm_jax.training.step import pmap_train_step
from ddpm_jax.workdir import snapshots

SECONDS = 1.0  # How long to measure a speed, after a first call that does not count.
FEWEST = 2  # Calls to measure at least.
_CHAIN = 4  # Network calls per loop, as samplers make them.
SELF_CONDITION = "one more network call in each training step, two for each term of bits/dim"
STAND_IN = 1000  # Images to train on, and held out, where there are no data.


@dataclasses.dataclass(frozen=True)
class Speed:
    """The speed of a compiled program.

    Attributes:
        seconds: per call.
        num_calls: calls that were timed.
        flops: floating-point operations per call, over all devices.
        peak: bytes that one device holds during a call, arguments included.
    """

    seconds: float
    num_calls: int
    flops: float
    peak: int


@dataclasses.dataclass(frozen=True)
class Work:
    """A use of the trained model.

    Attributes:
        name: as in `--mode` and `config.evaluate.metrics`.
        num_images: images in all.
        num_calls: network calls per image.
        seconds: for all of them.
    """

    name: str
    num_images: int
    num_calls: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        data: a description of the images of the measured steps.
        num_steps, batch_size: of training.
        num_params: numbers in the network.
        num_snapshots: of averages, in the workdir (see `snapshots`).
        self_condition: whether the network is told its last x_0, which the figures include.
        memory: bytes on each device, by what they hold.
        peak: a description of the peak of memory after the measured steps.
        step: a training step.
        call: a network call for a batch.
        work: sampling and evaluation.
    """

    data: str
    num_steps: int
    batch_size: int
    num_params: int
    num_snapshots: int
    self_condition: bool
    memory: dict[str, int]
    peak: str
    step: Speed
    call: Speed
    work: tuple[Work, ...]


def plan(config: ml_collections.ConfigDict, data: Any = None) -> Plan:
    """Checks a config, compiles its training step and its network, and times some calls of each.

    The step is that of `train` on its own batches, or on random pixels where the data are not
    on this machine. Sampling and evaluation are network calls, timed at the training batch; what
    Inception takes is not counted.

    Args:
        config: as in `configs/cifar10.py`.
        data: as of `train`.

    Raises:
        ValueError: a setting is wrong, or neither it nor the data give the shape of the images.
    """
    config = evaluate_lib.check_evaluation(config)
    there = data is not None or loading.is_there(config.data.name, config.data.dir)
    if not there:
        data = stand_in(config)
        config = config.copy_and_resolve_references()
        config.data.holdout = 0  # Of these it could leave none.
    run = run_lib.prepare(config, None, data)
    jobs = count_calls(config, run.source, run.held_out, there)
    held = sharding.hold(run_lib.fresh_state(run), run.step_settings.shard_update)
    num_bytes = memory_check.of_state(sharding.merged(*held))
    num_params = trained_lib.num_params(sharding.shapes(sharding.merged(*held).params))
    held, step = time_steps(run, held)
    params = parallel.replicate(sharding.whole(held, "ema_params").ema_params)
    call = time_network(run, params, "default")
    precision = config.evaluate.matmul_precision
    # A CPU knows one precision only.
    same = jax.default_backend() == "cpu" or precision == "default"
    precise_call = call if same else time_network(run, params, precision)
    batch_size, shape = run.settings.batch_size, "x".join(map(str, run.source.image_shape))

    every = run.settings.ema_snapshot_every
    num_snapshots = run.settings.num_steps // every if every else 0

    def work(name, speed):
        num_images, num_calls = jobs[name]
        seconds = num_images * num_calls * speed.seconds / batch_size
        return Work(name, num_images, num_calls, seconds)

    return Plan(
        data=f"{len(run.source):,} images of {shape}" if there else
        f"{config.data.name} is not on this machine: random pixels of {shape} in its place",
        num_steps=run.settings.num_steps, batch_size=batch_size, num_params=num_params,
        num_snapshots=num_snapshots, self_condition=run.step_settings.self_condition,
        memory=num_bytes, peak=memory.peak(), step=step, call=call,
        work=(work("sample", call), work("fid", precise_call), work("bpd", precise_call)),
    )


def count_calls(
    config: ml_collections.ConfigDict, source: source_lib.Source,
    held_out: source_lib.Source | None, there: bool,
) -> dict[str, tuple[int, int]]:
    """(images, network calls per image) of sampling, of FID and of bits/dim, by name.

    Args:
        config: how to sample and what to evaluate.
        source, held_out: of `run.open_data`.
        there: whether these are the data, and not a stand-in.

    Raises:
        ValueError: the sampler does not suit the schedule.
    """
    sampler, evaluate = config_lib.sampling_settings(config), config.evaluate
    guided = 1 if sampler.guidance == 1 else 2  # With and without the label.
    schedule = config_lib.schedule(config)
    num_calls = guided * sampler.num_calls(schedule)
    split = source if evaluate.split == "train" else held_out
    num_images = evaluate.num_images or STAND_IN
    if there and split is not None:
        num_images = min(evaluate.num_images or len(split), len(split))
    return {
        "sample": (config.sample.num_images, num_calls),
        "fid": (evaluate.num_samples, num_calls),
        # A self-conditioned network guesses first.
        "bpd": (num_images, schedule.num_timesteps * (2 if config.model.self_condition else 1)),
    }


def stand_in(
    config: ml_collections.ConfigDict, num_images: int = STAND_IN
) -> source_lib.Source:
    """Random pixels, with labels and conditions, of the shapes that the config gives.

    Raises:
        ValueError: it does not give the shape of the images.
    """
    shape, settings = config_lib.image_shape(config), config.data
    if shape is None:
        name = "channels" if settings.image_size else "image_size"
        raise UserError(
            f"does not say the shape of the images, and {settings.name} is not on this machine",
            field=f"config.data.{name}", value=settings[name],
            instead={f"config.data.{name}": 3 if name == "channels" else 32},
        )
    random = np.random.default_rng(config.seed)

    def pixels(channels):
        return random.integers(0, 256, (num_images, *shape[:2], channels), np.uint8)

    source = source_lib.from_array(pixels(shape[-1]))
    if value_range := config_lib.value_range(config):
        bins = settings.range_bins or range_lib.num_bins(int, value_range)
        source = dataclasses.replace(
            source.scaled((0, 255), np.uint8), value_range=value_range, bins=bins
        )
    if settings.labels:
        num_classes = settings.num_classes or 10
        source = source.with_labels(random.integers(0, num_classes, num_images), num_classes)
    if settings.vectors:
        size = len(settings.vector_mean) or len(settings.vectors)
        source = source.with_vectors({"vectors": random.normal(size=(num_images, size))})
    if settings.condition == "low_resolution":
        return image_pairs.low_resolution(source, settings.factor)
    if settings.condition == "noisy":
        return image_pairs.noisy(source, seed=config.seed, training=True)
    if settings.condition:
        beside = pixels(settings.condition_channels or shape[-1])
        return source.with_condition(lambda indices: beside[indices], beside.shape[-1])
    return source


def time_steps(run: Run, held: Held) -> tuple[Held, Speed]:
    """The state after some training steps, and their speed.

    Args:
        run: of `run.prepare`.
        held: the state on the devices; donated.
    """
    settings, rng = run.settings, run.rng(randomness.STEP)
    with contextlib.closing(batching.device_batches(
        run.source, seed=run.seed, batch_size=settings.batch_size,
        on_device=settings.on_device,
    )) as batches, jax.default_matmul_precision(settings.matmul_precision):
        batch, accumulate = next(batches), run.step_settings.accumulate
        counted = lowered_step(run, 1, held, batch)  # A loop's body would be counted once.
        lowered = counted if accumulate == 1 else lowered_step(run, accumulate, held, batch)
        compiled = compilation.compiled(lowered)

        def step():
            nonlocal held
            *held, metrics = compiled(*held, next(batches), rng)
            return metrics["loss"]

        measured = speed(step, counted, compiled)
        return held, measured


def lowered_step(run: Run, accumulate: int, held: Held, batch: Any) -> Any:
    """The training step in so many micro-batches, lowered for a state and a batch."""
    step_fn = pmap_train_step(
        schedule=run.schedule, learning_rate=run.learning_rate,
        settings=dataclasses.replace(run.step_settings, accumulate=accumulate),
    )
    return compilation.lowered(step_fn, *held, batch, run.rng(randomness.STEP))


def time_network(run: Run, params: Any, precision: str) -> Speed:
    """The speed of a network call for a training batch, inside a scan as in sampling.

    Args:
        run: of `run.prepare`.
        params: replicated.
        precision: of matrix products, as of `jax.default_matmul_precision`.
    """
    def chain(params, batch):
        params = torso.cast(run.model, params)
        images, model_kwargs = conditions.split(batch)
        t = jnp.zeros(len(images), jnp.int32)

        def call(x, _):
            output = run.model.apply({"params": params}, x, t, train=False, **model_kwargs)
            return output[..., : x.shape[-1]], None  # Less the variances where it has them.

        return jax.lax.scan(call, pixels.as_float(images), length=_CHAIN)[0]

    share = run.settings.batch_size // jax.process_count()
    batch = parallel.shard(run.source.examples(np.arange(share) % len(run.source)))
    with jax.default_matmul_precision(precision):
        lowered = parallel.pmap(chain, in_axes=(None, 0)).lower(params, batch)
        compiled = lowered.compile()
        chains = speed(lambda: compiled(params, batch), lowered, compiled)
    # The FLOPs are those of one call already: a loop's body counts once.
    return dataclasses.replace(
        chains, seconds=chains.seconds / _CHAIN, num_calls=chains.num_calls * _CHAIN
    )


def speed(
    call: Callable[[], Any],
    lowered: Any,
    compiled: Any,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Calls a program for a while, with as many in flight as `train` has.

    Args:
        call: runs it once.
        lowered: of `pmap`, where its FLOPs are counted.
        compiled: where its memory is.
        clock: seconds from any origin.
    """
    jax.block_until_ready(call())
    in_flight, began, num_calls = collections.deque(), clock(), 0
    while num_calls < FEWEST or clock() - began < SECONDS:
        in_flight.append(call())
        num_calls += 1
        if len(in_flight) > loop.IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
    jax.block_until_ready(list(in_flight))
    seconds = (clock() - began) / num_calls
    return Speed(
        seconds, num_calls, jax.device_count() * lowered.cost_analysis()["flops"],
        compilation.memory_of(compiled),
    )


def table(plan: Plan) -> str:
    """The plan as a table to print."""
    step, call, batch = plan.step, plan.call, plan.batch_size
    device, each = jax.devices()[0], snapshots.num_bytes(plan.num_params)

    def mebi(num_bytes):
        return f"{num_bytes / 2**20:,.1f} MiB"

    def flops(number):
        return f"{number / 1e9:,.4g} GFLOP"

    rows = [
        ("data", plan.data),
        ("devices", f"{jax.device_count()} {device.device_kind} ({device.platform})"),
        ("parameters", f"{plan.num_params:,}"),
        *([("self_condition", SELF_CONDITION)] if plan.self_condition else []),
        ("training step", f"{flops(step.flops)} for {batch} images, as lowered"),
        ("network call", f"{flops(call.flops / batch)} per image, as lowered"),
        ("memory", ", ".join(f"{k} {mebi(v)}" for k, v in plan.memory.items())),
        ("", f"{mebi(step.peak)} at once in the compiled step, on each device; "
             f"seen {plan.peak}"),
        *([("snapshots", f"{plan.num_snapshots:,} of {mebi(each)} on the disk, in float16: "
            f"{mebi(plan.num_snapshots * each)} in all")] if plan.num_snapshots else ()),
        ("speed", f"training {batch / step.seconds:,.1f} images/s, {step.seconds:.3g} s per step "
                  f"({step.num_calls} timed), {step.flops / step.seconds / 1e12:.3g} TFLOP/s"),
        ("", f"network {batch / call.seconds:,.1f} images/s ({call.num_calls} timed)"),
        ("train", f"{format_duration(plan.num_steps * step.seconds):14} "
                  f"{plan.num_steps:,} steps; grids add a tenth at most"),
        *(
            (work.name, f"{format_duration(work.seconds):14} {work.num_images:,} images, "
                        f"{work.num_calls:,} calls each")
            for work in plan.work
        ),
    ]
    return "\n".join(f"{name:15}{text}" for name, text in rows)
