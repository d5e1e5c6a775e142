"""Nearest rows, exactly, and what is judged by them: precision and recall, copied images.

Distances between large sets are screened on the accelerator in float32 and settled on the
host in float64, so what comes back does not depend on the device. The audit for copies is after
Figs. 12 and 15 of Ho et al. 2020, with the rule of Carlini et al. 2023 ("Extracting Training Data
from Diffusion Models", Sec. 5): a sample counts as a copy where its nearest training image is
less than half as far as its 50 nearest are on average.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.scores import check_at_least, checked_pair
from ddpm_jax.runtime import files
from ddpm_jax.workdir import pictures

ROWS = 2048  # of queries in one block of distances
REFERENCE_ROWS = 8192  # of the reference in one block
COLUMNS = 2048  # summed in one float32 product
SPARE = 32  # candidates of the screening beyond those asked for
UNIT_ROUNDOFF = 2.0**-24  # of float32


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1].

    Attributes:
        precision: of the features that lie in the reference's manifold (fidelity).
        recall: of the reference that lies in the features' manifold (coverage).
    """

    precision: float
    recall: float


class Neighbours(NamedTuple):
    """The rows nearest to each query, nearest first.

    Attributes:
        distances: float64 [n, k], Euclidean, in the unit of the rows.
        indices: int64 [n, k], rows of the reference.
    """

    distances: np.ndarray
    indices: np.ndarray


def precision_recall(features: Any, reference: Any, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, Eq. 1 and 2).

    A set's manifold is the union of closed balls around its rows, each reaching the row's
    k-th nearest other row. Numbers compare only with the same network, k and counts: ADM's
    take pooled Inception features of 50,000 samples and 10,000 reference images.

    Args:
        features: [n, d] of the images judged, n > k.
        reference: [m, d], m > k.
        k: which neighbour sets a ball's radius.

    Raises:
        ValueError: the two differ in d, hold NaN or infinity, or have too few rows for k.
    """
    features, reference = checked_pair(features, reference)
    check_at_least("k", k, 1)
    fewest = min(len(features), len(reference))
    if k >= fewest:
        raise UserError(
            f"k={k} other rows are more than the smaller set of {fewest} has; use more "
            "images, or a smaller k."
        )
    return PrecisionRecall(
        precision=float(_inside(features, reference, _radii(reference, k)).mean()),
        recall=float(_inside(reference, features, _radii(features, k)).mean()),
    )


def _radii(rows: np.ndarray, k: int) -> np.ndarray:
    """[n] distance of each row to its k-th nearest other; the nearest of all is itself."""
    return nearest(rows, rows, k + 1).distances[:, k]


def _inside(queries: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """bool [n]: does any of the closed balls hold the query?"""
    inside = np.zeros(len(queries), bool)
    for place, indices, keys in _candidates(queries, centres, radii**2, SPARE):
        for i, among, key in zip(range(place, len(queries)), indices, keys):
            inside[i] = np.any(_distances(queries[i], centres[among]) <= radii[among])
            if not (inside[i] or key[-1] > 0):  # a ball that was not tried may hold it
                inside[i] = np.any(_distances(queries[i], centres) <= radii)
    return inside


def nearest(queries: Any, reference: Any, k: int = 1) -> Neighbours:
    """The k rows of `reference` nearest to each query, Euclidean, exact.

    Candidates are screened in float32 with a proven bound on the error, and their distances
    computed from float64 differences: an identical row is at distance 0. Where the bound
    cannot tell (many rows that nearly coincide) every distance of that query is computed
    so, which is slower. Of rows at equal distance the lower index comes first, if both are
    among the candidates.

    Args:
        queries: [n, d], features or flattened pixels.
        reference: [m, d].
        k: neighbours a query, at most m.

    Raises:
        ValueError: the two differ in d, hold NaN or infinity, or k leaves 1..m.
    """
    queries, reference = checked_pair(queries, reference, "queries")
    if not 1 <= k <= len(reference):
        raise UserError(
            f"k={k} must lie in 1..{len(reference)}, the rows of the reference; write k=1 "
            "for the nearest."
        )
    found = Neighbours(
        np.empty((len(queries), k)), np.empty((len(queries), k), dtype=np.int64)
    )
    no_offsets = np.zeros(len(reference))
    for place, indices, keys in _candidates(queries, reference, no_offsets, k + SPARE):
        for i, among, key in zip(range(place, len(queries)), indices, keys):
            distances = _distances(queries[i], reference[among])
            kth = np.partition(distances, k - 1)[k - 1]
            if len(among) < len(reference) and not kth**2 <= key[-1]:  # maybe not nearest
                among = np.arange(len(reference))
                distances = _distances(queries[i], reference)
            first = np.lexsort((among, distances))[:k]
            found.distances[i], found.indices[i] = distances[first], among[first]
    return found


def _distances(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float64 [m], from differences: exact where |a|^2 + |b|^2 - 2ab would cancel."""
    squared = np.zeros(len(rows))
    for start in range(0, len(rows), ROWS):
        difference = np.subtract(rows[start : start + ROWS], query, dtype=np.float64)
        squared[start : start + ROWS] = np.einsum("md,md->m", difference, difference)
    return np.sqrt(squared)


