"""Guidance away from the output without a label, or from that of a worse network."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.process import PIXEL_AXES, split_output


def hidden(model_kwargs: Mapping[str, Any], null_label: int) -> dict[str, Any]:
    """The labels and vectors of a network, those that there are, as where there are none.

    Args:
        model_kwargs: of the network, NumPy or JAX arrays.
        null_label: the label for no class.
    """
    empty = {"labels": null_label, "vectors": 0}
    return {
        name: jnp.full_like(model_kwargs[name], empty[name])
        for name in empty if name in model_kwargs
    }


def guided(
    apply_fn: Callable[..., jax.Array],
    model_kwargs: Mapping[str, jax.Array],
    *,
    null_label: int,
    scale: float,
    interval: tuple[float, ...] = (),
    rescale: float = 0.0,
    variance: str = "fixed_large",
) -> Callable[..., jax.Array]:
    """(x_t, t) -> output with classifier-free guidance (Ho and Salimans 2022, Eq. 6).

    It moves from the output without the label towards that with it, and beyond:
    unlabelled + scale (labelled - unlabelled). The paper's 1 + w is `scale`. Both outputs come
    from one call with twice the batch. A learned variance is that of the labelled output. Vectors
    are left out together with labels, an image-condition is not.

    Args:
        apply_fn: (x_t, t, **model_kwargs) -> the network's output. If it takes a third argument,
            so does the result (see `self_conditioning`): both outputs are told the same.
        model_kwargs: with `labels`, int32 [b], or `vectors`, [b, k].
        null_label: the label for no class.
        scale: 1 is no guidance; 0 leaves the label or vector out.
        interval: the first and the last step t to guide at, in steps of the full schedule, as
            Kynkaanniemi et al. 2024 propose; () is every step.
        rescale: as of `moved`.
        variance: as of `process.predict`.
    """
    def twice(x):
        return jnp.concatenate([x, x])

    without_them = {**model_kwargs, **hidden(model_kwargs, null_label)}
    both = jax.tree.map(lambda *x: jnp.concatenate(x), dict(model_kwargs), without_them)

    def denoise_fn(x_t, t, *last):
        outputs = apply_fn(twice(x_t), twice(t), *map(twice, last), **both)
        labelled, unlabelled = jnp.split(outputs, 2)
        without, _ = split_output(unlabelled, variance)
        return moved(labelled, without, t, scale, interval, rescale, variance)

    return denoise_fn


def autoguided(
    denoise_fn: Callable[..., jax.Array],
    worse_fn: Callable[..., jax.Array],
    *,
    scale: float,
    interval: tuple[float, ...] = (),
    rescale: float = 0.0,
    variance: str = "fixed_large",
    worse_variance: str = "fixed_large",
) -> Callable[..., jax.Array]:
    """(x_t, t) -> output guided by a worse network (Karras et al. 2024, autoguidance, Eq. 4).

    worse + scale (better - worse): away from the errors that both make, and the worse one more so.
    A learned variance is that of the better.

    Args:
        denoise_fn: (x_t, t) -> the output of the network.
        worse_fn: the same of the worse one, which predicts the same quantity and takes the same
            further arguments.
        scale, interval, rescale, variance: as of `guided`.
        worse_variance: as of `process.predict`, of the worse one.
    """
    def guided_fn(x_t, t, *last):
        worse, _ = split_output(worse_fn(x_t, t, *last), worse_variance)
        return moved(denoise_fn(x_t, t, *last), worse, t, scale, interval, rescale, variance)

    return guided_fn


def moved(
    output: jax.Array, start: jax.Array, t: jax.Array, scale: float,
    interval: tuple[float, ...], rescale: float, variance: str,
) -> jax.Array:
    """A network's output, moved away from `start`: start + scale (output - start).

    Args:
        output: of the network, with its variance where it has one, which stays.
        start: [b, h, w, c], of the same quantity.
        t: [b].
        scale: 1 changes nothing.
        interval: the first and the last step t where it is moved; () is every step.
        rescale: 0..1, how far each image gets back the standard deviation that its output had (Lin
            et al. 2024, Eqs. 15 and 16); strong guidance makes it larger, and pictures too
            saturated.
        variance: as of `process.predict`.
    """
    mean, variance_output = split_output(output, variance)
    result = start + scale * (mean - start)
    if rescale:
        before, after = (jnp.std(x, axis=PIXEL_AXES, keepdims=True) for x in (mean, result))
        result = result * (rescale * before / jnp.maximum(after, 1e-12) + 1 - rescale)
    if interval:
        inside = (interval[0] <= t) & (t <= interval[1])
        result = jnp.where(inside.reshape(-1, 1, 1, 1), result, mean)
    if variance_output is None:
        return result
    return jnp.concatenate([result, variance_output], axis=-1)
