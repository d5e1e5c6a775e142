"""DDIM (Song, Meng and Ermon 2021): its chain, the way from an image to its x_T, and arcs."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ddpm_jax.diffusion import self_conditioning
from ddpm_jax.diffusion.process import Images, Prediction, q_sample
from ddpm_jax.diffusion.schedule import Schedule, at
from ddpm_jax.errors import UserError, check_floats
from ddpm_jax.samplers.reverse_chain import StepSampler, Trajectory, ancestral


def ddim(
    schedule: Schedule,
    predict_fn: Callable[..., Prediction],
    x_T: Images,
    rngs: Key[Array, " b"],
    *,
    eta: float = 0.0,
    self_condition: bool = False,
    start: int | None = None,
    stop: int = 0,
    trajectory: Sequence[int] = (),
    on_step: Callable[[Array], None] | None = None,
) -> Images | tuple[Images, Trajectory]:
    """Draws x_0 by DDIM (Song, Meng and Ermon 2021, Eqs. 12 and 16), with one call per step.

    With ' for the previous step,

        x' = sqrt(alpha_bar') x_0 + sqrt(1 - alpha_bar' - sigma^2) eps + sigma z,

    where sigma^2 is eta^2 times the posterior variance. At t = 0 alpha_bar' is 1 and the
    result is x_0. eta = 0 adds no noise, so that the image depends on x_T alone. eta = 1 is the
    ancestral chain with the smaller variance, draw for draw. (The sigma-hat of that paper is the
    ancestral chain with "fixed_large".)

    eps is that of the `Prediction`: where x_0 was clipped it is recomputed from it, as in
    improved-diffusion. Code that clips x_0 but keeps the network's eps gives other images, those
    of `process.predict(..., rederive_eps=False)`.

    Args:
        schedule: of the chain, for example `schedule.respace(full, steps.uniform(1000, 50))`.
        predict_fn: (x_t, t [b] int32) -> Prediction.
        x_T: [b, h, w, c] standard normal; with `start` the images noised start times.
        rngs: [b] keys; not used if eta = 0.
        eta: in 0..1.
        self_condition, start, stop, trajectory, on_step: as of `reverse_chain.ancestral`.

    Returns:
        As `reverse_chain.ancestral` does.

    Raises:
        ValueError: eta leaves 0..1, or as `reverse_chain.ancestral` does.
    """
    return ancestral(
        schedule, ddim_fn(schedule, predict_fn, eta), x_T, rngs, self_condition=self_condition,
        start=start, stop=stop, trajectory=trajectory, on_step=on_step,
    )


def ddim_fn(
    schedule: Schedule, predict_fn: Callable[..., Prediction], eta: float = 0.0
) -> Callable[..., Prediction]:
    """`predict_fn` with the mean and variance of DDIM's step, as `ddim` describes it.

    Raises:
        ValueError: eta leaves 0..1.
    """
    check_eta(eta)

    def predict(x_t, t, *last):
        prediction = predict_fn(x_t, t, *last)
        noise = at(schedule.sqrt_one_minus_alpha_bar, t, x_t)
        before = at(schedule.sqrt_one_minus_alpha_bar, jnp.maximum(t - 1, 0), x_t)
        before = jnp.where((t > 0).reshape(noise.shape), before, 0.0)
        # 1 - alpha_bar' - sigma^2, without the difference of two nearly equal numbers.
        kept = jnp.square(at(schedule.posterior_coef_x_t, t, x_t) * noise)
        along = jnp.sqrt((1 - eta**2) * jnp.square(before) + eta**2 * kept)
        signal = jnp.sqrt(at(schedule.alpha_bar_prev, t, x_t))
        spread = jnp.log(eta**2 * at(schedule.posterior_variance, t, x_t)) if eta else None
        mean = signal * prediction.x_0 + along * prediction.eps
        return prediction.replace(mean=mean, log_variance=spread)

    return predict


def check_eta(eta: float) -> None:
    """Raises ValueError where eta leaves 0..1."""
    if not 0 <= eta <= 1:
        raise UserError(
            "must lie in 0..1: 0 adds no noise, 1 that of the ancestral chain",
            field="eta", value=eta, instead={"eta": 1.0},
        )


DDIM = StepSampler(
    step=lambda schedule, predict_fn, settings: ddim_fn(schedule, predict_fn, settings.eta),
    uses=frozenset({"grid", "eta", "rederive_eps"}),
)


def invert(
    schedule: Schedule,
    predict_fn: Callable[..., Prediction],
    x_0: Images,
    *,
    self_condition: bool = False,
    on_step: Callable[[Array], None] | None = None,
) -> Images:
    """The x_T from which `ddim` leads back to x_0: its update, run upwards.

    Both are Euler steps of one ODE, so the round trip has an error of O(1 / steps). The step up
    to t takes x_0 and eps from the step below; the first one takes eps from the clean image, with
    t = 0 for the network. A self-conditioned network is told the x_0 of the step below, where on
    the way down it is that of the step above; with more steps the two meet.

    Args:
        schedule: T steps, of the chain; the scan calls the network once per step.
        predict_fn: (x_t, t [b] int32) -> Prediction; it must not clip x_0, because no step can
            restore what clipping removes.
        x_0: images.
        self_condition: `predict_fn` also takes the last x_0, zeros at first.
        on_step: called inside the scan with t, before the step; for progress reports.

    Returns:
        x_T, at the last noise level of the schedule.
    """
    check_floats(x_0=x_0)

    def step(carry, t):
        x, last = carry
        if on_step is not None:
            on_step(t)
        below = jnp.maximum(t - 1, 0)
        prediction = predict_fn(x, jnp.full(x.shape[:1], below), *last)
        signal = jnp.where(t > 0, prediction.x_0, x)
        x = q_sample(schedule, signal, jnp.full(x.shape[:1], t), prediction.eps)
        return (x, self_conditioning.after(prediction.x_0, last)), None

    steps, x_0 = jnp.arange(schedule.num_timesteps, dtype=jnp.int32), jnp.asarray(x_0)
    last = self_conditioning.nothing(x_0, self_condition)
    return jax.lax.scan(step, (x_0, last), steps)[0][0]


def slerp(x: Images, y: Images, lam: Float[Array, " b"]) -> Images:
    """Points on the arcs from x (lam = 0) to y (lam = 1), with all pixels of an image as a vector.

    (sin((1 - lam) theta) x + sin(lam theta) y) / sin theta, theta the angle between x and y
    (DDIM, Appendix D.5). The arc keeps the norm that normal draws have; points on the line
    between them would be too short. Where x and y point the same way, the arc is the line.
    """
    check_floats(x=x, y=y)

    def norm(x):
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True))

    lam = lam.reshape(-1, 1, 1, 1)
    # By the tangent, because the arc cosine of nearly 1 has no digits left in float32.
    x_unit, y_unit = x / norm(x), y / norm(y)
    theta = 2 * jnp.arctan2(norm(x_unit - y_unit), norm(x_unit + y_unit))
    apart = theta > 1e-3  # Below, sin(lam theta) / sin(theta) is lam to the last digit.
    sin = jnp.where(apart, jnp.sin(theta), 1.0)
    return (
        jnp.where(apart, jnp.sin((1 - lam) * theta) / sin, 1 - lam) * x
        + jnp.where(apart, jnp.sin(lam * theta) / sin, lam) * y
    )
