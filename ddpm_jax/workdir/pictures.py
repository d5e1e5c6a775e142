"""Pictures of many images at once, as PNG, GIF and MP4 files."""

import functools
import importlib.util
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ddpm_jax.errors import UserError
from ddpm_jax.runtime import files

GREY = 128  # Of borders and gaps; it differs from black, white and most pictures.
_PNG_CHANNELS = (1, 3, 4)  # Grey, RGB and RGBA.
HAS_VIDEO = importlib.util.find_spec("av") is not None  # PyAV, which writes MP4.


def grid(
    images: np.ndarray, *, columns: int | None = None, border: int = 2, min_tile: int = 64
) -> np.ndarray:
    """One picture of n images, row by row, uint8 [H, W, c].

    Each tile is enlarged by the same whole factor, its pixels square and sharp, until its
    shorter side has at least `min_tile` pixels. A grey border runs around and between the
    tiles, and fills the rest of the last row.

    Args:
        images: uint8 [n, h, w, c]. With c of 1, 3 or 4 each image is a tile; with any other c
            it is c grey tiles side by side, one per channel, and the result has one channel.
        columns: images per row; None is ceil(sqrt(n)), the nearest to a square.
        border: pixels.
        min_tile: pixels; 1 keeps the size of the images.

    Raises:
        ValueError: not uint8 [n, h, w, c] with n >= 1, or columns < 1.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; a grid needs uint8 "
            "[n, h, w, c] with n >= 1: use ddpm_jax.data.to_uint8 on floats in [-1, 1]."
        )
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise ValueError(f"columns={columns} must be at least 1; None chooses a square.")
    n, h, w, c = images.shape
    if c not in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2).reshape(n * c, h, w, 1)
        columns *= c
    factor = max(1, math.ceil(min_tile / min(h, w)))
    return _tile(images.repeat(factor, axis=1).repeat(factor, axis=2), columns, border)


def _tile(tiles: np.ndarray, columns: int, border: int) -> np.ndarray:
    n, h, w, c = tiles.shape
    rows = math.ceil(n / columns)
    canvas = _grey(rows * (h + border) + border, columns * (w + border) + border, c)
    for i, tile in enumerate(tiles):
        top = border + i // columns * (h + border)
        left = border + i % columns * (w + border)
        canvas[top : top + h, left : left + w] = tile
    return canvas


def _grey(h: int, w: int, c: int) -> np.ndarray:
    canvas = np.full((h, w, c), GREY, np.uint8)
    if c == 4:
        canvas[..., 3] = 255  # Opaque.
    return canvas


def beside(left: np.ndarray, right: np.ndarray, gap: int = 16) -> np.ndarray:
    """Two pictures uint8 [h, w, c] side by side, `gap` grey pixels apart, aligned at the top.

    A grey one beside a coloured one becomes RGB.

    Raises:
        UserError: their channels differ otherwise.
    """
    if {left.shape[2], right.shape[2]} == {1, 3}:
        left, right = (np.broadcast_to(x, (*x.shape[:2], 3)) for x in (left, right))
    if left.shape[2] != right.shape[2]:
        raise UserError(
            f"pictures of {left.shape[2]} and {right.shape[2]} channels cannot be put into "
            "one: give both the same number of channels."
        )
    (h_left, w_left, c), (h_right, w_right, _) = left.shape, right.shape
    canvas = _grey(max(h_left, h_right), w_left + gap + w_right, c)
    canvas[:h_left, :w_left] = left
    canvas[:h_right, w_left + gap :] = right
    return canvas


def below(top: np.ndarray, bottom: np.ndarray, gap: int = 16) -> np.ndarray:
    """Two pictures as in `beside`, but one above the other, aligned at the left."""
    return beside(top.swapaxes(0, 1), bottom.swapaxes(0, 1), gap).swapaxes(0, 1)


def save_png(path, image: np.ndarray) -> None:
    """Writes uint8 [h, w, c] as a PNG, and makes its folder; readers never see half a file.

    Args:
        path: str or path; replaced if it exists.
        image: c of 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises:
        ValueError: not uint8 [h, w, c] with such a c.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in _PNG_CHANNELS:
        raise ValueError(
            f"the image is {image.dtype} {list(image.shape)}; a PNG needs uint8 [h, w, c] "
            "with c of 1, 3 or 4: use pictures.grid on a batch, ddpm_jax.data.to_uint8 on floats."
        )
    files.write(path, lambda file: _pillow(image).save(file, "PNG"))


