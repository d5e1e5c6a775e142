"""Exact nearest neighbours, and scores of them: precision, recall, density, coverage, copies.

Distances between large sets are screened on the accelerator in float32 and decided on the host in
float64, so the results do not depend on the device. The audit for copies follows Figs. 12 and 15
of Ho et al. 2020, with the rule of Carlini et al. 2023 ("Extracting Training Data from Diffusion
Models", Sec. 5): a sample is a copy if the distance to its nearest training image is less than half
the mean distance to its 50 nearest.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import errors
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.scores import at_least, checked_pair
from ddpm_jax.runtime import files
from ddpm_jax.workdir import pictures

ROWS = 2048  # Queries in one block of distances.
REFERENCE_ROWS = 8192  # Reference rows in one block.
COLUMNS = 2048  # Summed in one float32 product.
SPARE = 32  # Candidates that the screening keeps beyond the k asked for.
UNIT_ROUNDOFF = 2.0**-24  # Of float32.
NEIGHBOURS = 50  # Training images whose mean distance a copy is judged by.
COPY_RATIO = 0.5  # A sample nearer than this share of their mean distance is a copy.
_PICTURE_ROWS = 16  # Rows of the picture.
_SHOWN = 5  # Neighbours in a row.


class PrecisionRecall(NamedTuple):
    """Precision and recall, shares in [0, 1].

    Attributes:
        precision: share of the features that lie in the reference's manifold (fidelity).
        recall: share of the reference that lies in the features' manifold (coverage).
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density and coverage.

    Attributes:
        density: how many balls of the reference contain a sample, on average, over k: at least 0,
            1 on average for two sets of one distribution, more for samples in its dense parts.
        coverage: share of the reference's balls that contain a sample, in [0, 1].
    """

    density: float
    coverage: float


class Neighbours(NamedTuple):
    """The k rows nearest to each query, nearest first.

    Attributes:
        distances: float64 [n, k], Euclidean, in the unit of the rows.
        indices: int64 [n, k], of rows of the reference.
    """

    distances: np.ndarray
    indices: np.ndarray


def precision_recall(features: Any, reference: Any, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, Eq. 1 and 2).

    A set's manifold is the union of closed balls around its rows; a ball reaches to the k-th
    nearest other row. Values compare only for the same network, k and numbers of images: ADM uses
    pooled Inception features of 50,000 samples and 10,000 reference images.

    Args:
        features: [n, d] of the samples, n > k.
        reference: [m, d], m > k.
        k: which neighbour sets the radius of a ball.

    Raises:
        ValueError: the two differ in d, hold NaN or infinity, or have too few rows for k.
    """
    features, reference = checked_pair(features, reference)
    k = at_least("k", k, 1)
    fewest = min(len(features), len(reference))
    if k >= fewest:
        raise UserError(
            f"k={k} must be less than {fewest}, the rows of the smaller set; use more images or a "
            "smaller k."
        )
    return PrecisionRecall(
        precision=float(np.mean(_containing(features, reference, _radii(reference, k)) > 0)),
        recall=float(np.mean(_containing(reference, features, _radii(features, k)) > 0)),
    )


