"""Pixels as uint8, as in files, and as float32 in [-1, 1].

There is one rule: uint8 v is v / 127.5 - 1, and x is round((x + 1) * 127.5), clipped. Images with
a `value_range` have their own (see `value_range`).
"""

import dataclasses

import numpy as np

from ddpm_jax.data import value_range as range_lib
from ddpm_jax.data.source import Source, spread
from ddpm_jax.errors import UserError

_LOOKED_AT = 32  # Images.


def to_float(uint8):
    """The values v as float32 v / 127.5 - 1 in [-1, 1], same shape; a NumPy or a JAX array.

    Inside jit, XLA multiplies by the reciprocal, so the last bit may differ: 255 may become
    1.0000001.
    """
    return uint8.astype("float32") / 127.5 - 1


def as_float(images):
    """Images as `Source.read` gives them, uint8 or float32, as float32 in [-1, 1]."""
    return to_float(images) if images.dtype == "uint8" else images


def as_uint8(images) -> np.ndarray:
    """Images as `Source.read` gives them, uint8 or float32 in [-1, 1], as uint8."""
    return images if images.dtype == "uint8" else to_uint8(images)


def as_pictures(source: Source) -> Source:
    """The same images, read as uint8, for pictures and for networks that take those."""
    if not source.value_range:
        return source
    return dataclasses.replace(
        source, read=lambda indices: to_uint8(source.read(indices)), value_range=(), bins=256
    )


def to_data(images, value_range: range_lib.Range, bins: int) -> np.ndarray:
    """The values x as those of the data: uint8, or low..high as `value_range.unscaled` does.

    Args:
        images: float [..., h, w, c], nominally in [-1, 1].
        value_range, bins: of a `Source` or a `Trained`.

    Raises:
        UserError: a value is NaN.
    """
    if not value_range:
        return to_uint8(images)
    _check_numbers(images)
    return range_lib.unscaled(images, value_range, bins)


def to_uint8(images) -> np.ndarray:
    """The values x as uint8 round((x + 1) * 127.5), halves to even, clipped.

    The inverse of `to_float`.

    Args:
        images: float [..., h, w, c], nominally in [-1, 1]; NumPy or JAX.

    Raises:
        UserError: a value is NaN, which has no colour.
    """
    images = np.asarray(images, np.float32)
    _check_numbers(images)
    return np.round((images.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def _check_numbers(images):
    if np.isnan(images).any():
        raise UserError(
            f"images of shape {images.shape} hold NaN, and a pixel must be a number: "
            "look for the step at which the model or sampler diverged."
        )


def range_warnings(source: Source) -> list[str]:
    """One line if the pixels of some images of a set span less than a tenth of their range."""
    images = source.read(spread(0, len(source) - 1, _LOOKED_AT))
    if source.value_range:
        found = range_lib.unscaled(
            np.array([images.min(), images.max()]), source.value_range, source.bins
        )
        low, high = found.tolist()
        if high - low >= 0.1 * (source.value_range[1] - source.value_range[0]):
            return []
        return [
            f"the pixels of {len(images):,} images of the data lie in {low:g}..{high:g}, under a "
            f"tenth of config.data.range={source.value_range}; write their own range."
        ]
    low, high = int(images.min()), int(images.max())
    if high - low >= 25.5:
        return []
    return [
        f"the pixels of {len(images):,} images of the data lie in {low}..{high}, under a tenth of "
        "0..255, as those of 12 bits in 16, or of 0..1 in uint8, do; scale the images first, for "
        f"example np.interp(images, ({low}, {max(high, low + 1)}), (0, 255)).round()"
        ".astype(np.uint8)."
    ]
