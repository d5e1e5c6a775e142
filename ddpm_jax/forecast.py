"""`forecast(config, target)`: what a run would take on accelerators that are not here.

Nothing runs and nothing is allocated: XLA compiles the programs of `train`, `sample` and
`bits_per_dim` for the target, from shapes alone. Times are a floor: XLA's estimate of a TPU's
cycles takes the matrix units at their peak and leaves out what the devices exchange.
"""

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from ddpm_jax import lowering, planning
from ddpm_jax.errors import UserError
from ddpm_jax.inference import batched_map, bits_per_dim
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.planning import Work
from ddpm_jax.runtime import compiled, memory
from ddpm_jax.runtime.compiled import Program
from ddpm_jax.runtime.progress import format_duration
from ddpm_jax.runtime.targets import Target
from ddpm_jax.training import memory_check, sharding

_TRIES = 4  # Programs to compile in search of the largest batch.
_NEAR = 1.1  # A batch that many times as large is no better.
_FULL = 0.95  # Of the memory to aim at: where it is full, XLA tries for long what to recompute.
_FAR = 8  # Times a batch, as far as one alone tells of another.
MOST = 64  # Times the batch of the config, from where on a larger one is of no interest.
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program compiled for a batch.

    Attributes:
        batch_size: on all devices together.
        program: what came of it.
        seconds: at least, for a call.
    """

    batch_size: int
    program: Program
    seconds: float


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a run would take on a target.

    Attributes:
        target: the devices.
        data: a description of the images.
        num_params: numbers in the network.
        self_condition: whether the network is told its last x_0, which the figures include.
        batch_size: of training.
        need: bytes of a training step on each device; what the compiler says where they are too
            many, and infinite where it does not.
        step: the training step; None where it does not fit.
        largest: the largest batch that was seen to fit, and its bytes; None where none was.
        chain: of the sampler.
        bound: of bits/dim.
        work: training, sampling and evaluation.
    """

    target: Target
    data: str
    num_params: int
    self_condition: bool
    batch_size: int
    need: float
    step: Compiled | None
    largest: tuple[int, float] | None
    chain: Compiled
    bound: Compiled
    work: tuple[Work, ...]


def forecast(
    config: ml_collections.ConfigDict, target: Target, data: Any = None,
    say: Callable[[str], None] = lambda line: None,
) -> Forecast:
    """Compiles the programs of a run for a target, and reads what they would take there.

    It compiles three to seven programs, each of which takes a minute or several.

    Args:
        config, target, data: as of `lowering.programs`.
        say: gets a line before each program.

    Raises:
        ValueError: as `lowering.programs` does, or a device has not enough memory for an image.
    """
    parts = lowering.programs(config, target, data)
    train, evaluate = parts.config.train, parts.config.evaluate
    num_devices = len(target.devices)
    compile_ = functools.partial(_compile, target=target, say=say)
    steps: dict[int, Compiled] = {}

    def need(batch_size):
        """The bytes of a training step, kept in `steps` if it fits."""
        step, num_bytes = compile_("training step", parts.train, batch_size)
        if step is not None:
            steps[batch_size] = step
        return num_bytes

    held = memory_check.of_state(sharding.merged(*parts.held))
    del held["gradients"]  # Gone before memory is at its peak.
    needs = largest_batch(
        need, train.batch_size, sum(held.values()), target.memory, num_devices * train.accumulate
    )
    batch = functools.partial(batched_map.batch_size, parts.trained, target=target)
    counts = planning.count_calls(parts.config, parts.source, parts.held_out, parts.there)
    chain = _fitting(
        "chain of the sampler", parts.sample, compile_,
        batch(counts["sample"][0], parts.config.sample.batch_size), target,
    )
    bound = _fitting(
        "bound of bits/dim", parts.bits_per_dim, compile_,
        batch(counts["bpd"][0], evaluate.batch_size, most=bits_per_dim.MOST_PER_DEVICE),
        target,
    )
    step = steps.get(train.batch_size)
    size = "x".join(map(str, parts.source.image_shape))
    return Forecast(
        target=target, data=f"images of {size}", batch_size=train.batch_size,
        num_params=trained_lib.num_params(parts.state.params),
        self_condition=parts.config.model.self_condition, need=needs[train.batch_size],
        step=step, largest=max(((b, needs[b]) for b in steps), default=None),
        chain=chain, bound=bound, work=_work(parts, counts, step, chain, bound),
    )


