"""How many bits an image costs: by the bound, along its rate and distortion, by the ODE.

The bound is that of Ho, Jain and Abbeel 2020 (Eq. 5), whose equation numbers are used here;
the exact likelihood of the probability-flow ODE is that of Song et al. 2021 (Score-Based
Generative Modeling through SDEs, Sec. 4.3 and Appendix D.2). Everything is in bits/dim: a
mean over pixels and channels, in units of ln 2 nats. Indices are 0-based (see `schedule`):
code index t of the bound is the paper's L_t.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Shaped

from ddpm_jax.diffusion.losses import vlb_term
from ddpm_jax.diffusion.process import Images, Prediction, q_sample, split_output
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.samplers.reverse_chain import standard_normal

_PIXELS = (1, 2, 3)
_DEQUANTISATION, _PROBES = 0, 1  # What an image's key is folded with.


@flax.struct.dataclass
class Terms:
    """The bound of each image, term by term.

    Attributes:
        vlb: float32 [b, T], bits/dim. Index t >= 1 is the paper's L_t, the cost of x_{t-1}
            given x_t (in code indices); index 0 is L_0, the cost of the pixels given x_0
            noised once, by the decoder of Eq. 13.
        prior: float32 [b], bits/dim; L_T, the cost of x_T.
        mse_x_0: float32 [b, T], mean squared error of x_0 predicted from x_t, in units of
            pixels in [-1, 1].
        mse_eps: float32 [b, T], the same of the noise; of the noise re-derived from x_0
            where the prediction clips.
    """

    vlb: Any
    prior: Any
    mse_x_0: Any
    mse_eps: Any


def prior_term(schedule: Schedule, x_0: Images) -> Float[Array, " b"]:
    """L_T = KL(q(x_T | x_0) || N(0, I)) in bits/dim (Eq. 5).

    Args:
        schedule: as host arrays.
        x_0: images in [-1, 1].
    """
    # 0.5 (alpha_bar x_0^2 - alpha_bar - log(1 - alpha_bar)). The last two nearly cancel
    # (4e-5 leaves 8e-10), so float64; what float32 adds up is positive.
    alpha_bar = float(schedule.alpha_bar[-1])
    rest = -alpha_bar - math.log1p(-alpha_bar)
    nats = 0.5 * (alpha_bar * jnp.mean(jnp.square(x_0), axis=_PIXELS) + rest)
    return nats / math.log(2)


def vlb_terms(
    schedule: Schedule,
    predict_fn: Callable[[Array, Array], Prediction],
    x_0: Images,
    rngs: Key[Array, " b"],
    *,
    on_step: Callable[[Array], None] | None = None,
) -> Terms:
    """Every term of the bound L (Eq. 5) for each image, one draw of noise a term.

    An image costs `total_bits` of the result, in expectation over the draws. The noise of
    image i at t is drawn from `fold_in(rngs[i], t)`, so that image i depends on its own key
    alone.

    Args:
        schedule: T steps; the scan has this length and calls the network once in each.
        predict_fn: (x_t, t [b] int32) -> Prediction, as `process.predict_fn` makes it;
            with clip=True for an evaluation like the paper's.
        x_0: float32 pixels v / 127.5 - 1, v whole in 0..255. The decoder sums over bins
            around these values, so noise added to them or bfloat16 makes L_0 wrong.
        rngs: [b] keys.
        on_step: called inside the scan with t, before the step; for progress reports.

    Raises:
        ValueError: x_0 is not float32.
    """
    if x_0.dtype != jnp.float32:
        raise ValueError(
            f"x_0 is {x_0.dtype}, but the bound needs float32 pixels v / 127.5 - 1; use "
            "images.to_float on uint8."
        )

    def step(_, t):
        if on_step is not None:
            on_step(t)
        eps = standard_normal(_fold(rngs, t), x_0.shape[1:])
        ts = jnp.full(x_0.shape[:1], t)
        x_t = q_sample(schedule, x_0, ts, eps)
        prediction = predict_fn(x_t, ts)
        term = vlb_term(schedule, prediction, x_0, x_t, ts)
        mse_x_0 = jnp.mean(jnp.square(prediction.x_0 - x_0), axis=_PIXELS)
        mse_eps = jnp.mean(jnp.square(prediction.eps - eps), axis=_PIXELS)
        return None, (term, mse_x_0, mse_eps)

    t = jnp.arange(schedule.num_timesteps, dtype=jnp.int32)
    vlb, mse_x_0, mse_eps = jax.lax.scan(step, None, t, reverse=True)[1]  # [T, b]
    return Terms(
        vlb=vlb.T, prior=prior_term(schedule, x_0), mse_x_0=mse_x_0.T, mse_eps=mse_eps.T
    )


def total_bits(terms: Terms) -> np.ndarray:
    """The bound L of each image (Eq. 5), [b] in bits/dim; summed on the host in float64."""
    return np.sum(np.asarray(terms.vlb, np.float64), axis=-1) + np.asarray(terms.prior)


@dataclasses.dataclass(frozen=True)
class RateDistortion:
    """Progressive coding (Sec. 4.3), one entry for each number of reverse steps begun.

    Attributes:
        reverse_steps: int [T], n = 1..T; the paper's T - t + 1 for its t, and T - t in
            code.
        rate: float64 [T], bits/dim received by then.
        distortion: float64 [T], root mean squared error of the predicted x_0 on the scale
            0..255.
    """

    reverse_steps: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray


def rate_distortion(
    vlb: ArrayLike, prior: ArrayLike, mse_x_0: ArrayLike
) -> RateDistortion:
    """The curve of Fig. 5 and Table 4, from averages over a set; float64 on the host.

    Before its n-th reverse step the receiver knows x_t at code index t = T - n. It has paid
    for x_T (the prior) and for the steps T - 1 down to t + 1, which gave it x_t: the rate
    is prior + vlb[T - 1] + ... + vlb[t + 1]. The distortion is that of the x_0 that the
    network predicts from this x_t, mse_x_0[t]. So n = 1 costs the prior alone, and n = T
    costs L_1 + ... + L_T (1.78 of the paper's 3.75 bits/dim, at an error of 0.95). vlb[0],
    the decoder's L_0, is no part of the curve: who pays it too has the image without loss,
    at the whole bound and an error of 0.

    Args:
        vlb: [T] bits/dim, `Terms.vlb` averaged over images.
        prior: bits/dim, `Terms.prior` averaged over images.
        mse_x_0: [T], `Terms.mse_x_0` averaged over images; the root is taken of the
            average.

    Raises:
        ValueError: vlb or mse_x_0 is not [T].
    """
    vlb, mse_x_0 = np.asarray(vlb, np.float64), np.asarray(mse_x_0, np.float64)
    if vlb.ndim != 1 or vlb.shape != mse_x_0.shape:
        raise ValueError(
            f"vlb has shape {vlb.shape} and mse_x_0 {mse_x_0.shape}, but both must be [T]; "
            "average them over images first, such as vlb.mean(axis=0)."
        )
    return RateDistortion(
        reverse_steps=np.arange(1, vlb.size + 1),
        rate=np.cumsum(np.append(float(prior), vlb[:0:-1])),
        distortion=127.5 * np.sqrt(mse_x_0[::-1]),
    )


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
        raise ValueError(
            f"images are {images.dtype}, but dequantisation needs uint8; use "
            "images.to_uint8 on floats in [-1, 1]."
        )
    u = jax.vmap(lambda rng: jax.random.uniform(rng, images.shape[1:]))(
        _fold(rngs, _DEQUANTISATION)
    )
    z = (jnp.asarray(images, jnp.float32) + u) / 128 - 1
    nats = ode_log_density(
        schedule, denoise_fn, z, _fold(rngs, _PROBES), mean=mean, variance=variance,
        num_steps=num_steps, num_probes=num_probes, on_step=on_step,
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
    if mean not in ("eps", "x_0", "v"):
        raise ValueError(
            f"mean={mean!r} cannot go with the ODE, which needs the noise between whole "
            "steps; use a network of mean 'eps', 'x_0' or 'v', or the bound of vlb_terms."
        )
    for setting, value in (("num_steps", num_steps), ("num_probes", num_probes)):
        if value < 1:
            raise ValueError(f"{setting}={value} is too few; write at least {setting}=1.")

    def signs(rng):
        return jax.random.rademacher(rng, x.shape[1:], jnp.float32)

    # [num_probes, b, h, w, c]
    probes = jax.vmap(lambda k: jax.vmap(signs)(_fold(rngs, k)))(jnp.arange(num_probes))

    def slope_and_divergence(y, level):
        """eps, and div_y eps a dimension, [b]."""

        def eps(y):
            x_t = level["signal"] * y
            output, _ = split_output(
                denoise_fn(x_t, jnp.full(x.shape[:1], level["t"])), variance
            )
            noise = level["signal"] * level["sigma"]
            if mean == "x_0":
                return (x_t - level["signal"] * output) / noise
            return level["signal"] * output + noise * x_t if mean == "v" else output

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
    squares = jnp.mean(jnp.square(last * y), axis=_PIXELS)
    return -0.5 * (squares + math.log(2 * math.pi)) + math.log(last) + integral


def _fold(rngs: Key[Array, " b"], data) -> Key[Array, " b"]:
    return jax.vmap(jax.random.fold_in, (0, None))(rngs, data)


def _grid(schedule: Schedule, num_steps: int):
    """Levels uniform in log sigma, float64, and what a scan over their intervals needs."""
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)
    if alpha_bar.size < 2 or alpha_bar[-1] == 0:
        raise ValueError(
            f"a schedule of T={alpha_bar.size} steps with a last beta of "
            f"{schedule.beta[-1]:g} has no ODE, which runs between two noise levels that "
            "both keep some of x_0; use such as schedule.linear()."
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
