"""Training batches: each process gets its share, on its devices or sent to them.

Batch k is a function of (seed, k) alone: a run resumes at any batch without reading those before
it, and any number of processes together see the same batches. If the images are kept on an
accelerator, its host only sends the indices of each batch.
"""

import contextlib
import math
from collections.abc import Iterator

import jax
import numpy as np

from ddpm_jax import errors
from ddpm_jax.data import image_folder
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError
from ddpm_jax.runtime import memory, parallel

_SHARE = 16  # Images take at most 1/16 of a device, less than the error of memory estimates.


def fits_on_device(source: Source) -> bool:
    """Whether each accelerator can keep all images of a source that is in the host's memory.

    False on a CPU, whose memory they are in already.
    """
    channels = source.image_shape[-1] + source.condition_channels
    each = 4 if source.value_range else 1  # Bytes: float32 or uint8.
    pixels = math.prod((*source.image_shape[:2], channels)) * each
    num_bytes = len(source) * (pixels + 4 * source.vector_size)
    return (
        jax.default_backend() != "cpu" and source.in_memory
        and _SHARE * num_bytes <= memory.device_total()
    )


def device_batches(
    source: Source, *, seed: int, batch_size: int, on_device: bool, start: int = 0
) -> Iterator[dict[str, jax.Array | np.ndarray]]:
    """This process's share of batches `start`, `start + 1`, ..., split over its devices.

    The images are those of `batches`, wherever they are kept.

    Args:
        source: the images.
        seed, batch_size, start: as in `batches`.
        on_device: copy all images to every device now, if they fit (see `fits_on_device`).

    Returns:
        An iterator, to be closed, of "images" [local_devices, b, h, w, c] as `source.read` gives
        them, and, if the source has them, "labels", "vectors" and "condition".

    Raises:
        UserError: as `batches` does, with the first batch.
    """
    order = dict(
        seed=seed, batch_size=batch_size, start=start,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )
    if on_device and fits_on_device(source):
        examples = parallel.replicate(source.examples(np.arange(len(source))))
        take = parallel.pmap(
            lambda examples, indices: jax.tree.map(lambda x: x[indices], examples),
            in_axes=(None, 0),
        )
        indices = Source(len(source), (), np.int32, in_memory=True)  # Image i is the number i.
        with contextlib.closing(batches(indices, **order)) as shares:
            for share in shares:
                yield take(examples, parallel.shard(share["images"]))
    else:
        with contextlib.closing(batches(source, **order)) as shares:
            for share in shares:
                yield parallel.shard(share)


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of batches `start`, `start + 1`, ... without end.

    Every epoch visits each image once, in its own order; a batch may span two epochs. The
    shares of all processes, concatenated in order, are the batch that a single process would
    see. A thread reads ahead until `.close()` is called.

    Args:
        source: the images.
        seed: not negative; with the number of a batch it decides its images.
        batch_size: images per batch over all processes; may exceed `len(source)`.
        start: number of the first batch, from 0; earlier ones are not read.
        process_index: 0..process_count-1.
        process_count: divides `batch_size`.

    Returns:
        An iterator of `source.examples`: "images" [batch_size // process_count, h, w, c],
        and, if the source has them, "labels", "vectors" and "condition".

    Raises:
        UserError: `seed` is negative, or `process_count` does not divide `batch_size`.
    """
    seed = errors.whole_number("config.seed", seed, low=0)
    if batch_size < 1 or batch_size % process_count:
        nearest = max(1, round(batch_size / process_count)) * process_count
        raise UserError(
            f"config.train.batch_size={batch_size}: must be a positive multiple of the "
            f"{process_count} processes; try --config.train.batch_size={nearest}."
        )
    import grain  # Slow to import.

    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    # Batch first, then slice: a share is a run of consecutive images of the batch.
    shares = order.batch(batch_size // process_count)[process_index::process_count]
    threads = 1 if source.in_memory else image_folder.THREADS
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, threads))
    return iter(shares[start:].map(source.examples).to_iter_dataset(options))
