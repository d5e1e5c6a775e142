"""Many images through one compiled `pmap`: rounds of equal size, padding and a progress bar.

Every process runs its share of each round, and then has all of it. On a CPU a round goes in parts,
one a core: the operations of a network, of a small one above all, cannot keep several busy.
"""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np
import tqdm

from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import memory, parallel

_REPORTS = 100  # Progress reports a chain.
_FEW = 8  # Images a core from which on there is one to fill each part up, an eighth of it at most.
_reached: Callable[[int], None] | None = None  # What running chains tell the steps that they did.


def batch_size(
    trained: Trained, n: int, wanted: int | None = None, *, most: int = 256
) -> int:
    """Images a round on all devices together, in rounds of equal size.

    Args:
        trained: what the chain runs.
        n: how many images there are.
        wanted: how many a round; None is what fits, at most `most` a device.
    """
    num_devices, cores = jax.device_count(), _cores()
    fits = wanted if wanted else num_devices * min(most, _fits(trained))
    rounds = -(-n // max(fits, 1))
    each = -(-n // (rounds * num_devices))
    if each >= _FEW * cores:
        each = -(-each // cores) * cores
    return each * num_devices


def _fits(trained: Trained) -> int:
    """A careful guess at how many images one device takes at a time, at least 1."""
    height, width, _ = trained.image_shape
    # The skip stack and the working set come to about 16 maps of the first level.
    per_image = 16 * 4 * height * width * getattr(trained.model, "channels", 128)
    return max(1, int(memory.device_budget() // per_image))


def run(
    chain: Callable[..., Any],
    fixed: tuple,
    inputs: Callable[[np.ndarray], tuple],
    n: int,
    batch: int,
    *,
    num_steps: int,
    progress: bool,
    done: int = 0,
) -> Iterator[Any]:
    """What `chain` makes of images done..n-1, a round at a time, as arrays [<= batch, ...].

    Args:
        chain: compiled by `pmap`: (*fixed, *what `inputs` gave, as [d, b, ...]) -> arrays
            [d, b, ...].
        fixed: its first arguments, the same in every round.
        inputs: indices [b] -> a tuple of arrays [b, ...], for this process's share of a round or
            a part of it; the last round repeats image n - 1.
        n: how many images.
        batch: images a round, divisible by the number of devices of all processes.
        num_steps: steps of the chain, for the bar.
        progress: show a bar, in the first process; the chain moves it through `on_step`.
        done: images to leave out.
    """
    global _reached
    starts = range(done, n, batch)
    total, num_parts = len(starts) * num_steps, _num_parts(batch)
    shown = progress and parallel.is_first()
    workers = [futures.ThreadPoolExecutor(1) for _ in range(num_parts)]
    try:
        with tqdm.tqdm(total=total, unit="step", disable=not shown) as bar:
            for start in starts:
                places = np.minimum(np.arange(start, start + batch), n - 1)
                parts = [
                    parallel.shard(inputs(part))
                    for part in np.split(parallel.share(places), num_parts)
                ]
                # Whoever takes our rounds may have run others meanwhile.
                _reached = functools.partial(_move_bar, bar, bar.n)
                outputs = jax.device_get(_outputs(chain, fixed, parts, workers))
                jax.effects_barrier()
                outputs = jax.tree.map(
                    lambda *parts: np.concatenate(
                        [np.asarray(x).reshape(-1, *x.shape[2:]) for x in parts]), *outputs,
                )
                if not _reports():
                    bar.update(num_steps)
                yield jax.tree.map(lambda x: x[: n - start], parallel.gather(outputs))
    finally:
        for worker in workers:
            worker.shutdown(wait=False)  # An interrupt is not to wait for the end of a chain.


def _outputs(chain, fixed, parts, workers):
    """[what `chain` makes of each part], of all at the same time."""
    if len(parts) == 1:
        return [chain(*fixed, *parts[0])]
    # What one thread starts runs in turn, and a thread that calls what another compiles waits
    # until that has also run it.
    program = chain.lower(*fixed, *parts[0]).compile()
    running = [
        worker.submit(_run, program, (*fixed, *part)) for worker, part in zip(workers, parts)
    ]
    return [part.result() for part in running]


def _run(program, args):
    outputs = program(*args)
    jax.effects_barrier()  # Waits for the reports of what its own thread has started.
    return outputs


def _num_parts(batch):
    """How many equal parts a round has in this process: at most one a core."""
    each = batch // jax.device_count()
    return max(k for k in range(1, _cores() + 1) if each % k == 0)


def _cores():
    """Those of the only device, where it is a CPU; else 1, for parts gain nothing there."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 1
    affinity = getattr(os, "sched_getaffinity", None)  # Not on every system.
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def on_step(num_steps: int, progress: bool) -> Callable[[jax.Array], None] | None:
    """What a scan over t calls to move the bar, from one device, about 100 times a chain."""
    if not (progress and _reports()):
        return None
    every = max(1, num_steps // _REPORTS)

    def tell(t):
        if _reached is not None:
            _reached(num_steps - int(t))

    def report(t):
        speaks = (t % every == 0) & (jax.lax.axis_index(parallel.AXIS) == 0)
        jax.lax.cond(speaks, lambda: jax.debug.callback(tell, t), lambda: None)

    return report


def _reports() -> bool:
    """Whether chains report; where one process has a bar and others none, they must not differ."""
    return jax.process_count() == 1


def _move_bar(bar, before, num_steps):
    """To where the part of a round stands that is ahead of the others."""
    with bar.get_lock():
        bar.update(max(0, before + num_steps - bar.n))
