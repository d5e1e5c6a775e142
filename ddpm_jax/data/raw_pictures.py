"""Pictures and arrays as the numbers that they hold, for data with a `config.data.range`."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ddpm_jax.data import decoding, value_range
from ddpm_jax.data import source as source_lib
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError

FORMATS = ("PNG", "TIFF")  # Pillow's; the others have 8 bits, or lose the rest in Pillow.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B"}  # Of the two bytes of a number in a file.


def decode(path: Any, shape: tuple[int, int, int], bounds: value_range.Range) -> np.ndarray:
    """The first frame of a picture file, float32 [h, w, c] in [-1, 1]; else as `first_frame`."""
    with decoding.opened(path) as image:
        return value_range.scaled(first_frame(image, shape, bounds), bounds)


def first_frame(
    image: Image.Image, shape: tuple[int, int, int], bounds: value_range.Range
) -> np.ndarray:
    """The pixels [h, w, c] of an opened PNG or TIFF, as `converted` gives them.

    Args:
        image: of any kind of pixel that Pillow reads, and of colours in 16 bits, of which Pillow
            alone reads the upper 8.
        shape, bounds: as of `converted`.

    Raises:
        UserError: it is of another format, or as `converted` does.
    """
    return converted(_pixels(image), shape, bounds)


def converted(
    pixels: np.ndarray, shape: tuple[int, int, int], bounds: value_range.Range
) -> np.ndarray:
    """An image [h, w, c] of any real dtype, resized and cropped.

    Args:
        pixels: the image.
        shape: a height of 0 keeps its size; 0 channels are as many as it has.
        bounds: low..high.

    Returns:
        Whole numbers of the smallest dtype that holds the range; float32 if the image or the range
        has floats.

    Raises:
        UserError: it has another number of channels, or a value is out of the range.
    """
    height, width, channels = decoding.fill_in(shape, pixels.shape)
    if channels != pixels.shape[-1]:
        raise UserError(
            f"it has {pixels.shape[-1]} channels, which config.data.range takes as they are; set "
            f"config.data.channels={pixels.shape[-1]}"
        )
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UserError("some of its pixels are NaN or infinite")
    value_range.check(pixels, bounds, "its pixels")
    whole = value_range.num_bins(pixels.dtype, bounds)
    pixels = pixels.astype(value_range.dtype_of(bounds) if whole else np.float32)
    return fitted(pixels, (height, width), bounds)


def fitted(pixels: np.ndarray, size: tuple[int, int], bounds: value_range.Range) -> np.ndarray:
    """An image [h, w, c] resized until it covers a size (Lanczos), and cropped to it.

    Each channel is resized in float32, clipped to its range, and rounded where it was whole.
    """
    if pixels.shape[:2] == size:
        return pixels
    resized = np.stack([
        np.asarray(ImageOps.fit(
            Image.fromarray(np.ascontiguousarray(plane, np.float32)), size[::-1],
            Image.Resampling.LANCZOS,
        )) for plane in np.moveaxis(pixels, -1, 0)
    ], axis=-1).clip(*bounds)
    return (resized if pixels.dtype.kind == "f" else np.round(resized)).astype(pixels.dtype)


def converted_source(
    images: np.ndarray, want: tuple[int, int, int], bounds: value_range.Range, name: str
) -> Source:
    """As `decoding.converted_source`, of images [n, h, w, c] of any real dtype.

    Raises:
        UserError: a value is out of the range, or other channels are wanted.
    """
    source = source_lib.in_memory(images, name, value_range=bounds)
    height, width, channels = decoding.fill_in(want, source.image_shape)
    if channels != source.image_shape[-1]:
        raise UserError(
            f"is not the {source.image_shape[-1]} of {name}, which config.data.range takes as "
            "they are", field="config.data.channels", value=channels,
            instead={"config.data.channels": source.image_shape[-1]},
        )
    if (height, width) == source.image_shape[:2]:
        return source

    def read(indices):
        return np.stack([fitted(image, (height, width), bounds) for image in images[indices]])

    shape = (height, width, channels)
    if source_lib.fits(len(images), shape, images.itemsize):
        return source_lib.in_memory(read(np.arange(len(images))), name, value_range=bounds)
    return Source(len(images), shape, read).scaled(bounds, images.dtype)


def _pixels(image):
    """The numbers of an opened picture, upright, [h, w, c]."""
    if image.format not in FORMATS:
        raise UserError(
            f"it is {image.format}, and with config.data.range only {' and '.join(FORMATS)} are "
            "read"
        )
    layout = _layout(image)
    if ";16" in layout and image.mode.startswith(("RGB", "LA")):
        if layout.startswith("LA"):
            raise UserError("it is grey with transparency in 16 bits, which Pillow cannot read")
        lower = layout[:-1] + _OTHER_ORDER[layout[-1]]
        return 256 * _of_bytes(image, layout) + _of_bytes(image, lower)
    if image.mode in ("1", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        kind = "RGBA" if image.has_transparency_data else "RGB"
        image = image.convert("L" if image.mode == "1" else kind)
    pixels = np.asarray(ImageOps.exif_transpose(image))
    signed = image.format == "TIFF" and 2 in image.tag_v2.get(339, (1,))
    if signed and pixels.dtype == np.uint8:
        pixels = pixels.view(np.int8)
    return pixels.reshape(*pixels.shape[:2], -1)


def _layout(image):
    """How the file holds a pixel, in the words of Pillow, for example "RGB;16B"."""
    arguments = image.tile[0].args if image.tile else ""
    return arguments if isinstance(arguments, str) else str((arguments or ("",))[0])


def _of_bytes(image, layout):
    """The bytes that Pillow takes of a picture of colours if its pixels have this layout."""
    image.fp.seek(0)
    part = decoding.open_picture(image.fp)
    tiles = []
    for tile in part.tile:
        others = () if isinstance(tile.args, str) else tile.args[1:]
        tiles.append(tile._replace(args=(layout, *others) if others else layout))
    part.tile = tiles
    return np.asarray(ImageOps.exif_transpose(part)).astype(np.uint16)
