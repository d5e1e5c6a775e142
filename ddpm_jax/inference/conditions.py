"""Labels, vectors and conditions: the inputs of a conditional network besides x_t and t.

The network takes `labels` (int32 [b]), `vectors` (float32 [b, 1 + k], see `data.vectors`) and
`condition` (float32 [b, h, w, k]) as keyword arguments. Losses, samplers and likelihoods do not see
them: they call a `denoise_fn(x_t, t)` that is closed over them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax.data import labels as labels_lib
from ddpm_jax.data import pixels
from ddpm_jax.data import vectors as vectors_lib
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError
from ddpm_jax.network.trained import Trained


def as_float(model_kwargs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The keyword arguments of a network from those of a `Source`, uint8 mapped to [-1, 1]."""
    return {name: pixels.as_float(x) for name, x in model_kwargs.items()}


def split(batch: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The images of a batch of `Source.examples`, and the keyword arguments of a network."""
    model_kwargs = {name: x for name, x in batch.items() if name != "images"}
    return batch["images"], as_float(model_kwargs)


def as_trained(source: Source, trained: Trained) -> Source:
    """Images to be measured, with their vectors on the model's scale.

    Raises:
        UserError: they have another shape or other values than the model's, or vectors of more or
            fewer numbers.
    """
    if tuple(source.image_shape) != tuple(trained.image_shape):
        raise UserError(
            f"images are {list(source.image_shape)}, and the model's {list(trained.image_shape)}; "
            "they are measured at its own size only: set config.data.image_size to it."
        )
    if (source.value_range, source.bins) != (trained.value_range, trained.bins):
        raise UserError(
            f"images have the range {source.value_range} and {source.bins} values, and the model's "
            f"{trained.value_range} and {trained.bins}; give images as it was trained on."
        )
    return source.with_vector_scale(trained.vector_scale)


def checked(
    trained: Trained, n: int, labels: Any = None, vectors: Any = None, condition: Any = None,
) -> dict[str, np.ndarray]:
    """The keyword arguments of a network for n images, arrays [n, ...].

    Args:
        trained: its network's `num_classes`, `vector_size` and `condition_channels` decide what it
            takes.
        n: number of images.
        labels: one whole number for all images or one per image, in 0..num_classes, where
            num_classes is no class. None is every class in turn.
        vectors: [n, k], or [k] for all, numbers as in the data; of one number also [n]. None is no
            vector.
        condition: [n, h, w, k], or [h, w, k] for all; uint8, or float in [-1, 1].

    Raises:
        ValueError: the network does not take them, or they are out of range or of another shape.
    """
    model_kwargs, model = {}, trained.model
    num_classes = getattr(model, "num_classes", 0)
    channels = getattr(model, "condition_channels", 0)
    if num_classes:
        labels = labels_lib.numbered(labels, trained.class_names)
        labels = every_class(model, n) if labels is None else labels
        model_kwargs["labels"] = _labels(labels, n, num_classes)
    elif labels is not None:
        raise UserError(
            f"labels={_shown(labels)}, but this model is unconditional; leave labels out, or "
            "train with --config.data.labels=True."
        )
    if takes_vectors(model):
        model_kwargs["vectors"] = _vectors(vectors, n, trained)
    elif vectors is not None:
        raise UserError(
            f"vectors={_shown(vectors)}, but this model is told no numbers; leave them out, or "
            "train with --config.data.vectors."
        )
    if channels:
        shape = (*trained.image_shape[:2], channels)
        model_kwargs["condition"] = _condition(condition, n, shape)
    elif condition is not None:
        raise UserError(
            f"condition={list(np.shape(condition))}, but this model takes no condition; leave it "
            "out, or train with --config.data.condition."
        )
    return model_kwargs


def every_class(model: Any, n: int) -> np.ndarray:
    """The classes of a class-conditional network in turn, int32 [n]."""
    return np.arange(n, dtype=np.int32) % model.num_classes


def _labels(labels, n, num_classes):
    try:
        labels = np.asarray(labels)
    except ValueError:  # Lists of different lengths.
        labels = np.asarray(labels, object)
    if np.issubdtype(labels.dtype, np.floating) and np.all(labels == np.floor(labels)):
        labels = labels.astype(np.int64)
    whole = np.issubdtype(labels.dtype, np.integer) and labels.shape in ((), (n,))
    if not whole or labels.min() < 0 or labels.max() > num_classes:
        raise UserError(
            f"labels={_shown(labels)} must be one whole number or {n} of them, in "
            f"0..{num_classes - 1}, or {num_classes} for no class; write labels={num_classes - 1}."
        )
    return np.broadcast_to(labels.astype(np.int32), (n,))


def _vectors(vectors, n, trained):
    """What the network gets for vectors as a user gives them, [n, 1 + k]."""
    size = trained.model.vector_size
    if len((trained.vector_scale or ((),))[0]) != size:
        raise UserError(
            f"model.vector_size={size}, but vector_scale is of "
            f"{len((trained.vector_scale or ((),))[0])} numbers; write Trained(..., vector_scale="
            "(mean, standard deviation)), of the training images."
        )
    if vectors is None:
        return np.zeros((n, 1 + size), np.float32)
    try:
        array = np.asarray(vectors)
        array = array if array.dtype.kind in "buif" else np.full((), np.nan)
    except ValueError:  # Lists of different lengths.
        array = np.full((), np.nan)
    if size == 1 and array.shape in ((), (n,)):
        array = array[..., None]
    if array.shape not in ((size,), (n, size)) or not np.isfinite(array).all():
        raise UserError(
            f"must be {size} finite numbers as in the data, for all or for each of {n} images; "
            f"write them as [{size}] or [{n}, {size}].", field="vectors",
            value=vectors.tolist() if isinstance(vectors, np.ndarray) else vectors,
        )
    return np.broadcast_to(vectors_lib.standardized(array, trained.vector_scale), (n, 1 + size))


def _condition(condition, n, shape):
    if condition is None or np.shape(condition) not in (shape, (n, *shape)):
        given = None if condition is None else list(np.shape(condition))
        raise UserError(
            f"condition={given}: this model needs an image to go by, {list(shape)} for all or "
            f"[{n}, ...] one for each; pass condition=."
        )
    condition = np.asarray(condition)
    if condition.dtype != np.uint8:
        condition = condition.astype(np.float32)
        if not np.abs(condition).max() <= 1.001:
            raise UserError(
                f"condition reaches {np.abs(condition).max():g}, and floats must lie in "
                "[-1, 1]; write uint8 / 127.5 - 1, or pass uint8."
            )
    return np.broadcast_to(condition, (n, *shape))


def _shown(labels):
    text = str(labels.tolist() if hasattr(labels, "tolist") else labels)
    return text if len(text) < 40 else text[:36] + "...]"


def takes_vectors(model: Any) -> bool:
    """Whether a network is told numbers."""
    return getattr(model, "vector_size", 0) > 0


def go_by_images(model: Any, vectors: tuple = ()) -> bool:
    """Whether samples need images of the data, for their conditions or vectors.

    Args:
        model: the network.
        vectors: of `in_turn`.
    """
    return getattr(model, "condition_channels", 0) > 0 or takes_vectors(model) and not vectors


def for_pictures(
    trained: Trained, n: int, labels: Any = None, vectors: Any = None, condition: Any = None,
) -> dict[str, np.ndarray]:
    """As `checked`, for pictures that there are: without labels they have no class."""
    num_classes = getattr(trained.model, "num_classes", 0)
    labels = num_classes if labels is None and num_classes else labels
    return checked(trained, n, labels, vectors, condition)


def in_turn(
    source: Source | None, n: int, labels: tuple[int | str, ...] = (), vectors: tuple = ()
) -> dict[str, Any]:
    """`labels`, `vectors` and `condition` for n samples, as `sample.sample` takes them.

    Args:
        source: the images whose conditions, vectors and labels are used in order, from the first
            again after the last. None, or a source with labels alone: none of them.
        n: number of samples.
        labels: used in turn; () leaves those of the source, or all classes in turn.
        vectors: used in turn, k numbers each; () leaves those of the source.

    Raises:
        UserError: the vectors are no list of lists of k numbers.
    """
    sample_kwargs = {}
    if source is not None and (source.read_condition or source.vectors is not None):
        sample_kwargs = source.sample_kwargs(np.arange(n) % len(source))
    if labels:
        named = any(isinstance(label, str) for label in labels)
        sample_kwargs["labels"] = np.resize(np.asarray(labels, object if named else None), n)
    if vectors:
        sample_kwargs["vectors"] = _rows(vectors)[np.arange(n) % len(vectors)]
    return sample_kwargs


def _rows(vectors):
    """The vectors as float64 [m, k]; a number alone is a vector of one."""
    try:
        rows = np.asarray(vectors, np.float64)
    except (TypeError, ValueError):
        rows = np.zeros(())
    if rows.ndim not in (1, 2):
        raise UserError(
            "must be vectors of equally many numbers", field="vectors", value=vectors,
            instead={"vectors": ((0.5, 20.0), (0.5, 30.0))},
        )
    return rows.reshape(len(rows), -1)


def columns(model: Any) -> int | None:
    """The images per row of a grid whose columns are classes, or None if that is not possible."""
    num_classes = getattr(model, "num_classes", 0)
    return num_classes if 1 < num_classes <= 16 else None
