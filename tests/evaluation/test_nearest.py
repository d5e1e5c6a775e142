"""The audit against every distance in float64; copies are found, other images are not."""

import csv

import numpy as np
import pytest

from ddpm_jax.data import pixels
from ddpm_jax.data import source as source_lib
from ddpm_jax.evaluation import nearest as nearest_lib

SHAPE = (6, 6, 1)


def drawn(n, seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def in_batches(training, size):
    """(indices, images), as `inception_features.batches` gives them."""
    for start in range(0, len(training), size):
        places = np.arange(start, min(start + size, len(training)))
        yield places, training[places]


def brute_force(queries, rows, k=50):
    """Every distance, from float64 differences; of equals the lower index first."""
    difference = np.float64(queries)[:, None] - np.float64(rows)[None]
    distances = np.sqrt((difference**2).sum(axis=2))
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


def assert_is(found, distances, indices):
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)  # float64 sums
    np.testing.assert_array_equal(found.indices, indices)
    assert found.distances.dtype == np.float64 and found.indices.dtype == np.int64
    ratio = distances[:, 0] / distances.mean(axis=1)
    np.testing.assert_allclose(found.ratio, ratio, rtol=1e-12)
    np.testing.assert_array_equal(found.is_copy, ratio < 0.5)
    assert found.is_copy.dtype == bool


@pytest.mark.parametrize("size", [7, 60, 130, 1000])
def test_the_nearest_of_all_batches_are_found(size):
    """Batches smaller and larger than the 50 that are kept."""
    training = drawn(300, seed=0)
    training[200] = training[3]  # Equal rows far apart: the first comes first.
    queries = nearest_lib.pixels(np.concatenate([drawn(5, seed=1), training[[3, 299]]]))
    found = nearest_lib.audit(queries, in_batches(training, size), nearest_lib.pixels)
    assert found.distances.shape == found.indices.shape == (7, 50)
    assert_is(found, *brute_force(queries, nearest_lib.pixels(training)))
    assert found.indices[5, :2].tolist() == [3, 200]
    assert found.is_copy.tolist() == [False] * 5 + [True] * 2


def test_features_are_compared_where_they_are_asked_for():
    """Of floats, such as Inception's; the order differs from that of the pixels."""
    projection = np.random.default_rng(2).normal(size=(36, 4)).astype(np.float32)

    def of(uint8):
        return np.float32(nearest_lib.pixels(uint8)) @ projection

    training, queries = drawn(90, seed=0), of(drawn(4, seed=1))
    found = nearest_lib.audit(queries, in_batches(training, 40), of)
    rows = np.concatenate([of(rows) for _, rows in in_batches(training, 40)])
    assert_is(found, *brute_force(queries, rows))


def test_indices_are_those_of_the_source():
    """Whatever order batches come in, and whatever they leave out."""
    training = drawn(100, seed=0)
    order = np.random.default_rng(3).permutation(100)[:80]
    batches = ((places, training[places]) for places in np.split(order, 4))
    found = nearest_lib.audit(nearest_lib.pixels(training[order[:20]]), batches, nearest_lib.pixels)
    np.testing.assert_array_equal(found.indices[:, 0], order[:20])
    assert np.all(found.distances[:, 0] == 0) and np.all(found.is_copy)
    assert np.isin(found.indices, order).all()


@pytest.mark.parametrize("noise", [0, 1, 3])
def test_copies_are_flagged_and_other_images_are_not(noise):
    """Noise of so many of 255 grey levels is no disguise."""
    training, random = drawn(200, seed=0), np.random.default_rng(4)
    copies = training[[10, 150, 199]] + random.normal(0, noise, (3, *SHAPE))
    samples = pixels.to_uint8(np.concatenate([copies, drawn(9, seed=1)]) / 127.5 - 1)
    for queries in (samples, np.float32(samples)):
        found = nearest_lib.audit(
            nearest_lib.pixels(queries), in_batches(training, 64), nearest_lib.pixels
        )
        assert found.is_copy.tolist() == [True] * 3 + [False] * 9
        assert found.indices[:3, 0].tolist() == [10, 150, 199]
        assert found.ratio[:3].max() < 0.1 and found.ratio[3:].min() > 0.5


def test_a_copy_is_less_than_half_as_far():
    """One row at distance r among 49 at 1: the ratio is r / mean."""
    def ratio(r):
        rows = np.vstack([np.full((1, 1), r), np.ones((49, 1))])
        batch = np.arange(50), rows
        return nearest_lib.audit(np.zeros((1, 1)), [batch], lambda rows: rows)

    exactly = 49 / 99  # r / ((r + 49) / 50) = 1/2
    below, above = ratio(exactly - 1e-6), ratio(exactly + 1e-6)
    np.testing.assert_allclose([below.ratio[0], above.ratio[0]], 0.5, rtol=1e-5)
    assert below.is_copy[0] and not above.is_copy[0]


