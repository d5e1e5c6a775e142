"""Scores of a set of images, from features: FID, KID and the Inception Score.

Features are rows [n, d] of any network; the usual one is `network.inception`. Everything is float64
on the host. Precision and recall are in `nearest.py`.
"""

from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import errors
from ddpm_jax.errors import UserError

ROWS = 2048  # Of logits in one block.


class Estimate(NamedTuple):
    """A mean over parts of the data.

    Attributes:
        mean: over the parts.
        std: standard deviation over the parts (divided by their number); None for one part.
        standard_error: std / sqrt(parts): how far `mean` may be off because of the choice of parts.
            It does not cover that the images are themselves a random draw.
    """

    mean: float
    std: float | None
    standard_error: float | None


class Moments(NamedTuple):
    """Count, mean and scatter of the feature rows so far; start from `Moments.empty(d)`.

    `update` and `merge` return new moments. Batches are joined by the exact formula of Chan, Golub
    and LeVeque (1979), which loses no digits to a large mean.

    Attributes:
        count: number of rows.
        mean: float64 [d].
        scatter: float64 [d, d], the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dimension: int) -> "Moments":
        """The moments of no rows, of `dimension` features."""
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    def update(self, features: Any) -> "Moments":
        """The moments with the rows of `features` [b, d] added; b may differ between batches.

        Raises:
            ValueError: `features` is not [b, d] with the same d, or holds NaN or infinity.
        """
        features = checked_rows(features, "features", empty=True).astype(np.float64)
        if features.shape[1] != self.mean.size:
            raise UserError(
                f"features are {list(features.shape)}, and the moments are of rows of "
                f"{self.mean.size}: start new ones with Moments.empty({features.shape[1]})."
            )
        if not len(features):
            return self
        mean = features.mean(axis=0)
        centred = features - mean
        return self.merge(Moments(len(features), mean, centred.T @ centred))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of the rows of both, for example of two processes.

        Raises:
            ValueError: they are of different dimensions.
        """
        if self.mean.size != other.mean.size:
            raise UserError(
                f"moments of {self.mean.size} and {other.mean.size} features cannot be "
                "merged: use the same network for both."
            )
        count = self.count + other.count
        if not count:
            return self
        difference = other.mean - self.mean
        between = difference * (self.count * other.count / count) ** 0.5
        return Moments(
            count,
            self.mean + difference * (other.count / count),
            self.scatter + other.scatter + np.outer(between, between),
        )

    @property
    def covariance(self) -> np.ndarray:
        """float64 [d, d], unbiased (divided by count - 1).

        Raises:
            ValueError: fewer than two rows.
        """
        if self.count < 2:
            raise UserError(
                f"count={self.count}: a covariance needs at least 2 rows; add more images."
            )
        return self.scatter / (self.count - 1)


def standard_error(x: np.ndarray) -> Any:
    """The standard error of the mean over the first axis; None for a single row."""
    if len(x) < 2:
        return None
    error = np.std(x, axis=0, ddof=1, dtype=np.float64) / len(x) ** 0.5
    return float(error) if np.ndim(error) == 0 else error


def frechet_distance(mean_1: Any, cov_1: Any, mean_2: Any, cov_2: Any) -> float:
    """|mean_1 - mean_2|^2 + tr(cov_1 + cov_2 - 2 (cov_1 cov_2)^(1/2)), never below 0.

    This is FID (Heusel et al. 2017, Eq. 6) on pooled Inception features, and sFID (Nash et al.
    2021) on spatial ones. The trace of the root is the sum of the singular values of
    cov_1^(1/2) cov_2^(1/2): no complex numbers, and no loss of digits if a covariance is singular.
    There is no standard error: it is one number of the whole set, biased upward for fewer images.

    Args:
        mean_1, mean_2: [d].
        cov_1, cov_2: [d, d], symmetric; rounding may leave eigenvalues just below zero.

    Raises:
        ValueError: the shapes do not fit, a value is NaN or infinite, or a matrix is no
            covariance.
    """
    mean_1, mean_2, cov_1, cov_2 = (
        np.asarray(x, np.float64) for x in (mean_1, mean_2, cov_1, cov_2)
    )
    shapes = [list(x.shape) for x in (mean_1, cov_1, mean_2, cov_2)]
    d = mean_1.size
    if shapes != [[d], [d, d], [d], [d, d]]:
        raise UserError(
            f"means and covariances are {shapes[0]}, {shapes[1]} and {shapes[2]}, "
            f"{shapes[3]}; both must be [d], [d, d]: use the same network for both."
        )
    root_1, root_2 = _root(cov_1, "cov_1"), _root(cov_2, "cov_2")
    overlap = np.linalg.svd(root_1.T @ root_2, compute_uv=False).sum()
    difference = mean_1 - mean_2
    if not np.isfinite(difference).all():
        raise UserError("a mean holds NaN or infinity: compute the moments again.")
    traces = np.trace(cov_1) + np.trace(cov_2)
    return max(0.0, float(difference @ difference + traces - 2 * overlap))


def _root(cov: np.ndarray, name: str) -> np.ndarray:
    """A matrix r with r r^T = cov."""
    largest = np.abs(cov).max()
    if not np.isfinite(largest):
        raise UserError(f"{name} holds NaN or infinity: compute the moments again.")
    if np.abs(cov - cov.T).max() > 1e-5 * largest:
        raise UserError(f"{name} is not symmetric, as a covariance is: write np.cov(x.T).")
    values, vectors = np.linalg.eigh(cov)
    if values[0] < -1e-4 * values[-1]:  # Float32 files are off by less.
        raise UserError(
            f"{name} has the eigenvalue {values[0]:.3g}, and a covariance has none below "
            "0: write np.cov(x.T)."
        )
    return vectors * np.sqrt(values.clip(0))


