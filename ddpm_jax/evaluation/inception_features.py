"""Samples against reference images: one pass of each through Inception, then every score.

    samples = inception_features.Samples.of(batches, network)
    reference = inception_features.reference("train", ...)
    inception_features.SCORES["fid"](samples, reference)

Scores go by their names in `config.evaluate.metrics`.
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
from ddpm_jax.data.source import Source
from ddpm_jax.evaluation import nearest as nearest_lib
from ddpm_jax.evaluation import references, scores
from ddpm_jax.evaluation.references import POOL, Reference, SPATIAL
from ddpm_jax.evaluation.scores import Moments
from ddpm_jax.inference import batched_map
from ddpm_jax.runtime import files, parallel
from ddpm_jax.weights import inception_weights

KEPT = 10_000  # Pooled features of a reference that are kept, for KID, precision and recall.
_BATCH = 64  # Images through Inception at a time on one device.
MOST_PIXELS = 4096  # Of an image, channels counted, whose covariance is 128 MB.
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
        apply = inception_weights.Inception().apply
        self._run = jax.pmap(
            lambda params, images: apply({"params": params}, images),
            axis_name=parallel.AXIS, in_axes=(None, 0),
        )

    def features(self, images: np.ndarray) -> inception_weights.Features:
        """Features of the images as NumPy arrays.

        Args:
            images: [n, h, w, c], uint8 or float32 in 0..255; grey is repeated three times.

        Raises:
            ValueError: the images have neither 1 nor 3 channels, or are NaN or out of range.
        """
        chunks = self.stream(lambda places: images[places], len(images))
        return inception_weights.Features(*(np.concatenate(part) for part in zip(*chunks)))

    def stream(
        self, read: Callable[[np.ndarray], np.ndarray], n: int
    ) -> Iterator[inception_weights.Features]:
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
        raise ValueError(
            f"images of {images.shape[-1]} channels cannot go through Inception, which takes "
            "3 (or 1, repeated); train with config.data.channels=3."
        )
    if images.dtype != np.uint8:
        if not np.isfinite(images).all():
            raise ValueError(
                "images hold NaN or infinity, and a pixel must be a number in 0..255: look for "
                "the step at which the model or sampler diverged."
            )
        if images.min() < 0 or images.max() > 255:
            raise ValueError(
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
            raise ValueError(
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
        raise ValueError(
            f"reference {name} has images of {found[0]}x{found[1]}, and the samples are "
            f"{wanted[0]}x{wanted[1]}; FID compares images of one size: resize the "
            "reference first."
        )


def _npz_source(path, shape) -> Source:
    images = np.concatenate(list(references.image_batches(path, 1024)))
    return Source(shape[0], tuple(shape[1:]), lambda places: images[places], in_memory=True)


def fingerprint(source: Source) -> str:
    """A short hash of the number of images and of 64 of them, spread over the set."""
    chosen = np.unique(np.linspace(0, len(source) - 1, 64).astype(np.int64))
    digest = hashlib.sha256(str((len(source), tuple(source.image_shape))).encode())
    digest.update(np.ascontiguousarray(source.read(chosen)))
    return digest.hexdigest()[:16]


def _compute(source, network, provenance, progress) -> Reference:
    pool, spatial, kept = Moments.empty(POOL), Moments.empty(SPATIAL), []
    n, done = len(source), 0
    keep = np.linspace(0, n - 1, provenance["kept"]).round().astype(np.int64)
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


def fid(samples: Samples, against: Reference) -> dict[str, Any]:
    """Frechet Inception distance (Heusel et al. 2017)."""
    return {
        "value": scores.frechet_distance(
            samples.pool.mean, samples.pool.covariance, against.mu, against.sigma
        ),
        "remarks": references.remarks(samples.pool, against),
    }


def sfid(samples: Samples, against: Reference) -> dict[str, Any]:
    """FID on spatial features (Nash et al. 2021)."""
    if against.mu_s is None:
        raise ValueError(
            "sfid needs mu_s and sigma_s, which this reference has not: give images, or leave "
            "'sfid' out of config.evaluate.metrics."
        )
    return {"value": scores.frechet_distance(
        samples.spatial.mean, samples.spatial.covariance, against.mu_s, against.sigma_s
    )}


def kid(samples: Samples, against: Reference) -> dict[str, Any]:
    """Kernel Inception distance (Binkowski et al. 2018): 100 subsets of at most 1,000."""
    features = _features(against, "kid")
    size = min(1000, len(samples.features), len(features))
    found = scores.kernel_distance(samples.features, features, subset_size=size)
    return {"value": found.mean, "std": found.std, "standard_error": found.standard_error,
            "subset_size": size}


def precision_recall(samples: Samples, against: Reference) -> dict[str, Any]:
    """Improved precision and recall, k = 3 (Kynkaanniemi et al. 2019)."""
    found = nearest_lib.precision_recall(samples.features, _features(against, "precision_recall"))
    return {"value": found.precision, "recall": found.recall}


def inception_score(samples: Samples, against: None = None) -> dict[str, Any]:
    """Inception Score (Salimans et al. 2016), of the whole set and of ten parts."""
    whole = scores.inception_score(samples.logits)
    values = {"value": whole.mean}
    if len(samples.logits) >= 10:
        parts = scores.inception_score(samples.logits, splits=10)
        values |= {"ten_splits": parts.mean, "std": parts.std,
                   "standard_error": parts.standard_error}
    return values


def frechet_pixels(
    samples: Iterable[np.ndarray], against: Iterable[np.ndarray]
) -> dict[str, Any]:
    """Frechet distance of raw pixels as features, in squares of [-1, 1].

    The formula of FID without its network: it sees whether the mean image and the covariances
    of pixels are the reference's, and nothing else, so that Gaussian noise with these moments
    scores 0. It says little of how images look, and does not compare with FID. It is for small
    images and samplers of one network, where Inception is out of place or not at hand.

    Args:
        samples: batches [b, h, w, c], in 0..255.
        against: batches of the same shape.

    Raises:
        ValueError: the shapes differ, or an image has more than 4,096 pixels times channels.
    """
    ours, theirs = (_pixel_moments(batches) for batches in (samples, against))
    return {"value": scores.frechet_distance(
        ours.mean, ours.covariance, theirs.mean, theirs.covariance
    ), "reference_n": theirs.count}


def check_pixels(image_shape: tuple[int, int, int]) -> None:
    """Raises ValueError where images are too large for `frechet_pixels`."""
    if np.prod(image_shape) > MOST_PIXELS:
        raise ValueError(
            f"frechet_pixels has no room for the covariance of {np.prod(image_shape):,} pixels, "
            f"more than {MOST_PIXELS:,}; use 'fid' instead."
        )


def _pixel_moments(batches):
    found = None
    for images in batches:
        check_pixels(images.shape[1:])
        rows = images.reshape(len(images), -1) / 127.5 - 1
        found = (found or Moments.empty(rows.shape[1])).update(rows)
    return found


def _features(against, metric):
    if against.features is None:
        raise ValueError(
            f"{metric} needs features of the reference, and a file of mu and sigma has none: "
            f"give images, or leave {metric!r} out of config.evaluate.metrics."
        )
    return against.features


SCORES: dict[str, Callable[..., dict[str, Any]]] = {
    "fid": fid, "sfid": sfid, "kid": kid, "is": inception_score,
    "precision_recall": precision_recall,
}
