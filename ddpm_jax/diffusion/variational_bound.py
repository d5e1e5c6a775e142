"""The variational bound of each image, and the rate and distortion of progressive coding.

Equation numbers are those of Ho, Jain and Abbeel 2020. Everything is in bits/dim: a mean over
pixels and channels, in units of ln 2 nats. Indices are 0-based (see `schedule`), and code index t
of the bound is the paper's L_t.
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
from jaxtyping import Array, Float, Key

from ddpm_jax.diffusion import randomness
from ddpm_jax.diffusion.losses import vlb_term
from ddpm_jax.diffusion.process import PIXEL_AXES, Images, Prediction, q_sample
from ddpm_jax.diffusion.randomness import standard_normal
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError, check_floats


@flax.struct.dataclass
class Terms:
    """The bound of each image, term by term.

    Attributes:
        vlb: float32 [b, T], bits/dim. Index t >= 1 is the paper's L_t, the cost of x_{t-1}
            given x_t (in code indices); index 0 is L_0, the cost of the pixels given x_0
            noised once, by the decoder of Eq. 13.
        prior: float32 [b], bits/dim; L_T, the cost of x_T.
        mse_x_0: float32 [b, T], mean squared error of the x_0 predicted from x_t, on the scale
            of [-1, 1].
        mse_eps: float32 [b, T], mean squared error of the noise; where the prediction clips, of
            the noise re-derived from x_0.
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
    check_floats(x_0=x_0)
    # 0.5 (alpha_bar x_0^2 - alpha_bar - log(1 - alpha_bar)). The last two terms nearly cancel
    # (of 4e-5 remains 8e-10), so they are summed in float64; float32 sums only positive terms.
    alpha_bar = float(schedule.alpha_bar[-1])
    rest = -alpha_bar - math.log1p(-alpha_bar)
    nats = 0.5 * (alpha_bar * jnp.mean(jnp.square(x_0), axis=PIXEL_AXES) + rest)
    return nats / math.log(2)


def vlb_terms(
    schedule: Schedule,
    predict_fn: Callable[[Array, Array], Prediction],
    x_0: Images,
    rngs: Key[Array, " b"],
    *,
    bins: int = 256,
    on_step: Callable[[Array], None] | None = None,
) -> Terms:
    """Every term of the bound L (Eq. 5) for each image, with one draw of noise per term.

    The bound of an image is `total_bits` of the result, in expectation over the draws. The noise
    of image i at t is drawn from `fold_in(rngs[i], t)`, so an image depends on its own key alone.

    Args:
        schedule: T steps; the scan calls the network once per step.
        predict_fn: (x_t, t [b] int32) -> Prediction, as `process.predict_fn` makes it; the
            paper's evaluation has clip=True.
        x_0: float32 pixels 2 v / (bins - 1) - 1, v whole in 0..bins-1. The decoder integrates over
            bins around these values, so added noise or bfloat16 would make L_0 wrong.
        rngs: [b] keys.
        bins: how many values a pixel can have.
        on_step: called inside the scan with t, before the step; for progress reports.

    Raises:
        UserError: x_0 is not float32.
    """
    if x_0.dtype != jnp.float32:
        raise UserError(
            f"x_0 is {x_0.dtype}, but the bound needs float32 pixels v / 127.5 - 1; use "
            "ddpm_jax.data.to_float on uint8."
        )

    def step(_, t):
        if on_step is not None:
            on_step(t)
        eps = standard_normal(randomness.fold_each(rngs, t), x_0.shape[1:])
        ts = jnp.full(x_0.shape[:1], t)
        x_t = q_sample(schedule, x_0, ts, eps)
        prediction = predict_fn(x_t, ts)
        term = vlb_term(schedule, prediction, x_0, x_t, ts, bins)
        mse_x_0 = jnp.mean(jnp.square(prediction.x_0 - x_0), axis=PIXEL_AXES)
        mse_eps = jnp.mean(jnp.square(prediction.eps - eps), axis=PIXEL_AXES)
        return None, (term, mse_x_0, mse_eps)

    t = jnp.arange(schedule.num_timesteps, dtype=jnp.int32)
    vlb, mse_x_0, mse_eps = jax.lax.scan(step, None, t, reverse=True)[1]  # [T, b]
    return Terms(
        vlb=vlb.T, prior=prior_term(schedule, x_0), mse_x_0=mse_x_0.T, mse_eps=mse_eps.T
    )


def total_bits(terms: Terms) -> np.ndarray:
    """The bound L of each image (Eq. 5), [b] in bits/dim, summed on the host in float64."""
    return np.sum(np.asarray(terms.vlb, np.float64), axis=-1) + np.asarray(terms.prior)


@dataclasses.dataclass(frozen=True)
class RateDistortion:
    """The curve of progressive coding (Sec. 4.3), one entry per number of reverse steps begun.

    Attributes:
        reverse_steps: int [T], n = 1..T; the paper's T - t + 1 for its t, and T - t in
            code.
        rate: float64 [T], bits/dim received so far.
        distortion: float64 [T], root mean squared error of the predicted x_0 on the scale
            0..255.
    """

    reverse_steps: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray


def rate_distortion(
    vlb: ArrayLike, prior: ArrayLike, mse_x_0: ArrayLike
) -> RateDistortion:
    """The curve of Fig. 5 and Table 4 from averages over a set, in float64 on the host.

    Before its n-th reverse step the receiver knows x_t at code index t = T - n. It has paid
    for x_T (the prior) and for the steps T - 1 down to t + 1, which gave it x_t: the rate
    is prior + vlb[T - 1] + ... + vlb[t + 1]. The distortion is that of the x_0 that the
    network predicts from this x_t, mse_x_0[t]. So n = 1 costs the prior alone, and n = T
    costs L_1 + ... + L_T (1.78 of the paper's 3.75 bits/dim, at an error of 0.95). The curve
    leaves out vlb[0], the decoder's L_0: with it the image comes without loss, at the whole
    bound.

    Args:
        vlb: [T] bits/dim, `Terms.vlb` averaged over images.
        prior: bits/dim, `Terms.prior` averaged over images.
        mse_x_0: [T], `Terms.mse_x_0` averaged over images; the root is that of the average.

    Raises:
        UserError: vlb or mse_x_0 is not [T].
    """
    vlb, mse_x_0 = np.asarray(vlb, np.float64), np.asarray(mse_x_0, np.float64)
    if vlb.ndim != 1 or vlb.shape != mse_x_0.shape:
        raise UserError(
            f"vlb has shape {vlb.shape} and mse_x_0 {mse_x_0.shape}, but both must be [T]; "
            "average them over images first, for example vlb.mean(axis=0)."
        )
    return RateDistortion(
        reverse_steps=np.arange(1, vlb.size + 1),
        rate=np.cumsum(np.append(float(prior), vlb[:0:-1])),
        distortion=127.5 * np.sqrt(mse_x_0[::-1]),
    )
