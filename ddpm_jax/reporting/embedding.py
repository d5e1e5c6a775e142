"""Pictures as `data:` URIs of PNG, as many and as large as fit into a number of bytes."""

import base64
import dataclasses
import functools
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddpm_jax.data import decoding
from ddpm_jax.runtime import files

_SIDES = (1200, 800, 560, 400, 280, 180)  # Longest sides that are tried, in order.
_COUNTS = (24, 12, 8)  # Numbers of pictures of a row that are tried at each of them.


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
        note: what was left out, made smaller or damaged, in sentences; "" for nothing.
    """

    kept: tuple[int, ...]
    pictures: tuple[Embedded, ...]
    note: str


class _Source(NamedTuple):
    """A picture as read: of at most the longest side, and what it was before."""

    image: Image.Image
    shown: tuple[int, int]
    longest: int


def fitted(sources: Sequence[Any], num_bytes: int, fewest: int = 2) -> Fitted:
    """As many pictures as fit, evenly chosen, the first and last among them.

    Enlarged pixels are stored once, which loses nothing. What does not fit is made fewer, then
    smaller. Damaged files are left out, and those that are not chosen are not read.

    Args:
        sources: paths of files, or pictures of Pillow (grey, RGB or RGBA), in order.
        num_bytes: of all of them in the page, at most.
        fewest: how many to keep where fewer would fit at a larger size.
    """
    if not sources:
        return Fitted((), (), "")
    read = functools.cache(lambda place: _read(sources[place]))
    encoded = functools.cache(lambda place, side: _encoded(read(place).image, side))
    counts = sorted({min(len(sources), max(fewest, count)) for count in _COUNTS}, reverse=True)
    for side in _SIDES:
        for count in counts:
            chosen = np.linspace(0, len(sources) - 1, count).round().astype(int).tolist()
            kept = tuple(place for place in chosen if read(place) is not None)
            texts, room = [], num_bytes
            for place in kept:
                texts.append(encoded(place, min(side, max(read(place).image.size))))
                room -= len(texts[-1])
                if room < 0:
                    break
            else:
                pictures = tuple(
                    Embedded(f"data:image/png;base64,{text}", *read(place).shown)
                    for place, text in zip(kept, texts)
                )
                smaller = any(read(place).longest > side for place in kept)
                note = _note(len(sources), count, side if smaller else 0, count - len(kept))
                return Fitted(kept, pictures, note)
    return Fitted((), (), "The pictures are too large for this page.")


def _note(total, count, side, damaged):
    parts = [f"{count} of {total} are shown, evenly chosen"] if count < total else []
    parts += [f"they are made smaller, {side} pixels at the longer side"] if side else []
    text = ", and ".join(parts)
    text = f"{text[0].upper()}{text[1:]}, to keep this page small." if text else ""
    return f"{text} {damaged} cannot be read: damaged.".strip() if damaged else text


def _read(source) -> _Source | None:
    """None if it is damaged."""
    try:
        image = source if isinstance(source, Image.Image) else _opened(source)
    except decoding.UNREADABLE:
        return None
    small = _unenlarged(image)
    longest = max(small.size)
    small.thumbnail((_SIDES[0], _SIDES[0]))
    return _Source(small, image.size, longest)


def _opened(path):
    with files.path(path).open("rb") as file, decoding.open_picture(file) as image:
        image.load()
        return image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")


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
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
