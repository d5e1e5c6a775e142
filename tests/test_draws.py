"""Several draws together, by plain loops, and the metric from a run's folder."""

import numpy as np
import pytest

from ddpm_jax import draws

RNG = np.random.default_rng(0)
TRUTH = np.uint8(255 * RNG.integers(0, 2, (3, 4, 5, 1)))
DRAWS = np.where(RNG.random((3, 6, 4, 5, 1)) < 0.8, TRUTH[:, None], 255 - TRUTH[:, None])


def test_summary_by_loops():
    found = draws.summary(DRAWS, TRUTH)
    for i in range(3):
        mean = sum(float(1) * draw for draw in DRAWS[i].astype(float)) / 6
        np.testing.assert_allclose(found.mean[i], mean)
        np.testing.assert_allclose(found.error[i], np.sqrt(np.mean((mean - TRUTH[i]) ** 2)))
        squares = [np.mean((draw.astype(float) - TRUTH[i]) ** 2) for draw in DRAWS[i]]
        np.testing.assert_allclose(found.single_error[i], np.sqrt(np.mean(squares)))
        pixel = DRAWS[i, :, 2, 3, 0].astype(float)
        spread = np.sqrt(sum((v - pixel.mean()) ** 2 for v in pixel) / 5)
        np.testing.assert_allclose(found.disagreement[i, 2, 3, 0], spread)
        both = sum(m >= 127.5 and t == 255 for m, t in zip(mean.ravel(), TRUTH[i].ravel()))
        area = np.sum(mean >= 127.5) + np.sum(TRUTH[i] == 255)
        np.testing.assert_allclose(found.dice[i], 2 * both / area)
    assert np.all(found.error < found.single_error)


def test_dice_is_of_masks_alone_and_of_nothing_1():
    assert draws.summary(DRAWS, np.maximum(TRUTH, 1)).dice is None
    nothing = np.zeros((1, 2, 4, 5, 1), np.uint8)
    assert draws.summary(nothing, nothing[:, 0]).dice == [1.0]


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_row_of_the_picture(channels):
    found = draws.summary(DRAWS, TRUTH)
    condition = RNG.integers(0, 256, (3, 4, 5, channels), np.uint8)
    picture = draws.picture(condition, DRAWS, found, TRUTH, shown=2)
    factor, border = 16, 2  # Of 4 pixels until they are 64.
    tile = lambda row, column: picture[
        border + row * (64 + border):, border + column * (80 + border):, 0][:64:factor, :80:factor]
    assert picture.shape == (3 * 66 + 2, 6 * 82 + 2, 1)
    for row in range(3):
        expected = [condition[row, ..., 0], DRAWS[row, 0, ..., 0], DRAWS[row, 1, ..., 0],
                    np.round(found.mean[row, ..., 0]),
                    np.round(np.minimum(2 * found.disagreement[row, ..., 0], 255)),
                    TRUTH[row, ..., 0]]
        for column, image in enumerate(expected):
            np.testing.assert_array_equal(tile(row, column), image)
