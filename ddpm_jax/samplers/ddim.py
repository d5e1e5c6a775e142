"""From an image to the x_T that DDIM turns into it, and the arcs between such x_T.

Song, Meng and Ermon 2021 (DDIM), Secs. 4.3, 5.3 and 5.4.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.process import Images, Prediction, q_sample
from ddpm_jax.diffusion.schedule import Schedule


def invert(
    schedule: Schedule,
    predict_fn: Callable[[Array, Array], Prediction],
    x_0: Images,
    *,
    on_step: Callable[[Array], None] | None = None,
) -> Images:
    """The x_T from which `tableau.ddim` leads back to x_0: its update, run upwards.

    Both are Euler steps of one ODE, so that the way there and back errs by O(1 / steps). The
    step up to t takes x_0 and eps from one step below, the first one eps from the clean image
    (with the network told t = 0).

    Args:
        schedule: T steps, of the chain; the scan calls the network once in each.
        predict_fn: (x_t, t [b] int32) -> Prediction; it must not clip x_0, for what clipping
            took away no step gives back.
        x_0: images.
        on_step: called inside the scan with t, before the step; for progress reports.

    Returns:
        x_T, at the last noise level of the schedule.
    """
    def step(x, t):
        if on_step is not None:
            on_step(t)
        below = jnp.maximum(t - 1, 0)
        prediction = predict_fn(x, jnp.full(x.shape[:1], below))
        signal = jnp.where(t > 0, prediction.x_0, x)
        return q_sample(schedule, signal, jnp.full(x.shape[:1], t), prediction.eps), None

    steps = jnp.arange(schedule.num_timesteps, dtype=jnp.int32)
    return jax.lax.scan(step, jnp.asarray(x_0), steps)[0]


def slerp(x: Images, y: Images, lam: Float[Array, " b"]) -> Images:
    """Points on the arcs from x (lam = 0) to y (lam = 1), all pixels of an image one vector.

    (sin((1 - lam) theta) x + sin(lam theta) y) / sin theta, theta the angle between x and y
    (DDIM, Appendix D.5). Mixtures on the line between them would be too short: x_T is normal,
    and the arc keeps its norm. Where x and y point the same way, the arc is the line.
    """
    def norm(x):
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True))

    lam = lam.reshape(-1, 1, 1, 1)
    # The angle by its tangent: the arc cosine of nearly 1 has no digits left in float32.
    x_unit, y_unit = x / norm(x), y / norm(y)
    theta = 2 * jnp.arctan2(norm(x_unit - y_unit), norm(x_unit + y_unit))
    apart = theta > 1e-3  # Below, sin(lam theta) / sin(theta) is lam to the last digit.
    sin = jnp.where(apart, jnp.sin(theta), 1.0)
    return (
        jnp.where(apart, jnp.sin((1 - lam) * theta) / sin, 1 - lam) * x
        + jnp.where(apart, jnp.sin(lam * theta) / sin, lam) * y
    )
