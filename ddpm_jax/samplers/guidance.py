"""Classifier-free guidance."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.process import split_output


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
        variance: as of `process.predict`.
    """
    def twice(x):
        return jnp.concatenate([x, x])

    without_them = {**model_kwargs, **hidden(model_kwargs, null_label)}
    both = jax.tree.map(lambda *x: jnp.concatenate(x), dict(model_kwargs), without_them)

    def denoise_fn(x_t, t, *last):
        outputs = apply_fn(twice(x_t), twice(t), *map(twice, last), **both)
        labelled, unlabelled = jnp.split(outputs, 2)
        mean, variance_output = split_output(labelled, variance)
        without, _ = split_output(unlabelled, variance)
        here = scale
        if interval:
            inside = (interval[0] <= t) & (t <= interval[1])
            here = jnp.where(inside, scale, 1.0).reshape(-1, 1, 1, 1)
        mean = without + here * (mean - without)
        if variance_output is None:
            return mean
        return jnp.concatenate([mean, variance_output], axis=-1)

    return denoise_fn
