"""Many images through one compiled `pmap`: batches of equal size, padding and a progress bar.

Each process runs its share of every batch and gets the results of all. On a CPU a batch is split
into parts, one per core, because the operations of a network, of a small one above all, cannot keep
several cores busy.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np
import tqdm

from ddpm_jax import errors
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import devices, memory, parallel
from ddpm_jax.runtime import progress as progress_lib
from ddpm_jax.runtime.targets import Target

_REPORTS = 100  # Progress reports per chain.
_DIFFERENTIATED = 12  # Times the memory of a call whose gradient is taken, at least.
_FEW = 8  # From this many images per core, pad the parts: by an eighth at most.


class RunningBar:
    """The progress bar that running chains move, set in a context.

    A compiled chain is cached and runs again for later callers, so it cannot hold a bar of its
    own. Its callbacks come from threads of the runtime.
    """

    def __init__(self):
        self._moved = None  # (bar, where it stood when the chains began).

    @contextlib.contextmanager
    def moves(self, bar: tqdm.tqdm | progress_lib.Lines) -> Iterator[None]:
        """Lets the chains that run inside move `bar`, from where it stands."""
        outer, self._moved = self._moved, (bar, bar.n)
        try:
            yield
        finally:
            self._moved = outer

    def reached(self, num_steps: int) -> None:
        """Moves the bar to this step of the chains, unless a part that is ahead has done so."""
        if self._moved is None:  # A chain that was interrupted may still report.
            return
        bar, before = self._moved
        with bar.get_lock():
            bar.update(max(0, before + num_steps - bar.n))


RUNNING_BAR = RunningBar()


def batch_size(
    trained: Trained, n: int, wanted: int | None = None, *, most: int = 256,
    target: Target | None = None, differentiated: bool = False,
) -> int:
    """Images per batch on all devices together, so that batches are equal.

    Args:
        trained: what the chain runs.
        n: number of images.
        wanted: images per batch; None or 0 is what fits, at most `most` per device.
        target: the devices, where they are not those of this process.
        differentiated: each call of the network is differentiated, which keeps what is inside it.

    Raises:
        UserError: `wanted` is no whole number, or negative.
    """
    if wanted is not None:
        wanted = errors.whole_number("batch_size", wanted, low=0)
    if target is None:
        devices.check()
        num_devices, num_cores, budget = jax.device_count(), cores(), memory.device_budget()
    else:
        num_devices, num_cores, budget = len(target.devices), 1, target.memory // 2
    budget //= _DIFFERENTIATED if differentiated else 1
    fits = wanted if wanted else num_devices * min(most, images_that_fit(trained, budget))
    num_batches = -(-n // max(fits, 1))
    each = -(-n // (num_batches * num_devices))
    if each >= _FEW * num_cores:
        each = -(-each // num_cores) * num_cores
    return each * num_devices


def images_that_fit(trained: Trained, budget: int) -> int:
    """A careful guess at how many images fit into so many bytes of a device, at least 1."""
    height, width, _ = trained.image_shape
    # The skip stack and the working set come to about 16 maps of the first level.
    pixels = height * width // getattr(trained.model, "block_size", 1) ** 2  # Of that level.
    per_image = 16 * 4 * pixels * getattr(trained.model, "channels", 128)
    return max(1, int(budget // max(per_image, 1)))


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
    """Yields what `chain` makes of images done..n-1, batch by batch, as arrays [<= batch, ...].

    Args:
        chain: compiled by `pmap`: (*fixed, *what `inputs` returned, as [d, b, ...]) -> arrays
            [d, b, ...].
        fixed: its first arguments, the same for every batch.
        inputs: indices [b] -> a tuple of arrays [b, ...], for this process's share of a batch or
            a part of it; the last batch repeats image n - 1.
        n: number of images.
        batch: images per batch, divisible by the number of devices of all processes.
        num_steps: steps of the chain, for the bar.
        progress: show how far it is, in the first process; the chain says so through `on_step`.
        done: images to leave out.

    Raises:
        UserError: a device has not enough memory for a batch.
    """
    starts, shown = range(done, n, batch), progress and parallel.is_first()
    fewer = batch // 2 // jax.device_count() * jax.device_count()
    smaller = {"batch_size": fewer} if fewer else {}
    workers = [futures.ThreadPoolExecutor(1) for _ in range(num_parts(batch))]
    try:
        with progress_lib.bar(len(starts) * num_steps, "step", shown=shown) as bar:
            for start in starts:
                places = np.minimum(np.arange(start, start + batch), n - 1)
                parts = np.split(parallel.share(places), len(workers))
                with RUNNING_BAR.moves(bar), memory.explained("batch_size", batch, smaller):
                    parts = [parallel.shard(inputs(part)) for part in parts]
                    outputs = jax.device_get(_outputs(chain, fixed, parts, workers))
                    jax.effects_barrier()
                if not _reports():
                    bar.update(num_steps)
                parallel.check_all_well()
                outputs = parallel.gather(_joined(outputs))
                yield jax.tree.map(lambda x: x[: n - start], outputs)
    finally:
        for worker in workers:
            worker.shutdown(wait=False)  # An interrupt does not wait for the end of a chain.


def _outputs(chain, fixed, parts, workers):
    """[what `chain` makes of each part], computed at the same time."""
    if len(parts) == 1:
        return [chain(*fixed, *parts[0])]
    # Programs that one thread starts run in turn, and a thread that calls what another thread is
    # compiling waits until that has also run. So compile once, then start from one thread each.
    program = chain.lower(*fixed, *parts[0]).compile()
    running = [
        worker.submit(_run, program, (*fixed, *part)) for worker, part in zip(workers, parts)
    ]
    return [part.result() for part in running]


def _run(program, args):
    outputs = program(*args)
    jax.effects_barrier()  # Waits for the reports of the programs that this thread started.
    return outputs


def _joined(outputs):
    """The parts [d, b, ...] of a batch as one, [n, ...]."""
    return jax.tree.map(
        lambda *parts: np.concatenate([np.asarray(x).reshape(-1, *x.shape[2:]) for x in parts]),
        *outputs,
    )


def num_parts(batch: int) -> int:
    """How many equal parts this process splits a batch into: at most one per core."""
    each = batch // jax.device_count()
    return max(k for k in range(1, cores() + 1) if each % k == 0)


def cores() -> int:
    """The cores of the only device if it is a CPU; else 1, because parts gain nothing there."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 1
    return devices.num_cores()


def on_step(num_steps: int, progress: bool) -> Callable[[jax.Array], None] | None:
    """A function that a scan over t calls to move the bar, or None.

    One device reports, about 100 times per chain.
    """
    if not (progress and _reports()):
        return None
    every = max(1, num_steps // _REPORTS)

    def report(t):
        speaks = (t % every == 0) & (jax.lax.axis_index(parallel.AXIS) == 0)
        jax.lax.cond(
            speaks,
            lambda: jax.debug.callback(lambda t: RUNNING_BAR.reached(num_steps - int(t)), t),
            lambda: None,
        )

    return report


def _reports() -> bool:
    """Whether chains report. With several processes, one with a bar would run another program."""
    return jax.process_count() == 1
