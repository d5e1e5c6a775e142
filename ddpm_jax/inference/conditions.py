"""Labels and conditions: the inputs of a conditional network besides x_t and t.

The network takes `labels` (int32 [b]) and `condition` (float32 [b, h, w, k]) as keyword
arguments. Losses, samplers and likelihoods do not see them: they call a `denoise_fn(x_t, t)` that
is closed over them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax.data import pixels
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


def check_images(source: Source, trained: Trained) -> None:
    """Raises UserError unless images to be measured have the model's shape and values."""
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


def checked(
    model: Any,
    n: int,
    image_shape: tuple[int, int, int],
    labels: Any = None,
    condition: Any = None,
) -> dict[str, np.ndarray]:
    """The keyword arguments of a network for n images, arrays [n, ...].

    Args:
        model: the network; its `num_classes` and `condition_channels` decide what it takes.
        n: number of images.
        image_shape: (h, w, c).
        labels: one whole number for all images or one per image, in 0..num_classes, where
            num_classes is no class. None is every class in turn.
        condition: [n, h, w, k], or [h, w, k] for all; uint8, or float in [-1, 1].

    Raises:
        ValueError: the network does not take them, or they are out of range or of another shape.
    """
    model_kwargs = {}
    num_classes = getattr(model, "num_classes", 0)
    channels = getattr(model, "condition_channels", 0)
    if num_classes:
        labels = np.arange(n) % num_classes if labels is None else labels
        model_kwargs["labels"] = _labels(labels, n, num_classes)
    elif labels is not None:
        raise UserError(
            f"labels={_shown(labels)}, but this model is unconditional; leave labels out, or "
            "train with --config.data.labels=True."
        )
    if channels:
        model_kwargs["condition"] = _condition(condition, n, (*image_shape[:2], channels))
    elif condition is not None:
        raise UserError(
            f"condition={list(np.shape(condition))}, but this model takes no condition; leave it "
            "out, or train with --config.data.condition."
        )
    return model_kwargs


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


def in_turn(source: Source | None, n: int, labels: tuple[int, ...] = ()) -> dict[str, Any]:
    """`labels` and `condition` for n samples, as `sample.sample` takes them.

    Args:
        source: the images whose conditions and labels are used in order, from the first again
            after the last. None, or a source without conditions: no condition.
        n: number of samples.
        labels: used in turn; () leaves those of the source, or all classes in turn.
    """
    model_kwargs = {}
    if source is not None and source.read_condition is not None:
        model_kwargs = source.model_kwargs(np.arange(n) % len(source))
    if labels:
        model_kwargs["labels"] = np.resize(np.asarray(labels), n)
    return model_kwargs


def columns(model: Any) -> int | None:
    """The images per row of a grid whose columns are classes, or None if that is not possible."""
    num_classes = getattr(model, "num_classes", 0)
    return num_classes if 1 < num_classes <= 16 else None
