"""What a set of images is, apart from where it comes from."""

import numpy as np
import pytest

from ddpm_jax.data.source import spread


@pytest.mark.parametrize("first, last, num, wanted", [
    (0, 9, 4, [0, 3, 6, 9]),
    (9, 0, 4, [9, 6, 3, 0]),
    (0, 10, 4, [0, 3, 7, 10]),  # Of 3 1/3 and 6 2/3, the nearest.
    (0, 5, 3, [0, 2, 5]),  # Of 2 1/2, the even one.
    (0, 9, 1, [0]),
    (9, 0, 1, [9]),
    (0, 2, 7, [0, 1, 2]),
    (4, 4, 3, [4]),
])
def test_numbers_are_spread_evenly(first, last, num, wanted):
    found = spread(first, last, num)
    assert found.dtype == np.int64 and found.tolist() == wanted


def test_fractions_can_be_dropped():
    assert spread(0, 10, 4, truncate=True).tolist() == [0, 3, 6, 10]
    for size in range(1, 200):  # As of caches on disk, which are named by the images of 64 places.
        named = np.unique(np.linspace(0, size - 1, 64).astype(np.int64))
        np.testing.assert_array_equal(spread(0, size - 1, 64, truncate=True), named)
