"""Pixels between uint8 files and float32 in [-1, 1].

One rule everywhere: uint8 v is v / 127.5 - 1; back it is round((x + 1) * 127.5), clipped.
"""

import numpy as np

from ddpm_jax.errors import UserError


def to_float(uint8):
    """float32 v / 127.5 - 1 in [-1, 1], same shape; NumPy or JAX array in, the same out.

    Inside jit the last bit may differ, so that 255 becomes 1.0000001: XLA multiplies by the
    reciprocal.
    """
    return uint8.astype("float32") / 127.5 - 1


def to_uint8(images) -> np.ndarray:
    """uint8 round((x + 1) * 127.5), halves to even, clipped; the inverse of `to_float`.

    Args:
        images: float [..., h, w, c], nominally in [-1, 1]; NumPy or JAX.

    Raises:
        ValueError: a value is NaN, which has no colour.
    """
    images = np.asarray(images, np.float32)
    if np.isnan(images).any():
        raise UserError(
            f"images of shape {images.shape} hold NaN, and a pixel must be a number: "
            "look for the step at which the model or sampler diverged."
        )
    return np.round((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
