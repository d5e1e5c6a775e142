"""Reverse chains: each one function, pure, one `jax.lax.scan`.

A sampler takes the schedule of the chain that it runs (respaced or not), a function
`predict_fn(x_t, t) -> Prediction`, the prior draw and one key an image, so that image i
depends on its own key alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ddpm_jax.diffusion import Images, Prediction
from ddpm_jax.schedule import Schedule


def standard_normal(rngs: Key[Array, " b"], shape: tuple[int, ...]) -> Array:
    """Independent N(0, 1) draws [b, *shape], draw i from rngs[i] alone."""
    return jax.vmap(lambda rng: jax.random.normal(rng, shape))(rngs)


def ancestral(
    schedule: Schedule,
    predict_fn: Callable[[Array, Array], Prediction],
    x_T: Images,
    rngs: Key[Array, " b"],
    *,
    on_step: Callable[[Array], None] | None = None,
) -> Images:
    """Draws x_0 by the ancestral chain (Algorithm 2 of Ho, Jain and Abbeel 2020).

    x_{t-1} = mean + sigma_t z with z ~ N(0, I), and no noise at t = 0. The noise of step t is
    drawn from `fold_in(rngs[i], t)`.

    Args:
        schedule: T steps; the scan has this length and calls the network once in each.
        predict_fn: (x_t, t [b] int32) -> Prediction.
        x_T: [b, h, w, c] standard normal.
        rngs: [b] keys.
        on_step: called inside the scan with t, before the step; for progress reports.

    Returns:
        x_0: [b, h, w, c] float32, in [-1, 1] where the prediction clips.
    """

    def step(x_t, t):
        if on_step is not None:
            on_step(t)
        prediction = predict_fn(x_t, jnp.full(x_t.shape[:1], t))
        z = standard_normal(jax.vmap(jax.random.fold_in, (0, None))(rngs, t), x_t.shape[1:])
        sigma = jnp.where(t > 0, jnp.exp(0.5 * prediction.log_variance), 0.0)
        return prediction.mean + sigma * z, None

    t = jnp.arange(schedule.num_timesteps, dtype=jnp.int32)
    return jax.lax.scan(step, x_T, t, reverse=True)[0]
