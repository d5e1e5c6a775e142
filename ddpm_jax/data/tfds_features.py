"""Which features of a tensorflow-datasets set are the images, the labels and the vectors."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import decoding
from ddpm_jax.data import vectors as vectors_lib
from ddpm_jax.errors import UserError, shown


def image(
    name: str, features: Any, shape: tuple[int, int, int]
) -> tuple[str, tuple[int, int, int]]:
    """The key of the first image among the features, and the shape that it should have.

    Args:
        name: of the set.
        features: of the set, TFDS's.
        shape: of `Request.shape`.

    Raises:
        UserError: there is none, or its size varies and none is asked for.
    """
    import tensorflow_datasets as tfds

    keys = [key for key in features if isinstance(features[key], tfds.features.Image)]
    if not keys or features[keys[0]].np_dtype != np.uint8:
        raise UserError(
            f"config.data.name={name!r}: has no uint8 image among {sorted(features)}; "
            "write --config.data.name= with a data set of images."
        )
    height, width, channels = features[keys[0]].shape
    shape = decoding.fill_in(shape, (height, width, channels or 3))
    if None in shape:
        raise UserError(
            f"config.data.image_size=0: the images of {name} vary in size; choose one, "
            "for example --config.data.image_size=64."
        )
    return keys[0], shape


def label(name: str, features: Any) -> str:
    """The key of the first label among the features of the set `name`; UserError without any."""
    import tensorflow_datasets as tfds

    keys = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
    if not keys:
        raise UserError(
            f"config.data.labels=True: {name} has no label among {sorted(features)}; write "
            "--config.data.labels=False."
        )
    return keys[0]


def class_names(feature: Any) -> tuple[str, ...]:
    """The names of the classes of a label, in order; () where they are just their numbers."""
    names = tuple(feature.names or ())
    return () if names == tuple(map(str, range(len(names)))) else names


def vectors(
    name: str, features: Any, paths: Sequence[str]
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """By its path: values of a feature, [n, ...] -> numbers [n] or [n, k]; classes are one-hot.

    Args:
        name: of the set.
        features: of the set, TFDS's.
        paths: of the features, for example "label" or "attributes/Smiling".

    Raises:
        UserError: one is not there, or is neither a number nor a row of them.
    """
    known = {path: feature for path, feature in _leaves(features) if _is_numbers(feature)}
    for path in paths:
        if path not in known:
            raise UserError(
                f"has {path!r}, which is no feature of numbers of {name}; those are "
                f"{shown(list(known))}", field="config.data.vectors", value=tuple(paths),
                instead={"config.data.vectors": tuple(known)[:1]},
            )

    def as_numbers(feature):
        num_classes = getattr(feature, "num_classes", None)
        return lambda values: (
            vectors_lib.one_hot(values, num_classes) if num_classes else values
        )

    return {path: as_numbers(known[path]) for path in paths}


def read(
    examples: Iterable[Mapping[str, Any]], paths: Collection[str]
) -> dict[str, np.ndarray]:
    """Features of some examples, by their paths, [n, ...] each."""
    def one(example, path):
        for part in path.split("/"):
            example = example[part]
        return example

    examples = list(examples)
    return {path: np.array([one(example, path) for example in examples]) for path in paths}


def tree(paths: Collection[str]) -> dict[str, Any]:
    """The paths as a nested dict, True at each of them."""
    top = {}
    for path in paths:
        *above, last = path.split("/")
        inner = top
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = True
    return top


def _leaves(features, prefix="") -> Iterator[tuple[str, Any]]:
    """(path, feature) of each that has no others below it."""
    for key, feature in features.items():
        if hasattr(feature, "items"):
            yield from _leaves(feature, f"{prefix}{key}/")
        else:
            yield prefix + key, feature


def _is_numbers(feature):
    """Whether a feature is one number, or a row of so many."""
    shape = getattr(feature, "shape", None)
    return isinstance(shape, tuple) and len(shape) < 2 and None not in shape and (
        np.dtype(feature.np_dtype).kind in "buif"
    )
