"""The diffusion process: q(x_t | x_0), its posterior, and what the network's output means.

Equation numbers are those of Ho, Jain and Abbeel 2020; indices are 0-based (see `schedule`).
Every function is pure, takes images [b, h, w, c] in [-1, 1] with one t per image, and gets its
noise as an argument.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.schedule import Schedule, at
from ddpm_jax.errors import UserError, check_floats, check_known

PIXEL_AXES = (1, 2, 3)  # Of images: what a mean per image is taken over.
Images = Float[Array | np.ndarray, "b h w c"]
Timesteps = Int[Array | np.ndarray, " b"]
Level = Float[Array, "b 1 1 1"] | Float[Array, ""]  # Scale of x_0, or of the noise, in x_t.
MEANS = ("eps", "x_0", "x_prev", "v")
MEANS_OF_LEVELS = ("eps", "x_0", "v")  # "x_prev" holds only between two steps of a schedule.
VARIANCES = ("fixed_large", "fixed_small", "learned", "learned_range")
LEARNED = ("learned", "learned_range")


@dataclasses.dataclass(frozen=True)
class Parameterization:
    """What the network predicts and which variance the reverse steps have.

    Attributes:
        mean: "eps", the noise (Eq. 11); "x_0", the data; "x_prev", the posterior mean of
            x_{t-1} (mu-tilde, Eq. 8); or "v", sqrt(alpha-bar) eps - sqrt(1 - alpha-bar) x_0
            (Salimans and Ho 2022, Sec. 4).
        variance: "fixed_large" (beta) or "fixed_small" (beta-tilde), Sec. 3.2; "learned", where
            a second set of output channels is log sigma^2 itself (Table 2); or "learned_range",
            where it says how far log sigma^2 lies between those of the two fixed ones (Nichol
            and Dhariwal 2021, Eq. 15).
    """

    mean: str = "eps"
    variance: str = "fixed_large"

    def out_channels(self, channels: int) -> int:
        """Channels of the network's output for images of `channels`."""
        return channels * (2 if self.variance in LEARNED else 1)

    def check(self, schedule: Schedule) -> None:
        """Raises UserError where a choice is unknown or does not suit the schedule."""
        check_known("mean", self.mean, MEANS)
        check_known("variance", self.variance, VARIANCES)
        if self.mean == "eps" and np.asarray(schedule.beta)[-1] == 1:
            raise UserError(
                "cannot go with a schedule whose last beta is 1: x_T keeps nothing of x_0, so "
                "the noise does not tell x_0; write {instead}, or use another schedule.",
                field="mean", value=self.mean, instead={"mean": "x_0"},
            )


@flax.struct.dataclass
class Prediction:
    """What the network's output says about one reverse step.

    Attributes:
        eps: [b, h, w, c] the predicted noise in x_t; it follows from x_0 after clipping, unless
            `predict` was asked to leave it.
        x_0: [b, h, w, c] the predicted data, in [-1, 1] if clipped (Eq. 15).
        mean: [b, h, w, c] mean of p(x_{t-1} | x_t).
        log_variance: log of its variance, which broadcasts against the mean; None where x_{t-1}
            is the mean itself, as in DDIM without noise.
    """

    eps: jax.Array
    x_0: jax.Array
    mean: jax.Array
    log_variance: jax.Array | None


def q_step(schedule: Schedule, x_prev: Images, t: Timesteps, eps: Images) -> Images:
    """One forward step: x_t from x_{t-1} and standard normal `eps` (Eq. 2)."""
    check_floats(x_prev=x_prev, eps=eps)
    beta = at(schedule.beta, t, x_prev)
    return jnp.sqrt(1 - beta) * x_prev + jnp.sqrt(beta) * eps


def q_mean_variance(
    schedule: Schedule, x_0: Images, t: Timesteps
) -> tuple[Images, Float[Array, "b 1 1 1"]]:
    """Mean and variance of q(x_t | x_0) (Eq. 4)."""
    check_floats(x_0=x_0)
    variance = jnp.square(at(schedule.sqrt_one_minus_alpha_bar, t, x_0))
    return at(schedule.sqrt_alpha_bar, t, x_0) * x_0, variance


