"""Memorisation audit: the training images nearest to each sample, copies flagged.

After Figs. 12 and 15 of Ho et al. 2020, with the rule of Carlini et al. 2023 ("Extracting
Training Data from Diffusion Models", Sec. 5): a sample counts as a copy where its nearest
training image is less than half as far as its 50 nearest are on average.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ddpm_jax.data.source import Source
from ddpm_jax.evaluation import nearest as nearest_lib
from ddpm_jax.runtime import files
from ddpm_jax.workdir import pictures

AROUND = 50  # Training images that tell how far a sample's neighbourhood is.
COPY = 0.5  # Of their mean distance: nearer is a copy.
_ROWS = 16  # Of the picture.
_SHOWN = 5  # Neighbours in a row.


@dataclasses.dataclass(frozen=True)
class Audit:
    """One row a sample.

    Attributes:
        distances: float64 [n, k], to the nearest training images, nearest first; k is 50, or
            all there are.
        indices: int64 [n, k], which they are.
        ratio: float64 [n], nearest over mean distance.
        is_copy: bool [n], ratio < 0.5.
    """

    distances: np.ndarray
    indices: np.ndarray
    ratio: np.ndarray
    is_copy: np.ndarray


def audit(
    queries: np.ndarray,
    training: Iterable[tuple[np.ndarray, np.ndarray]],
    of: Callable[[np.ndarray], np.ndarray],
) -> Audit:
    """Compares samples with every training image, batch by batch.

    Args:
        queries: [n, d], of the samples: pixels or features.
        training: (indices [b], uint8 images [b, h, w, c]).
        of: images -> [b, d], of the same kind as `queries`.
    """
    distances, indices = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    for places, uint8 in training:
        rows = of(uint8)
        found = nearest_lib.nearest(queries, rows, min(AROUND, len(rows)))
        distances = np.concatenate([distances, found.distances], axis=1)
        indices = np.concatenate([indices, places[found.indices]], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :AROUND]
        distances = np.take_along_axis(distances, order, axis=1)
        indices = np.take_along_axis(indices, order, axis=1)
    mean = distances.mean(axis=1)
    ratio = np.divide(distances[:, 0], mean, out=np.zeros_like(mean), where=mean > 0)
    return Audit(distances, indices, ratio, ratio < COPY)


def pixels(images: np.ndarray) -> np.ndarray:
    """[b, h w c] on the scale 0..255, as they are."""
    return images.reshape(len(images), -1)


def save_table(path: Any, found: Audit) -> None:
    """CSV: a line a sample, in order."""
    lines = ["sample,nearest,distance,mean_distance_of_50,ratio,copy"] + [
        f"{i},{found.indices[i, 0]},{found.distances[i, 0]:.6g},"
        f"{found.distances[i].mean():.6g},{found.ratio[i]:.6g},{int(found.is_copy[i])}"
        for i in range(len(found.ratio))
    ]
    files.write(path, ("\n".join(lines) + "\n").encode())


def picture(samples: np.ndarray, found: Audit, source: Source) -> np.ndarray:
    """The 16 samples most like copies, each with its 5 nearest training images at its right.

    Args:
        samples: uint8 [n, h, w, c].
        found: of these samples.
        source: the training images.
    """
    worst = np.argsort(found.ratio, kind="stable")[:_ROWS]
    shown = min(_SHOWN, found.indices.shape[1])
    rows = [
        np.concatenate([samples[i : i + 1], source.read(found.indices[i, :shown])])
        for i in worst
    ]
    return pictures.grid(np.concatenate(rows), columns=1 + shown)
