"""Ways to measure an image, by name: what `restore` undoes.

An operator is a chain of these, in order, with numbers behind a colon: "blur:1,downsample:2".
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError

_REACH = 4  # Standard deviations of a blur that are not yet nothing.


def blur(x: jax.Array, sigma: float) -> jax.Array:
    """[b, h, w, c] blurred by a normal of this standard deviation in pixels; edges go on."""
    rows, columns = (_blur_matrix(size, sigma) for size in x.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def _blur_matrix(size, sigma):
    """[size, size], float32: what each pixel of a row takes of the others."""
    reach = math.ceil(_REACH * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    matrix = np.zeros((size, size))
    for offset, weight in zip(range(-reach, reach + 1), weights / weights.sum(), strict=True):
        np.add.at(matrix, (np.arange(size), np.clip(np.arange(size) + offset, 0, size - 1)), weight)
    return np.float32(matrix)


def downsample(x: jax.Array, factor: int) -> jax.Array:
    """The means of blocks of factor x factor pixels: [b, h / factor, w / factor, c]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // factor, factor, w // factor, factor, c).mean(axis=(2, 4))


def grey(x: jax.Array) -> jax.Array:
    """The mean of the channels: [b, h, w, 1]."""
    return x.mean(axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Operator:
    """A measurement x_0 [b, h, w, c] -> [b, h', w', c'], linear and hashable.

    Attributes:
        steps: (name, number) of each step, in order; see `named`.
        known: the mask of the step "mask", h' rows of w' bools.
    """

    steps: tuple[tuple[str, float], ...]
    known: tuple[tuple[bool, ...], ...] = ()

    def __call__(self, x: jax.Array) -> jax.Array:
        """What is measured of each image."""
        for name, number in self.steps:
            if name == "mask":
                x = jnp.where(jnp.array(self.known)[..., None], x, 0.0)
            else:
                x = _STEPS[name](x, *([number] if number else []))
        return x


_STEPS: dict[str, Callable[..., jax.Array]] = {"blur": blur, "downsample": downsample, "grey": grey}
NAMES = (*_STEPS, "mask")
_EXAMPLES = {"blur": "blur:1", "downsample": "downsample:2", "grey": "grey", "mask": "mask"}


def named(text: str, image_shape: tuple[int, int, int], mask: Any = None) -> Operator:
    """The operator that a text describes.

    Args:
        text: names with commas between: "blur:S", by a normal of standard deviation S in pixels;
            "downsample:K", to means of K x K pixels; "grey", to the mean of the channels; and
            "mask" as the last, to the pixels that are known.
        image_shape: (h, w, c).
        mask: of "mask", bool [h', w'] of what the steps before it make, True where a pixel is
            known.

    Raises:
        UserError: it is none, does not fit images of this shape, or the mask is missing or left
            over.
    """
    steps, (height, width, _) = _steps(text), shape(text, image_shape)
    masked = steps[-1][0] == "mask"
    if masked != (mask is not None):
        raise _wrong(text, "mask=, the known pixels, is missing" if masked else
                     "a mask is given, and no step reads it; add mask as the last step")
    if mask is None:
        return Operator(steps)
    mask = np.asarray(mask)
    if mask.shape != (height, width) or mask.dtype != bool:
        raise _wrong(text, f"its mask must be bool [{height}, {width}], and is {mask.dtype} "
                           f"{list(mask.shape)}")
    return Operator(steps, tuple(map(tuple, mask.tolist())))


def shape(text: str, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(h', w', c') of what an operator makes of an image (h, w, c).

    Args:
        text, image_shape: as of `named`.

    Raises:
        UserError: it is none, or does not fit images of this shape.
    """
    height, width, channels = image_shape
    for name, number in _steps(text):
        if name == "downsample":
            if height % number or width % number:
                raise _wrong(
                    text, f"{height}x{width} pixels have no blocks of {number}x{number}"
                )
            height, width = height // number, width // number
        if name == "grey":
            if channels == 1:
                raise _wrong(text, "the images are grey already")
            channels = 1
    return height, width, channels


def _steps(text):
    """((name, number), ...) of each step."""
    steps = tuple(_step(part.strip(), text) for part in text.split(","))
    if "mask" in [name for name, _ in steps[:-1]]:
        raise _wrong(text, "mask must be the last step")
    return steps


def _step(part, text):
    """("blur", 1.5) of "blur:1.5"."""
    name, colon, number = part.partition(":")
    if name not in NAMES:
        raise _wrong(text, f"{part!r} is not known; its steps are {', '.join(_EXAMPLES.values())}")
    if name in ("grey", "mask"):
        if colon:
            raise _wrong(text, f"{name} takes no number; write {name}")
        return name, 0
    try:
        value = int(number) if name == "downsample" else float(number)
    except ValueError:
        value = 0
    if not (0 < value < 1000) or name == "downsample" and value < 2:
        least = "a whole number of at least 2" if name == "downsample" else "a number above 0"
        raise _wrong(text, f"{part!r} must have {least} behind the colon, as {_EXAMPLES[name]}")
    return name, value


def _wrong(text, rule):
    return UserError(f"cannot be read: {rule}.", field="operator", value=text)
