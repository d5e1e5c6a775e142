"""Pictures as `data:` URIs of PNG, as many and as large as fit into a number of bytes."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.runtime import files

_SIDES = (1200, 800, 560, 400, 280, 180)  # Longest sides that are tried, in order.
_COUNTS = (24, 12, 8)  # Numbers of pictures of a row that are tried at each of them.
DAMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # What Pillow raises.


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A picture as it stands in the page.

    Attributes:
        uri: "data:image/png;base64,...".
        width, height: at which to show it, in pixels.
    """

    uri: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Pictures that fit.

    Attributes:
        kept: places of those that were kept, in order.
        pictures: these.
        note: what was left out or made smaller, a sentence; "" for nothing.
    """

    kept: tuple[int, ...]
    pictures: tuple[Embedded, ...]
    note: str


def read(path: Any) -> Image.Image:
    """A picture file, grey, RGB or RGBA.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: it is damaged; see `DAMAGE`.
    """
    with files.path(path).open("rb") as file, Image.open(file) as image:
        image.load()
        return image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")


def fitted(images: Sequence[Image.Image], num_bytes: int, fewest: int = 2) -> Fitted:
    """As many of the pictures as fit, evenly chosen, the first and last among them.

    Enlarged pixels are stored once, which loses nothing. What does not fit is made fewer, then
    smaller.

    Args:
        images: in order.
        num_bytes: of all of them in the page, at most.
        fewest: how many to keep where fewer would fit at a larger size.
    """
    if not images:
        return Fitted((), (), "")
    small = [_unenlarged(image) for image in images]
    counts = sorted({min(len(images), max(fewest, count)) for count in _COUNTS}, reverse=True)
    for side in _SIDES:
        for count in counts:
            kept = tuple(np.linspace(0, len(images) - 1, count).round().astype(int).tolist())
            encoded = [_encoded(small[i], side) for i in kept]
            if sum(map(len, encoded)) <= num_bytes:
                break
        else:
            continue
        break
    shown = tuple(
        Embedded("data:image/png;base64," + text, *images[i].size)
        for i, text in zip(kept, encoded)
    )
    return Fitted(kept, shown, _note(len(images), count, side, [small[i] for i in kept]))


def _note(total, count, side, small):
    parts = []
    if count < total:
        parts.append(f"{count} of {total} are shown, evenly chosen")
    if any(max(image.size) > side for image in small):
        parts.append(f"they are made smaller, {side} pixels at the longer side")
    text = ", and ".join(parts)
    return f"{text[0].upper()}{text[1:]}, to keep this page small." if text else ""


def _unenlarged(image):
    """The picture at half, a quarter, ... of its size, where every block of pixels is of one."""
    pixels = np.asarray(image)
    while pixels.shape[0] % 2 == pixels.shape[1] % 2 == 0 and min(pixels.shape[:2]) > 2:
        corner = pixels[::2, ::2]
        if not all(np.array_equal(corner, pixels[i::2, j::2]) for i, j in ((0, 1), (1, 0), (1, 1))):
            break
        pixels = corner
    return Image.fromarray(pixels)


def _encoded(image, side):
    """The text of a PNG with at most `side` pixels a side."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
