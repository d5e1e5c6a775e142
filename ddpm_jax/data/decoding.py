"""The rules by which pictures become uint8 arrays of one size."""

import contextlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ddpm_jax.data import arrays
from ddpm_jax.data import source as source_lib
from ddpm_jax.data.source import Source, from_array
from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import files

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name of the mode by channels.
# Pillow's formats of pictures, without PostScript for example, a program that it would run.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
GET_HEIF = 'pip install "ddpm_jax[heif]"'
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_16_BITS = 65535
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


def to_array(
    image: Image.Image, shape: tuple[int, int, int], white: int = _16_BITS
) -> np.ndarray:
    """A Pillow image as uint8 of `shape` (h, w, c), by the rules of `loading.load`.

    Args:
        image: of any mode.
        shape: a height of 0 keeps its size.
        white: the value that becomes 255 where a pixel has more than 8 bits.
    """
    height, width, channels = shape
    if image.mode.startswith("I"):  # Pillow's own conversion to 8 bits clips.
        values = np.clip(np.asarray(image).astype(np.int64), 0, white)
        image = Image.fromarray(((255 * values + white // 2) // white).astype(np.uint8))
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


@contextlib.contextmanager
def opened(path: Any) -> Iterator[Image.Image]:
    """A picture file, opened as `open_picture` does.

    Raises:
        UNREADABLE: it cannot be opened, for example HEIC without pillow-heif.
    """
    with files.path(path).open("rb") as file:
        try:
            image = open_picture(file)
        except UnidentifiedImageError as error:
            image = _opened_as_heic(file, error)
        with image:
            yield image


def _opened_as_heic(file, error):
    """The picture in a file that Pillow alone cannot identify, which raises this error.

    Phones save HEIC under names of JPEG too.
    """
    file.seek(0)
    head = file.read(32)
    if head[:4] in (b"II*\0", b"MM\0*"):
        raise UserError(
            "it is a TIFF that is damaged or of a kind that Pillow does not know, for example "
            "of float64 or of colours in 32 bits; save it as a PNG of 8 bits"
        ) from None
    if head[4:8] != b"ftyp" or not any(brand in head for brand in _HEIC_BRANDS):
        raise error
    if not reads_heif():
        raise UserError(f"it is HEIC, which needs a package; {GET_HEIF}")
    file.seek(0)
    return open_picture(file)


def decode(path: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """The first frame of a picture file, uint8 [h, w, c]; a height of 0 keeps its size.

    Raises:
        UNREADABLE: it cannot be read, or nothing says which of its values is white.
    """
    with opened(path) as image:
        return first_frame(image, shape)


def first_frame(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """As `decode`, of an opened picture."""
    # A JPEG far too large is cheaper to decode at 1/2, 1/4 or 1/8 of its size.
    if shape[0]:
        image.draft(None, (2 * max(shape[:2]), 2 * max(shape[:2])))
    return to_array(ImageOps.exif_transpose(image), shape, _white(image))


def has_later_frames(image: Image.Image) -> bool:
    """Whether an opened picture has pages or frames after the first."""
    with contextlib.suppress(*UNREADABLE):  # Those pages are damaged, and not read anyway.
        # The second picture of an MPO is a preview or a map of depth.
        return image.format != "MPO" and getattr(image, "is_animated", False)
    return False


def reads_heif() -> bool:
    """Whether pillow-heif is installed; if so, Pillow reads HEIC from now on."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _white(image):
    """The value of white in the pixels of an opened picture with more than 8 bits each.

    Raises:
        UserError: they are floats, signed or of 32 bits, whose range no file says.
    """
    tags = image.tag_v2 if image.format == "TIFF" else {}
    signed = 2 in tags.get(339, (1,))
    if image.mode == "F" or image.mode == "I" and image.format != "PPM" or signed:
        pixels, x = np.asarray(image), "np.asarray(image)"
        if pixels.dtype == np.uint8:
            pixels, x = pixels.view(np.int8), f"{x}.view(np.int8)"
        words = f"{pixels.dtype}, some of them NaN"
        if np.isfinite(pixels).all():
            where, line = arrays.to_uint8_line(pixels, x)
            words = f"{pixels.dtype} {where}; save Image.fromarray({line})"
        raise UserError(f"only pixels of 8 or 16 bits have a known range, and these are {words}")
    return 2 ** tags.get(258, (16,))[0] - 1 if image.mode.startswith("I;16") else _16_BITS


def read(
    path: str, shape: tuple[int, int, int], *, setting: str,
    decoder: Callable[..., np.ndarray] = decode,
) -> np.ndarray:
    """A picture that a user named, as `decode` gives it.

    Args:
        path: of a file of one of `FORMATS`.
        shape: (h, w, c); h of 0 keeps its size.
        setting: the name of the setting in messages, for example "config.sample.inputs".
        decoder: reads the file as `decode` does.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        return decoder(path, shape)
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
    if not {images.shape[-1], shape[-1]} <= set(MODES):
        raise UserError(
            f"config.data.channels={want[-1]}: images {list(images.shape)} are neither grey, "
            "RGB nor RGBA, or are not to be, and so only taken as they are; write "
            "--config.data.image_size=0 --config.data.channels=0."
        )

    def read(indices):
        return np.stack([convert(image, shape) for image in images[indices]])

    if source_lib.fits(len(images), shape):
        return from_array(read(np.arange(len(images))))
    return Source(len(images), shape, read)