def q_sample(schedule: Schedule, x_0: Images, t: Timesteps, eps: Images) -> Images:
    """Noises x_0 to step t with the given standard normal `eps` (Eq. 4)."""
    check_floats(x_0=x_0, eps=eps)
    signal = at(schedule.sqrt_alpha_bar, t, x_0) * x_0
    return signal + at(schedule.sqrt_one_minus_alpha_bar, t, x_0) * eps


def q_posterior(
    schedule: Schedule, x_0: Images, x_t: Images, t: Timesteps
) -> tuple[Images, Float[Array, "b 1 1 1"], Float[Array, "b 1 1 1"]]:
    """Mean, variance and log-variance of q(x_{t-1} | x_t, x_0) (Eqs. 6 and 7).

    The variance is 0 at t = 0; the log-variance there is borrowed from t = 1.
    """
    check_floats(x_0=x_0, x_t=x_t)
    from_x_0 = at(schedule.posterior_coef_x_0, t, x_t) * x_0
    mean = from_x_0 + at(schedule.posterior_coef_x_t, t, x_t) * x_t
    variance = at(schedule.posterior_variance, t, x_t)
    return mean, variance, at(schedule.posterior_log_variance, t, x_t)


def x_0_and_eps(
    output: Images, x_t: Images, signal: Level, sigma: Level, mean: str
) -> tuple[Images, Images]:
    """x_0 and eps as the network's output has them, where x_t = signal x_0 + sigma eps.

    Every reading of an output goes through here: that of a chain, a solver and the ODE.

    Args:
        output: the network's, in float32 and without channels for a variance.
        x_t: what the network was given.
        signal: sqrt(alpha_bar) of x_t, per image or one number.
        sigma: sqrt(1 - alpha_bar) of x_t, likewise.
        mean: what the output is, one of `MEANS_OF_LEVELS`.
    """
    if mean == "eps":
        return (x_t - sigma * output) / signal, output  # Eq. 15
    if mean == "v":
        return signal * x_t - sigma * output, signal * output + sigma * x_t
    return output, (x_t - signal * output) / sigma


def thresholded(
    output: Images,
    x_t: Images,
    signal: Level,
    sigma: Level,
    mean: str,
    *,
    clip: bool = True,
    denoised_fn: Callable[[Array], Array] | None = None,
    rederive_eps: bool = True,
) -> tuple[Images, Images]:
    """`x_0_and_eps` with x_0 brought into range, and eps as it follows from that.

    Args:
        output, x_t, signal, sigma, mean: as of `x_0_and_eps`.
        clip, denoised_fn, rederive_eps: as of `predict`.
    """
    raw, eps = x_0_and_eps(output, x_t, signal, sigma, mean)
    x_0 = raw if denoised_fn is None else denoised_fn(raw)
    if clip:
        x_0 = jnp.clip(x_0, -1.0, 1.0)
    follows = raw if not rederive_eps or (not clip and denoised_fn is None) else x_0
    if mean == "eps" and follows is raw:
        return x_0, eps
    return x_0, x_0_and_eps(follows, x_t, signal, sigma, "x_0")[1]


def x_0_from_eps(schedule: Schedule, x_t: Images, t: Timesteps, eps: Images) -> Images:
    """The x_0 that `eps` would have turned into x_t (Eq. 15); not clipped."""
    check_floats(x_t=x_t, eps=eps)
    return x_0_and_eps(eps, x_t, *_level(schedule, t, x_t), "eps")[0]


def eps_from_x_0(schedule: Schedule, x_t: Images, t: Timesteps, x_0: Images) -> Images:
    """The noise that would have turned x_0 into x_t; the inverse of `x_0_from_eps`."""
    check_floats(x_t=x_t, x_0=x_0)
    return x_0_and_eps(x_0, x_t, *_level(schedule, t, x_t), "x_0")[1]


