"""Each metric's row against its formula."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import linalg, special
from sklearn import metrics as sklearn_metrics

from ddpm_jax.evaluation import inception_features, references, scores
from ddpm_jax.evaluation import metrics as metrics_lib
from ddpm_jax.evaluation import nearest as nearest_lib


def pixels(n, seed=0, shape=(4, 4, 3)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def fails(message, function, *arguments, **settings):
    with pytest.raises(ValueError, match=message) as error:
        function(*arguments, **settings)
    assert "\n" not in str(error.value)


def features_of(n, seed, mean=0.0):
    random = np.random.default_rng(seed)
    spread = np.random.default_rng(9).normal(size=(6, 6))
    return np.float32(random.normal(size=(n, 6)) @ spread + mean)


def samples_of(pool, spatial=None, logits=None):
    spatial = pool[:, :4] ** 2 if spatial is None else spatial
    return inception_features.SampleFeatures(
        scores.Moments.empty(6).update(pool), scores.Moments.empty(4).update(spatial),
        pool, np.float32(pool @ np.eye(6, 11)) if logits is None else logits,
    )


def reference_of(pool, spatial):
    return references.Reference(
        mu=pool.mean(axis=0, dtype=np.float64), sigma=np.cov(np.float64(pool).T),
        mu_s=spatial.mean(axis=0, dtype=np.float64), sigma_s=np.cov(np.float64(spatial).T),
        features=pool, count=len(pool),
    )


X, Y = features_of(60, seed=0), features_of(80, seed=1, mean=0.5)
SAMPLES, AGAINST = samples_of(X), reference_of(Y, np.abs(Y[:, :4]))


def frechet(x, y):
    """The Frechet distance with SciPy's matrix square root."""
    x, y = np.float64(x), np.float64(y)
    root = linalg.sqrtm(np.cov(x.T) @ np.cov(y.T))
    traces = np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root.real)
    return np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + traces


def test_fid_is_of_pooled_and_sfid_of_spatial_features():
    row = metrics_lib.fid(SAMPLES, AGAINST)
    assert_allclose(row["value"], frechet(X, Y), rtol=1e-8)  # Roots of float64.
    assert row["remarks"] == []
    row = metrics_lib.sfid(SAMPLES, AGAINST)
    assert_allclose(row["value"], frechet(X[:, :4] ** 2, np.abs(Y[:, :4])), rtol=1e-8)


def test_fid_of_few_images_carries_remarks():
    few = samples_of(X[:6])
    remarks = metrics_lib.fid(few, reference_of(Y[:5], Y[:5, :4]))["remarks"]
    assert len(remarks) == 2 and "\n" not in "".join(remarks)
    assert "6 samples leave a singular covariance" in remarks[0]
    assert "5 reference images leave" in remarks[1]
    assert remarks == references.remarks(few.pool, reference_of(Y[:5], Y[:5, :4]))


def test_kid_is_of_subsets_as_large_as_there_are(monkeypatch):
    def mmd(x, y):
        def kernel(a, b=None):
            return sklearn_metrics.pairwise.polynomial_kernel(
                np.float64(a), None if b is None else np.float64(b), degree=3, coef0=1)

        within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
                  for k in (kernel(x), kernel(y))]
        return sum(within) - 2 * kernel(x, y).mean()

    row = metrics_lib.kid(SAMPLES, AGAINST)
    assert row["subset_size"] == 60
    same = scores.kernel_distance(X, Y, subset_size=60)
    assert (row["value"], row["std"], row["standard_error"]) == same
    assert_allclose(row["standard_error"], row["std"] / 10)  # 100 subsets
    equal = metrics_lib.kid(SAMPLES, reference_of(Y[:60], Y[:60, :4]))
    assert_allclose(equal["value"], mmd(X, Y[:60]), rtol=1e-9)  # Each subset is the set.

    def size_as_mean(*features, subset_size):
        return scores.Estimate(subset_size, 0, 0)

    monkeypatch.setattr(scores, "kernel_distance", size_as_mean)
    for n, m, size in ((1200, 1100, 1000), (1200, 999, 999), (998, 1100, 998)):
        reference = features_of(m, seed=3)
        against = reference_of(reference, reference[:, :4])
        row = metrics_lib.kid(samples_of(features_of(n, seed=2)), against)
        assert row["subset_size"] == row["value"] == size


