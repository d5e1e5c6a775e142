"""Arrays of images: what keeps one from being uint8 [n, h, w, c], and the line that mends it."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError, one_line, shown

_COLOURS = (1, 3, 4)  # Channels of pictures: grey, RGB, RGBA.
_WANTED = "must be uint8 [n, h, w, c]"
_12_BITS, _16_BITS = 4095, 65535


def as_uint8(images: Any, name: str, beside: tuple[int, ...] = ()) -> np.ndarray:
    """The images as a NumPy array uint8 [n, h, w, c], not copied if they are one already.

    Args:
        images: a NumPy or JAX array, anything with `__array__`, or a list of arrays of one shape.
        name: of the images in messages.
        beside: [n, h, w] of the images that these go with, if they are a condition.

    Raises:
        UserError: they are anything else. It says what they are and which line mends that.
    """
    array = _as_array(images, name)
    x = "images" if isinstance(images, np.ndarray) else "np.asarray(images)"
    got = f"{name}={_bounded(array.dtype)} {_bounded(list(array.shape))}"
    if not array.size:
        raise UserError(f"{got}: has no pixels, and {_WANTED} and not empty.")
    numbers = _numbers(array)
    if numbers is None:
        raise UserError(f"{got}: {_WANTED}; {_advice_on_objects(array, x)}.")
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        bad, axes = np.count_nonzero(~np.isfinite(numbers)), tuple(range(1, array.ndim))
        raise UserError(
            f"{got}: {bad:,} of {array.size:,} values are NaN or infinite; find where they come "
            f"from, or leave these images out: {x}[np.isfinite({x}).all(axis={axes})]."
        )
    fits = array.ndim == 4 and array.shape[:3] == beside
    looks, line = ("", x) if fits else _layout(array.shape, x)
    if array.dtype != np.uint8:
        where, line = to_uint8_line(numbers, line)
        got += f" {where}"
    if looks or array.dtype != np.uint8:
        rule = f"looks like {looks}, and {_WANTED}" if looks else _WANTED
        raise UserError(f"{got}: {rule}; write {line}.")
    return array


def to_uint8_line(array: np.ndarray, x: str) -> tuple[str, str]:
    """Where the values of an array of numbers lie, in words, and how to make uint8 of them.

    Args:
        array: finite numbers that are not all in uint8.
        x: the Python expression whose value the array is.

    Returns:
        The words, and a Python expression for pixels in 0..255.
    """
    if array.dtype.kind == "b":
        return "of True and False", f"{x}.astype(np.uint8) * 255"
    low, high = array.min().item(), array.max().item()
    where = f"in {low:g}..{high:g}"
    if isinstance(low, int):
        if 0 <= low and high <= _16_BITS:
            return where, (
                f"{x}.astype(np.uint8) * 255" if high <= 1 else
                f"{x}.astype(np.uint8)" if high <= 255 else
                f"np.round({x} / {_12_BITS} * 255).astype(np.uint8)" if high <= _12_BITS else
                f"np.round({x} / 257).astype(np.uint8)"
            )
    elif -0.001 <= low and high <= 1.001:
        return where, f"np.round({x} * 255).astype(np.uint8)"
    elif -1.001 <= low and high <= 1.001:
        return where, f"ddpm_jax.data.to_uint8({x})"
    elif -0.5 <= low and high < 255.5:
        return where, f"np.round({x}).astype(np.uint8)"
    return where, f"np.interp({x}, ({low:.9g}, {high:.9g}), (0, 255)).round().astype(np.uint8)"


def _as_array(images, name):
    """The images as an array of any dtype and shape."""
    if isinstance(images, (list, tuple)):
        _check_list(images, name)
    elif not hasattr(images, "__array__") and not hasattr(images, "__array_interface__"):
        raise UserError(f"{name} is {_a(images)}: {_advice_on_type(images, name)}.")
    if np.ma.is_masked(images):
        raise UserError(
            f"{name}={images.dtype} {list(images.shape)}: has masked pixels, and each needs a "
            "value; write images.filled(0)."
        )
    try:
        array = np.asarray(images)
    except (TypeError, ValueError, RuntimeError) as error:  # A tensor on a GPU, for example.
        raise UserError(
            f"{name} is {_a(images)}, which NumPy cannot read ({_bounded(one_line(error))}); write "
            "np.stack([np.asarray(image) for image in images])."
        ) from None
    if array.dtype == object and array.ndim == 1:
        _check_list(list(array), name)
    return array


def _check_list(images, name):
    """Refuses lists of images of several shapes, and images together with labels."""
    shapes = list(dict.fromkeys(map(_shape, images)))
    got = f"{name} is {_a(images)} of {len(images)}"
    if any(map(np.ma.is_masked, images)):
        raise UserError(f"{got} masked arrays; write np.stack([x.filled(0) for x in images]).")
    if None in shapes:
        raise UserError(f"{got}, {_advice_on_entry(images[shapes.index(None)])}.")
    if len(shapes) < 2:
        return
    axes = [len(shape) for shape in shapes]
    got += f" arrays of {len(shapes)} shapes, {' and '.join(str(list(s)) for s in shapes[:2])}"
    if len(images) == 2 and axes in ([4, 1], [4, 2], [3, 1]):
        raise UserError(
            f"{got}; if they are images and labels, write "
            "ddpm_jax.data.from_array(images[0], labels=images[1])."
        )
    if set(axes) == {4} and len({shape[1:] for shape in shapes}) == 1:
        raise UserError(f"{got}; write np.concatenate(images).")
    size = shapes[0][:2][::-1] if axes[0] > 1 else (32, 32)
    raise UserError(
        f"{got}, and images must have one; with PIL's Image, write np.stack([np.asarray("
        f"Image.fromarray(x).convert('RGB').resize({size})) for x in images])."
    )


def _advice_on_entry(entry):
    """What to write where this entry of a list is not one array."""
    pair = isinstance(entry, Sequence) and len(entry) == 2
    if pair and len(_shape(entry[0]) or ()) == 4:
        return (
            "training and test data it seems; write "
            "ddpm_jax.data.from_array(images[0][0], labels=images[0][1])"
        )
    if pair and len(_shape(entry[0]) or ()) > 1:
        return (
            "each an image and its label it seems; write ddpm_jax.data.from_array("
            "np.stack([x for x, _ in images]), labels=[y for _, y in images])"
        )
    return (
        f"{_a(entry)} among them, of which NumPy makes no array; each must be one image, uint8 "
        "[h, w, c]"
    )


def _layout(shape, x):
    """What an array of another layout looks like, "" for [n, h, w, c], and the expression for it.

    An array [n, h, w, c] may have any number of channels. So one of more than four is taken for
    another layout only if some other axis has as many as pictures have.
    """
    if len(shape) > 4:
        inner = (math.prod(shape[:-3]), *shape[-3:])
        looks, line = _layout(inner, f"{x}.reshape{(-1, *shape[-3:])}")
        return f"{len(shape)} axes" + (f", then {looks}" if looks else ""), line
    if len(shape) < 2:
        return "a list of numbers", f"{x}.reshape(n, h, w, c) with the size of your images"
    if len(shape) == 2:
        return _layout_of_two(*shape, x)
    if len(shape) == 3:
        if shape[-1] in _COLOURS and min(shape[:2]) > 4:
            return "one image [h, w, c]", f"{x}[None]"
        if shape[0] in _COLOURS and min(shape[1:]) > 4:
            one = f", or {x}.transpose(1, 2, 0)[None] if it is one image [c, h, w]"
            return "grey images [n, h, w]", f"{x}[..., None]{one if shape[0] > 1 else ''}"
        return "grey images [n, h, w]", f"{x}[..., None]"
    a, b, c, d = shape
    if d > 4 and b in _COLOURS and c > 4:
        return "[n, c, h, w]", f"{x}.transpose(0, 2, 3, 1)"
    if d > 4 and c in _COLOURS and min(a, b) > 4:
        return "[h, w, c, n]", f"{x}.transpose(3, 0, 1, 2)"
    if d > max(b, c) and a in _COLOURS and min(b, c) > 4:
        return "[c, h, w, n]", f"{x}.transpose(3, 1, 2, 0)"
    return "", x


def _layout_of_two(rows, columns, x):
    """Of an array [rows, columns]: images in rows, or one image."""
    for channels in (3, 1):
        side = math.isqrt(columns // channels)
        if rows != columns and side > 4 and channels * side**2 == columns:
            flat = f"{x}.reshape(-1, {channels}, {side}, {side}).transpose(0, 2, 3, 1)"
            return f"images of {side}x{side} in rows", flat
    return "one grey image [h, w]", f"{x}[None, ..., None]"


def _advice_on_type(images, name):
    if isinstance(images, (str, os.PathLike)):
        path = _bounded(os.fspath(images))
        if path.endswith(".npy"):
            return f"write {name}=np.load({path!r})"
        kind = "npz" if path.endswith(".npz") else "image_folder"
        return f"write {name}=ddpm_jax.data.load({kind!r}, data_dir={path!r})"
    if isinstance(images, Mapping):
        keys = list(images)
        return f"its keys are {shown(keys)}; write {name}=images[KEY] with that of the images"
    return (
        f"{_WANTED}, because training reads images in any order; write {name}=np.stack([np.asarray("
        "x) for x in images]), or example['image'] for x where an example is a dict"
    )


def _advice_on_objects(array, x):
    first = array.flat[0]
    if array.dtype.kind in "US":
        return (
            f"it holds text, {_bounded(str(first))!r}; if these are files, write "
            "ddpm_jax.data.load('image_folder', data_dir=FOLDER)"
        )
    if isinstance(first, Mapping):
        return f"write np.stack([example['image'] for example in {x}])"
    if array.dtype.kind == "O":
        return f"it holds {_a(first)} for each; if that has pixels, write np.array({x}.tolist())"
    return "pixels are real numbers"


def _numbers(array):
    """The array if it holds real numbers, JAX's small floats as float32; else None."""
    if array.dtype.kind in "buif":
        return array
    small = array.dtype.kind == "V" and not array.dtype.names and np.can_cast(array.dtype, float)
    return array.astype(np.float32) if small else None


def _shape(image):
    """The shape of an entry of a list; None if it has no one shape."""
    try:
        return tuple(np.shape(image))
    except (TypeError, ValueError, RuntimeError):
        return None


def _a(value):
    name = _bounded(type(value).__name__)
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _bounded(value):
    text = str(value)
    return text if len(text) <= 100 else f"{text[:50]}...{text[-50:]}"
