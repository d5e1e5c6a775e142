"""`Source`: a random-access set of images of one size, with labels, vectors or conditions."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import arrays
from ddpm_jax.data import labels as labels_lib
from ddpm_jax.data import value_range as range_lib
from ddpm_jax.data import vectors as vectors_lib
from ddpm_jax.errors import UserError
from ddpm_jax.runtime import files

MEMORY_BUDGET = 2 * 2**30  # Bytes of decoded images; a larger set is streamed.


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A random-access set of images of one size, perhaps with labels, vectors and conditions.

    Attributes:
        size: number of images; also `len(source)`.
        image_shape: (height, width, channels).
        read: maps an int array [k] of indices in 0..size-1 to images [k, h, w, c], uint8, or
            float32 in [-1, 1] with a `value_range`; pure, and safe to call from several threads.
        in_memory: whether `read` only copies, and decodes nothing.
        labels: int32 [size] in 0..num_classes-1, or None.
        classes: the label that the data have for each class; () without labels.
        label_names: what the data call these labels, where they are numbers with names.
        vectors: numbers of each image, [size, k], as the data have them; or None.
        vector_scale: by which a network gets these (see `vectors.standardized`); () without.
        read_condition: maps indices [k] to uint8 [k, h, w, condition_channels], the image that
            goes with each; or None.
        condition_channels: 0 without `read_condition`.
        fingerprints: of a test split whose images a run has to find again: (), to a fingerprint
            of each image by its name in the data.
        split_folders: of a folder divided into splits, their names: that of training, that of
            testing if there is one, and those that are not used.
        value_range: (low, high), the values that are -1 and 1; () for uint8.
        bins: how many values a pixel can have; 0 for floats.
    """

    size: int
    image_shape: tuple[int, int, int]
    read: Callable[[np.ndarray], np.ndarray]
    in_memory: bool = False
    labels: np.ndarray | None = None
    classes: tuple[labels_lib.Value, ...] = ()
    label_names: Mapping[labels_lib.Value, str] = dataclasses.field(default_factory=dict)
    vectors: np.ndarray | None = None
    vector_scale: vectors_lib.Scale = ()
    read_condition: Callable[[np.ndarray], np.ndarray] | None = None
    condition_channels: int = 0
    fingerprints: Callable[[], dict[str, str]] = dict
    split_folders: tuple[str, ...] = ()
    value_range: range_lib.Range = ()
    bins: int = 256

    def __len__(self) -> int:
        return self.size

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class; () where the labels are numbers without names."""
        if labels_lib.are_plain(self.classes) and not self.label_names:
            return ()
        return tuple(self.label_names.get(label, str(label)) for label in self.classes)

    @property
    def vector_size(self) -> int:
        """Numbers in each vector; 0 without vectors."""
        return 0 if self.vectors is None else self.vectors.shape[1]

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images of each class."""
        if self.labels is None:
            return ()
        return tuple(np.bincount(self.labels, minlength=self.num_classes).tolist())

    def sample_kwargs(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """What `sample` takes for images like these: `labels`, `vectors`, `condition` (uint8)."""
        kwargs = {}
        if self.labels is not None:
            kwargs["labels"] = self.labels[indices]
        if self.vectors is not None:
            kwargs["vectors"] = self.vectors[indices]
        if self.read_condition is not None:
            kwargs["condition"] = self.read_condition(indices)
        return kwargs

    def model_kwargs(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """As `sample_kwargs`, but vectors as a network gets them, float32 [k, 1 + vector_size]."""
        kwargs = self.sample_kwargs(indices)
        if "vectors" in kwargs:
            kwargs["vectors"] = vectors_lib.standardized(kwargs["vectors"], self.vector_scale)
        return kwargs

    def examples(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """`images` [k, h, w, c] as `read` gives them, with what `model_kwargs` gives for them."""
        return {"images": self.read(indices), **self.model_kwargs(indices)}

    def select(self, chosen: np.ndarray) -> "Source":
        """The source of some of the images, by their indices [n], in that order."""
        def among_chosen(read):
            return None if read is None else lambda indices: read(chosen[indices])

        return dataclasses.replace(
            self, size=len(chosen), read=among_chosen(self.read),
            read_condition=among_chosen(self.read_condition),
            labels=None if self.labels is None else self.labels[chosen],
            vectors=None if self.vectors is None else self.vectors[chosen], fingerprints=dict,
        )

    def with_labels(
        self, labels: Any, num_classes: int = 0, name: str = "labels",
        classes: tuple[labels_lib.Value, ...] = (), names: Sequence[str] = (),
    ) -> "Source":
        """The same images with labels.

        Args:
            labels: one per image, of the kinds that `labels.read` takes. The labels that occur
                are the classes, in order.
            num_classes: the labels are classes as they are, in 0..num_classes-1.
            name: of the labels in a message.
            classes: the label of each class, known from elsewhere.
            names: of the labels 0, 1, ... in order; () where they have none.

        Raises:
            UserError: there is not one label for each image, or it is none of the classes.
        """
        codes, values = labels_lib.read(labels, self.size, name)
        classes = tuple(classes) or tuple(range(num_classes)) or values
        return dataclasses.replace(
            self, labels=labels_lib.encode(codes, values, classes, name), classes=classes,
            label_names=dict(enumerate(map(str, names))),
        )

    def with_classes(
        self, classes: tuple[labels_lib.Value, ...], name: str = "labels"
    ) -> "Source":
        """The same images and labels, where class i is the label classes[i].

        Raises:
            UserError: a label is none of these classes.
        """
        labels = labels_lib.encode(self.labels, self.classes, classes, name)
        return dataclasses.replace(self, labels=labels, classes=classes)

    def own_scale(self) -> vectors_lib.Scale:
        """The scale of the vectors of these very images; () without vectors."""
        return () if self.vectors is None else vectors_lib.scale_of(self.vectors)

    def num_equal_numbers(self) -> int:
        """How many numbers of the vectors are the same for all images."""
        if self.vectors is None:
            return 0
        return int((self.vectors.min(axis=0) == self.vectors.max(axis=0)).sum())

    def with_vectors(self, columns: Mapping[str, Any]) -> "Source":
        """The same images with numbers for each, on the scale of these images.

        Args:
            columns: as of `vectors.joined`; none change nothing.

        Raises:
            UserError: as `vectors.joined` does.
        """
        if not columns:
            return self
        vectors = vectors_lib.joined(columns, self.size)
        return dataclasses.replace(
            self, vectors=vectors, vector_scale=vectors_lib.scale_of(vectors)
        )

    def with_vector_scale(self, scale: vectors_lib.Scale, name: str = "vectors") -> "Source":
        """The same images and vectors, on another scale; () changes nothing.

        Raises:
            UserError: it is of more or fewer numbers than the vectors.
        """
        size = self.vector_size
        if not scale or not size:
            return self
        if len(scale[0]) != size:
            raise UserError(
                f"{name}: {size} numbers for each image, and the model takes {len(scale[0])}; give "
                "those that it was trained with, in the same order."
            )
        return dataclasses.replace(self, vector_scale=scale)

    def with_fingerprints(
        self, names: Sequence[Any], content: Callable[[int], bytes]
    ) -> "Source":
        """The same images, set aside for a test split that a run has to find again.

        Args:
            names: what the images are called in the data, [size].
            content: index of an image -> what tells it from others.
        """
        def fingerprints():
            return {
                str(name): files.short_hash(content(i), 16) for i, name in enumerate(names)
            }

        return dataclasses.replace(self, fingerprints=fingerprints)

    def scaled(self, value_range: range_lib.Range, dtype: Any) -> "Source":
        """The same images, read as float32 in [-1, 1].

        Args:
            value_range: low..high, the values that `read` gives now; () changes nothing.
            dtype: of these.
        """
        if not value_range:
            return self
        return dataclasses.replace(
            self, read=lambda indices: range_lib.scaled(self.read(indices), value_range),
            value_range=value_range, bins=range_lib.num_bins(dtype, value_range),
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
    num_classes: int = 0,
    class_names: Sequence[str] = (),
    vectors: Any = None,
    condition: Any = None,
    value_range: Any = (),
) -> Source:
    """A source of the images of an array, which is not copied.

    Args:
        images: uint8 [n, h, w, c]; a NumPy or JAX array, or a list of images of one shape.
        labels: [n], [n, 1] or one-hot [n, k]; whole numbers, bools or strings. Those that occur
            are the classes, in order.
        num_classes: labels in 0..num_classes-1 are classes as they are.
        class_names: of the labels 0, 1, ... in order; () where they have none.
        vectors: [n] or [n, k], the numbers that go with each.
        condition: uint8 [n, h, w, k], the image that goes with each.
        value_range: (low, high) of images of any real dtype; () for uint8.

    Raises:
        UserError: an array has another dtype or shape, is empty, or has values out of its range.
    """
    if isinstance(images, Source):
        raise UserError("data is a Source, and no array; pass it as it is.")
    source = in_memory(images, "data", value_range=range_lib.checked(value_range))
    if labels is not None:
        source = source.with_labels(labels, names=class_names)
        labels_lib.check_number(source.classes, num_classes, "labels", "num_classes")
        classes = labels_lib.classes_of(source.classes, num_classes)
        source = source.with_classes(classes)
    if vectors is not None:
        source = source.with_vectors({"vectors": vectors})
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


def in_memory(
    images: Any, name: str, beside: tuple[int, ...] = (), value_range: range_lib.Range = ()
) -> Source:
    """As `from_array`; name and beside are those of `arrays.as_uint8`."""
    if value_range:
        array = range_lib.numbers(images, name)
        range_lib.check(array, value_range, name)
    else:
        array = arrays.as_uint8(images, name, beside)
    source = Source(len(array), array.shape[1:], lambda indices: array[indices], True)
    return source.scaled(value_range, array.dtype)


def spread(first: int, last: int, num: int, *, truncate: bool = False) -> np.ndarray:
    """At most `num` whole numbers from `first` to `last`, evenly spaced, int64 and all different.

    Args:
        first, last: the ends; both are among the numbers if `num` is 2 or more.
        num: at least 1; fewer numbers come back where there are not so many.
        truncate: drop fractions instead of rounding them to the nearest.
    """
    exact = np.linspace(first, last, min(num, abs(last - first) + 1))
    return (exact if truncate else exact.round()).astype(np.int64)


def fits(size: int, shape: tuple[int, int, int], itemsize: int = 1) -> bool:
    """Whether `size` images of a shape may be held in memory, with so many bytes a number."""
    return size * math.prod(shape) * itemsize <= MEMORY_BUDGET