def test_precision_and_recall_are_told_apart():
    row = metrics_lib.precision_recall(SAMPLES, AGAINST)
    distances = {
        name: np.sqrt(((np.float64(a)[:, None] - np.float64(b)[None]) ** 2).sum(axis=2))
        for name, a, b in (("xx", X, X), ("yy", Y, Y), ("xy", X, Y))
    }
    radii = {name: np.sort(distances[2 * name], axis=1)[:, 3] for name in "xy"}
    precision = np.mean((distances["xy"] <= radii["y"][None]).any(axis=1))
    recall = np.mean((distances["xy"].T <= radii["x"][None]).any(axis=1))
    assert row == {"value": precision, "recall": recall} and precision != recall
    assert nearest_lib.precision_recall(X, Y) == (precision, recall)


def test_density_and_coverage_are_of_five_neighbours():
    across = np.sqrt(((np.float64(X)[:, None] - np.float64(Y)[None]) ** 2).sum(axis=2))
    within = np.sqrt(((np.float64(Y)[:, None] - np.float64(Y)[None]) ** 2).sum(axis=2))
    inside = across <= np.sort(within, axis=1)[:, 5]
    row = metrics_lib.density_coverage(SAMPLES, AGAINST)
    assert_allclose(row.pop("value"), inside.sum() / (5 * len(X)), rtol=1e-12)
    assert row == {"coverage": inside.any(axis=0).mean(), "reference_features": 80}
    few = reference_of(Y[:5], Y[:5, :4])
    fails("density_coverage needs more than 5 images to compare with, not 5; name another",
          metrics_lib.density_coverage, SAMPLES, few)


def test_inception_score_is_of_the_logits():
    """The whole set, and ten parts in order; no reference is needed."""
    def score(logits):
        p = special.softmax(np.float64(logits), axis=1)
        return np.exp(special.rel_entr(p, p.mean(axis=0)).sum(axis=1).mean())

    logits = np.random.default_rng(5).normal(0, 3, (60, 11)).astype(np.float32)
    row = metrics_lib.inception_score(samples_of(X, logits=logits))
    parts = [score(part) for part in np.split(logits, 10)]
    assert_allclose(row["value"], score(logits))
    assert_allclose(row["ten_splits"], np.mean(parts))
    assert_allclose(row["std"], np.std(parts))
    assert_allclose(row["standard_error"], np.std(parts) / 10**0.5)
    assert set(metrics_lib.inception_score(samples_of(X[:10], logits=logits[:10]))) > {"std"}
    assert set(metrics_lib.inception_score(samples_of(X[:9], logits=logits[:9]))) == {"value"}


def test_every_score_is_a_number_and_perfect_samples_are_perfect():
    itself = reference_of(X, X[:, :4] ** 2)
    scored = (metrics_lib.fid, metrics_lib.sfid, metrics_lib.kid, metrics_lib.precision_recall,
              metrics_lib.density_coverage)
    fid, sfid, kid, precision, density = (score(SAMPLES, itself)["value"] for score in scored)
    inception_score = metrics_lib.inception_score(SAMPLES)["value"]
    assert all(isinstance(x, float) for x in (fid, sfid, kid, precision, density, inception_score))
    # Traces of up to 214 cancel in float64.
    assert fid < 1e-8 and sfid < 1e-8 and kid < 0
    assert precision == 1 < density  # Each sample is in its own ball as well.


def test_frechet_distance_of_pixels():
    """Against the formula on the pixels, with SciPy's matrix root."""
    ours, theirs = pixels(70, seed=1, shape=(3, 2, 2)), pixels(60, seed=2, shape=(3, 2, 2)) // 2
    row = metrics_lib.pixel_distance([ours[:50], ours[50:]], [theirs])
    a, b = (np.float64(x.reshape(len(x), -1)) / 127.5 - 1 for x in (ours, theirs))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert_allclose(row["value"], expected, rtol=1e-8)
    assert row["reference_n"] == 60
    same = metrics_lib.pixel_distance([np.float32(ours)], [ours])
    assert same["value"] < 1e-9
    metrics_lib.check_pixels((32, 32, 4))
    fails("no room for the covariance of 12,288 pixels, more than 4,096; use 'fid'",
          metrics_lib.check_pixels, (64, 64, 3))
