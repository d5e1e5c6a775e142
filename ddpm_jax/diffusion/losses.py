"""Training objectives: one number per image, from a function that denoises.

L_simple and the terms of the variational bound are those of Ho, Jain and Abbeel 2020; the
hybrid objective is that of Nichol and Dhariwal 2021. The bound is in bits/dim everywhere.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ddpm_jax.diffusion import self_conditioning
from ddpm_jax.diffusion.process import (
    LEARNED, PIXEL_AXES, Images, Parameterization, Prediction, Timesteps, predict, predict_fn,
    q_posterior, q_sample, split_output, v_from_eps,
)
from ddpm_jax.diffusion.schedule import Schedule, at, half_log_snr_table
from ddpm_jax.errors import UserError, check_floats, check_known

LOSSES = ("simple", "vlb", "rescaled_vlb", "hybrid", "rescaled_hybrid")
WEIGHTINGS = ("constant", "min_snr", "p2", "sigmoid")


@dataclasses.dataclass(frozen=True)
class Objective:
    """What training minimises.

    Attributes:
        loss: "simple", the squared error of the prediction (Eq. 14; for "x_prev" Eq. 8,
            unweighted); "vlb", the term of the bound at t, in bits/dim (Eq. 5);
            "rescaled_vlb", T times that, an estimate of the whole bound L; "hybrid", the squared
            error plus the term of the bound, which trains the variance alone; or
            "rescaled_hybrid", the same with T / 1000 times the term: L_simple + 0.001 L_vlb
            (Nichol and Dhariwal 2021, Eq. 16).
        weighting: of the squared error, by t: "constant"; "min_snr", min(SNR, gamma) on the
            error of x_0 (Hang et al. 2023); "p2", 1 / (k + SNR)^gamma on the error of eps
            (Choi et al. 2022); or "sigmoid", sigmoid(bias - log SNR) on the error of eps, over
            log SNR in place of t, of which each step has its share (Kingma and Gao 2023).
        min_snr_gamma: gamma of "min_snr".
        sigmoid_bias: bias of "sigmoid"; Kingma and Gao have 2.
        p2_k: k of "p2".
        p2_gamma: gamma of "p2".
        bins: how many values a pixel can have, for the bound.
    """

    loss: str = "simple"
    weighting: str = "constant"
    min_snr_gamma: float = 5.0
    p2_k: float = 1.0
    p2_gamma: float = 1.0
    bins: int = 256
    sigmoid_bias: float = 2.0

    def check(self, parameterization: Parameterization, schedule: Schedule | None = None) -> None:
        """Raises UserError where a choice is unknown or cannot train what is predicted.

        Args:
            parameterization: what the network predicts.
            schedule: that it is trained on, if it is known.
        """
        check_known("loss", self.loss, LOSSES)
        check_known("weighting", self.weighting, WEIGHTINGS)
        mean, variance = parameterization.mean, parameterization.variance
        if self.loss == "simple" and variance in LEARNED:
            raise UserError(
                "cannot go with {variance}: the squared error does not train a variance",
                field="loss", value=self.loss, given={"variance": variance},
                instead={"loss": "hybrid"},
            )
        if self.loss.endswith("hybrid") and variance not in LEARNED:
            raise UserError(
                "cannot go with {variance}: its second term trains a variance, and this one is "
                "fixed", field="loss", value=self.loss, given={"variance": variance},
                instead={"loss": "simple", "variance": "learned_range"},
            )
        if self.weighting == "constant":
            return
        if self.loss.endswith("vlb"):
            raise UserError(
                "cannot go with {loss}: the bound has its own weights", field="weighting",
                value=self.weighting, given={"loss": self.loss}, instead={"weighting": "constant"},
            )
        if mean == "x_prev":
            raise UserError(
                "cannot go with {mean}: it is defined for the errors of eps, x_0 and v",
                field="weighting", value=self.weighting, given={"mean": mean},
                instead={"weighting": "constant"},
            )
        if self.weighting == "sigmoid" and schedule is not None and schedule.beta[-1] == 1:
            raise UserError(
                "cannot go with a schedule whose last beta is 1, where log SNR has no end",
                field="weighting", value=self.weighting, instead={"weighting": "min_snr"},
            )


def training_loss(
    schedule: Schedule,
    denoise_fn: Callable[..., Array],
    x_0: Images,
    t: Timesteps,
    eps: Images,
    *,
    parameterization: Parameterization = Parameterization(),
    objective: Objective = Objective(),
    tells: Bool[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """The objective at one t per image; calls the network once, or twice with `tells`.

    Args:
        schedule: the noise schedule.
        denoise_fn: (x_t, t) -> the network's output, [b, h, w, c or 2 c].
        x_0: images in [-1, 1].
        t: one step per image, 0..T-1.
        eps: the standard normal noise in x_t.
        parameterization: what the output means.
        objective: what to compute from it.
        tells: of a self-conditioned network, whether it is told its own first guess for an image,
            without gradient, or zeros; None for other networks.
    """
    x_t = q_sample(schedule, x_0, t, eps)
    last = () if tells is None else (told(schedule, denoise_fn, x_t, t, parameterization, tells),)
    output = denoise_fn(x_t, jnp.asarray(schedule.timesteps)[t], *last)
    output = jnp.asarray(output, jnp.float32)
    mean, num_timesteps = parameterization.mean, schedule.num_timesteps

    def vlb(output):
        # Not clipped: no gradient flows through a clipped x_0.
        prediction = predict(
            schedule, output, x_t, t, mean=mean, variance=parameterization.variance, clip=False
        )
        return vlb_term(schedule, prediction, x_0, x_t, t, objective.bins)

    if objective.loss == "vlb":
        return vlb(output)
    if objective.loss == "rescaled_vlb":
        return num_timesteps * vlb(output)
    mean_output, variance_output = split_output(output, parameterization.variance)
    error = target(schedule, x_0, x_t, t, eps, mean) - mean_output
    loss = jnp.mean(jnp.square(error), axis=PIXEL_AXES) * weight(schedule, t, mean, objective)
    if objective.loss == "simple":
        return loss
    scale = num_timesteps / 1000 if objective.loss == "rescaled_hybrid" else 1.0
    stopped = jax.lax.stop_gradient(mean_output)
    return loss + scale * vlb(jnp.concatenate([stopped, variance_output], axis=-1))


def told(
    schedule: Schedule, denoise_fn: Callable[..., Array], x_t: Images, t: Timesteps,
    parameterization: Parameterization, tells: Bool[Array, " b"],
) -> Images:
    """The x_0 that a self-conditioned network is told in training: its first guess, or zeros."""
    predict_first = predict_fn(
        schedule, denoise_fn, mean=parameterization.mean, variance=parameterization.variance
    )
    guess = predict_first(x_t, t, *self_conditioning.nothing(x_t, True)).x_0
    return jax.lax.stop_gradient(jnp.where(tells.reshape(-1, 1, 1, 1), guess, 0.0))


def target(
    schedule: Schedule, x_0: Images, x_t: Images, t: Timesteps, eps: Images, mean: str
) -> Images:
    """The output that a network of this `mean` is trained to give."""
    if mean == "x_prev":
        return q_posterior(schedule, x_0, x_t, t)[0]
    return {"eps": eps, "x_0": x_0, "v": v_from_eps(schedule, x_0, t, eps)}[mean]


def weight(
    schedule: Schedule, t: Timesteps, mean: str, objective: Objective
) -> Float[Array, " b"]:
    """Weight of the squared error of the network's output at t.

    The squared error of eps is SNR times that of x_0 and SNR / (SNR + 1) times that of v, where
    SNR = alpha_bar / (1 - alpha_bar).
    """
    if objective.weighting == "constant":
        return jnp.ones(t.shape)
    one = jnp.ones(t.shape)
    snr = jnp.square(
        at(schedule.sqrt_alpha_bar, t, one) / at(schedule.sqrt_one_minus_alpha_bar, t, one)
    )
    if objective.weighting == "min_snr":
        clipped = jnp.minimum(snr, objective.min_snr_gamma)
        return {"eps": clipped / snr, "x_0": clipped, "v": clipped / (snr + 1)}[mean]
    if objective.weighting == "sigmoid":
        on_eps = at(sigmoid_weights(schedule, objective.sigmoid_bias), t, one)
    else:
        on_eps = (objective.p2_k + snr) ** -objective.p2_gamma
    return {"eps": on_eps, "x_0": on_eps * snr, "v": on_eps * snr / (snr + 1)}[mean]


def sigmoid_weights(schedule: Schedule, bias: float) -> Float[np.ndarray, " T"]:
    """The weights of "sigmoid" for the error of eps, in float64 on the host.

    sigmoid(bias - log SNR), times the log SNR that a step spans over that of a mean step.
    """
    log_snr = 2 * half_log_snr_table(schedule)
    spans = -np.gradient(log_snr) if len(log_snr) > 1 else np.ones(1)
    return spans / spans.mean() / (1 + np.exp(log_snr - bias))


def vlb_term(
    schedule: Schedule, prediction: Prediction, x_0: Images, x_t: Images, t: Timesteps,
    bins: int = 256,
) -> Float[Array, " b"]:
    """L_{t-1} of Eq. 5 in bits/dim; at t = 0 L_0, with the decoder of Eq. 13.

    Args:
        schedule: the chain's.
        prediction: of p(x_{t-1} | x_t).
        x_0: images in [-1, 1]; L_0 is a likelihood only on a grid of `bins` values.
        x_t: x_0 noised to t.
        t: one step per image.
        bins: how many values a pixel can have, from -1 to 1: v / 127.5 - 1 by default.
    """
    true_mean, _, true_log_variance = q_posterior(schedule, x_0, x_t, t)
    kl = normal_kl(true_mean, true_log_variance, prediction.mean, prediction.log_variance)
    nll = -discretized_gaussian_log_likelihood(
        x_0, prediction.mean, 0.5 * prediction.log_variance, bins
    )
    nats = jnp.where(t == 0, jnp.mean(nll, axis=PIXEL_AXES), jnp.mean(kl, axis=PIXEL_AXES))
    return nats / math.log(2)


def normal_kl(
    mean_1: ArrayLike, log_variance_1: ArrayLike, mean_2: ArrayLike, log_variance_2: ArrayLike
) -> Array:
    """KL(N(mean_1, exp(log_variance_1)) || N(mean_2, exp(log_variance_2))) in nats, elementwise.

    The arguments broadcast.
    """
    difference = log_variance_2 - log_variance_1
    spread = difference + jnp.expm1(-difference)  # No cancellation where the two nearly agree.
    return 0.5 * (spread + jnp.square(mean_1 - mean_2) * jnp.exp(-log_variance_2))


def discretized_gaussian_log_likelihood(
    x: ArrayLike, mean: ArrayLike, log_scale: ArrayLike, bins: int = 256
) -> Array:
    """log-probability in nats of the pixel's bin under N(mean, exp(log_scale)^2).

    This is the decoder of Sec. 3.3 (Eq. 13), with bins of width 2 / (bins - 1); those of black and
    white extend to infinity. The CDF is approximated by a tanh and probabilities are at least
    1e-12, as in the authors' code.

    Args:
        x: pixels 2 v / (bins - 1) - 1, v whole in 0..bins-1.
        mean: of the Gaussian.
        log_scale: log of its standard deviation. All three broadcast.
        bins: how many values a pixel can have, at least 2.
    """
    check_floats(x=x)
    # CDF(z) = sigmoid(2 u(z)), and sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b)
    # (1 - exp(b - a)). So nothing cancels in float32, however far x is from the mean.
    top, end = bins - 1, 1 - min(0.001, 1 / (bins - 1))
    inverse = jnp.exp(-log_scale)
    z_above, z_below = (
        jnp.clip(inverse * (x - mean + edge), -100.0, 100.0) for edge in (1 / top, -1 / top)
    )
    from_below = jax.nn.log_sigmoid(2 * _cdf_argument(z_above))
    from_above = jax.nn.log_sigmoid(-2 * _cdf_argument(z_below))
    squares = jnp.square(z_above) + z_above * z_below + jnp.square(z_below)
    difference = 2 * _SQRT_2_OVER_PI * inverse * 2 / top * (1 + 0.044715 * squares)
    between = from_below + from_above + jnp.log(-jnp.expm1(-difference))
    log_probability = jnp.where(
        x < -end, from_below, jnp.where(x > end, from_above, between)
    )
    return jnp.maximum(log_probability, math.log(1e-12))


_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def _cdf_argument(z):
    """u(z) such that 0.5 (1 + tanh(u)) is within 2e-4 of the standard normal CDF."""
    return _SQRT_2_OVER_PI * (z + 0.044715 * z**3)
