"""Training objectives: one number an image, from a function that denoises (Ho et al. 2020)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion import Images, Timesteps, q_sample
from ddpm_jax.schedule import Schedule


def simple_loss(
    schedule: Schedule,
    denoise_fn: Callable[[Array, Array], Array],
    x_0: Images,
    t: Timesteps,
    eps: Images,
    *,
    mean: str = "eps",
) -> Float[Array, " b"]:
    """L_simple: squared error of the prediction, averaged over pixels and channels (Eq. 14).

    Args:
        schedule: the noise schedule.
        denoise_fn: (x_t, t) -> the network's output, [b, h, w, c].
        x_0: images in [-1, 1].
        t: one step an image, 0..T-1.
        eps: the standard normal noise that makes x_t.
        mean: what the network predicts, "eps" or "x_0".
    """
    output = denoise_fn(q_sample(schedule, x_0, t, eps), jnp.asarray(schedule.timesteps)[t])
    target = {"eps": eps, "x_0": x_0}[mean]
    error = target - jnp.asarray(output, jnp.float32)
    return jnp.mean(jnp.square(error), axis=(1, 2, 3))
