"""Which layer of a training step is the first without finite numbers: `config.train.debug_nans`."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import StepSettings, loss_and_parts


def not_finite(
    state: TrainState, batch: dict[str, np.ndarray], rng: jax.Array, *, schedule,
    settings: StepSettings, teacher: Any = None,
) -> str:
    """Runs a step again without `pmap`, and says where its numbers stop being finite.

    The micro-batches go one by one through one device, with the draws of the step.

    Args:
        state: as before the step; a skipped step changes nothing else but `step`.
        batch: this process's, [local_devices, b, ...].
        rng: the run's key.
        schedule, settings, teacher: as of `step.train_step`.

    Returns:
        As `first_not_finite`, for the first micro-batch that has something to name.
    """
    state = jax.device_get(state)
    settings = dataclasses.replace(settings, remat=False)  # Remat would hide what is in a block.
    layers, taught_by = [], () if teacher is None else (teacher.trained.params,)

    def loss_fn(params, batch, places):
        with watched(layers) as finite:
            loss, _ = loss_and_parts(
                state, rng, params, batch, places, *taught_by, schedule=schedule,
                settings=settings, teacher=teacher,
            )
        return loss, finite

    run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    for micro_batch, places in micro_batches(batch, settings.accumulate):
        (loss, finite), grads = run(state.params, micro_batch, places)
        culprit = first_not_finite(layers, finite, loss, grads)
        if culprit:
            return culprit
    return "all of it was finite when it ran again on one device"


@contextlib.contextmanager
def watched(layers: list[str]) -> Iterator[list[jax.Array]]:
    """Gives a list that fills with whether the output of each layer called inside is finite.

    Args:
        layers: gets the names of the layers in the order of their calls, inner layers before the
            layer that they are part of.
    """
    finite = []

    def watch(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            layers.append("/".join(context.module.path) or "the network")
            finite.append(_all_finite(output))
        return output

    with nn.intercept_methods(watch):
        yield finite


def micro_batches(
    batch: dict[str, np.ndarray], accumulate: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Each device's micro-batches, one by one, with the places of their images.

    Args:
        batch: this process's, [local_devices, b, ...].
        accumulate: micro-batches per device.
    """
    parts = jax.tree.map(
        lambda x: np.asarray(x).reshape(-1, x.shape[1] // accumulate, *x.shape[2:]), batch
    )
    num, size = parts["images"].shape[:2]
    first = jax.process_index() * num * size
    for i in range(num):
        places = first + i * size + np.arange(size, dtype=np.int32)
        yield jax.tree.map(lambda x: x[i], parts), places


def first_not_finite(
    layers: Sequence[str], finite: Sequence[jax.Array], loss: jax.Array, grads: Any
) -> str:
    """What is the first not to be finite, in words; "" where everything is finite.

    Args:
        layers: names in the order of their calls.
        finite: whether the output of each is finite.
        loss: the mean loss.
        grads: of the parameters.

    Returns:
        The first layer whose output is not finite; else that the loss is not; else the first
        layer on the way back whose parameters have a gradient that is not.
    """
    for layer, is_finite in zip(layers, finite, strict=True):
        if not is_finite:
            return f"{layer} has an output that is not finite"
    if not jnp.isfinite(loss):
        return "the loss is not finite, though the output of every layer is"
    for layer in reversed(layers):
        if not _all_finite(_part(grads, layer)):
            return f"{layer} has a gradient that is not finite"
    return ""


def _all_finite(tree: Any) -> jax.Array:
    return jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def _part(tree: Any, layer: str) -> Any:
    """The part of a tree of parameters that belongs to a layer; {} where there is none."""
    return functools.reduce(lambda part, key: part.get(key, {}), layer.split("/"), tree)