def save_each(folder, images: np.ndarray) -> None:
    """Writes uint8 [n, h, w, c] as one PNG each, 000000.png and so on.

    Args:
        folder: str or path; made if it does not exist.
        images: as in `save_png`.
    """
    for i, image in enumerate(images):
        save_png(f"{folder}/{i:06d}.png", image)


def check_channels(channels: int, field: str, value: Any, instead: Any) -> None:
    """Raises UserError where images of so many channels are no pictures.

    Args:
        channels: c.
        field, value, instead: the setting that asks for pictures, and what to write there.
    """
    if channels not in _PNG_CHANNELS:
        raise UserError(
            f"needs images of 1, 3 or 4 channels, and the model's have {channels}", field=field,
            value=value, instead={field: instead},
        )


def as_pil(images: np.ndarray) -> list[Image.Image]:
    """Pictures of Pillow of uint8 [n, h, w, c], c as in `save_png`."""
    return [_pillow(image) for image in images]


def save_gif(path, frames: Sequence[np.ndarray], milliseconds: int = 100) -> None:
    """Writes pictures as a GIF that repeats for ever and shows the last for a second.

    Args:
        path: str or path; replaced if it exists.
        frames: uint8 [h, w, c], all of one shape.
        milliseconds: how long each frame is shown.
    """
    first, *others = (_pillow(frame).convert("RGB") for frame in frames)
    durations = [milliseconds] * len(others) + [1000]
    files.write(path, lambda file: first.save(
        file, "GIF", save_all=True, append_images=others, duration=durations, loop=0
    ))


def save_mp4(path, frames: Sequence[np.ndarray], milliseconds: int = 100) -> None:
    """Writes pictures as an H.264 video that shows the last for a second.

    Args:
        path, frames, milliseconds: as in `save_gif`; an odd side gets a row or column of grey.

    Raises:
        ModuleNotFoundError: PyAV is not installed (`pip install -e ".[video]"`); see `HAS_VIDEO`.
    """
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        h, w, _ = frames[0].shape
        stream = container.add_stream("libx264", rate=round(1000 / milliseconds))
        stream.height, stream.width, stream.pix_fmt = h + h % 2, w + w % 2, "yuv420p"
        stream.options = {"crf": "16"}
        for frame in [*frames, *[frames[-1]] * (1000 // milliseconds - 1)]:
            even = np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), constant_values=GREY)
            rgb = np.asarray(_pillow(even).convert("RGB"))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    files.write(path, file.getvalue())


def save_process(stem, x_t: np.ndarray, x_0: np.ndarray) -> list[str]:
    """Writes how images emerge from noise: STEM.png, STEM.gif and, with PyAV, STEM.mp4.

    In the PNG each image has two rows, x_t and below it the x_0 predicted from it; time runs from
    left to right. In GIF and MP4 all x_t are at the left and all x_0 at the right.

    Args:
        stem: path without its ending.
        x_t, x_0: uint8 [frames, n, h, w, c].

    Returns:
        The paths written.
    """
    save_png(f"{stem}.png", functools.reduce(below, (
        grid(np.concatenate(pair), columns=len(x_t)) for pair in zip(
            x_t.swapaxes(0, 1), x_0.swapaxes(0, 1))
    )))
    columns = math.ceil(math.sqrt(x_t.shape[1]))
    pairs = [beside(grid(a, columns=columns), grid(b, columns=columns)) for a, b in zip(x_t, x_0)]
    save_gif(f"{stem}.gif", pairs)
    written = [f"{stem}.png", f"{stem}.gif"]
    if HAS_VIDEO:
        written.append(f"{stem}.mp4")
        save_mp4(written[-1], pairs)
    return written


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