def kernel_distance(
    features: Any,
    reference: Any,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> Estimate:
    """KID: the unbiased squared MMD with kernel (x.y / d + 1)^3, over random subsets.

    Binkowski et al. 2018, Sec. 4. Subsets are drawn as torch-fidelity draws them: the same `seed`
    (2020 is its default) gives its numbers. They are drawn from the same rows and overlap: `std` is
    what papers print after ±, and `standard_error` covers only the choice of subsets.

    Args:
        features: [n, d].
        reference: [m, d].
        num_subsets: number of pairs of subsets.
        subset_size: rows of each, at most n and m.
        seed: of the choice of subsets.

    Returns:
        KID in the unit of the kernel (often printed times 1,000); it may be slightly below 0.

    Raises:
        ValueError: the two differ in d, hold NaN or infinity, or are fewer than
            `subset_size`; or a number leaves num_subsets >= 1, subset_size >= 2.
    """
    features, reference = checked_pair(features, reference)
    num_subsets = at_least("num_subsets", num_subsets, 1)
    subset_size = at_least("subset_size", subset_size, 2)
    seed = errors.whole_number("seed", seed, low=0, high=2**32 - 1)
    fewest = min(len(features), len(reference))
    if subset_size > fewest:
        raise UserError(
            f"subset_size={subset_size} is more than the {fewest} rows of the smaller set; "
            f"use more images, or write subset_size={fewest}."
        )
    random = np.random.RandomState(seed)
    values = []
    for _ in range(num_subsets):
        x = features[random.choice(len(features), subset_size, replace=False)]
        y = reference[random.choice(len(reference), subset_size, replace=False)]
        values.append(_squared_mmd(x.astype(np.float64), y.astype(np.float64)))
    return _estimate(values)


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_off_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    within = mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y))
    return float(within - 2 * kernel(x, y).mean())


def _estimate(values: list[float]) -> Estimate:
    mean, std = float(np.mean(values)), float(np.std(values))
    if len(values) == 1:
        return Estimate(mean, None, None)
    return Estimate(mean, std, std / len(values) ** 0.5)


def inception_score(logits: Any, splits: int = 1) -> Estimate:
    """exp(E[KL(p(y|x) || p(y))]), p(y) the mean of p(y|x) (Salimans et al. 2016, Sec. 4).

    `splits=1` scores the whole set, as the DDPM authors did. `splits=10` gives the mean over ten
    consecutive parts with its std, as OpenAI's code does; the images must be in random order, so
    shuffle them if they are sorted by class. Fewer images per part give a lower score, so compare
    only equal numbers of images and splits.

    Args:
        logits: [n, classes], before the softmax.
        splits: number of parts, at most n.

    Returns:
        The score, from 1 (all predictions equal) to the number of classes.

    Raises:
        ValueError: logits are not [n, classes] or hold NaN or infinity, or splits leaves
            1..n.
    """
    logits = checked_rows(logits, "logits")
    splits = errors.whole_number("splits", splits)
    if not 1 <= splits <= len(logits):
        raise UserError(
            f"splits={splits} must lie in 1..{len(logits)}, the number of images; write "
            "splits=1 for the whole set."
        )
    ends = [i * len(logits) // splits for i in range(splits + 1)]
    return _estimate([_score(logits[a:b]) for a, b in zip(ends[:-1], ends[1:])])


def _score(logits: np.ndarray) -> float:
    """exp(E[KL]) with E[KL] = E[sum p log p] - sum q log q, block by block."""
    negentropy, total = 0.0, np.zeros(logits.shape[1])
    for start in range(0, len(logits), ROWS):
        block = logits[start : start + ROWS].astype(np.float64)
        log_p = block - block.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        negentropy += (p * log_p).sum()
        total += p.sum(axis=0)
    q = total / len(logits)
    q = q[q > 0]  # 0 log 0 is 0.
    return float(np.exp(negentropy / len(logits) - (q * np.log(q)).sum()))


def checked_rows(x: Any, name: str, *, empty: bool = False) -> np.ndarray:
    """`x` as an array [n, d] of finite numbers, n >= 1 unless `empty`."""
    x = np.asarray(x)
    if x.ndim != 2 or not x.shape[1] or not (len(x) or empty):
        raise UserError(
            f"{name} are {list(x.shape)}; write an array [n, d], one row per image, n >= 1."
        )
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        raise UserError(
            f"{name}[{bad[0]}] holds NaN or infinity, as do {bad.size} of {len(x)} rows; a "
            "score needs finite numbers: look for images that are NaN."
        )
    return x


def checked_pair(a: Any, b: Any, name: str = "features") -> tuple[np.ndarray, np.ndarray]:
    """Both as `checked_rows` returns them, with rows of one length."""
    a, b = checked_rows(a, name), checked_rows(b, "reference")
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"{name} are {list(a.shape)} and reference {list(b.shape)}; rows must have one length: "
            "use the same network for both."
        )
    return a, b


def at_least(name: str, value: Any, least: int) -> int:
    """The value as an int; raises ValueError if it is not whole or less than `least`."""
    value = errors.whole_number(name, value)
    if value < least:
        raise UserError(f"{name}={value} is too few; write {name}={least} or more.")
    return value
