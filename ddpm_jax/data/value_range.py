"""Data that are not 8-bit: the values low..high of their pixels, and float32 in [-1, 1].

Whole numbers have a bin of the bound for each value, and floats have none.
"""

from typing import Any

import numpy as np

from ddpm_jax import errors
from ddpm_jax.errors import UserError

Range = tuple[float, float] | tuple[()]  # (low, high); (): uint8, taken as they are.
MAX_BINS = 65536  # float32 tells no more values apart well enough for the bound.
_FIELD = "config.data.range"


def checked(value_range: Any) -> Range:
    """The range as a tuple of two numbers, or () for uint8.

    Raises:
        UserError: it is anything else, or low is not below high.
    """
    try:
        numbers = tuple(value_range)
        sound = not numbers or _is_range(*numbers)
    except (TypeError, OverflowError):
        sound = False
    if not sound:
        raise UserError(
            "must be the lowest and the highest value of a pixel, or () for 8 bits",
            field=_FIELD, value=value_range, instead={_FIELD: (0, 65535)},
        )
    return tuple(x.item() if isinstance(x, np.generic) else x for x in numbers)


def _is_range(low, high):
    kinds = (int, float, np.integer, np.floating)
    numbers = all(isinstance(x, kinds) and not isinstance(x, bool) for x in (low, high))
    return numbers and low < high and 1e-30 < high - low < 1e30  # Within float32.


def num_bins(dtype: Any, value_range: Range) -> int:
    """How many values pixels of a dtype can have; 0 for floats, and for more than `MAX_BINS`."""
    if not value_range:
        return 256
    low, high = value_range
    whole = np.dtype(dtype).kind in "bui" and low == int(low) and high == int(high)
    return int(high - low + 1) if whole and high - low < MAX_BINS else 0


def check(values: np.ndarray, value_range: Range, name: str) -> None:
    """Raises UserError where pixels lie outside of their range.

    Args:
        values: numbers of any shape, none of them NaN.
        value_range: low..high.
        name: of the pixels in the message.
    """
    low, high = values.min().item(), values.max().item()
    if not (value_range[0] <= low and high <= value_range[1]):
        raise UserError(
            f"does not hold {name}, which lie in {low:.9g}..{high:.9g}", field=_FIELD,
            value=value_range, instead={_FIELD: (low, high if high > low else low + 1)},
        )


def scaled(values: np.ndarray, value_range: Range) -> np.ndarray:
    """The values low..high as float32 in [-1, 1], by a line; computed in float64."""
    low, high = value_range
    return ((np.asarray(values, np.float64) - low) * (2 / (high - low)) - 1).astype(np.float32)


def unscaled(images: np.ndarray, value_range: Range, bins: int) -> np.ndarray:
    """The inverse of `scaled`: x clipped to [-1, 1] as values low..high.

    Args:
        images: float [..., h, w, c], nominally in [-1, 1].
        value_range: low..high.
        bins: of `num_bins`; without any the result is float32, else of the smallest dtype of whole
            numbers that holds the range, rounded.
    """
    low, high = value_range
    share = (np.asarray(images, np.float64).clip(-1, 1) + 1) / 2
    if not bins:
        return (low + share * (high - low)).astype(np.float32)
    return (int(low) + np.round(share * (bins - 1))).astype(dtype_of(value_range))


def dtype_of(value_range: Range) -> np.dtype:
    """The smallest dtype of whole numbers that holds low and high."""
    low, high = map(int, value_range)
    return np.min_scalar_type(high if low >= 0 else min(low, -high - 1))


def numbers(images: Any, name: str) -> np.ndarray:
    """An array [n, h, w, c] of numbers, not copied if it is one already.

    Raises:
        UserError: it is none, it is empty, or a value is NaN or infinite.
    """
    array = np.asarray(images)
    got = f"{name}={errors.shown(str(array.dtype))} {errors.shown(list(array.shape))}"
    if array.dtype.kind not in "buif" or array.ndim != 4 or not array.size:
        raise UserError(
            f"{got}: must be numbers [n, h, w, c], at least one; with {_FIELD} of "
            "any kind and number of channels. Write images[..., None] for one channel."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(
            f"{got}: {np.count_nonzero(~np.isfinite(array)):,} values are NaN or infinite; leave "
            "these images out: images[np.isfinite(images).all(axis=(1, 2, 3))]."
        )
    return array
