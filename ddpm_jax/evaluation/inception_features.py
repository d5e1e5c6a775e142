"""Images through Inception on every device, and the statistics of samples and references.

    samples = Samples.of(batches, network)
    against = reference("train", network, ...)
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from ddpm_jax.data import loading
from ddpm_jax.data.source import Source, spread
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import references
from ddpm_jax.evaluation.references import POOL, Reference, SPATIAL
from ddpm_jax.evaluation.scores import Moments
from ddpm_jax.inference import batched_map
from ddpm_jax.network import inception
from ddpm_jax.runtime import files, parallel
from ddpm_jax.weights import inception_weights

KEPT = 10_000  # Pooled features of a reference that are kept, for KID, precision and recall.
_BATCH = 64  # Images through Inception at a time on one device.
RESIZE = "tf1 bilinear to 299x299"


class Network:
    """The Inception network of FID on all devices.

    Args:
        path: the weights, or None for the cache, into which they are fetched once.
        sha256: of the weights; None takes any file that fits, for tests.
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
        """Features of the images as NumPy arrays.

        Args:
            images: [n, h, w, c], uint8 or float32 in 0..255; grey is repeated three times.

        Raises:
            ValueError: the images have neither 1 nor 3 channels, or are NaN or out of range.
        """
        chunks = self.stream(lambda places: images[places], len(images))
        return inception.Features(*(np.concatenate(part) for part in zip(*chunks)))

    def stream(
        self, read: Callable[[np.ndarray], np.ndarray], n: int
    ) -> Iterator[inception.Features]:
        """The features of images 0..n-1 in order; each process reads those of its own devices.

        Args:
            read: indices [b] -> images, as of `features`.
            n: how many images.

        Raises:
            ValueError: as `features` does.
        """
        num_devices = jax.device_count()
        most = -(-n // num_devices) * num_devices
        return batched_map.run(
            self._run, (self._params,), lambda places: (_rgb(read(places)),), n,
            min(_BATCH * num_devices, most), num_steps=1, progress=False,
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
                "the step at which the model or sampler diverged."
            )
        if images.min() < 0 or images.max() > 255:
            raise UserError(
                f"images lie in {images.min():g}..{images.max():g} and must lie in 0..255; "
                "write (x + 1) * 127.5 for x in [-1, 1]."
            )
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


@dataclasses.dataclass(frozen=True)
class Samples:
    """What the scores need of the samples.

    Attributes:
        pool: moments of pooled features.
        spatial: moments of spatial features.
        features: float32 [n, 2048], pooled.
        logits: float32 [n, 1008].
    """

    pool: Moments
    spatial: Moments
    features: np.ndarray
    logits: np.ndarray

    @classmethod
    def of(cls, batches: Iterable[np.ndarray], network: Network) -> "Samples":
        """From batches of images [b, h, w, c]; only features are held in memory."""
        pool, spatial = Moments.empty(POOL), Moments.empty(SPATIAL)
        features, logits = [], []
        for images in batches:
            found = network.features(images)
            pool, spatial = pool.update(found.pool), spatial.update(found.spatial)
            features.append(found.pool)
            logits.append(found.logits)
        return cls(pool, spatial, np.concatenate(features), np.concatenate(logits))


def reference(
    name: str,
    network: Network,
    *,
    image_shape: tuple[int, int, int],
    data_settings: dict[str, Any],
    progress: bool = False,
) -> Reference:
    """Statistics of what samples are compared with, from a cache where they are known.

    Args:
        name: "train" or "test", a split of the model's own data; a folder of pictures; or an
            `.npz`: mu and sigma of pytorch-fid, or a batch of ADM, whose images count where
            it has statistics too, for KID needs them.
        network: for images.
        image_shape: (h, w, c) of the samples; images of another size are refused.
        data_settings: arguments of `loading.load`, for "train" and "test".
        progress: show a bar.

    Raises:
        ValueError: there is no such split, folder or file, or it does not fit.
    """
    source, said = images_of(name, image_shape=image_shape, data_settings=data_settings)
    if source is None:
        return references.load(name).statistics
    provenance = {
        **said, "n": len(source), "shape": list(source.image_shape),
        "fingerprint": fingerprint(source), "resize": RESIZE, "inception": network.checksum,
        "kept": min(KEPT, len(source)),
    }
    return references.cached(
        files.cache_folder(), provenance, lambda: _compute(source, network, provenance, progress)
    )


def images_of(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    data_settings: dict[str, Any],
    channels: int = 3,
) -> tuple[Source | None, dict[str, str]]:
    """The images of a reference, None where it has statistics alone, and which they are.

    Args:
        name, image_shape, data_settings: as of `reference`.
        channels: to which a folder of pictures is converted.

    Raises:
        ValueError: as `reference` does.
    """
    if name in ("train", "test"):
        source = loading.load(split=name, **data_settings)
        if source is None:
            raise UserError(
                f"evaluate.references has 'test', and config.data.name={data_settings['name']!r} "
                "has no test split; use --config.evaluate.references=\"('train',)\"."
            )
        said = {"data": data_settings["name"], "split": name}
    elif str(name).endswith(".npz"):
        loaded = references.load(name)
        if loaded.images is None:
            return None, {}
        _check_size(name, loaded.images[1:], image_shape)
        source = _npz_source(name, loaded.images)
        said = {"file": epath.Path(name).name}
    else:
        source = loading.load("image_folder", data_dir=name, channels=channels)
        said = {"folder": epath.Path(name).name}
    _check_size(name, source.image_shape, image_shape)
    return source, said


def _check_size(name, found, wanted):
    if tuple(found[:2]) != tuple(wanted[:2]):
        raise UserError(
            f"reference {name} has images of {found[0]}x{found[1]}, and the samples are "
            f"{wanted[0]}x{wanted[1]}; FID compares images of one size: resize the "
            "reference first."
        )


def _npz_source(path, shape) -> Source:
    images = np.concatenate(list(references.image_batches(path, 1024)))
    return Source(shape[0], tuple(shape[1:]), lambda places: images[places], in_memory=True)


def fingerprint(source: Source) -> str:
    """A short hash of the number of images and of 64 of them, spread over the set."""
    chosen = spread(0, len(source) - 1, 64, truncate=True)  # Caches on disk are named by these.
    digest = hashlib.sha256(str((len(source), tuple(source.image_shape))).encode())
    digest.update(np.ascontiguousarray(source.read(chosen)))
    return digest.hexdigest()[:16]


def _compute(source, network, provenance, progress) -> Reference:
    pool, spatial, kept = Moments.empty(POOL), Moments.empty(SPATIAL), []
    n, done = len(source), 0
    keep = spread(0, n - 1, provenance["kept"])
    with tqdm.tqdm(total=n, unit="image", disable=not progress) as bar:
        for found in network.stream(source.read, n):
            pool, spatial = pool.update(found.pool), spatial.update(found.spatial)
            places = done + np.arange(len(found.pool))
            kept.append(found.pool[np.isin(places, keep)])
            done += len(places)
            bar.update(len(places))
    return references.from_moments(
        pool, spatial, features=np.concatenate(kept), provenance=provenance
    )


def batches(source: Source, *, progress: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices [b], images [b, h, w, c]) over the whole of a source, in order."""
    size = 8 * _BATCH * jax.local_device_count()
    with tqdm.tqdm(total=len(source), unit="image", disable=not progress) as bar:
        for start in range(0, len(source), size):
            places = np.arange(start, min(start + size, len(source)))
            yield places, source.read(places)
            bar.update(len(places))
