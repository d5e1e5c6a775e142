"""Bits per dimension by the probability-flow ODE (Song et al. 2021, Score-Based Generative
Modeling through SDEs, Sec. 4.3 and Appendix D.2).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from ddpm_jax.diffusion import randomness
from ddpm_jax.diffusion.process import (
    MEANS_OF_LEVELS, PIXEL_AXES, Images, split_output, x_0_and_eps,
)
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError


def ode_bits_per_dim(
    schedule: Schedule,
    denoise_fn: Callable[[Array, Array], Array],
    images: Shaped[Array | np.ndarray, "b h w c"],
    rngs: Key[Array, " b"],
    *,
    mean: str = "eps",
    variance: str = "fixed_large",
    num_steps: int = 200,
    num_probes: int = 1,
    on_step: Callable[[Array], None] | None = None,
) -> Float[Array, " b"]:
    """Bits/dim of each image under the probability-flow ODE, with uniform dequantisation.

    Pixel v becomes z = (v + u) / 128 - 1 with u uniform in [0, 1), as Song et al. do; the
    centres of these bins are up to half a grey level off v / 127.5 - 1. They are 1/128
    wide, so that 7 - log2 p(z) is in expectation over u an upper bound of the bits of v
    (Theis et al. 2016), p being that of `ode_log_density`. Of image i, u is drawn from
    `fold_in(rngs[i], 0)`, and the keys of its probes from `fold_in(rngs[i], 1)`.

    Args:
        images: uint8.
        rngs: [b] keys.

    The other arguments are those of `ode_log_density`.

    Raises:
        ValueError: the images are not uint8, or as `ode_log_density` does.
    """
    if images.dtype != np.uint8:
        raise UserError(
            f"images are {images.dtype}, but dequantisation needs uint8; use "
            "pixels.to_uint8 on floats in [-1, 1]."
        )
    u = jax.vmap(lambda rng: jax.random.uniform(rng, images.shape[1:]))(
        randomness.fold_each(rngs, randomness.DEQUANTISATION)
    )
    z = (jnp.asarray(images, jnp.float32) + u) / 128 - 1
    nats = ode_log_density(
        schedule, denoise_fn, z, randomness.fold_each(rngs, randomness.PROBES), mean=mean,
        variance=variance, num_steps=num_steps, num_probes=num_probes, on_step=on_step,
    )
    return 7 - nats / math.log(2)


def ode_log_density(
    schedule: Schedule,
    denoise_fn: Callable[[Array, Array], Array],
    x: Images,
    rngs: Key[Array, " b"],
    *,
    mean: str = "eps",
    variance: str = "fixed_large",
    num_steps: int = 200,
    num_probes: int = 1,
    on_step: Callable[[Array], None] | None = None,
) -> Float[Array, " b"]:
    """log-density of each image under the probability-flow ODE, in nats a dimension.

    In y = x_t / sqrt(alpha_bar) = x_0 + sigma eps with sigma^2 = 1 / alpha_bar - 1 the ODE
    is dy / dsigma = eps(x_t, t), so that

        log p(y_first) = log p(y_last) + integral of div_y eps dsigma,

    where x_T = sqrt(alpha_bar) y_last is taken to be N(0, I). `x` is y at the first noise
    level, t = 0: p is the density of the data with noise of that sigma (0.01 for the
    paper's schedule, 1.3 of 255 grey levels), without the last denoising. Below it the
    network knows nothing, and nothing is assumed.

    The grid is uniform in log sigma (half the log-SNR) from the first level to the last.
    Levels between two steps of the schedule are told to the network as fractional t,
    between whose whole values log sigma is taken to be linear. y moves by Heun's steps in
    sigma, in which it is straight where noise or data dominate; the divergence is summed by
    the trapezoid rule in log sigma, in which it is flat there. Both are of order 2 in 1 /
    num_steps: of Gaussian data 100 steps find 0.0016 bits/dim too few, 200 steps 0.0004.

    The divergence is Hutchinson's estimate by probes of -1 and 1, unbiased, and exact if
    the Jacobian is diagonal. Probe k of image i is drawn from `fold_in(rngs[i], k)`, and is
    the same at every level.

    Args:
        schedule: as host arrays; the one that the network was trained with.
        denoise_fn: (x_t, t [b] float32) -> the network's output; differentiated in x_t. x_0
            is never clipped, for a clipped field is no score.
        x: float32 [b, h, w, c] at the scale of [-1, 1].
        rngs: [b] keys.
        mean: what the output is: "eps", "x_0" or "v".
        variance: as of `process.predict`; if learned, the second half of the output's
            channels is dropped.
        num_steps: steps of two network calls, each with its derivative along every probe.
        num_probes: probes an image.
        on_step: called inside the scan with the number of the step; for progress reports.

    Raises:
        ValueError: the schedule has one step or a last beta of 1, `mean` is another, or
            `num_steps` or `num_probes` is less than 1.
    """
    if mean not in MEANS_OF_LEVELS:
        raise UserError(
            "cannot go with the ODE, which needs the noise between whole steps; use a network of "
            f"mean {', '.join(MEANS_OF_LEVELS)}, or the variational bound.", field="mean",
            value=mean,
        )
    for field, value in (("num_steps", num_steps), ("num_probes", num_probes)):
        if value < 1:
            raise UserError("must be at least 1", field=field, value=value, instead={field: 1})

    def signs(rng):
        return jax.random.rademacher(rng, x.shape[1:], jnp.float32)

    # [num_probes, b, h, w, c]
    probes = jax.vmap(lambda k: jax.vmap(signs)(randomness.fold_each(rngs, k)))(
        jnp.arange(num_probes)
    )

    def slope_and_divergence(y, level):
        """eps, and div_y eps a dimension, [b]."""

        def eps(y):
            x_t = level["signal"] * y
            output, _ = split_output(
                denoise_fn(x_t, jnp.full(x.shape[:1], level["t"])), variance
            )
            # sigma is that of y = x_t / signal.
            sigma = level["signal"] * level["sigma"]
            return x_0_and_eps(output, x_t, level["signal"], sigma, mean)[1]

        push = jax.vmap(lambda probe: jax.jvp(eps, (y,), (probe,)), out_axes=(None, 0))
        slope, along = push(probes)
        return slope, jnp.mean(probes * along, axis=(0, 2, 3, 4))

    def step(carry, interval):
        y, integral = carry
        i, here, there, width, log_ratio = interval
        if on_step is not None:
            on_step(i)
        slope, divergence = slope_and_divergence(y, here)
        slope_there, divergence_there = slope_and_divergence(y + width * slope, there)
        y = y + width * (slope + slope_there) / 2
        ends = here["sigma"] * divergence + there["sigma"] * divergence_there
        return (y, integral + log_ratio * ends / 2), None

    levels, intervals = _grid(schedule, num_steps)
    start = jnp.asarray(x, jnp.float32), jnp.zeros(x.shape[:1])
    (y, integral), _ = jax.lax.scan(step, start, intervals)
    last = levels["signal"][-1]
    squares = jnp.mean(jnp.square(last * y), axis=PIXEL_AXES)
    return -0.5 * (squares + math.log(2 * math.pi)) + math.log(last) + integral


def _grid(schedule: Schedule, num_steps: int):
    """Levels uniform in log sigma, float64, and what a scan over their intervals needs."""
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)
    if alpha_bar.size < 2 or alpha_bar[-1] == 0:
        raise UserError(
            f"a schedule of T={alpha_bar.size} steps with a last beta of "
            f"{schedule.beta[-1]:g} has no ODE, which runs between two noise levels that "
            "both keep some of x_0; use another schedule, for example schedule.linear()."
        )
    log_sigma = 0.5 * (np.log1p(-alpha_bar) - np.log(alpha_bar))
    at = np.linspace(log_sigma[0], log_sigma[-1], num_steps + 1)
    sigma = np.exp(at)
    levels = {
        "t": np.interp(at, log_sigma, schedule.timesteps),
        "sigma": sigma,
        "signal": 1 / np.sqrt(1 + np.square(sigma)),
    }
    here = {name: level[:-1] for name, level in levels.items()}
    there = {name: level[1:] for name, level in levels.items()}
    intervals = (here, there, np.diff(sigma), np.diff(at))
    intervals = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), intervals)
    return levels, (jnp.arange(num_steps, dtype=jnp.int32), *intervals)
