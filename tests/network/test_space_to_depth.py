"""Blocks of pixels as channels, against TensorFlow's documented examples and by hand."""

import numpy as np
from numpy.testing import assert_array_equal

from ddpm_jax.network.space_to_depth import depth_to_space, space_to_depth


def test_the_examples_of_tensorflow():
    """From the documentation of tf.nn.space_to_depth."""
    x = np.array([[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]])
    blocks = [[[1, 2, 3, 4], [5, 6, 7, 8]], [[9, 10, 11, 12], [13, 14, 15, 16]]]
    assert_array_equal(space_to_depth(x[None, :, :, None], 2)[0], blocks)
    x = np.arange(1, 13).reshape(1, 2, 2, 3)
    assert_array_equal(space_to_depth(x, 2), np.arange(1, 13).reshape(1, 1, 1, 12))


def test_each_pixel_goes_to_its_block_and_back():
    x = np.arange(2 * 6 * 9 * 5).reshape(2, 6, 9, 5)
    blocks = space_to_depth(x, 3)
    assert blocks.shape == (2, 2, 3, 45)
    for b, i, j, c in np.ndindex(x.shape):
        assert blocks[b, i // 3, j // 3, 5 * (3 * (i % 3) + j % 3) + c] == x[b, i, j, c]
    assert_array_equal(depth_to_space(blocks, 3), x)
