"""Inception features of images, computed on every device, of samples and of references.

    samples = SampleFeatures.from_batches(batches, network)
    statistics = reference("train", network, ...)
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from ddpm_jax.data.source import Source, spread
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import identity, references
from ddpm_jax.evaluation.image_sets import Sets
from ddpm_jax.evaluation.references import POOL, Reference, SPATIAL
from ddpm_jax.evaluation.scores import Moments
from ddpm_jax.inference import batched_map
from ddpm_jax.network import inception
from ddpm_jax.runtime import files, parallel
from ddpm_jax.runtime import progress as progress_lib
from ddpm_jax.weights import inception_weights

KEPT = 10_000  # Pooled features to keep of a reference, for KID and for precision and recall.
BATCH = 64  # Images through Inception at a time on one device.
RESIZE = "tf1 bilinear to 299x299"


class Network:
    """The Inception network of FID on all devices.

    Args:
        path: file of the weights; None is the one in the cache, downloaded if it is missing.
        sha256: of that file; None accepts any weights that fit, for tests.
    """

    def __init__(self, path: Any = None, *, sha256: str | None = inception_weights.SHA256):
        self._params = parallel.replicate(inception_weights.load(path, sha256=sha256))
        self.checksum = sha256 or "unchecked"
        apply = inception.Inception().apply
        self._run = parallel.pmap(
            lambda params, images: apply({"params": params}, images),
            in_axes=(None, 0),
        )

    def features(self, images: np.ndarray) -> inception.Features:
        """Features of the images, as NumPy arrays.

        Args:
            images: [n, h, w, c], uint8 or float32 in 0..255; grey is repeated three times.

        Raises:
            ValueError: the images have neither 1 nor 3 channels, or are NaN or out of range.
        """
        batches = self.stream(lambda places: images[places], len(images))
        return inception.Features(*(np.concatenate(arrays) for arrays in zip(*batches)))

    def stream(
        self, read: Callable[[np.ndarray], np.ndarray], n: int
    ) -> Iterator[inception.Features]:
        """Features of images 0..n-1 in order, in batches.

        Each process reads the images of its own devices.

        Args:
            read: indices [b] -> images, as for `features`.
            n: how many images.

        Raises:
            ValueError: as in `features`.
        """
        num_devices = jax.device_count()
        padded = -(-n // num_devices) * num_devices
        return batched_map.run(
            self._run, (self._params,), lambda places: (_rgb(read(places)),), n,
            min(BATCH * num_devices, padded), num_steps=1, progress=False,
        )


def _rgb(images: np.ndarray) -> np.ndarray:
    if images.shape[-1] not in (1, 3):
        raise UserError(
            f"images of {images.shape[-1]} channels cannot go through Inception, which takes "
            "3 (or 1, repeated); train with config.data.channels=3."
        )
    if images.dtype != np.uint8:
        if not np.isfinite(images).all():
            raise UserError(
                "images hold NaN or infinity, and a pixel must be a number in 0..255: look for "
                "the step at which the model or the sampler diverged."
            )
        if images.min() < 0 or images.max() > 255:
            raise UserError(
                f"images lie in {images.min():g}..{images.max():g} and must lie in 0..255; "
                "write (x + 1) * 127.5 for x in [-1, 1]."
            )
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


@dataclasses.dataclass(frozen=True)
class SampleFeatures:
    """The Inception features of samples, as far as the scores need them.

    Attributes:
        pool: moments of the pooled features.
        spatial: moments of the spatial features.
        features: float32 [n, 2048], the pooled features.
        logits: float32 [n, 1008].
    """

    pool: Moments
    spatial: Moments
    features: np.ndarray
    logits: np.ndarray

    @classmethod
    def from_batches(
        cls, batches: Iterable[np.ndarray], network: Network
    ) -> "SampleFeatures":
        """Features of batches of images [b, h, w, c]; only the features are kept in memory."""
        pool, spatial = Moments.empty(POOL), Moments.empty(SPATIAL)
        features, logits = [], []
        for images in batches:
            batch = network.features(images)
            pool, spatial = pool.update(batch.pool), spatial.update(batch.spatial)
            features.append(batch.pool)
            logits.append(batch.logits)
        return cls(pool, spatial, np.concatenate(features), np.concatenate(logits))


def reference(
    name: str,
    network: Network,
    *,
    image_shape: tuple[int, int, int],
    data_settings: dict[str, Any],
    progress: bool = False,
    sets: Sets | None = None,
) -> Reference:
    """Statistics of what samples are compared with, from the cache if they are there.

    Args:
        name: "train" or "test", a split of the run's data; a folder of pictures; or an `.npz`
            with mu and sigma of pytorch-fid, or with a reference batch of ADM. If a batch has
            statistics too, its images are used all the same, because KID needs them.
        network: computes the features of images.
        image_shape: (h, w, c) of the samples; images of another size are refused.
        data_settings: arguments of `loading.load`, for "train" and "test".
        progress: show a bar.
        sets: those that were opened already.

    Raises:
        ValueError: there is no such split, folder or file, or it does not fit.
    """
    images = (sets or Sets()).reference(
        name, image_shape=image_shape, data_settings=data_settings
    )
    if isinstance(images, str):
        return references.load(name).statistics
    digest, size, shape = images.content
    provenance = {
        **images.origin, "n": size, "shape": list(shape), "content": digest,
        "version": identity.FEATURES, "resize": RESIZE, "inception": network.checksum,
        "kept": min(KEPT, size),
    }
    return references.cached(
        files.cache_folder(), provenance,
        lambda: _compute(images.open(), network, provenance, progress),
    )


def _compute(source, network, provenance, progress) -> Reference:
    pool, spatial, kept = Moments.empty(POOL), Moments.empty(SPATIAL), []
    n, done = len(source), 0
    keep = spread(0, n - 1, provenance["kept"])
    with progress_lib.bar(n, "image", shown=progress) as bar:
        for batch in network.stream(source.read, n):
            pool, spatial = pool.update(batch.pool), spatial.update(batch.spatial)
            places = done + np.arange(len(batch.pool))
            kept.append(batch.pool[np.isin(places, keep)])
            done += len(places)
            bar.update(len(places))
    return references.from_moments(
        pool, spatial, features=np.concatenate(kept), provenance=provenance
    )


def batches(source: Source, *, progress: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices [b], images [b, h, w, c]) of all images of a source, in order."""
    size = 8 * BATCH * jax.local_device_count()
    with progress_lib.bar(len(source), "image", shown=progress) as bar:
        for start in range(0, len(source), size):
            places = np.arange(start, min(start + size, len(source)))
            yield places, source.read(places)
            bar.update(len(places))
