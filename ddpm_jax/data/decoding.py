"""The rules by which pictures become uint8 arrays of one size."""

import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ddpm_jax.data import source as source_lib
from ddpm_jax.data.source import Source, from_array
from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import files

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name of the mode by channels.
# Pillow's formats of pictures, without PostScript for example, a program that it would run.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
UNREADABLE = (  # What Pillow raises on damaged files.
    OSError, RuntimeError, SyntaxError, EOFError, ValueError, TypeError, LookupError,
    ArithmeticError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def fill_in(want: tuple, shape: tuple) -> tuple:
    """The wanted (height, width, channels); a 0 in it becomes the number of `shape`."""
    return tuple(w or s for w, s in zip(want, shape))


def convert(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """One decoded image [h, w, c] as uint8 of the given shape."""
    if array.shape == shape and array.dtype == np.uint8:
        return array
    return to_array(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), shape)


def open_picture(file: Any) -> Image.Image:
    """Opens a picture of one of `FORMATS`, whatever its name, from a path or a binary file.

    Raises:
        UNREADABLE: it is damaged, of another format, or of more than 2 x `Image.MAX_IMAGE_PIXELS`
            pixels by its header (Pillow's bound, 179 million).
    """
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def to_array(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """A Pillow image as uint8 of `shape` (h, w, c), by the rules of `loading.load`.

    A height of 0 keeps its size.
    """
    height, width, channels = shape
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion to 8 bits clips.
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels != 4:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode not in ("1", "L", "F"):
        image = image.convert("RGB")  # CMYK and palettes cannot be converted to grey directly.
    image = image.convert(MODES[channels])
    if height and image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, channels)


def decode(path: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """The first frame of a picture file, uint8 [h, w, c]; a height of 0 keeps its size.

    Raises:
        UNREADABLE: it cannot be read.
    """
    with files.path(path).open("rb") as file, open_picture(file) as image:
        # A JPEG far too large is cheaper to decode at 1/2, 1/4 or 1/8 of its size.
        if shape[0]:
            image.draft(None, (2 * max(shape[:2]), 2 * max(shape[:2])))
        return to_array(ImageOps.exif_transpose(image), shape)


def read(path: str, shape: tuple[int, int, int], *, setting: str) -> np.ndarray:
    """A picture that a user named, as `decode` gives it.

    Args:
        path: of a file of one of `FORMATS`.
        shape: (h, w, c); h of 0 keeps its size.
        setting: the name of the setting in messages, for example "config.sample.inputs".

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        return decode(path, shape)
    except FileNotFoundError:
        problem = "which does not exist"
    except UNREADABLE as error:
        problem = f"which cannot be read ({one_line(error)})"
    raise UserError(f"{setting} has {str(path)!r}, {problem}; name a .png, .jpg or other picture.")


def converted_source(images: np.ndarray, want: tuple[int, int, int]) -> Source:
    """A source of the images uint8 [n, h, w, c], each converted to the wanted shape.

    Args:
        images: of any one size; converted when they are read if all at once would not fit.
        want: (height, width, channels); a 0 keeps theirs.

    Raises:
        UserError: they have a number of channels that cannot be converted.
    """
    shape = fill_in(want, images.shape[1:])
    if shape == images.shape[1:]:
        return from_array(images)
    if images.shape[-1] not in MODES:
        raise UserError(
            f"config.data.channels={want[-1]}: images {list(images.shape)} are neither grey, "
            "RGB nor RGBA, and so only taken as they are; write --config.data.image_size=0 "
            "--config.data.channels=0."
        )

    def read(indices):
        return np.stack([convert(image, shape) for image in images[indices]])

    if source_lib.fits(len(images), shape):
        return from_array(read(np.arange(len(images))))
    return Source(len(images), shape, read)