def _candidates(queries, reference, offsets, count):
    """The rows that may be nearest: smallest in (lower bound of distance^2) - offset.

    Args:
        offsets: [m], subtracted from the bounds.
        count: how many a query; all of them where m is smaller.

    Yields:
        For each block of queries its first index, and indices [b, count] with their keys
        [b, count], ascending. No row left out has a key below the last.
    """
    centre = reference.mean(axis=0, dtype=np.float64)  # nearer the origin, less cancels
    reference = _centred(reference, centre)
    count = min(count, len(reference))
    for place in range(0, len(queries), ROWS):
        block = _centred(queries[place : place + ROWS], centre)
        keys, indices = np.empty((len(block), 0)), np.empty((len(block), 0), np.int64)
        for start in range(0, len(reference), REFERENCE_ROWS):
            rows = slice(start, start + REFERENCE_ROWS)
            lower = _lower_bounds(block, reference[rows])
            new = _smallest(lower, offsets[rows].astype(np.float32), count)
            keys = np.concatenate([keys, -np.asarray(new[0])], axis=1)
            indices = np.concatenate([indices, start + np.asarray(new[1])], axis=1)
            order = np.argsort(keys, axis=1, kind="stable")[:, :count]
            keys = np.take_along_axis(keys, order, axis=1)
            indices = np.take_along_axis(indices, order, axis=1)
        yield place, indices, keys


def _centred(rows: np.ndarray, centre: np.ndarray) -> np.ndarray:
    centred = np.empty(rows.shape, np.float32)
    return np.subtract(rows, centre, out=centred, dtype=np.float64, casting="same_kind")


def _lower_bounds(a: np.ndarray, b: np.ndarray) -> jax.Array:
    """float32 [n, m], at most the true squared distance, and close to it.

    A float32 sum of d products is off by at most d unit roundoffs of |a||b|, in any order;
    sixteen more cover the rounding of the rows, the norms and what follows.
    """
    squared, norms_a, norms_b = 0.0, 0.0, 0.0
    for start in range(0, a.shape[1], COLUMNS):
        part = _squared(a[:, start : start + COLUMNS], b[:, start : start + COLUMNS])
        squared, norms_a, norms_b = squared + part[0], norms_a + part[1], norms_b + part[2]
    terms = min(a.shape[1], COLUMNS) + a.shape[1] // COLUMNS + 16
    return _lowered(squared, norms_a, norms_b, terms * UNIT_ROUNDOFF)


@jax.jit
def _squared(a, b):
    norms_a, norms_b = jnp.sum(a**2, axis=1), jnp.sum(b**2, axis=1)
    products = jnp.matmul(a, b.T, precision="highest")
    return norms_a[:, None] + norms_b[None, :] - 2 * products, norms_a, norms_b


@jax.jit
def _lowered(squared, norms_a, norms_b, error):
    reach = jnp.sqrt(norms_a)[:, None] + jnp.sqrt(norms_b)[None, :]
    return jnp.maximum(squared - error * reach**2, 0)


@functools.partial(jax.jit, static_argnames="count")
def _smallest(lower, offsets, count):
    return jax.lax.top_k(offsets[None, :] - lower, min(count, lower.shape[1]))


AROUND = 50  # Training images that tell how far a sample's neighbourhood is.
COPY = 0.5  # Of their mean distance: nearer is a copy.
_PICTURE_ROWS = 16  # Of the picture.
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
        found = nearest(queries, rows, min(AROUND, len(rows)))
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
    worst = np.argsort(found.ratio, kind="stable")[:_PICTURE_ROWS]
    shown = min(_SHOWN, found.indices.shape[1])
    rows = [
        np.concatenate([samples[i : i + 1], source.read(found.indices[i, :shown])])
        for i in worst
    ]
    return pictures.grid(np.concatenate(rows), columns=1 + shown)
