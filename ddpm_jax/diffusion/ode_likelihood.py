"""Bits per dimension by the probability-flow ODE (Song et al. 2021, Score-Based Generative
Modeling through SDEs, Sec. 4.3 and Appendix D.2).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from ddpm_jax.diffusion import randomness, self_conditioning
from ddpm_jax.diffusion.process import (
    PIXEL_AXES, Images, check_mean_of_levels, split_output, x_0_and_eps,
)
from ddpm_jax.diffusion.schedule import Schedule, half_log_snr_table, t_at_half_log_snr
from ddpm_jax.errors import UserError, check_floats


def ode_bits_per_dim(
    schedule: Schedule,
    denoise_fn: Callable[[Array, Array], Array],
    images: Shaped[Array | np.ndarray, "b h w c"],
    rngs: Key[Array, " b"],
    *,
    mean: str = "eps",
    variance: str = "fixed_large",
    self_condition: bool = False,
    num_steps: int = 200,
    num_probes: int = 1,
    bins: int = 0,
    on_step: Callable[[Array], None] | None = None,
) -> Float[Array, " b"]:
    """Bits/dim of each image under the probability-flow ODE, with uniform dequantisation.

    Pixel v becomes z = (v + u) / 128 - 1 with u uniform in [0, 1), as Song et al. do; the
    centres of these bins are up to half a grey level off v / 127.5 - 1. The bins are 1/128
    wide, so 7 - log2 p(z), with the density p of `ode_log_density`, is in expectation over u an
    upper bound of the bits of v (Theis et al. 2016). Other `bins` than 256 are as many, each
    2 / bins wide.

    Args:
        images: uint8; with `bins` float32 pixels 2 v / (bins - 1) - 1, v whole in 0..bins-1.
        rngs: [b] keys, one per image; `randomness` has the addresses below them.
        bins: how many values a pixel can have; 0 for uint8.

    The other arguments are those of `ode_log_density`.

    Raises:
        UserError: the images are not uint8, or as `ode_log_density` does.
    """
    if not bins and images.dtype != np.uint8:
        raise UserError(
            f"images are {images.dtype}, but dequantisation needs uint8; use "
            "ddpm_jax.data.to_uint8 on floats in [-1, 1]."
        )
    u = jax.vmap(lambda rng: jax.random.uniform(rng, images.shape[1:]))(
        randomness.fold_each(rngs, randomness.DEQUANTISATION)
    )
    v = jnp.round((images + 1) * ((bins - 1) / 2)) if bins else jnp.asarray(images, jnp.float32)
    bins = bins or 256
    z = (v + u) / (bins / 2) - 1
    nats = ode_log_density(
        schedule, denoise_fn, z, randomness.fold_each(rngs, randomness.PROBES), mean=mean,
        variance=variance, self_condition=self_condition, num_steps=num_steps,
        num_probes=num_probes, on_step=on_step,
    )
    return math.log2(bins / 2) - nats / math.log(2)


def ode_log_density(
    schedule: Schedule,
    denoise_fn: Callable[[Array, Array], Array],
    x: Images,
    rngs: Key[Array, " b"],
    *,
    mean: str = "eps",
    variance: str = "fixed_large",
    self_condition: bool = False,
    num_steps: int = 200,
    num_probes: int = 1,
    on_step: Callable[[Array], None] | None = None,
) -> Float[Array, " b"]:
    """log-density of each image under the probability-flow ODE, in nats per dimension.

    In y = x_t / sqrt(alpha_bar) = x_0 + sigma eps with sigma^2 = 1 / alpha_bar - 1 the ODE
    is dy / dsigma = eps(x_t, t), so that

        log p(y_first) = log p(y_last) + integral of div_y eps dsigma,

    where x_T = sqrt(alpha_bar) y_last is assumed to be N(0, I). `x` is y at the first noise
    level, t = 0: p is the density of the data with noise of that sigma (0.01 for the
    paper's schedule, 1.3 of 255 grey levels), without the last denoising. The network has never
    seen less noise than that.

    The grid is uniform in log sigma (minus half the log-SNR) from the first level to the last.
    Between two steps of the schedule the network gets a fractional t, in which log sigma is
    linear. y moves by Heun's method in sigma, in which its path is straight where noise or data
    dominate; the divergence is integrated by the trapezoid rule in log sigma, in which it is flat
    there. Both are of order 2 in 1 / num_steps: for Gaussian data 100 steps give 0.0016 bits/dim
    too few, 200 steps 0.0004.

    The divergence is Hutchinson's estimate by probes of -1 and 1: unbiased, and exact if the
    Jacobian is diagonal. Probe k of image i is drawn from `fold_in(rngs[i], k)` and is the same
    at every level.

    Args:
        schedule: as host arrays; the one that the network was trained with.
        denoise_fn: (x_t, t [b] float32) -> the network's output, which is differentiated in x_t.
            x_0 is never clipped: the clipped field is not a score.
        x: float32 [b, h, w, c] at the scale of [-1, 1].
        rngs: [b] keys.
        mean: what the output is: "eps", "x_0" or "v".
        variance: one of `process.VARIANCES`; the output's channels for a learned one are dropped.
        self_condition: the network takes its last x_0. It is told its own guess at x_t, made from
            zeros (`self_conditioning.guessing`), so that eps is a function of x_t and t; each call
            becomes two.
        num_steps: steps of two network calls, each with its derivative along every probe.
        num_probes: probes per image.
        on_step: called inside the scan with the number of the step; for progress reports.

    Raises:
        UserError: the schedule has one step or a last beta of 1, `mean` is another, or
            `num_steps` or `num_probes` is less than 1.
    """
    check_floats(x=x)
    check_mean_of_levels(mean, "the ODE", "the variational bound")
    _check_counts(num_steps=num_steps, num_probes=num_probes)
    levels, intervals = _grid(schedule, num_steps)
    probes = _probes(rngs, num_probes, x.shape[1:])
    eps_fn = _eps_fn(denoise_fn, mean, variance, self_condition)

    def step(carry, interval):
        y, integral = carry
        i, here, there, width, log_ratio = interval
        if on_step is not None:
            on_step(i)
        slope, divergence = _slope_and_divergence(eps_fn, probes, y, here)
        slope_there, divergence_there = _slope_and_divergence(
            eps_fn, probes, y + width * slope, there
        )
        y = y + width * (slope + slope_there) / 2
        ends = here["sigma"] * divergence + there["sigma"] * divergence_there
        return (y, integral + log_ratio * ends / 2), None

    start = jnp.asarray(x, jnp.float32), jnp.zeros(x.shape[:1])
    (y, integral), _ = jax.lax.scan(step, start, intervals)
    last = levels["signal"][-1]
    squares = jnp.mean(jnp.square(last * y), axis=PIXEL_AXES)
    return -0.5 * (squares + math.log(2 * math.pi)) + math.log(last) + integral


def _check_counts(**counts: int) -> None:
    for field, value in counts.items():
        if value < 1:
            raise UserError("must be at least 1", field=field, value=value, instead={field: 1})


def _probes(
    rngs: Key[Array, " b"], num_probes: int, image_shape: tuple[int, ...]
) -> Float[Array, "k b h w c"]:
    """Independent draws of -1 and 1."""
    def signs(rng):
        return jax.random.rademacher(rng, image_shape, jnp.float32)

    def probe(k):
        return jax.vmap(signs)(randomness.fold_each(rngs, k))

    return jax.vmap(probe)(jnp.arange(num_probes))


def _eps_fn(
    denoise_fn: Callable[..., Array], mean: str, variance: str, self_condition: bool
) -> Callable[[Array, dict[str, Array]], Array]:
    """(y, level) -> the eps that the network predicts at y = x_t / signal."""
    def eps_fn(y, level):
        x_t, signal = level["signal"] * y, level["signal"]

        def x_0_and_noise(*last):
            output = denoise_fn(x_t, jnp.full(y.shape[:1], level["t"]), *last)
            output, _ = split_output(output, variance)
            return x_0_and_eps(output, x_t, signal, signal * level["sigma"], mean)

        last = self_conditioning.nothing(y, self_condition)
        return x_0_and_noise(*[x_0_and_noise(zeros)[0] for zeros in last])[1]

    return eps_fn


def _slope_and_divergence(
    eps_fn: Callable[[Array, dict[str, Array]], Array], probes: Float[Array, "k b h w c"],
    y: Float[Array, "b h w c"], level: dict[str, Array],
) -> tuple[Float[Array, "b h w c"], Float[Array, " b"]]:
    """eps at y, and the divergence div_y eps per dimension."""
    def push(probe):
        return jax.jvp(lambda y: eps_fn(y, level), (y,), (probe,))

    slope, along = jax.vmap(push, out_axes=(None, 0))(probes)
    return slope, jnp.mean(probes * along, axis=(0, 2, 3, 4))


def _grid(schedule: Schedule, num_steps: int):
    """Levels uniform in log sigma, float64, and what a scan over their intervals needs."""
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)
    if alpha_bar.size < 2 or alpha_bar[-1] == 0:
        raise UserError(
            f"a schedule of T={alpha_bar.size} steps with a last beta of "
            f"{schedule.beta[-1]:g} has no ODE, which runs between two noise levels that "
            "both keep some of x_0; use another schedule, for example schedule.linear()."
        )
    half_log_snr = half_log_snr_table(schedule)
    log_sigma = np.linspace(-half_log_snr[0], -half_log_snr[-1], num_steps + 1)
    sigma = np.exp(log_sigma)
    levels = {
        "t": t_at_half_log_snr(schedule, -log_sigma),
        "sigma": sigma,
        "signal": 1 / np.sqrt(1 + np.square(sigma)),
    }
    here = {name: level[:-1] for name, level in levels.items()}
    there = {name: level[1:] for name, level in levels.items()}
    intervals = (here, there, np.diff(sigma), np.diff(log_sigma))
    intervals = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), intervals)
    return levels, (jnp.arange(num_steps, dtype=jnp.int32), *intervals)
