"""Inversion follows the ODE upwards, and DDIM leads back; arcs are arcs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import oracle
import tracing
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import predict_fn
from ddpm_jax.samplers import ddim as ddim_lib
from ddpm_jax.samplers import steps as steps_lib

M, S = 0.3, 0.25  # Pixels are N(M, S^2), independent.
SHAPE = (8, 8, 1)
LINEAR = schedule_lib.linear()


def best_eps(x, t):
    """E[eps | x_t], affine in x_t, in the steps of LINEAR."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    slope = np.sqrt(1 - alpha_bar) / (alpha_bar * S**2 + 1 - alpha_bar)
    slope, signal = (jnp.float32(v)[t][:, None, None, None] for v in (slope, alpha_bar**0.5))
    return slope * (x - signal * M)


def there_and_back(num_steps, x_0):
    """(x_T, x_0 again) in so many steps each way."""
    schedule = schedule_lib.respace(LINEAR, steps_lib.uniform(1000, num_steps))
    predict = predict_fn(schedule, best_eps, clip=False)
    keys = jax.random.split(jax.random.key(0), len(x_0))

    @jax.jit
    def both(x_0):
        x_T = ddim_lib.invert(schedule, predict, x_0)
        return x_T, ddim_lib.ddim(schedule, predict, x_T, keys)

    return jax.device_get(both(x_0))


def test_errors_fall_with_the_number_of_steps():
    """The exact flow keeps every quantile; Euler misses it by O(1 / steps), slope 1."""
    quantile = np.random.default_rng(0).standard_normal((4, *SHAPE))
    x_0 = np.float32(M + S * quantile)
    scale, variance = oracle.compose(LINEAR.beta, 1000)
    exact = scale * M + np.sqrt(scale**2 * S**2 + variance) * quantile
    to_x_T, to_x_0 = [], []
    for num_steps in (50, 100, 200):
        x_T, again = there_and_back(num_steps, x_0)
        to_x_T.append(np.sqrt(np.mean((x_T - exact) ** 2)))
        to_x_0.append(np.sqrt(np.mean((again - x_0) ** 2)))
    for errors in (to_x_T, to_x_0):
        slopes = np.log2(np.array(errors[:-1]) / errors[1:])
        assert_allclose(slopes, 1.0, atol=0.2)  # The next order is still seen at 50 steps.
    assert to_x_T[-1] < 0.03 and to_x_0[-1] < 0.02


def test_every_step_is_that_of_the_paper():
    """Eq. 14 with its sign turned: x / signal moves by eps times the change of sigma / signal."""
    schedule = schedule_lib.from_betas([0.1, 0.3, 0.2, 0.5])
    x_0 = np.random.default_rng(1).uniform(-1, 1, (2, *SHAPE))
    levels = [oracle.compose(schedule.beta, steps) for steps in range(5)]

    def eps(x, t):
        return np.sin(3.0) * x + 0.1 * (t + 1.0)

    y, ratio = x_0, 0.0
    for steps in range(1, 5):
        scale, variance = levels[steps]
        # The network is asked one step below; the clean image goes as step 0.
        said = eps(levels[steps - 1][0] * y, max(steps - 2, 0))
        y, ratio = y + (np.sqrt(variance) / scale - ratio) * said, np.sqrt(variance) / scale
    predict = predict_fn(
        schedule, lambda x, t: np.float32(np.sin(3.0)) * x
        + 0.1 * (t.astype(jnp.float32) + 1.0)[:, None, None, None], clip=False,
    )
    x_T = jax.jit(lambda x: ddim_lib.invert(schedule, predict, x))(np.float32(x_0))
    assert_allclose(x_T, levels[4][0] * y, rtol=0, atol=2e-6)  # Four steps of float32.


def test_one_scan_that_calls_the_network_once():
    calls, steps = [], []

    def denoise(x, t):
        calls.append(t)
        return jax.lax.dot(x.reshape(len(x), -1), jnp.ones((64, 64))).reshape(x.shape)

    predict = predict_fn(LINEAR, denoise, clip=False)
    jaxpr = jax.make_jaxpr(lambda x: ddim_lib.invert(
        LINEAR, predict, x, on_step=steps.append))(jnp.zeros((2, *SHAPE))).jaxpr
    found = [(e.primitive.name, e) for e in tracing.equations(jaxpr)]
    scan, = (equation for name, equation in found if name == "scan")
    assert scan.params["length"] == 1000 and not scan.params["reverse"]
    assert [name for name, _ in found].count("dot_general") == 1
    assert len(calls) == len(steps) == 1 and calls[0].shape == (2,)


def test_an_arc_keeps_the_norm_and_turns_evenly():
    random = np.random.default_rng(2)
    x, y = random.standard_normal((2, 5, *SHAPE))
    y *= np.sqrt((x**2).sum((1, 2, 3)) / (y**2).sum((1, 2, 3)))[:, None, None, None]
    theta = np.arccos((x * y).sum((1, 2, 3)) / (x**2).sum((1, 2, 3)))
    lam = np.array([0.0, 0.25, 0.5, 0.7, 1.0])
    found = np.float64(ddim_lib.slerp(np.float32(x), np.float32(y), jnp.float32(lam)))
    assert_allclose((found**2).sum((1, 2, 3)), (x**2).sum((1, 2, 3)), rtol=1e-5)  # float32
    turned = np.arccos(((found * x).sum((1, 2, 3)) / (x**2).sum((1, 2, 3))).clip(-1, 1))
    assert_allclose(turned, lam * theta, rtol=0, atol=1e-3)  # arccos near 1
    assert_allclose(found[0], x[0], rtol=0, atol=1e-6)
    assert_allclose(found[-1], y[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-4, 2e-3])
def test_an_arc_between_nearly_equal_images_is_a_line(apart):
    x = np.random.default_rng(3).standard_normal((1, *SHAPE))
    y = x + apart * np.roll(x, 1)
    found = ddim_lib.slerp(np.float32(x), np.float32(y), jnp.float32([0.3]))
    # Arc and line part by the square of the angle; some roundings of float32 besides.
    assert_allclose(found, 0.7 * x + 0.3 * y, rtol=0, atol=1e-6 + apart**2)
