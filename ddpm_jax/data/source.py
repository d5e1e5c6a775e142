"""`Source`: a random-access set of uint8 images of one size, with labels or conditions."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax.data import arrays
from ddpm_jax.errors import UserError

MEMORY_BUDGET = 2 * 2**30  # Bytes of decoded images; a larger set is streamed.


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A random-access set of uint8 images of one size, perhaps with labels and conditions.

    Attributes:
        size: number of images; also `len(source)`.
        image_shape: (height, width, channels).
        read: maps an int array [k] of indices in 0..size-1 to uint8 [k, h, w, c]; pure,
            and safe to call from several threads.
        in_memory: whether `read` only copies, and decodes nothing.
        labels: int32 [size] in 0..num_classes-1, or None.
        num_classes: 0 without labels.
        read_condition: maps indices [k] to uint8 [k, h, w, condition_channels], the image that
            goes with each; or None.
        condition_channels: 0 without `read_condition`.
    """

    size: int
    image_shape: tuple[int, int, int]
    read: Callable[[np.ndarray], np.ndarray]
    in_memory: bool = False
    labels: np.ndarray | None = None
    num_classes: int = 0
    read_condition: Callable[[np.ndarray], np.ndarray] | None = None
    condition_channels: int = 0

    def __len__(self) -> int:
        return self.size

    def model_kwargs(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """What a conditional network gets with these images: `labels`, `condition` (uint8)."""
        kwargs = {}
        if self.labels is not None:
            kwargs["labels"] = self.labels[indices]
        if self.read_condition is not None:
            kwargs["condition"] = self.read_condition(indices)
        return kwargs

    def examples(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """`images` uint8 [k, h, w, c], with what `model_kwargs` gives for them."""
        return {"images": self.read(indices), **self.model_kwargs(indices)}

    def select(self, chosen: np.ndarray) -> "Source":
        """The source of some of the images, by their indices [n], in that order."""
        def among_chosen(read):
            return None if read is None else lambda indices: read(chosen[indices])

        return dataclasses.replace(
            self, size=len(chosen), read=among_chosen(self.read),
            read_condition=among_chosen(self.read_condition),
            labels=None if self.labels is None else self.labels[chosen],
        )

    def with_labels(
        self, labels: np.ndarray, num_classes: int = 0, name: str = "labels"
    ) -> "Source":
        """The same images with labels [size].

        Args:
            labels: whole numbers in 0..num_classes-1, one per image.
            num_classes: 0 means one more than the largest label.
            name: of the labels in a message.

        Raises:
            UserError: the labels are anything else.
        """
        labels = np.asarray(labels)
        whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == (self.size,)
        num_classes = num_classes or (int(labels.max()) + 1 if whole else 1)
        if not whole or labels.min() < 0 or labels.max() >= num_classes:
            raise UserError(
                f"{name}={labels.dtype} {list(labels.shape)}: must be whole numbers in "
                f"0..{num_classes - 1}, one for each of the {self.size} images; for example "
                "np.int32([0, 1, ...])."
            )
        return dataclasses.replace(
            self, labels=labels.astype(np.int32), num_classes=num_classes
        )

    def with_condition(self, read_condition: Callable, channels: int) -> "Source":
        """The same images, each with an image of `channels` as a network's condition."""
        return dataclasses.replace(
            self, read_condition=read_condition, condition_channels=channels
        )


def from_array(
    images: Any,
    *,
    labels: Any = None,
    condition: Any = None,
) -> Source:
    """A source of the images of an array, which is not copied.

    Args:
        images: uint8 [n, h, w, c]; a NumPy or JAX array, or a list of images of one shape.
        labels: whole numbers [n], from 0.
        condition: uint8 [n, h, w, k], the image that goes with each.

    Raises:
        UserError: an array has another dtype or shape, or is empty.
    """
    if isinstance(images, Source):
        raise UserError("data is a Source, and no array; pass it as it is.")
    source = in_memory(images, "data")
    if labels is not None:
        source = source.with_labels(labels)
    if condition is not None:
        size = (len(source), *source.image_shape[:2])
        beside = in_memory(condition, "condition", size)
        if (len(beside), *beside.image_shape[:2]) != size:
            raise UserError(
                f"condition={[len(beside), *beside.image_shape]}: must go with images "
                f"{[len(source), *source.image_shape]}, as many and of their size; resize it "
                "first."
            )
        source = source.with_condition(beside.read, beside.image_shape[-1])
    return source


def in_memory(images: Any, name: str, beside: tuple[int, ...] = ()) -> Source:
    """As `from_array`; the arguments are those of `arrays.as_uint8`."""
    array = arrays.as_uint8(images, name, beside)
    return Source(len(array), array.shape[1:], lambda indices: array[indices], True)


def spread(first: int, last: int, num: int, *, truncate: bool = False) -> np.ndarray:
    """At most `num` whole numbers from `first` to `last`, evenly spaced, int64 and all different.

    Args:
        first, last: the ends; both are among the numbers if `num` is 2 or more.
        num: at least 1; fewer numbers come back where there are not so many.
        truncate: drop fractions instead of rounding them to the nearest.
    """
    exact = np.linspace(first, last, min(num, abs(last - first) + 1))
    return (exact if truncate else exact.round()).astype(np.int64)


def fits(size: int, shape: tuple[int, int, int]) -> bool:
    """Whether `size` images of a shape may be held in memory."""
    return size * math.prod(shape) <= MEMORY_BUDGET
