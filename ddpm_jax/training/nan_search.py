"""Which layer of a training step is the first without finite numbers: `config.train.debug_nans`."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import StepSettings, loss_and_parts


def not_finite(
    state: TrainState, batch: dict[str, np.ndarray], rng: jax.Array, *, schedule,
    settings: StepSettings,
) -> str:
    """Runs a step again without `pmap`, and says where its numbers stop being finite.

    The micro-batches go one by one through one device, with the draws of the step.

    Args:
        state: as before the step; a skipped step leaves it so, but for the step.
        batch: this process's, [local_devices, b, ...].
        rng: the run's key.
        schedule, settings: as of `step.train_step`.

    Returns:
        "layer/name has an output that is not finite", with the first such layer in the order of
        the network's calls; else that the loss is not; else the first layer on the way back
        whose parameters have a gradient that is not.
    """
    state = jax.device_get(state)
    settings = dataclasses.replace(settings, remat=False)  # Or a block's numbers stay inside it.
    micro_batches = jax.tree.map(
        lambda x: np.asarray(x).reshape(-1, x.shape[1] // settings.accumulate, *x.shape[2:]),
        batch,
    )
    num, size = micro_batches["images"].shape[:2]
    first = jax.process_index() * num * size
    layers = []  # Names in the order of their calls, inner ones before what they are part of.

    def loss_fn(params, batch, places):
        finite = []

        def watch(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if context.method_name == "__call__":
                layers.append("/".join(context.module.path) or "the network")
                finite.append(_all_finite(output))
            return output

        with nn.intercept_methods(watch):
            loss, _ = loss_and_parts(
                state, rng, params, batch, places, schedule=schedule, settings=settings
            )
        return loss, finite

    run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    for i in range(num):
        places = first + i * size + np.arange(size, dtype=np.int32)
        (loss, finite), grads = run(
            state.params, jax.tree.map(lambda x: x[i], micro_batches), places
        )
        found = _first(layers, finite, loss, grads)
        if found:
            return found
    return "nothing in it was found when it ran again on one device"


def _first(layers, finite, loss, grads) -> str:
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
    """What stands in a tree of parameters below a layer; {} if nothing does."""
    return functools.reduce(lambda part, key: part.get(key, {}), layer.split("/"), tree)
