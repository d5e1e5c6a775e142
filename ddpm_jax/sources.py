"""Random-access sets of uint8 images of one size, and the rules by which pictures become them."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

MEMORY_BUDGET = 2 * 2**30  # bytes of decoded images; a larger set is streamed
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's name for them


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A random-access set of uint8 images of one size.

    Attributes:
        size: number of images; also `len(source)`.
        image_shape: (height, width, channels).
        read: maps an int array [k] of indices in 0..size-1 to uint8 [k, h, w, c]; pure,
            and safe to call from several threads.
        in_memory: whether `read` only copies, rather than decodes.
    """

    size: int
    image_shape: tuple[int, int, int]
    read: Callable[[np.ndarray], np.ndarray]
    in_memory: bool = False

    def __len__(self) -> int:
        return self.size


def from_array(images: np.ndarray) -> Source:
    """A source of the images of an array, uint8 [n, h, w, c]; not copied.

    Raises:
        ValueError: `images` has another dtype or shape, or is empty.
    """
    return in_memory(np.asarray(images), "data")


def in_memory(images: np.ndarray, name: str) -> Source:
    """As `from_array`; a message calls the images `name`."""
    got = f"{name}={images.dtype} {list(images.shape)}: must be uint8 [n, h, w, c]"
    if images.ndim == 3:
        raise ValueError(f"{got}; write images[..., None] for grey images [n, h, w].")
    if images.ndim != 4 or not images.size:
        raise ValueError(f"{got} and not empty; write np.stack(list_of_images).")
    if images.dtype != np.uint8:
        raise ValueError(
            f"{got}, 0..255; write np.uint8(np.round((x + 1) * 127.5)) for x in [-1, 1]."
        )
    return Source(len(images), images.shape[1:], lambda indices: images[indices], True)


def fits(size: int, shape: tuple[int, int, int]) -> bool:
    """Whether `size` images of a shape may be held in memory."""
    return size * math.prod(shape) <= MEMORY_BUDGET


def target(want: tuple, shape: tuple) -> tuple:
    """The wanted (height, width, channels), with 0 for "as the data are" filled in."""
    return tuple(w or s for w, s in zip(want, shape))


def convert(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """One decoded image [h, w, c], as uint8 of the given shape."""
    if array.shape == shape and array.dtype == np.uint8:
        return array
    return pixels(Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), shape)


def pixels(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """A Pillow image as uint8 [h, w, c], by the rules of `data.load`; height 0: as it is."""
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
        image = image.convert("RGB")  # CMYK and palettes have no way straight to grey.
    image = image.convert(MODES[channels])
    if height and image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image.height, image.width, channels)
