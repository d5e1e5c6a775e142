"""Scores against torch-fidelity, closed formulas and plain loops over every pair."""

import contextlib

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import fidelity_scores
from ddpm_jax.evaluation import scores

SETTINGS = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def sets():
    return fidelity_scores.sets()


@pytest.fixture(scope="module")
def expected():
    return fidelity_scores.expected()


def moments(*batches):
    joined = scores.Moments.empty(batches[0].shape[1])
    for batch in batches:
        joined = joined.update(batch)
    return joined


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@contextlib.contextmanager
def small_blocks():
    """Every loop over blocks turns several times, the last one ragged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "ROWS", 7)
        yield


# Moments


@pytest.mark.parametrize("offset", [0, 1e3, -1e6])
def test_moments_of_uneven_batches_are_those_of_all_rows(offset):
    x = normal(0, 500, 12) @ normal(1, 12, 12) + offset
    actual = moments(*np.split(x, [1, 3, 3, 130, 499]))  # one of them empty
    assert actual.count == 500
    # Rounding of the rows themselves: float64 eps times the offset, times a few.
    rounding = 1e-12 * max(1, abs(offset) / 1e3)
    np.testing.assert_allclose(actual.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
    want = np.cov(x, rowvar=False)
    np.testing.assert_allclose(actual.covariance, want, rtol=0, atol=rounding * want.max())
    np.testing.assert_array_equal(actual.covariance, actual.covariance.T)


def test_moments_take_float32_and_jax_arrays_in_float64():
    x = (normal(0, 100, 3) + 1e3).astype(np.float32)
    actual = moments(jnp.asarray(x[:40]), x[40:])
    assert actual.mean.dtype == actual.covariance.dtype == np.float64
    want = np.cov(x.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(actual.covariance, want, rtol=0, atol=1e-12 * want.max())


@SETTINGS
@hypothesis.given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 99))
def test_merging_in_any_grouping_is_the_same(sizes, seed):
    batches = [normal(seed + i, size, 3) + 10 for i, size in enumerate(sizes)]
    one = moments(*batches)
    other = scores.Moments.empty(3)
    for batch in reversed(batches):
        other = moments(batch).merge(other)
    assert one.count == other.count == sum(sizes)
    # Some tens of float64 roundings of values near 10 and their squares.
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-13)
    np.testing.assert_allclose(one.scatter, other.scatter, rtol=0, atol=1e-11)


def test_update_leaves_the_moments_before_as_they_were():
    before = moments(normal(0, 5, 2))
    mean, scatter = before.mean.copy(), before.scatter.copy()
    before.update(normal(1, 5, 2))
    np.testing.assert_array_equal(before.mean, mean)
    np.testing.assert_array_equal(before.scatter, scatter)


# Frechet distance


def distance(x, y):
    x, y = moments(x), moments(y)
    return scores.frechet_distance(x.mean, x.covariance, y.mean, y.covariance)


@pytest.mark.parametrize("name", ["samples", "few"])
def test_frechet_distance_is_that_of_torch_fidelity(sets, expected, name):
    trace = np.trace(np.cov(sets["reference"], rowvar=False))
    actual = distance(sets[name], sets["reference"])
    # Its root of a singular product keeps half the digits: 1e-8 for each of 64 features.
    assert abs(actual - expected[f"frechet_{name}"]) < 1e-6 * trace
    assert abs(actual - distance(sets["reference"], sets[name])) < 1e-10 * trace


@pytest.mark.parametrize("n", [2, 20, 300])
def test_frechet_distance_of_a_set_with_itself_is_zero(n):
    x = normal(0, n, 60) * np.exp(-np.arange(60) / 5) + 3  # singular for 2 and 20
    trace = np.trace(np.cov(x, rowvar=False))
    assert 0 <= distance(x, x) < 1e-10 * trace  # a hundred times 60 roundings


def test_frechet_distance_of_shifted_sets_is_the_squared_shift():
    x, shift = normal(0, 200, 8), normal(1, 8)
    assert distance(x + shift, x) == pytest.approx(shift @ shift, rel=1e-10)


def test_frechet_distance_of_gaussians_along_the_axes():
    a, b, m = np.array([4.0, 9, 0]), np.array([1.0, 25, 16]), np.array([1.0, 2, 3])
    actual = scores.frechet_distance(m, np.diag(a), 0 * m, np.diag(b))
    # sum of (sqrt a - sqrt b)^2 = 1 + 4 + 16, and |m|^2 = 14
    assert actual == pytest.approx(35, rel=1e-12)


def test_frechet_distance_of_gaussians_in_the_plane():
    a, b = np.array([[5.0, 2], [2, 1]]), np.array([[2.0, -1], [-1, 3]])
    # A 2x2 root has trace sqrt(trace + 2 sqrt(determinant)), by Cayley and Hamilton.
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    want = np.trace(a) + np.trace(b) - 2 * root
    actual = scores.frechet_distance(np.zeros(2), a, np.zeros(2), b)
    assert actual == pytest.approx(want, rel=1e-12)


def test_frechet_distance_bears_the_rounding_of_float32_files():
    cov = np.cov(normal(0, 20, 60), rowvar=False)
    rounded = cov.astype(np.float32)
    assert np.linalg.eigvalsh(rounded.astype(np.float64))[0] < 0
    actual = scores.frechet_distance(np.zeros(60), rounded, np.zeros(60), cov)
    # float32's 6e-8 of the trace, and as much in each of the 41 null directions.
    assert actual < 1e-5 * np.trace(cov)


# Kernel distance


def test_kernel_distance_is_that_of_torch_fidelity(sets, expected):
    actual = scores.kernel_distance(
        sets["samples"], sets["reference"], **fidelity_scores.SUBSETS
    )
    # Sums of 100^2 kernel values of order 10, in float64 on both sides.
    assert actual.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    assert actual.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-9)
    assert actual.standard_error == pytest.approx(actual.std / 20**0.5)


def test_kernel_distance_of_whole_sets_is_the_sum_over_pairs():
    x, y = normal(0, 6, 3), normal(1, 6, 3) + 0.5

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b)) / 3 + 1) ** 3

    within = sum(
        kernel(s[i], s[j]) for s in (x, y) for i in range(6) for j in range(6) if i != j
    )
    between = sum(kernel(a, b) for a in x for b in y)
    actual = scores.kernel_distance(x, y, num_subsets=4, subset_size=6)
    assert actual.mean == pytest.approx(within / 30 - 2 * between / 36, rel=1e-12)
    assert actual.std < 1e-12  # the same sums in another order


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    x, y = normal(0, 4000, 4), normal(1, 4000, 4)
    actual = scores.kernel_distance(x, y, num_subsets=40, subset_size=100)
    # 40 disjoint subsets' worth of rows: five standard errors.
    assert abs(actual.mean) < 5 * actual.standard_error
    assert min(actual.mean, actual.mean - actual.std) < 0  # unbiased: may be negative


def test_kernel_distance_follows_its_seed():
    x, y = normal(0, 50, 4), normal(1, 60, 4)
    settings = dict(num_subsets=3, subset_size=10)
    first = scores.kernel_distance(x, y, **settings)
    assert first == scores.kernel_distance(x, y, **settings, seed=2020)
    assert first != scores.kernel_distance(x, y, **settings, seed=1)
    assert scores.kernel_distance(x, y, num_subsets=1, subset_size=10)[1:] == (None, None)


# Inception score


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_is_that_of_torch_fidelity(sets, expected, splits):
    actual = scores.inception_score(sets["logits"], splits)
    # Its softmax and sums are float64 as well.
    assert actual.mean == pytest.approx(expected[f"score_{splits}_mean"], rel=1e-10)
    if splits == 10:
        assert actual.std == pytest.approx(expected["score_10_std"], rel=1e-9)


@pytest.mark.parametrize("constant", [0, 1e4])
def test_inception_score_of_equal_predictions_is_one(constant):
    logits = np.tile(normal(0, 7), (30, 1)) + constant
    assert scores.inception_score(logits).mean == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("height", [50, 1e4])  # 1e4 underflows: 0 log 0
@pytest.mark.parametrize("classes", [1, 2, 9])
def test_inception_score_of_certain_and_even_predictions_is_the_classes(height, classes):
    logits = np.tile(np.eye(classes, 12), (5, 1)) * height
    actual = scores.inception_score(logits)
    assert actual.mean == pytest.approx(classes, rel=1e-9)
    assert actual.std is None and actual.standard_error is None


def test_inception_score_splits_are_consecutive():
    one, all_five = np.tile(np.eye(5)[:1], (10, 1)), np.tile(np.eye(5), (2, 1))
    actual = scores.inception_score(np.concatenate([one, all_five]) * 99, splits=2)
    # scores 1 and 5
    assert actual == pytest.approx((3, 2, 2**0.5), rel=1e-9)


def test_inception_score_block_by_block(sets, expected):
    with small_blocks():
        actual = scores.inception_score(sets["logits"])
    assert actual.mean == pytest.approx(expected["score_1_mean"], rel=1e-10)


# Bad input

X = normal(0, 8, 3)
NAN = np.where(np.arange(3) == 1, np.nan, X)
I3 = np.eye(3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: moments(NAN), "NaN or infinity, as do 8 of 8"),
        (lambda: moments(X).update(X[:, :2]), r"Moments.empty\(2\)"),
        (lambda: moments(X).update(X[0]), r"\[n, d\]"),
        (lambda: moments(X).merge(moments(X[:, :2])), "3 and 2"),
        (lambda: moments(X[:1]).covariance, "count=1"),
        (lambda: scores.frechet_distance(X[0], I3, X[0, :2], I3[:2, :2]), "same network"),
        (lambda: scores.frechet_distance(X[0], I3[:2], X[0], I3), "same network"),
        (lambda: scores.frechet_distance(NAN[0], I3, X[0], I3), "NaN"),
        (lambda: scores.frechet_distance(X[0], I3, X[0], I3 * np.nan), "cov_2 holds NaN"),
        (lambda: scores.frechet_distance(X[0], np.tri(3), X[0], I3), "cov_1 is not symm"),
        (lambda: scores.frechet_distance(X[0], I3, X[0], I3 - 2), "eigenvalue"),
        (lambda: scores.kernel_distance(X, X), "write subset_size=8"),
        (lambda: scores.kernel_distance(X, X, subset_size=1), "subset_size=1 "),
        (lambda: scores.kernel_distance(X, X, num_subsets=0, subset_size=4), "subsets=0 "),
        (lambda: scores.kernel_distance(X, X[:, :2], subset_size=4), "same network"),
        (lambda: scores.kernel_distance(X, NAN, subset_size=4), r"reference\[0\] holds"),
        (lambda: scores.inception_score(X, splits=9), "splits=9 must lie in 1..8"),
        (lambda: scores.inception_score(X, splits=0), "splits=0"),
        (lambda: scores.inception_score(NAN), r"logits\[0\] holds NaN"),
        (lambda: scores.inception_score(X[:0]), "n >= 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
