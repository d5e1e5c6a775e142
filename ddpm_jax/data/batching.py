"""Training batches on the devices: from images that live there, or sent step by step.

Images that live on an accelerator cost its host nothing but the numbers of each batch's images.
"""

import contextlib
import math
from collections.abc import Iterator

import jax
import numpy as np

from ddpm_jax.data import loading
from ddpm_jax.data.source import Source
from ddpm_jax.runtime import parallel
from ddpm_jax.training import memory_check

_SHARE = 16  # The images may take one in so many bytes of a device: less than estimates are off by.


def fits(source: Source) -> bool:
    """Whether these images are in this host's memory, and may live in that of each accelerator.

    A CPU's own memory is where they are already.
    """
    channels = source.image_shape[-1] + source.condition_channels
    num_bytes = len(source) * math.prod((*source.image_shape[:2], channels))
    return (
        jax.default_backend() != "cpu" and source.in_memory
        and _SHARE * num_bytes <= memory_check.on_each_device()
    )


def batches(
    source: Source, *, seed: int, batch_size: int, on_device: bool, start: int = 0
) -> Iterator[dict[str, jax.Array | np.ndarray]]:
    """This process's share of batches `start`, `start + 1`, ..., split over its devices.

    The images are those of `loading.batches`, wherever they live.

    Args:
        source: the images.
        seed, batch_size, start: as of `loading.batches`.
        on_device: copy all images to every device now, where they fit (see `fits`).

    Returns:
        An iterator, to be closed, of "images", uint8 [local_devices, b, h, w, c], and where the
        source has them "labels" and "condition".

    Raises:
        ValueError: as `loading.batches`, with the first batch.
    """
    order = dict(
        seed=seed, batch_size=batch_size, start=start,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )
    if on_device and fits(source):
        examples = parallel.replicate(source.examples(np.arange(len(source))))
        take = jax.pmap(
            lambda examples, indices: jax.tree.map(lambda x: x[indices], examples),
            axis_name=parallel.AXIS, in_axes=(None, 0),
        )
        numbers = Source(len(source), (), np.int32, in_memory=True)  # Each image is its number.
        with contextlib.closing(loading.batches(numbers, **order)) as shares:
            for share in shares:
                yield take(examples, parallel.shard(share["images"]))
    else:
        with contextlib.closing(loading.batches(source, **order)) as shares:
            for share in shares:
                yield parallel.shard(share)