def test_the_fiftieth_is_the_last_that_counts():
    rows = np.arange(1.0, 61)[:, None]
    found = nearest_lib.audit(np.zeros((1, 1)), in_batches(rows, 25), lambda rows: rows)
    assert found.distances.shape == (1, 50) and found.distances[0, -1] == 50
    np.testing.assert_allclose(found.ratio, 1 / 25.5)


@pytest.mark.parametrize("n, size", [(1, 8), (8, 3), (49, 20)])
def test_fewer_images_than_fifty_are_all_compared(n, size):
    training, queries = drawn(n, seed=0), nearest_lib.pixels(drawn(3, seed=1))
    found = nearest_lib.audit(queries, in_batches(training, size), nearest_lib.pixels)
    assert found.distances.shape == (3, n)
    assert_is(found, *brute_force(queries, nearest_lib.pixels(training)))
    assert not found.is_copy.any()


def test_equal_images_divide_by_no_zero():
    """All training images are one: a sample that is it is a copy, another is not."""
    training = np.broadcast_to(drawn(1, seed=0), (70, *SHAPE))
    samples = np.concatenate([training[:1], drawn(1, seed=1)])
    queries, of = nearest_lib.pixels(samples), nearest_lib.pixels
    found = nearest_lib.audit(queries, in_batches(training, 30), of)
    assert found.ratio[0] == 0 and found.is_copy.tolist() == [True, False]
    np.testing.assert_allclose(found.ratio[1], 1)
    assert found.indices[0].tolist() == list(range(50))


def test_pixels_are_rows_on_their_own_scale():
    pixels = drawn(3, seed=0, shape=(2, 3, 3))
    rows = nearest_lib.pixels(pixels)
    assert rows.shape == (3, 18) and rows.dtype == np.uint8
    np.testing.assert_array_equal(rows[1].reshape(2, 3, 3), pixels[1])


@pytest.fixture
def twenty():
    """20 samples, of which 7 and 12 are copies, among 60 training images."""
    training, samples = drawn(60, seed=0), drawn(20, seed=1)
    samples[7], samples[12] = training[33], training[5]
    samples[12, 0, 0, 0] ^= 8
    queries, of = nearest_lib.pixels(samples), nearest_lib.pixels
    found = nearest_lib.audit(queries, in_batches(training, 32), of)
    return training, samples, found


def test_the_table_has_a_line_a_sample(tmp_path, twenty):
    _, _, found = twenty
    nearest_lib.save_table(tmp_path / "made" / "nearest.csv", found)
    with (tmp_path / "made" / "nearest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "sample", "nearest", "distance", "mean_distance_of_50", "ratio", "copy"]
    assert [int(row["sample"]) for row in rows] == list(range(20))
    assert [int(row["nearest"]) for row in rows] == found.indices[:, 0].tolist()
    assert [i for i, row in enumerate(rows) if row["copy"] == "1"] == [7, 12]
    assert {row["copy"] for row in rows} == {"0", "1"}
    columns = {"distance": found.distances[:, 0], "ratio": found.ratio,
               "mean_distance_of_50": found.distances.mean(axis=1)}
    for name, values in columns.items():  # Six digits are written.
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-5)
    assert (tmp_path / "made" / "nearest.csv").read_bytes().endswith(b"\n")


def test_the_picture_shows_the_most_suspicious_first(twenty):
    training, samples, found = twenty
    picture = nearest_lib.picture(samples, found, source_lib.from_array(training))
    tile = 66  # 6 pixels enlarged 11 times, the fewest that reach 64; borders of 2
    assert picture.shape == (16 * (tile + 2) + 2, 6 * (tile + 2) + 2, 1)
    assert picture.dtype == np.uint8

    def shown(row, column):
        top, left = 2 + row * (tile + 2), 2 + column * (tile + 2)
        return picture[top : top + tile : 11, left : left + tile : 11]

    worst = sorted(range(20), key=lambda i: found.ratio[i])
    assert worst[:2] == [7, 12]
    for row, i in enumerate(worst[:16]):
        np.testing.assert_array_equal(shown(row, 0), samples[i])
        for column in range(5):
            np.testing.assert_array_equal(
                shown(row, 1 + column), training[found.indices[i, column]])


@pytest.mark.parametrize("n, shape", [(3, (40, 30, 3)), (16, (70, 70, 1))])
def test_few_samples_and_few_images_make_a_smaller_picture(n, shape):
    training, samples = drawn(2, seed=0, shape=shape), drawn(n, seed=1, shape=shape)
    queries, of = nearest_lib.pixels(samples), nearest_lib.pixels
    found = nearest_lib.audit(queries, in_batches(training, 2), of)
    picture = nearest_lib.picture(samples, found, source_lib.from_array(training))
    factor = 3 if shape[0] == 40 else 1
    rows, columns = n * (shape[0] * factor + 2) + 2, 3 * (shape[1] * factor + 2) + 2
    assert picture.shape == (rows, columns, shape[2])
