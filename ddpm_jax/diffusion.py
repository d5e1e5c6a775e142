"""The diffusion process: q(x_t | x_0), its posterior, and what the network's output means.

Equation numbers are those of Ho, Jain and Abbeel 2020; indices are 0-based (see `schedule`).
Every function is pure, takes images [b, h, w, c] in [-1, 1] with one t an image, and gets its
noise as an argument.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.schedule import Schedule, at

Images = Float[Array | np.ndarray, "b h w c"]
Timesteps = Int[Array | np.ndarray, " b"]

MEANS = ("eps", "x_0")
VARIANCES = ("fixed_large", "fixed_small")


@dataclasses.dataclass(frozen=True)
class Parameterization:
    """What the network predicts and which variance the reverse steps have.

    Attributes:
        mean: "eps", the noise (Eq. 11), or "x_0", the data.
        variance: "fixed_large" (beta) or "fixed_small" (beta-tilde), Sec. 3.2.
    """

    mean: str = "eps"
    variance: str = "fixed_large"

    def check(self, schedule: Schedule) -> None:
        """Raises ValueError where a choice is unknown or does not suit the schedule."""
        for setting, value, known in (
            ("mean", self.mean, MEANS), ("variance", self.variance, VARIANCES),
        ):
            if value not in known:
                raise ValueError(
                    f"diffusion.{setting}={value!r} is not known; use one of {', '.join(known)}."
                )
        if self.mean == "eps" and np.asarray(schedule.beta)[-1] == 1:
            raise ValueError(
                "diffusion.mean='eps' cannot go with a schedule whose last beta is 1: x_T "
                "keeps nothing of x_0, so the noise does not tell x_0; use "
                "--config.diffusion.mean=x_0 or another --config.diffusion.schedule."
            )


@flax.struct.dataclass
class Prediction:
    """What the network's output says about one reverse step.

    Attributes:
        eps: [b, h, w, c] the noise in x_t, consistent with x_0 (after clipping).
        x_0: [b, h, w, c] the predicted data, in [-1, 1] if clipped (Eq. 15).
        mean: [b, h, w, c] mean of p(x_{t-1} | x_t).
        log_variance: log of its variance, broadcasting against the mean.
    """

    eps: jax.Array
    x_0: jax.Array
    mean: jax.Array
    log_variance: jax.Array


def q_step(schedule: Schedule, x_prev: Images, t: Timesteps, eps: Images) -> Images:
    """One forward step: x_t from x_{t-1} and standard normal `eps` (Eq. 2)."""
    beta = at(schedule.beta, t, x_prev)
    return jnp.sqrt(1 - beta) * x_prev + jnp.sqrt(beta) * eps


def q_mean_variance(
    schedule: Schedule, x_0: Images, t: Timesteps
) -> tuple[Images, Float[Array, "b 1 1 1"]]:
    """Mean and variance of q(x_t | x_0) (Eq. 4)."""
    variance = jnp.square(at(schedule.sqrt_one_minus_alpha_bar, t, x_0))
    return at(schedule.sqrt_alpha_bar, t, x_0) * x_0, variance


def q_sample(schedule: Schedule, x_0: Images, t: Timesteps, eps: Images) -> Images:
    """Noises x_0 to step t with the given standard normal `eps` (Eq. 4)."""
    signal = at(schedule.sqrt_alpha_bar, t, x_0) * x_0
    return signal + at(schedule.sqrt_one_minus_alpha_bar, t, x_0) * eps


def q_posterior(
    schedule: Schedule, x_0: Images, x_t: Images, t: Timesteps
) -> tuple[Images, Float[Array, "b 1 1 1"], Float[Array, "b 1 1 1"]]:
    """Mean, variance and log-variance of q(x_{t-1} | x_t, x_0) (Eqs. 6 and 7).

    The variance is 0 at t = 0; the log-variance there is borrowed from t = 1.
    """
    from_x_0 = at(schedule.posterior_coef_x_0, t, x_t) * x_0
    mean = from_x_0 + at(schedule.posterior_coef_x_t, t, x_t) * x_t
    variance = at(schedule.posterior_variance, t, x_t)
    return mean, variance, at(schedule.posterior_log_variance, t, x_t)


def x_0_from_eps(schedule: Schedule, x_t: Images, t: Timesteps, eps: Images) -> Images:
    """The x_0 that `eps` would have turned into x_t (Eq. 15); not clipped."""
    noise = at(schedule.sqrt_one_minus_alpha_bar, t, x_t) * eps
    return (x_t - noise) / at(schedule.sqrt_alpha_bar, t, x_t)


def eps_from_x_0(schedule: Schedule, x_t: Images, t: Timesteps, x_0: Images) -> Images:
    """The noise that would have turned x_0 into x_t; the inverse of `x_0_from_eps`."""
    signal = at(schedule.sqrt_alpha_bar, t, x_t) * x_0
    return (x_t - signal) / at(schedule.sqrt_one_minus_alpha_bar, t, x_t)


def model_log_variance(
    schedule: Schedule, x_t: Images, t: Timesteps, variance: str
) -> Float[Array, "b 1 1 1"]:
    """log sigma_t^2 of the reverse step (Sec. 3.2).

    "fixed_small" is beta-tilde; "fixed_large" is [beta-tilde_1, beta_1, beta_2, ...]: index 0
    has no noise but is the scale of the decoder, and there both take the posterior's.
    """
    small = at(schedule.posterior_log_variance, t, x_t)
    if variance == "fixed_small":
        return small
    large = jnp.log(at(schedule.beta, t, x_t))
    return jnp.where((t > 0).reshape(large.shape), large, small)


def predict(
    schedule: Schedule,
    output: Images,
    x_t: Images,
    t: Timesteps,
    *,
    mean: str = "eps",
    variance: str = "fixed_large",
    clip: bool = True,
    denoised_fn: Callable[[Array], Array] | None = None,
) -> Prediction:
    """Interprets the network's output; the one place that does.

    x_0 is clipped to [-1, 1] before the mean of the reverse step is formed from it, as the
    authors' code does; unclipped, the mean is Eq. 11. `eps` is re-derived from what x_0
    became, so that the fields always agree.

    Args:
        schedule: the schedule of the chain, respaced or not.
        output: the network's output for (x_t, t), of the kind that `mean` says.
        x_t: noised images.
        t: index into `schedule`.
        mean: one of `MEANS`.
        variance: one of `VARIANCES`.
        clip: keep x_0 in [-1, 1].
        denoised_fn: applied to x_0 before clipping.
    """
    output = jnp.asarray(output, jnp.float32)
    x_0 = output if mean == "x_0" else x_0_from_eps(schedule, x_t, t, output)
    if denoised_fn is not None:
        x_0 = denoised_fn(x_0)
    if clip:
        x_0 = jnp.clip(x_0, -1.0, 1.0)
    untouched = mean == "eps" and not clip and denoised_fn is None
    return Prediction(
        eps=output if untouched else eps_from_x_0(schedule, x_t, t, x_0),
        x_0=x_0,
        mean=q_posterior(schedule, x_0, x_t, t)[0],
        log_variance=model_log_variance(schedule, x_t, t, variance),
    )


def predict_fn(
    schedule: Schedule, denoise_fn: Callable[[Array, Array], Array], **settings
) -> Callable[[Array, Array], Prediction]:
    """Closes `predict` over a network: (x_t, t) -> Prediction, which samplers take.

    The network is told `schedule.timesteps[t]`, the original step where the chain is
    respaced; `settings` are the keyword arguments of `predict`.
    """

    def predict_at(x_t, t):
        output = denoise_fn(x_t, jnp.asarray(schedule.timesteps)[t])
        return predict(schedule, output, x_t, t, **settings)

    return predict_at
