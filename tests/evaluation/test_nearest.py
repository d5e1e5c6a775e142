"""The audit, nearest rows, and scores of them, against every distance in float64."""

import contextlib
import csv

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import fidelity_scores
from ddpm_jax.data import pixels
from ddpm_jax.data import source as source_lib
from ddpm_jax.evaluation import nearest as nearest_lib

SHAPE = (6, 6, 1)


def drawn(n, seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def in_batches(training, size):
    """(indices, images), as `inception_features.batches` yields them."""
    for start in range(0, len(training), size):
        places = np.arange(start, min(start + size, len(training)))
        yield places, training[places]


def brute_force(queries, rows, k=50):
    """The k smallest of all distances, from float64 differences; lower indices first."""
    difference = np.float64(queries)[:, None] - np.float64(rows)[None]
    distances = np.sqrt((difference**2).sum(axis=2))
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


def assert_is(audit, distances, indices):
    np.testing.assert_allclose(audit.distances, distances, rtol=1e-12)  # float64 sums
    np.testing.assert_array_equal(audit.indices, indices)
    assert audit.distances.dtype == np.float64 and audit.indices.dtype == np.int64
    ratio = distances[:, 0] / distances.mean(axis=1)
    np.testing.assert_allclose(audit.ratio, ratio, rtol=1e-12)
    np.testing.assert_array_equal(audit.is_copy, ratio < 0.5)
    assert audit.is_copy.dtype == bool


@pytest.mark.parametrize("size", [7, 60, 130, 1000])
def test_the_nearest_of_all_batches_are_found(size):
    """Batches are smaller or larger than the 50 neighbours that are kept."""
    training = drawn(300, seed=0)
    training[200] = training[3]  # Equal rows far apart: the first comes first.
    queries = nearest_lib.pixels(np.concatenate([drawn(5, seed=1), training[[3, 299]]]))
    audit = nearest_lib.audit_copies(queries, in_batches(training, size), nearest_lib.pixels)
    assert audit.distances.shape == audit.indices.shape == (7, 50)
    assert_is(audit, *brute_force(queries, nearest_lib.pixels(training)))
    assert audit.indices[5, :2].tolist() == [3, 200]
    assert audit.is_copy.tolist() == [False] * 5 + [True] * 2


def test_features_are_compared_instead_of_pixels():
    """Features are floats, as Inception's, and order the images otherwise than pixels do."""
    projection = np.random.default_rng(2).normal(size=(36, 4)).astype(np.float32)

    def embed(uint8):
        return np.float32(nearest_lib.pixels(uint8)) @ projection

    training, queries = drawn(90, seed=0), embed(drawn(4, seed=1))
    audit = nearest_lib.audit_copies(queries, in_batches(training, 40), embed)
    rows = np.concatenate([embed(rows) for _, rows in in_batches(training, 40)])
    assert_is(audit, *brute_force(queries, rows))


def test_indices_are_those_of_the_source():
    """In whatever order the batches come, and whatever they leave out."""
    training = drawn(100, seed=0)
    order = np.random.default_rng(3).permutation(100)[:80]
    batches = ((places, training[places]) for places in np.split(order, 4))
    queries = nearest_lib.pixels(training[order[:20]])
    audit = nearest_lib.audit_copies(queries, batches, nearest_lib.pixels)
    np.testing.assert_array_equal(audit.indices[:, 0], order[:20])
    assert np.all(audit.distances[:, 0] == 0) and np.all(audit.is_copy)
    assert np.isin(audit.indices, order).all()


@pytest.mark.parametrize("noise", [0, 1, 3])
def test_copies_are_flagged_and_other_images_are_not(noise):
    """A copy with noise of so many of 255 grey levels is still a copy."""
    training, random = drawn(200, seed=0), np.random.default_rng(4)
    copies = training[[10, 150, 199]] + random.normal(0, noise, (3, *SHAPE))
    samples = pixels.to_uint8(np.concatenate([copies, drawn(9, seed=1)]) / 127.5 - 1)
    for queries in (samples, np.float32(samples)):
        audit = nearest_lib.audit_copies(
            nearest_lib.pixels(queries), in_batches(training, 64), nearest_lib.pixels
        )
        assert audit.is_copy.tolist() == [True] * 3 + [False] * 9
        assert audit.indices[:3, 0].tolist() == [10, 150, 199]
        assert audit.ratio[:3].max() < 0.1 and audit.ratio[3:].min() > 0.5


def test_a_copy_is_less_than_half_as_far():
    """One row at distance r among 49 at 1: the ratio is r / mean."""
    def ratio(r):
        rows = np.vstack([np.full((1, 1), r), np.ones((49, 1))])
        batch = np.arange(50), rows
        return nearest_lib.audit_copies(np.zeros((1, 1)), [batch], lambda rows: rows)

    exactly = 49 / 99  # r / ((r + 49) / 50) = 1/2
    below, above = ratio(exactly - 1e-6), ratio(exactly + 1e-6)
    np.testing.assert_allclose([below.ratio[0], above.ratio[0]], 0.5, rtol=1e-5)
    assert below.is_copy[0] and not above.is_copy[0]


def test_the_fiftieth_is_the_last_that_counts():
    rows = np.arange(1.0, 61)[:, None]
    audit = nearest_lib.audit_copies(np.zeros((1, 1)), in_batches(rows, 25), lambda rows: rows)
    assert audit.distances.shape == (1, 50) and audit.distances[0, -1] == 50
    np.testing.assert_allclose(audit.ratio, 1 / 25.5)


@pytest.mark.parametrize("n, size", [(1, 8), (8, 3), (49, 20)])
def test_fewer_images_than_fifty_are_all_compared(n, size):
    training, queries = drawn(n, seed=0), nearest_lib.pixels(drawn(3, seed=1))
    audit = nearest_lib.audit_copies(queries, in_batches(training, size), nearest_lib.pixels)
    assert audit.distances.shape == (3, n)
    assert_is(audit, *brute_force(queries, nearest_lib.pixels(training)))
    assert not audit.is_copy.any()


def test_equal_images_divide_by_no_zero():
    """All training images are equal: a sample equal to them is a copy, another is not."""
    training = np.broadcast_to(drawn(1, seed=0), (70, *SHAPE))
    samples = np.concatenate([training[:1], drawn(1, seed=1)])
    queries, embed = nearest_lib.pixels(samples), nearest_lib.pixels
    audit = nearest_lib.audit_copies(queries, in_batches(training, 30), embed)
    assert audit.ratio[0] == 0 and audit.is_copy.tolist() == [True, False]
    np.testing.assert_allclose(audit.ratio[1], 1)
    assert audit.indices[0].tolist() == list(range(50))


def test_pixels_are_rows_in_0_to_255():
    pixels = drawn(3, seed=0, shape=(2, 3, 3))
    rows = nearest_lib.pixels(pixels)
    assert rows.shape == (3, 18) and rows.dtype == np.uint8
    np.testing.assert_array_equal(rows[1].reshape(2, 3, 3), pixels[1])


@pytest.fixture
def twenty():
    """60 training images, 20 samples of which 7 and 12 are copies, and their audit."""
    training, samples = drawn(60, seed=0), drawn(20, seed=1)
    samples[7], samples[12] = training[33], training[5]
    samples[12, 0, 0, 0] ^= 8
    queries, embed = nearest_lib.pixels(samples), nearest_lib.pixels
    audit = nearest_lib.audit_copies(queries, in_batches(training, 32), embed)
    return training, samples, audit


def test_the_table_has_a_line_per_sample(tmp_path, twenty):
    _, _, audit = twenty
    nearest_lib.save_table(tmp_path / "made" / "nearest.csv", audit)
    with (tmp_path / "made" / "nearest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "sample", "nearest", "distance", "mean_distance_of_50", "ratio", "copy"]
    assert [int(row["sample"]) for row in rows] == list(range(20))
    assert [int(row["nearest"]) for row in rows] == audit.indices[:, 0].tolist()
    assert [i for i, row in enumerate(rows) if row["copy"] == "1"] == [7, 12]
    assert {row["copy"] for row in rows} == {"0", "1"}
    columns = {"distance": audit.distances[:, 0], "ratio": audit.ratio,
               "mean_distance_of_50": audit.distances.mean(axis=1)}
    for name, values in columns.items():  # Six digits are written.
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-5)
    assert (tmp_path / "made" / "nearest.csv").read_bytes().endswith(b"\n")


def test_the_picture_shows_the_most_suspicious_first(twenty):
    training, samples, audit = twenty
    picture = nearest_lib.picture(samples, audit, source_lib.from_array(training))
    tile = 66  # 6 pixels enlarged 11 times, the fewest that reach 64; borders of 2.
    assert picture.shape == (16 * (tile + 2) + 2, 6 * (tile + 2) + 2, 1)
    assert picture.dtype == np.uint8

    def shown(row, column):
        top, left = 2 + row * (tile + 2), 2 + column * (tile + 2)
        return picture[top : top + tile : 11, left : left + tile : 11]

    worst = sorted(range(20), key=lambda i: audit.ratio[i])
    assert worst[:2] == [7, 12]
    for row, i in enumerate(worst[:16]):
        np.testing.assert_array_equal(shown(row, 0), samples[i])
        for column in range(5):
            np.testing.assert_array_equal(
                shown(row, 1 + column), training[audit.indices[i, column]])


@pytest.mark.parametrize("n, shape", [(3, (40, 30, 3)), (16, (70, 70, 1))])
def test_few_samples_and_few_images_make_a_smaller_picture(n, shape):
    training, samples = drawn(2, seed=0, shape=shape), drawn(n, seed=1, shape=shape)
    queries, embed = nearest_lib.pixels(samples), nearest_lib.pixels
    audit = nearest_lib.audit_copies(queries, in_batches(training, 2), embed)
    picture = nearest_lib.picture(samples, audit, source_lib.from_array(training))
    factor = 3 if shape[0] == 40 else 1
    rows, columns = n * (shape[0] * factor + 2) + 2, 3 * (shape[1] * factor + 2) + 2
    assert picture.shape == (rows, columns, shape[2])


SETTINGS = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def sets():
    return fidelity_scores.sets()


@pytest.fixture(scope="module")
def expected():
    return fidelity_scores.expected()


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@contextlib.contextmanager
def small_blocks():
    """Every loop over blocks turns several times, the last one ragged."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(ROWS=7, REFERENCE_ROWS=11, COLUMNS=5, SPARE=2).items():
            patch.setattr(nearest_lib, name, value)
        yield


# Nearest rows


def check_nearest(queries, reference, k):
    neighbours = nearest_lib.nearest(queries, reference, k)
    every = np.linalg.norm(
        queries[:, None].astype(np.float64) - reference[None].astype(np.float64), axis=2
    )
    want = np.sort(every, axis=1)[:, :k]
    assert neighbours.distances.shape == neighbours.indices.shape == (len(queries), k)
    # float64 sums of differences on both sides, in another order.
    np.testing.assert_allclose(neighbours.distances, want, rtol=1e-13, atol=0)
    there = np.take_along_axis(every, neighbours.indices, axis=1)
    np.testing.assert_allclose(there, want, rtol=1e-13, atol=0)
    assert all(len(set(row)) == k for row in neighbours.indices.tolist())


@pytest.mark.parametrize("k", [1, 5, 40])
def test_nearest_is_found_among_all(k):
    check_nearest(normal(0, 30, 17), normal(1, 40, 17), k)


@SETTINGS
@hypothesis.given(
    st.sampled_from([1, 7, 20]), st.sampled_from([1, 11, 40]), st.sampled_from([1, 12]),
    st.integers(1, 4), st.sampled_from([2, 100]), st.integers(0, 999),
)
def test_nearest_block_by_block(n, m, d, k, levels, seed):
    random = np.random.default_rng(seed)  # few levels: many duplicates and ties
    queries, reference = (random.integers(0, levels, (size, d)) for size in (n, m))
    with small_blocks():
        check_nearest(queries.astype(np.uint8), reference.astype(np.uint8), min(k, m))


def test_identical_rows_are_at_distance_zero_wherever_they_lie():
    reference = (normal(0, 300, 50) + 1e4).astype(np.float32)
    neighbours = nearest_lib.nearest(reference[[3, 299]], reference, 2)
    assert neighbours.indices[:, 0].tolist() == [3, 299]
    assert neighbours.distances[:, 0].tolist() == [0, 0] and neighbours.distances[:, 1].min() > 1


def clusters(seed, n, spread):
    """Rows [n, 20] around two points 9,000 apart, where float32 screens to about 2^2."""
    random = np.random.default_rng(seed)
    return random.choice([1e3, -1e3], (n, 1)) + spread * random.normal(size=(n, 20))


SPREADS = [1e-3, 0.1, 0.3, 1, 3]


@pytest.mark.parametrize("spread", SPREADS)
def test_rows_that_float32_cannot_tell_apart_are_told_apart(spread):
    # About 100 rows of a cluster, far more than there are candidates.
    check_nearest(clusters(0, 40, spread), clusters(1, 200, spread), 3)


def test_ordinary_rows_are_settled_among_the_candidates(monkeypatch):
    seen, distances = [], nearest_lib.exact_distances
    monkeypatch.setattr(
        nearest_lib, "exact_distances", lambda q, rows: seen.append(len(rows)) or distances(q, rows)
    )
    x, y = normal(0, 50, 4096) + 3, normal(1, 150, 4096) + 3
    nearest_lib.nearest(x, y, 2)
    nearest_lib.precision_recall(x, y)
    assert max(seen) == nearest_lib.SPARE + 4  # of the radii, k = 3 and the row itself


def test_equal_distances_come_in_the_order_of_the_reference():
    neighbours = nearest_lib.nearest([[0.0]], [[1.0], [-1.0], [0.5], [1.0]], 4)
    assert neighbours.indices.tolist() == [[2, 0, 1, 3]]


# Precision and recall


def brute_precision_recall(x, y, k):
    def share(queries, centres):
        every = [[np.linalg.norm(a - b) for b in centres] for a in centres]
        radii = [sorted(row[:i] + row[i + 1 :])[k - 1] for i, row in enumerate(every)]
        inside = [
            any(np.linalg.norm(q - c) <= r for c, r in zip(centres, radii)) for q in queries
        ]
        return sum(inside) / len(inside)

    return share(x, y), share(y, x)


def test_precision_and_recall_are_those_of_torch_fidelity(sets, expected):
    actual = nearest_lib.precision_recall(sets["samples"], sets["reference"])
    # Its shares are float32; one image more would be 0.002.
    assert actual == pytest.approx((expected["precision"], expected["recall"]), abs=1e-6)


def whole_numbers(n, m, seed):
    """Rows with duplicates, and some just on a sphere around another."""
    random = np.random.default_rng(seed)
    return random.integers(0, 5, (n, 2)).astype(float), random.integers(1, 7, (m, 2)) * 1.0


@SETTINGS
@hypothesis.given(
    st.sampled_from([4, 7, 25]), st.sampled_from([5, 11, 30]), st.integers(1, 3),
    st.integers(0, 999),
)
def test_precision_and_recall_against_loops(n, m, k, seed):
    x, y = whole_numbers(n, m, seed)
    with small_blocks():
        actual = nearest_lib.precision_recall(x, y, k)
    assert actual == pytest.approx(brute_precision_recall(x, y, k), rel=1e-12)


@pytest.mark.parametrize("spread", SPREADS)
def test_precision_and_recall_where_float32_cannot_tell(spread):
    x, y = clusters(0, 60, spread), clusters(1, 70, spread)
    with small_blocks():
        actual = nearest_lib.precision_recall(x, y)
    assert actual == pytest.approx(brute_precision_recall(x, y, 3), rel=1e-12)


def test_precision_and_recall_are_not_each_other():
    reference = np.arange(10.0)[:, None]
    samples = np.array([[0.1], [0.2], [0.3], [0.4], [50.0]])  # near 0, and one far off
    actual = nearest_lib.precision_recall(samples, reference, k=1)
    # Balls around the samples reach 0.1, and 49.6 around the far one: 0.4 to 99.6.
    assert actual == (0.8, 1.0)
    assert nearest_lib.precision_recall(samples[:4], reference, k=1) == (1.0, 0.1)


def test_a_row_on_the_sphere_is_inside():
    reference = np.array([[0.0], [1.0], [2.0]])
    samples = np.array([[-1.0], [3.0], [-1.0000001], [3.1]])
    assert nearest_lib.precision_recall(samples, reference, k=1).precision == 0.5


@pytest.mark.parametrize("copies", [1, 50])
def test_precision_and_recall_of_identical_sets(copies):
    x = np.repeat(normal(0, 20, 6) + 100, copies, axis=0)
    assert nearest_lib.precision_recall(x, x[::-1]) == (1, 1)


def test_precision_and_recall_of_sets_far_apart():
    x = normal(0, 50, 6)
    assert nearest_lib.precision_recall(x, x + 1e3) == (0, 0)


# Density and coverage


def brute_density_coverage(x, y, k):
    """By the sums of the paper, over every pair."""
    density, covered = 0, 0
    for i, centre in enumerate(y):
        radius = sorted(np.linalg.norm(centre - b) for j, b in enumerate(y) if j != i)[k - 1]
        inside = sum(np.linalg.norm(centre - a) <= radius for a in x)
        density += inside / (k * len(x))
        covered += inside > 0
    return density, covered / len(y)


@SETTINGS
@hypothesis.given(
    st.sampled_from([1, 7, 25]), st.sampled_from([5, 11, 30]), st.integers(1, 4),
    st.integers(0, 999),
)
def test_density_and_coverage_against_loops(n, m, k, seed):
    x, y = whole_numbers(n, m, seed)
    with small_blocks():
        actual = nearest_lib.density_coverage(x, y, k)
    assert actual == pytest.approx(brute_density_coverage(x, y, k), rel=1e-12)


@pytest.mark.parametrize("spread", SPREADS)
def test_density_and_coverage_where_float32_cannot_tell(spread):
    x, y = clusters(0, 60, spread), clusters(1, 70, spread)
    with small_blocks():
        actual = nearest_lib.density_coverage(x, y)
    assert actual == pytest.approx(brute_density_coverage(x, y, 5), rel=1e-12)


@pytest.mark.parametrize("n, m, k", [(60, 60, 5), (60, 30, 2), (30, 90, 1)])
def test_density_and_coverage_of_one_distribution(n, m, k):
    draws = 200
    scores = np.array([
        nearest_lib.density_coverage(normal(i, n, 3), normal(draws + i, m, 3), k)
        for i in range(draws)
    ])
    factors = np.arange(1, k + 1)
    coverage = 1 - np.prod((m - factors) / (n + m - factors))
    error = scores.std(axis=0, ddof=1) / draws**0.5
    assert np.all(np.abs(scores.mean(axis=0) - (1, coverage)) < 4 * error)
    assert np.all(error < (0.05, 0.02))  # Tells k - 1, and self-distances, from k.


def test_density_and_coverage_of_known_places():
    reference = np.arange(10.0)[:, None]
    samples = np.array([[4.0], [4.0], [4.0], [50.0]])  # in the balls of 3, 4 and 5
    actual = nearest_lib.density_coverage(samples, reference, k=1)
    # The outlier has no ball of its own, so it covers nothing: 9 of 4 pairs, 3 of 10 balls.
    assert actual == (9 / 4, 3 / 10)
    # The balls at the ends reach 2: those of 0, 1, 2 and 3 contain the sample.
    assert nearest_lib.density_coverage([[2.0]], reference, k=2) == (4 / 2, 4 / 10)
    assert nearest_lib.density_coverage(reference, reference + 1e3) == (0, 0)


X = normal(0, 8, 3)
NAN = np.where(np.arange(3) == 1, np.nan, X)


@pytest.mark.parametrize("call, words", [
    (lambda: nearest_lib.precision_recall(X, X[:3]), "k=3"),
    (lambda: nearest_lib.precision_recall(X, X, k=0), "k=0"),
    (lambda: nearest_lib.precision_recall(NAN, X), "features"),
    (lambda: nearest_lib.density_coverage(X, X[:5]), "k=5 must be less than 5, the rows of the r"),
    (lambda: nearest_lib.density_coverage(X, X, k=0), "k=0"),
    (lambda: nearest_lib.density_coverage(X, NAN), "reference"),
    (lambda: nearest_lib.nearest(X, X, k=9), "k=9 must lie in 1..8"),
    (lambda: nearest_lib.nearest(X, X, k=0), "k=0"),
    (lambda: nearest_lib.nearest(X, X[:, :2]), "queries are"),
    (lambda: nearest_lib.nearest(X, np.inf * X), "reference"),
    (lambda: nearest_lib.nearest(X.reshape(2, 2, 2, 3), X), "one row per image"),
])
def test_other_rows_are_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
