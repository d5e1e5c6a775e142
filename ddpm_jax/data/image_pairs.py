"""Pairs made from single images, on which an image-conditional model is trained.

Each function turns a source of images into one that also has, for each image, the condition that
the network gets. A pair is a function of (seed, index) alone.
"""

import dataclasses

import numpy as np

from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError

NAMED = ("low_resolution", "noisy")
_NOISES = 16  # Noisy copies of each image per epoch, so that the network memorizes none.
_DEVIATION = 24.0  # Standard deviation of the noise, in grey levels.
_HELD_OUT, _TRAINING = 0, 1  # Addresses of the noise below the seed; below them, the index.


def low_resolution(source: Source, factor: int) -> Source:
    """Pairs for super-resolution: the condition is the image at 1 / `factor` of its size.

    It is enlarged to the image's size again, so each block of `factor` x `factor` pixels has one
    colour: the mean of the image's block, rounded to a whole grey level if the image is uint8.

    Args:
        source: images whose height and width are multiples of `factor`.
        factor: at least 2.

    Raises:
        UserError: the factor is less than 2, or does not divide the height and the width.
    """
    height, width, channels = source.image_shape
    if factor < 2 or height % factor or width % factor:
        works = next((k for k in range(2, height + 1) if not height % k and not width % k), None)
        raise UserError(
            f"config.data.factor={factor} must be at least 2 and divide the images, {height}x"
            f"{width}; " + (f"write --config.data.factor={works}." if works else
                            "give images of another config.data.image_size.")
        )

    def read(indices):
        return enlarge(shrink(source.read(indices), factor), factor)

    return source.with_condition(read, channels)


def shrink(images: np.ndarray, factor: int) -> np.ndarray:
    """The mean of each `factor` x `factor` pixels, [n, h / factor, w / factor, c].

    It is rounded if the images are uint8, and else keeps their dtype.
    """
    n, height, width, c = images.shape
    blocks = images.reshape(n, height // factor, factor, width // factor, factor, c)
    mean = blocks.mean(axis=(2, 4), dtype=np.float64)
    return (np.round(mean) if images.dtype == np.uint8 else mean).astype(images.dtype)


def enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """The images with each pixel repeated `factor` x `factor` times."""
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def noisy(source: Source, *, seed: int, training: bool) -> Source:
    """Pairs for segmentation: a mask of the bright pixels; the condition is the noisy image.

    The mask is 255 where the mean over channels is at least 128, else 0, in one channel. The
    noise is Gaussian with a standard deviation of 24 grey levels, and the sum is clipped to
    0..255. For training, the set has each image with 16 noises; otherwise with one of its own.

    Args:
        source: clean images.
        seed: of the noise.
        training: whether for training.

    Raises:
        UserError: the images are not uint8.
    """
    if source.value_range:
        raise UserError(
            "cannot go with {config.data.range}: its masks and its noise are those of 8 bits",
            field="config.data.condition", value="noisy",
            given={"config.data.range": source.value_range},
            instead={"config.data.condition": "low_resolution"},
        )
    *size, channels = source.image_shape
    n, use = len(source), _TRAINING if training else _HELD_OUT

    def read(indices):
        grey = source.read(indices % n).mean(axis=-1, keepdims=True)
        return np.where(grey >= 128, 255, 0).astype(np.uint8)

    def read_condition(indices):
        noise = np.stack([
            np.random.default_rng([seed, use, int(i)]).standard_normal(source.image_shape)
            for i in indices
        ])
        images = source.read(indices % n) + _DEVIATION * noise
        return np.round(images.clip(0, 255)).astype(np.uint8)

    copies = _NOISES if training else 1
    labels = None if source.labels is None else np.tile(source.labels, copies)
    return dataclasses.replace(
        source, size=copies * n, image_shape=(*size, 1), read=read, labels=labels,
        read_condition=read_condition, condition_channels=channels,
    )
