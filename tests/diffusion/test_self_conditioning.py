"""What a self-conditioned network is told: in training, in the bound, by the ODE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle
from ddpm_jax.diffusion import losses, process, self_conditioning, variational_bound
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.ode_likelihood import ode_log_density
from gaussian import M, S, SHAPE, grid_pixels, keys, optimal

SCHEDULE = schedule_lib.linear(50, 1e-3, 0.3)
BEST = optimal(SCHEDULE, "x_0")
X_0 = np.float32(grid_pixels(4) / 127.5 - 1)
T = np.array([0, 7, 25, 49])
EPS = np.float32(np.random.default_rng(0).standard_normal(X_0.shape))

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def half(x_t, t, last):
    """The best x_0 after a guess from zeros alone: half of it, and what was said last."""
    return 0.5 * BEST(x_t, t) + last


def test_nothing_is_said_at_first_or_to_others():
    assert self_conditioning.nothing(X_0, False) == ()
    (zeros,) = self_conditioning.nothing(X_0, True)
    assert_array_equal(zeros, np.zeros_like(X_0))
    assert self_conditioning.after(X_0, ()) == ()
    (last,) = self_conditioning.after(X_0, (zeros,))
    assert last is X_0


def test_the_bound_is_that_of_a_guess_from_zeros_at_each_step():
    def terms(denoise_fn, wrap=lambda f: f):
        predict_fn = wrap(process.predict_fn(SCHEDULE, denoise_fn, mean="x_0", clip=False))
        return jax.jit(lambda x, rngs: variational_bound.vlb_terms(
            SCHEDULE, predict_fn, x, rngs))(X_0, keys(4))

    guessed, best = terms(half, self_conditioning.guessing), terms(BEST)
    for name, expected in vars(best).items():  # Half and half: two roundings of x_0.
        assert_allclose(getattr(guessed, name), expected, rtol=1e-4, atol=1e-5)


def test_the_ode_differentiates_the_guess_too():
    def density(denoise_fn, **settings):
        return jax.jit(lambda x, rngs: ode_log_density(
            SCHEDULE, denoise_fn, x, rngs, mean="x_0", num_steps=8, **settings))(X_0, keys(4))

    # Roundings of x_0, over a sigma of 0.03.
    assert_allclose(density(half, self_condition=True), density(BEST), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mean", process.MEANS)
def test_training_tells_some_images_their_own_guess(mean):
    """Pixel by pixel: the guess is the x_0 of an output of 0.3 x_t, kept in [-1, 1]."""
    def denoise_fn(x_t, t, last):
        return 0.3 * x_t + 0.7 * last

    tells = np.array([True, True, False, True])
    loss = losses.training_loss(
        SCHEDULE, denoise_fn, X_0, T, EPS, tells=jnp.asarray(tells),
        parameterization=process.Parameterization(mean),
    )
    expected = np.zeros(X_0.shape)
    for index in np.ndindex(*X_0.shape):
        step = T[index[0]] + 1
        scale, variance = oracle.compose(SCHEDULE.beta, step)
        sigma = np.sqrt(variance)
        x_t = scale * X_0[index] + sigma * EPS[index]
        ends = [oracle.posterior(SCHEDULE.beta, step, x_0, x_t)[0] for x_0 in (0.0, 1.0)]
        guess, target = {
            "eps": ((x_t - sigma * 0.3 * x_t) / scale, EPS[index]),
            "x_0": (0.3 * x_t, X_0[index]),
            "v": (scale * x_t - sigma * 0.3 * x_t, scale * EPS[index] - sigma * X_0[index]),
            "x_prev": ((0.3 * x_t - ends[0]) / (ends[1] - ends[0]),
                       ends[0] + (ends[1] - ends[0]) * X_0[index]),
        }[mean]
        last = np.clip(guess, -1, 1) if tells[index[0]] else 0.0
        expected[index] = (target - 0.3 * x_t - 0.7 * last) ** 2
    assert_allclose(loss, expected.mean(axis=(1, 2, 3)), rtol=1e-4)  # x_t / 0.02, in float32.


def test_no_gradient_flows_through_the_guess():
    def loss(w):
        return losses.training_loss(
            SCHEDULE, lambda x_t, t, last: w * BEST(x_t, t) + last, X_0, T, EPS,
            parameterization=process.Parameterization("x_0"), tells=jnp.ones(4, bool),
        ).sum()

    x_t = process.q_sample(SCHEDULE, X_0, T, EPS)
    best = np.float64(BEST(x_t, jnp.asarray(T)))
    assert np.abs(best).max() < 1 and abs(best.mean() - M) < S  # So nothing is clipped.
    slope = np.sum(np.mean(-2 * (X_0 - 2 * 0.4 * best) * best, axis=(1, 2, 3)))
    assert_allclose(jax.grad(loss)(0.4), slope, rtol=1e-4)
    assert best.shape[1:] == SHAPE