def _compile(what, lower, batch_size, *, target, say):
    """(a program, its bytes on each device); (None, those that it asked for) if it does not fit."""
    say(f"compiling the {what} for batch {batch_size:,} on {target.name}")
    began = time.perf_counter()
    try:
        program = compiled.program(lower(batch_size))
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        asked = re.search(r"(?:Used |\()([\d.]+)G\b", str(error))
        say("  it does not fit")
        return None, float(asked[1]) * _GIB if asked else math.inf
    say(f"  {program.memory / _GIB:.2f} GiB on each device "
        f"({time.perf_counter() - began:.0f} s to compile)")
    if program.memory > target.memory:
        return None, program.memory
    return Compiled(batch_size, program, seconds(program, target)), program.memory


def _fitting(what, lower, compile_, batch_size, target):
    """The program for this batch, or for the first half of it, of that half and so on that fits."""
    unit = len(target.devices)
    while True:
        program, num_bytes = compile_(what, lower, batch_size)
        if program is not None:
            return program
        if batch_size <= unit:
            raise UserError(
                f"has {_gib(target.memory)} on each device, and the {what} needs "
                f"{_gib(num_bytes)} for one image.", field="--target", value=target.name,
            )
        batch_size = max(1, batch_size // 2 // unit) * unit


def largest_batch(
    need: Callable[[int], float], first: int, held: float, room: float, unit: int
) -> dict[int, float]:
    """The bytes that some batches need, with nearly the largest that fits among them.

    Memory grows along a line, which two batches give; the batch where it meets `room` is tried.

    Args:
        need: batch -> bytes, more than `room` or infinite if it does not fit.
        first: the batch to begin with.
        held: bytes that any batch needs.
        room: bytes that there are.
        unit: batches are multiples of it.
    """
    if held > room:
        return {first: math.inf}
    aim = max(_FULL * room, held)
    needs = {first: need(first)}
    for _ in range(_TRIES):
        fits = sorted(batch for batch in needs if needs[batch] <= room)
        above = min((batch for batch in needs if needs[batch] > room), default=math.inf)
        guess = _guess(needs, fits, above, held, aim)
        if fits and guess < _NEAR * fits[-1]:
            break
        least = fits[-1] + unit if fits else unit
        guess = min(max(guess // unit * unit, least), MOST * first)
        if guess in needs or guess > above:
            break
        needs[guess] = need(guess)
    return needs


def _guess(needs, fits, above, held, aim):
    """Where a line through what is known meets `aim`, below the batch known not to fit."""
    if not fits:  # The compiler may say how much it needs.
        share = (aim - held) / max(needs[above] - held, 1)
        return int(above * (min(0.9 * share, 0.5) if math.isfinite(needs[above]) else 0.5))
    if len(fits) > 1:
        low, high = fits[-2:]
        slope = (needs[high] - needs[low]) / (high - low)
        guess = high + (aim - needs[high]) / max(slope, 1)
    else:  # From what it holds besides the state, which may include what does not grow.
        guess = fits[0] * min((aim - held) / max(needs[fits[0]] - held, 1), _FAR)
    return int(guess) if guess < above else (fits[-1] + above) // 2


def seconds(program: Program, target: Target) -> float:
    """A floor of the time of a call.

    Of a GPU the time to move what the kernels read and write.
    """
    if target.clock:
        return program.block.cycles / target.clock
    return program.block.num_bytes / target.bandwidth


def _work(parts, counts, step, chain, bound):
    """The work of each mode. A network call of FID takes what one of bits/dim takes."""
    config = parts.config

    def each(program):
        return program.seconds / program.batch_size

    train = config.train
    works = [] if step is None else [
        Work("train", train.num_steps * train.batch_size, 1, train.num_steps * step.seconds)
    ]
    images, calls = counts["sample"]
    works.append(Work("sample", images, calls, images * each(chain)))
    images, calls = counts["fid"]
    works.append(Work("fid", images, calls, images * calls * each(bound) / counts["bpd"][1]))
    images, calls = counts["bpd"]
    works.append(Work("bpd", images, calls, images * each(bound)))
    return tuple(works)


def table(forecast: Forecast) -> str:
    """The forecast as a table to print."""
    target, step = forecast.target, forecast.step
    rows = [
        ("target", str(target)),
        ("network", f"{forecast.num_params:,} parameters, {forecast.data}"),
        *([("", planning.SELF_CONDITION)] if forecast.self_condition else []),
        ("training step", f"batch {forecast.batch_size:,}: {_memory(forecast)}"),
    ]
    if step is not None:
        rows += [("", line) for line in _costs(step.program.block, target, "at least")]
    for name, made in (("sampling", forecast.chain), ("bits/dim", forecast.bound)):
        times, body = made.program.block.longest_loop or (1, made.program.block)
        memory = f"batch {made.batch_size:,}: {_gib(made.program.memory)} on each device"
        rows.append((name, memory))
        rows += [("", line) for line in _costs(body, target, f"for each of {times:,} steps")]
    rows += [
        (work.name, f"{format_duration(work.seconds):14} {_amount(work)}") for work in forecast.work
    ]
    return "\n".join(f"{name:15}{text}".rstrip() for name, text in rows)


def _memory(forecast):
    """Whether the training step fits, and what would."""
    need, room = forecast.need, _gib(forecast.target.memory)
    asked = f"{_gib(need)} of" if math.isfinite(need) else "more than the"
    fits = "it fits" if forecast.step is not None else "it does not fit"
    line = f"{asked} {room} on each device, {fits}"
    if forecast.largest is None:
        return f"{line}, and no smaller batch was found that does"
    batch, num_bytes = forecast.largest
    if batch == forecast.batch_size:
        return f"{line}, and no larger batch does"
    if batch == MOST * forecast.batch_size:
        return f"{line}; so does batch {batch:,} ({_gib(num_bytes)}), and maybe more"
    return f"{line}; the largest batch that does is about {batch:,} ({_gib(num_bytes)})"


def _costs(block, target, when):
    """Lines on what a block costs, of what kinds, and on what the devices exchange in it."""
    if target.clock:
        time = block.cycles / target.clock
        yield (f"{block.cycles / 1e6:,.2f} M cycles {when}, {1e3 * time:,.2f} ms at "
               f"{target.clock / 1e9:g} GHz")
    else:
        time = block.num_bytes / target.bandwidth
        yield (f"{len(block.operations):,} kernels move {block.num_bytes / 1e9:,.2f} GB {when}, "
               f"{1e3 * time:,.2f} ms at {target.bandwidth / 1e12:g} TB/s")
    kinds = block.by(lambda operation: operation.kind)
    yield ", ".join(f"{kind} {share:.0%}" for kind, share in kinds.items() if share >= 0.005)
    if block.collectives:
        sizes = {}
        for each in block.collectives:
            sizes.setdefault(each.opcode, []).append(_size(each.num_bytes))
        given = "; ".join(f"{opcode} of {', '.join(of)}" for opcode, of in sizes.items())
        yield f"exchange: {given}; each device sends {_size(block.sent)}"


def _amount(work):
    if work.name == "train":
        return f"{work.num_images:,} images"
    return f"{work.num_images:,} images, {work.num_calls:,} calls each"


def _size(num_bytes):
    return f"{num_bytes / 2**20:,.1f} MiB" if num_bytes >= 1e5 else f"{num_bytes:,} bytes"


def _gib(num_bytes):
    return f"{num_bytes / _GIB:,.2f} GiB"