def v_from_eps(schedule: Schedule, x_0: Images, t: Timesteps, eps: Images) -> Images:
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans and Ho 2022, Sec. 4)."""
    check_floats(x_0=x_0, eps=eps)
    signal, sigma = _level(schedule, t, x_0)
    return signal * eps - sigma * x_0


def x_0_from_v(schedule: Schedule, x_t: Images, t: Timesteps, v: Images) -> Images:
    """The x_0 that `v` means at x_t: sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v."""
    check_floats(x_t=x_t, v=v)
    return x_0_and_eps(v, x_t, *_level(schedule, t, x_t), "v")[0]


def _level(schedule: Schedule, t: Timesteps, x_t: Images) -> tuple[Level, Level]:
    """Scale of x_0 and of the noise in x_t."""
    return (
        at(schedule.sqrt_alpha_bar, t, x_t), at(schedule.sqrt_one_minus_alpha_bar, t, x_t)
    )


def x_0_from_x_prev(schedule: Schedule, x_t: Images, t: Timesteps, x_prev: Images) -> Images:
    """The x_0 whose posterior mean is `x_prev`; the inverse of `q_posterior`'s mean."""
    check_floats(x_t=x_t, x_prev=x_prev)
    from_x_t = at(schedule.posterior_coef_x_t, t, x_t) * x_t
    return (x_prev - from_x_t) / at(schedule.posterior_coef_x_0, t, x_t)


def split_output(output: Array, variance: str) -> tuple[Array, Array | None]:
    """The network's output in float32 as (mean part, variance part or None)."""
    output = jnp.asarray(output, jnp.float32)
    if variance not in LEARNED:
        return output, None
    return tuple(jnp.split(output, 2, axis=-1))


def model_log_variance(
    schedule: Schedule, x_t: Images, t: Timesteps, variance: str, output: Array | None = None
) -> Float[Array, "b ..."]:
    """log sigma_t^2 of the reverse step (Sec. 3.2), which broadcasts against images.

    "fixed_small" is beta-tilde; "fixed_large" is [beta-tilde_1, beta_1, beta_2, ...]: index 0
    adds no noise but is the scale of the decoder, so both have the posterior's there. "learned"
    is `output`; "learned_range" is log beta-tilde where the output is -1 and log beta where it
    is 1 (beta_0 at index 0), neither squashed nor clipped.
    """
    if variance == "learned":
        return output
    small = at(schedule.posterior_log_variance, t, x_t)
    large = jnp.log(at(schedule.beta, t, x_t))
    if variance == "learned_range":
        return small + (output + 1) / 2 * (large - small)
    if variance == "fixed_small":
        return small
    return jnp.where((t > 0).reshape(large.shape), large, small)


def predict(
    schedule: Schedule,
    output: Array,
    x_t: Images,
    t: Timesteps,
    *,
    mean: str = "eps",
    variance: str = "fixed_large",
    clip: bool = True,
    denoised_fn: Callable[[Array], Array] | None = None,
    rederive_eps: bool = True,
) -> Prediction:
    """The reverse step that the network's output describes.

    x_0 is clipped to [-1, 1] before the mean of the reverse step is formed from it, as in the
    authors' code; without clipping, the mean is Eq. 11. A network that predicts x_{t-1} gives
    the mean itself. Then only the reported x_0 is clipped, and `eps` follows it, as in that
    code. `eps` is derived from the clipped x_0, so the two always agree, unless `rederive_eps`
    is False.

    Args:
        schedule: the schedule of the chain, respaced or not.
        output: the network's output for (x_t, t); with a learned variance it has 2 c channels,
            the second c for the variance.
        x_t: noised images.
        t: index into `schedule`.
        mean: what the output is, one of `MEANS`.
        variance: one of `VARIANCES`.
        clip: keep x_0 in [-1, 1].
        denoised_fn: applied to x_0 before clipping; the mean is then always formed from x_0.
        rederive_eps: False keeps `eps` as the network has it, before `denoised_fn` and
            clipping: diffusers' default for DDIM, where improved-diffusion re-derives it.
    """
    check_floats(x_t=x_t)
    output, variance_output = split_output(output, variance)
    is_reverse_mean = mean == "x_prev" and denoised_fn is None
    reverse_mean = output
    if mean == "x_prev":
        output, mean = x_0_from_x_prev(schedule, x_t, t, output), "x_0"
    x_0, eps = thresholded(
        output, x_t, *_level(schedule, t, x_t), mean, clip=clip, denoised_fn=denoised_fn,
        rederive_eps=rederive_eps,
    )
    if not is_reverse_mean:
        reverse_mean, _, _ = q_posterior(schedule, x_0, x_t, t)
    log_variance = model_log_variance(schedule, x_t, t, variance, variance_output)
    return Prediction(eps=eps, x_0=x_0, mean=reverse_mean, log_variance=log_variance)


