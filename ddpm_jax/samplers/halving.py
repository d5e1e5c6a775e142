"""Progressive distillation (Salimans and Ho 2022): one step of DDIM that does the work of two.

A student with n steps of the "trailing" grid learns where the teacher's 2 n steps lead; every
second of these is one of the student's. `t` counts the student's steps, 0..n-1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Images, Prediction, Timesteps
from ddpm_jax.diffusion.schedule import Schedule, at
from ddpm_jax.samplers import steps
from ddpm_jax.samplers.settings import Settings

MEANS = ("v", "x_0")  # What a student predicts; eps does not tell x_0 where little is left of it.


def settings(num_steps: int, clip: bool = True) -> Settings:
    """How a model that was distilled to so many steps is sampled."""
    return Settings("ddim", num_steps, grid="trailing", clip=clip)


def schedule(full: Schedule, num_steps: int) -> Schedule:
    """The schedule of a student's steps.

    Raises:
        ValueError: it has fewer steps.
    """
    return schedule_lib.respace(full, steps.trailing(full.num_timesteps, num_steps))


def two_steps(
    predict_fn: Callable[[Array, Array], Prediction], x_t: Images, t: Timesteps
) -> Images:
    """Where the teacher's two steps lead from x_t (Algorithm 2, the lines on the teacher).

    Args:
        predict_fn: of the teacher's chain of 2 n steps, whose means are those of DDIM.
        x_t: images noised to the student's step t.
        t: [b].
    """
    return predict_fn(predict_fn(x_t, 2 * t + 1).mean, 2 * t).mean


def target(of_student: Schedule, x_t: Images, end: Images, t: Timesteps) -> Images:
    """The x_0 with which one step of DDIM leads from x_t to `end` (Algorithm 2, x-tilde).

    Args:
        of_student: of `schedule`.
        x_t: images noised to step t.
        end: of `two_steps`, at step t - 1, or clean where t is 0.
        t: [b].
    """
    signal, sigma = (np.sqrt(x) for x in (of_student.alpha_bar, 1 - of_student.alpha_bar))
    signal_end, sigma_end = np.append(1.0, signal[:-1]), np.append(0.0, sigma[:-1])
    ratio = sigma_end / sigma
    scale = 1 / (signal_end - ratio * signal)  # Nearly 0 for short steps: so in float64.
    return at(scale, t, x_t) * (end - at(ratio, t, x_t) * x_t)


def loss(
    of_student: Schedule,
    denoise_fn: Callable[..., Array],
    teacher_fn: Callable[[Array, Array], Prediction],
    x_0: Images,
    t: Timesteps,
    eps: Images,
    *,
    mean: str,
) -> Float[Array, " b"]:
    """The squared error of the student's x_0 with the truncated-SNR weight (Sec. 4, Eq. 9).

    max(SNR, 1) |x-tilde - x_0|^2, the larger of the errors of x_0 and eps, as a mean over pixels.

    Args:
        of_student: of `schedule`.
        denoise_fn: (x_t, step of the full schedule) -> the student's output.
        teacher_fn: as of `two_steps`.
        x_0: images in [-1, 1].
        t: [b].
        eps: the standard normal noise in x_t.
        mean: what the student's output is, one of `MEANS`.
    """
    x_t = process.q_sample(of_student, x_0, t, eps)
    wanted = target(of_student, x_t, two_steps(teacher_fn, x_t, t), t)
    output = jnp.asarray(denoise_fn(x_t, jnp.asarray(of_student.timesteps)[t]), jnp.float32)
    signal, sigma = (
        at(x, t, x_t) for x in (of_student.sqrt_alpha_bar, of_student.sqrt_one_minus_alpha_bar)
    )
    predicted, _ = process.x_0_and_eps(output, x_t, signal, sigma, mean)
    weight = jnp.maximum(jnp.square(signal / sigma), 1.0).reshape(-1)
    error = jnp.square(jax.lax.stop_gradient(wanted) - predicted)
    return weight * jnp.mean(error, axis=process.PIXEL_AXES)