def density_coverage(features: Any, reference: Any, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics").

    Only the reference has balls, closed ones that reach to the k-th nearest other row, so an
    outlier among the samples changes little, unlike in recall. For n samples and m reference
    images of one distribution, the mean of density is 1 and that of coverage is
    1 - (m-1)...(m-k) / ((n+m-1)...(n+m-k)), about 1 - 1 / 2^k if n = m. Values compare only for the
    same network, k and numbers of images.

    Args:
        features: [n, d] of the samples.
        reference: [m, d], m > k.
        k: which neighbour sets the radius of a ball; the paper's 5.

    Raises:
        ValueError: the two differ in d, hold NaN or infinity, or the reference has too few rows.
    """
    features, reference = checked_pair(features, reference)
    k = at_least("k", k, 1)
    if k >= len(reference):
        raise UserError(
            f"k={k} must be less than {len(reference)}, the rows of the reference; use more images "
            "or a smaller k."
        )
    radii = _radii(reference, k)
    return DensityCoverage(
        density=float(_containing(features, reference, radii).mean() / k),
        coverage=float(np.mean(nearest(reference, features).distances[:, 0] <= radii)),
    )


def _radii(rows: np.ndarray, k: int) -> np.ndarray:
    """[n] distance of each row to its k-th nearest other row; the nearest of all is itself."""
    return nearest(rows, rows, k + 1).distances[:, k]


def _containing(queries: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """int [n]: how many of the closed balls contain each query."""
    counts = np.zeros(len(queries), int)
    squared = np.square(radii).astype(np.float32)
    below, above = (np.nextafter(squared, np.float32(end)) for end in (-np.inf, np.inf))
    for place, rows, block, balls in _blocks(queries, centres):
        inside, unsure = _decided(*_distances(block, balls), below[rows], above[rows])
        counts[place : place + len(block)] += inside
        unsure = np.asarray(unsure)
        for i in np.flatnonzero(unsure.any(axis=1)):
            among = rows.start + np.flatnonzero(unsure[i])
            distances = exact_distances(queries[place + i], centres[among])
            counts[place + i] += np.count_nonzero(distances <= radii[among])
    return counts


def nearest(queries: Any, reference: Any, k: int = 1) -> Neighbours:
    """The k rows of `reference` nearest to each query by Euclidean distance, exact.

    Candidates are screened in float32 with a proven bound on the error. Their distances are then
    computed from float64 differences: an identical row is at distance 0. If the bound cannot
    decide (many rows nearly coincide), all distances of that query are computed in float64, which
    is slower. Of rows at equal distance the lower index comes first, if both are candidates.

    Args:
        queries: [n, d], features or flattened pixels.
        reference: [m, d].
        k: neighbours per query, at most m.

    Raises:
        ValueError: the two differ in d, hold NaN or infinity, or k leaves 1..m.
    """
    queries, reference = checked_pair(queries, reference, "queries")
    k = errors.whole_number("k", k)
    if not 1 <= k <= len(reference):
        raise UserError(
            f"k={k} must lie in 1..{len(reference)}, the rows of the reference; write k=1 for "
            "the nearest."
        )
    neighbours = Neighbours(
        np.empty((len(queries), k)), np.empty((len(queries), k), dtype=np.int64)
    )
    for place, indices, keys in _candidates(queries, reference, k + SPARE):
        for i, among, key in zip(range(place, len(queries)), indices, keys):
            distances = exact_distances(queries[i], reference[among])
            kth = np.partition(distances, k - 1)[k - 1]
            if len(among) < len(reference) and not kth**2 <= key[-1]:
                # A row that is no candidate may be nearer.
                among = np.arange(len(reference))
                distances = exact_distances(queries[i], reference)
            first = np.lexsort((among, distances))[:k]
            neighbours.distances[i], neighbours.indices[i] = distances[first], among[first]
    return neighbours


def exact_distances(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float64 [m] distances, from differences: |a|^2 + |b|^2 - 2ab would cancel."""
    squared = np.zeros(len(rows))
    for start in range(0, len(rows), ROWS):
        difference = np.subtract(rows[start : start + ROWS], query, dtype=np.float64)
        squared[start : start + ROWS] = np.einsum("md,md->m", difference, difference)
    return np.sqrt(squared)


def _candidates(queries, reference, count):
    """The rows that may be nearest: those with the smallest lower bounds of squared distances.

    Args:
        count: candidates per query; all rows if m is smaller.

    Yields:
        For each block of queries its first index, and the candidates' indices [b, count] and keys
        [b, count], their bounds, ascending. Every other row has a key that is at least the last.
    """
    count = min(count, len(reference))
    for place, rows, block, part in _blocks(queries, reference):
        if rows.start == 0:
            keys, indices = np.empty((len(block), 0)), np.empty((len(block), 0), np.int64)
        new = _smallest(*_distances(block, part), count)
        keys = np.concatenate([keys, -np.asarray(new[0])], axis=1)
        indices = np.concatenate([indices, rows.start + np.asarray(new[1])], axis=1)
        order = np.argsort(keys, axis=1, kind="stable")[:, :count]
        keys = np.take_along_axis(keys, order, axis=1)
        indices = np.take_along_axis(indices, order, axis=1)
        if rows.stop == len(reference):
            yield place, indices, keys


def _blocks(queries, reference):
    """(first query, slice of the reference, float32 queries, float32 rows) of every block."""
    centre = reference.mean(axis=0, dtype=np.float64)  # Nearer the origin, less cancels.
    reference = _centred(reference, centre)
    for place in range(0, len(queries), ROWS):
        block = _centred(queries[place : place + ROWS], centre)
        for start in range(0, len(reference), REFERENCE_ROWS):
            rows = slice(start, min(start + REFERENCE_ROWS, len(reference)))
            yield place, rows, block, reference[rows]


def _centred(rows: np.ndarray, centre: np.ndarray) -> np.ndarray:
    centred = np.empty(rows.shape, np.float32)
    return np.subtract(rows, centre, out=centred, dtype=np.float64, casting="same_kind")


def _distances(a: np.ndarray, b: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array, float]:
    """(squared distances [n, m], |a|^2 [n], |b|^2 [m], error) in float32, for `_bounds`.

    A float32 sum of d products is off by at most d unit roundoffs of |a||b|, in any order. Sixteen
    more cover the rounding of the rows, of the norms and of the last sums.
    """
    squared, norms_a, norms_b = 0.0, 0.0, 0.0
    for start in range(0, a.shape[1], COLUMNS):
        part = _squared(a[:, start : start + COLUMNS], b[:, start : start + COLUMNS])
        squared, norms_a, norms_b = squared + part[0], norms_a + part[1], norms_b + part[2]
    terms = min(a.shape[1], COLUMNS) + a.shape[1] // COLUMNS + 16
    return squared, norms_a, norms_b, terms * UNIT_ROUNDOFF


@jax.jit
def _squared(a, b):
    norms_a, norms_b = jnp.sum(a**2, axis=1), jnp.sum(b**2, axis=1)
    products = jnp.matmul(a, b.T, precision="highest")
    return norms_a[:, None] + norms_b[None, :] - 2 * products, norms_a, norms_b


def _bounds(squared, norms_a, norms_b, error):
    """Lower and upper bounds [n, m] of the squared distances, close to them."""
    reach = jnp.sqrt(norms_a)[:, None] + jnp.sqrt(norms_b)[None, :]
    slack = error * reach**2
    return jnp.maximum(squared - slack, 0), squared + slack


@functools.partial(jax.jit, static_argnames="count")
def _smallest(squared, norms_a, norms_b, error, count):
    lower, _ = _bounds(squared, norms_a, norms_b, error)
    return jax.lax.top_k(-lower, min(count, lower.shape[1]))


@jax.jit
def _decided(squared, norms_a, norms_b, error, below, above):
    """How many balls [n] contain each query, and those [n, m] of which float32 cannot tell.

    `below` and `above` [m] are bounds of the squared radii.
    """
    lower, upper = _bounds(squared, norms_a, norms_b, error)
    inside = upper <= below[None, :]
    return jnp.sum(inside, axis=1), (lower <= above[None, :]) & ~inside


@dataclasses.dataclass(frozen=True)
class CopyAudit:
    """The training images nearest to each sample, and whether the sample is a copy.

    Attributes:
        distances: float64 [n, k], nearest first; k is 50, or the number of training images if
            there are fewer.
        indices: int64 [n, k], of the training images.
        ratio: float64 [n], the smallest distance over the mean of the k.
        is_copy: bool [n], ratio < 0.5.
    """

    distances: np.ndarray
    indices: np.ndarray
    ratio: np.ndarray
    is_copy: np.ndarray


def audit_copies(
    queries: np.ndarray,
    training: Iterable[tuple[np.ndarray, np.ndarray]],
    embed: Callable[[np.ndarray], np.ndarray],
) -> CopyAudit:
    """Compares samples with every training image, batch by batch.

    Args:
        queries: [n, d], pixels or features of the samples.
        training: (indices [b], uint8 images [b, h, w, c]).
        embed: images -> [b, d], pixels or features as in `queries`.
    """
    distances, indices = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    for places, uint8 in training:
        rows = embed(uint8)
        neighbours = nearest(queries, rows, min(NEIGHBOURS, len(rows)))
        distances = np.concatenate([distances, neighbours.distances], axis=1)
        indices = np.concatenate([indices, places[neighbours.indices]], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
        distances = np.take_along_axis(distances, order, axis=1)
        indices = np.take_along_axis(indices, order, axis=1)
    mean = distances.mean(axis=1)
    ratio = np.divide(distances[:, 0], mean, out=np.zeros_like(mean), where=mean > 0)
    return CopyAudit(distances, indices, ratio, ratio < COPY_RATIO)


def pixels(images: np.ndarray) -> np.ndarray:
    """The pixels of images as rows [b, h w c], in 0..255."""
    return images.reshape(len(images), -1)


def save_table(path: Any, audit: CopyAudit) -> None:
    """Writes a CSV file with one line per sample, in order."""
    lines = ["sample,nearest,distance,mean_distance_of_50,ratio,copy"] + [
        f"{i},{audit.indices[i, 0]},{audit.distances[i, 0]:.6g},"
        f"{audit.distances[i].mean():.6g},{audit.ratio[i]:.6g},{int(audit.is_copy[i])}"
        for i in range(len(audit.ratio))
    ]
    files.write(path, ("\n".join(lines) + "\n").encode())


def picture(samples: np.ndarray, audit: CopyAudit, source: Source) -> np.ndarray:
    """A grid of the 16 samples most like copies, each with its 5 nearest training images.

    Args:
        samples: uint8 [n, h, w, c].
        audit: of these samples.
        source: the training images.
    """
    worst = np.argsort(audit.ratio, kind="stable")[:_PICTURE_ROWS]
    shown = min(_SHOWN, audit.indices.shape[1])
    rows = [
        np.concatenate([samples[i : i + 1], source.read(audit.indices[i, :shown])])
        for i in worst
    ]
    return pictures.grid(np.concatenate(rows), columns=1 + shown)