def check_mean_of_levels(mean: str, solver: str, otherwise: str) -> None:
    """Raises UserError unless an output of this `mean` tells the noise at any level.

    Args:
        mean: must be one of `MEANS_OF_LEVELS`.
        solver: what needs the noise between whole steps, for the message.
        otherwise: what does without it.
    """
    if mean not in MEANS_OF_LEVELS:
        *others, last = map(repr, MEANS_OF_LEVELS)
        raise UserError(
            f"cannot go with {solver}, which needs the noise between whole steps; use a network of "
            f"mean {', '.join(others)} or {last}, or {otherwise}.", field="mean", value=mean,
        )


def predict_fn(
    schedule: Schedule,
    denoise_fn: Callable[..., Array],
    *,
    mean: str = "eps",
    variance: str = "fixed_large",
    full: Schedule | None = None,
    **settings,
) -> Callable[..., Prediction]:
    """(x_t, t) -> Prediction, which samplers take: `predict` closed over a network.

    Args:
        schedule: the chain's, respaced or not. The network gets `schedule.timesteps[t]`, the
            original step.
        denoise_fn: (x_t, t) -> the network's output. If it takes a third argument, so does the
            result (see `self_conditioning`).
        mean: one of `MEANS`.
        variance: one of `VARIANCES`.
        full: the schedule that the network was trained with, where `schedule` is a respacing
            of it; needed by "x_prev" and "learned", whose outputs are about its single steps.
        **settings: further keyword arguments of `predict`.
    """

    def predict_at(x_t, t, *last):
        step = jnp.asarray(schedule.timesteps)[t]
        output = denoise_fn(x_t, step, *last)
        meaning = dict(mean=mean, variance=variance)
        if full is not None:
            output, meaning = for_longer_steps(full, output, x_t, step, **meaning)
        return predict(schedule, output, x_t, t, **meaning, **settings)

    return predict_at


def for_longer_steps(
    schedule: Schedule, output: Array, x_t: Images, t: Timesteps, *, mean: str, variance: str
) -> tuple[Array, dict[str, str]]:
    """An output about single steps of `schedule`, restated so that it holds on a respacing.

    x_{t-1} becomes the x_0 that it implies, and a learned log-variance its position between
    those of the two fixed ones; other outputs mean the same on both. The true variance lies
    between those two (Nichol and Dhariwal 2021, Sec. 3.1), which nearly agree where t is large.
    There a small error of the network would be a position far outside, so it is clamped first.

    Returns:
        The output, and its `mean` and `variance`.
    """
    output, variance_output = split_output(output, variance)
    if mean == "x_prev":
        output, mean = x_0_from_x_prev(schedule, x_t, t, output), "x_0"
    if variance == "learned":
        small = at(schedule.posterior_log_variance, t, x_t)
        large = jnp.log(at(schedule.beta, t, x_t))
        above = jnp.clip(variance_output, small, large) - small
        apart = jnp.where(large > small, large - small, 1.0)  # Float32 may not tell them apart.
        variance_output = 2 * above / apart - 1
        variance = "learned_range"
    if variance_output is not None:
        output = jnp.concatenate([output, variance_output], axis=-1)
    return output, dict(mean=mean, variance=variance)


def dynamic_threshold(x_0: Images, percentile: float = 0.995) -> Float[Array, "b h w c"]:
    """x_0 clipped to [-s, s] and divided by s, a percentile of the image's own |x_0|.

    s is at least 1, so images within [-1, 1] stay as they are (Saharia et al. 2022, Imagen,
    Sec. 2.3). For `denoised_fn`.

    Args:
        x_0: predicted images.
        percentile: in (0, 1], as a fraction.

    Raises:
        UserError: percentile leaves (0, 1].
    """
    check_floats(x_0=x_0)
    if not 0 < percentile <= 1:
        raise UserError(
            "must lie in (0, 1]", field="percentile", value=percentile,
            instead={"percentile": 0.995},
        )
    s = jnp.quantile(jnp.abs(x_0), percentile, axis=PIXEL_AXES, keepdims=True)
    s = jnp.maximum(s, 1.0)
    return jnp.clip(x_0, -s, s) / s
