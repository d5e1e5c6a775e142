"""Progressive distillation: its target and its loss, by the plain steps of DDIM in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaussian
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.samplers import halving

FULL = schedule_lib.linear(100, 1e-3, 0.2)
X = np.float32(np.random.default_rng(0).standard_normal((3, 8, 8, 1)))
SIGNAL, SIGMA = (np.append(clean, x) for clean, x in zip((1.0, 0.0), gaussian.levels_of(FULL)))


def ddim(x, here, before):
    """A step of DDIM with the best eps of the Gaussian world, between noisings."""
    return gaussian.ddim_step(
        (SIGNAL[here], SIGMA[here]), (SIGNAL[before], SIGMA[before]), x,
        gaussian.best_eps(SIGNAL[here], SIGMA[here], x), 0,
    )


def teacher_fn(num_steps):
    """predict_fn of the teacher's chain of twice as many steps."""
    settings = dataclasses.replace(halving.settings(num_steps, clip=False), num_steps=2 * num_steps)
    chain = settings.chain(FULL)
    return chain.predict_fn(gaussian.optimal(FULL), Parameterization())


@pytest.mark.parametrize("num_steps", [1, 4, 10, 50])
def test_the_target_does_the_work_of_two_steps(num_steps):
    """Noisings 100 / n, the trailing grid; every t."""
    schedule = halving.schedule(FULL, num_steps)
    for t in {0, num_steps // 2, num_steps - 1}:
        here, middle, end = (
            round(100 * k / (2 * num_steps)) for k in (2 * t + 2, 2 * t + 1, 2 * t)
        )
        expected = ddim(ddim(np.float64(X), here, middle), middle, end)
        at = jnp.full(3, t)
        reached = halving.two_steps(teacher_fn(num_steps), X, at)
        np.testing.assert_allclose(reached, expected, atol=2e-5)  # Float32, x_0 up to 30.
        x_0 = np.float64(halving.target(schedule, X, jnp.float32(expected), at))
        eps = (X - SIGNAL[here] * x_0) / SIGMA[here]
        # The step that the target is for, taken with it.
        np.testing.assert_allclose(SIGNAL[end] * x_0 + SIGMA[end] * eps, expected, atol=2e-5)


@pytest.mark.parametrize("mean", halving.MEANS)
def test_the_loss_is_the_truncated_snr_one(mean):
    schedule, t = halving.schedule(FULL, 10), np.array([0, 4, 9])
    x_0, eps = np.float32(np.random.default_rng(1).uniform(-1, 1, (2, *X.shape)))
    output = np.float32(np.random.default_rng(2).standard_normal(X.shape))
    loss = halving.loss(
        schedule, lambda x_t, step: output, teacher_fn(10), x_0, t, eps, mean=mean
    )
    for i in range(3):
        here, middle, end = 10 * t[i] + 10, 10 * t[i] + 5, 10 * t[i]
        x_t = SIGNAL[here] * np.float64(x_0[i]) + SIGMA[here] * eps[i]
        z = ddim(ddim(x_t, here, middle), middle, end)
        ratio = SIGMA[end] / SIGMA[here]
        wanted = (z - ratio * x_t) / (SIGNAL[end] - ratio * SIGNAL[here])
        said = output[i] if mean == "x_0" else SIGNAL[here] * x_t - SIGMA[here] * output[i]
        snr = (SIGNAL[here] / SIGMA[here]) ** 2
        expected = max(snr, 1) * np.square(wanted - said).mean()
        np.testing.assert_allclose(loss[i], expected, rtol=1e-4)  # Float32, by x_0 up to 30.


def test_the_network_is_told_steps_of_the_full_schedule_and_the_teacher_gets_no_gradient():
    told = []

    def denoise_fn(scale, x_t, step):
        told.append(step)
        return scale * x_t

    def loss(scale):
        def scaled_teacher(x_t, t):
            prediction = teacher_fn(4)(x_t, t)
            return prediction.replace(mean=scale * prediction.mean)

        return halving.loss(
            halving.schedule(FULL, 4), lambda x_t, step: denoise_fn(1.0, x_t, step),
            scaled_teacher, X, jnp.array([0, 1, 3]), X, mean="v",
        ).sum()

    assert jax.grad(loss)(1.0) == 0
    np.testing.assert_array_equal(told[-1], [24, 49, 99])
