"""Many images through one compiled `pmap`: rounds of equal size, padding and a progress bar.

Every process runs its share of each round, and then has all of it.
"""

import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from ddpm_jax import parallel
from ddpm_jax.state import Trained

_REPORTS = 100  # Progress reports a chain.
_bar: tqdm.tqdm | None = None  # The bar that a running chain reports to.


def batch_size(
    trained: Trained, n: int, wanted: int | None = None, *, most: int = 256
) -> int:
    """Images a round on all devices together, in rounds of equal size.

    Args:
        trained: what the chain runs.
        n: how many images there are.
        wanted: how many a round; None is what fits, at most `most` a device.
    """
    num_devices = jax.device_count()
    fits = wanted if wanted else num_devices * min(most, _fits(trained))
    rounds = -(-n // max(fits, 1))
    return -(-n // (rounds * num_devices)) * num_devices


def _fits(trained: Trained) -> int:
    """A careful guess at how many images one device takes at a time, at least 1."""
    height, width, _ = trained.image_shape
    # The skip stack and the working set come to about 16 maps of the first level.
    per_image = 16 * 4 * height * width * getattr(trained.model, "channels", 128)
    return max(1, int(device_memory() // 2 // per_image))


def device_memory() -> int:
    """Bytes of the first device, 4 GiB where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 4 * 2**30)


def host_memory() -> int:
    """Bytes that this process may still take, where Linux tells; else those of the machine."""
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        return int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def run(
    chain: Callable[[Any], Any],
    inputs: Callable[[np.ndarray], Any],
    n: int,
    batch: int,
    *,
    num_steps: int,
    progress: bool,
    done: int = 0,
) -> Iterator[Any]:
    """What `chain` makes of images done..n-1, a round at a time, as arrays [<= batch, ...].

    Args:
        chain: compiled by `pmap`: what `inputs` gave, as [d, b, ...] -> arrays [d, b, ...].
        inputs: indices [b] -> arrays [b, ...], for this process's share of a round; the last
            round repeats image n - 1.
        n: how many images.
        batch: images a round, divisible by the number of devices of all processes.
        num_steps: steps of the chain, for the bar.
        progress: show a bar, in the first process; the chain moves it through `on_step`.
        done: images to leave out.
    """
    global _bar
    starts = range(done, n, batch)
    total = len(starts) * num_steps
    shown = progress and parallel.is_first()
    with tqdm.tqdm(total=total, unit="step", disable=not shown) as bar:
        for start in starts:
            places = np.minimum(np.arange(start, start + batch), n - 1)
            _bar = bar  # Whoever takes our rounds may have run others meanwhile.
            outputs = jax.device_get(chain(parallel.shard(inputs(parallel.share(places)))))
            jax.effects_barrier()
            outputs = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), outputs)
            if not _reports():
                bar.update(num_steps)
            yield jax.tree.map(lambda x: x[: n - start], parallel.gather(outputs))


def on_step(num_steps: int, progress: bool) -> Callable[[jax.Array], None] | None:
    """What a scan over t calls to move the bar, from one device, about 100 times a chain."""
    if not (progress and _reports()):
        return None
    every = max(1, num_steps // _REPORTS)
    move = functools.partial(_move_bar, every, num_steps)

    def report(t):
        speaks = (t % every == 0) & (jax.lax.axis_index(parallel.AXIS) == 0)
        jax.lax.cond(speaks, lambda: jax.debug.callback(move, t), lambda: None)

    return report


def _reports() -> bool:
    """Whether chains report; where one process has a bar and others none, they must not differ."""
    return jax.process_count() == 1


def _move_bar(every, num_steps, t):
    if _bar is not None:
        _bar.update(min(every, num_steps - int(t)))
