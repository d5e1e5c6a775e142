"""Blocks of pixels as channels and back, in the order of TensorFlow's operations of these names.

Shapes in comments: b images, h and w pixels, c channels, k pixels along either side of a block.
"""

import jax


def space_to_depth(x: jax.Array, block_size: int) -> jax.Array:
    """[b, h, w, c] -> [b, h/k, w/k, k k c]: the pixels of a block row by row, c channels each."""
    b, h, w, c = x.shape
    k = block_size
    x = x.reshape(b, h // k, k, w // k, k, c).swapaxes(2, 3)  # [b, h/k, w/k, k, k, c]
    return x.reshape(b, h // k, w // k, k * k * c)


def depth_to_space(x: jax.Array, block_size: int) -> jax.Array:
    """[b, h, w, k k c] -> [b, k h, k w, c]: the inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    k = block_size
    x = x.reshape(b, h, w, k, k, c // k**2).swapaxes(2, 3)  # [b, h, k, w, k, c]
    return x.reshape(b, h * k, w * k, c // k**2)
