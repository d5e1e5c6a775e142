"""L_simple against NumPy: the mean over pixels, one number an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle
from ddpm_jax import schedule as schedules
from ddpm_jax.losses import simple_loss

SCHEDULE = schedules.linear()
T = np.array([0, 500, 999])
RNG = np.random.default_rng(0)
X_0 = RNG.uniform(-1, 1, (3, 4, 2, 3)).astype(np.float32)
EPS = RNG.standard_normal((3, 4, 2, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def strict_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        yield


def expected_x_t():
    coefficients = [oracle.compose(SCHEDULE.beta, t + 1) for t in T]
    return np.stack([
        scale * x_0 + np.sqrt(variance) * eps
        for (scale, variance), x_0, eps in zip(coefficients, X_0, EPS)
    ])


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("mean, target", [("eps", EPS), ("x_0", X_0)])
def test_mean_squared_error_of_each_image(mean, target, transform):
    def loss(x_0, t, eps):
        return simple_loss(SCHEDULE, lambda x_t, t: 0.5 * x_t, x_0, t, eps, mean=mean)

    actual = transform(loss)(jnp.asarray(X_0), jnp.asarray(T), jnp.asarray(EPS))
    error = target - 0.5 * expected_x_t()
    expected = [sum(e**2 for e in image.ravel()) / image.size for image in error]
    assert actual.shape == (3,) and actual.dtype == jnp.float32
    # A sum of 24 float32 squares.
    assert_allclose(actual, expected, rtol=1e-5)


def test_the_network_sees_x_t_once():
    calls = []
    simple_loss(SCHEDULE, lambda *call: calls.append(call) or call[0], X_0, T, EPS)
    (x_t, t), = calls
    assert_array_equal(t, T)
    # Three float32 roundings of numbers up to 4.
    assert_allclose(x_t, expected_x_t(), rtol=0, atol=1e-6)


def test_the_network_is_told_the_original_step():
    respaced = schedules.respace(SCHEDULE, [7, 300, 999])
    seen = []
    simple_loss(respaced, lambda x, t: seen.append(t) or x, X_0, np.array([2, 0, 1]), EPS)
    assert_array_equal(seen[0], [999, 7, 300])


def test_a_bfloat16_output_is_compared_in_float32():
    loss = simple_loss(
        SCHEDULE, lambda x_t, t: jnp.zeros(x_t.shape, jnp.bfloat16), X_0, T, EPS
    )
    assert loss.dtype == jnp.float32
    # bfloat16 would be off by 1e-3.
    assert_allclose(loss, np.mean(EPS**2, axis=(1, 2, 3)), rtol=1e-5)
