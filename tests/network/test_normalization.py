"""Group normalization against its definition in float64, and its own derivative against
differences of that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.network.normalization import GroupNorm, normalize

SHAPES = [((2, 4, 6, 8), 2), ((3, 5, 4, 12), 12), ((1, 2, 2, 6), 1), ((2, 16, 16, 64), 32)]
EPSILON = 1e-3  # Large enough to be seen.


def defined(x, shift, scale, bias, num_groups):
    """Wu and He (2018), equations 1 to 3, of x + shift, in float64."""
    b, h, w, c = x.shape
    x = np.float64(x) + np.float64(shift)[:, None, None]
    grouped = x.reshape(b, h * w, num_groups, c // num_groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + EPSILON)).reshape(x.shape) * scale + bias


def drawn(shape, seed):
    """x, shift, scale and bias, float32; channels with means and scales of their own."""
    rng = np.random.default_rng(seed)
    c = shape[-1]
    x = rng.normal(rng.normal(0, 2, c), rng.uniform(0.5, 2, c), shape)
    shift, scale = rng.normal(0, 2, (shape[0], c)), rng.uniform(0.5, 2, c)
    return [np.float32(v) for v in (x, shift, scale, rng.normal(0, 1, c))]


@pytest.mark.parametrize("shape, num_groups", SHAPES)
def test_it_is_what_the_paper_defines(shape, num_groups):
    given = drawn(shape, 0)
    # Rounding of a sum of some numbers of about 1.
    np.testing.assert_allclose(
        normalize(*given, num_groups, EPSILON), defined(*given, num_groups), atol=1e-5
    )


def test_a_large_mean_cancels_nothing():
    x, shift, scale, bias = drawn((2, 8, 8, 8), 1)
    x = x + np.float32(1000)  # Whose square leaves float32 a variance of +-0.06.
    # Half of the last digit of 1000, 3e-5, over a standard deviation of about 1, times a scale.
    np.testing.assert_allclose(
        normalize(x, shift, scale, bias, 2, EPSILON), defined(x, shift, scale, bias, 2), atol=3e-4
    )


@pytest.mark.parametrize("shape, num_groups", SHAPES)
def test_its_derivative_is_the_limit_of_differences(shape, num_groups):
    given, tangents = drawn(shape, 2), drawn(shape, 3)
    _, derivative = jax.jvp(lambda *xs: normalize(*xs, num_groups, EPSILON), given, tangents)
    h = 1e-5  # In float64: errors of h^2, and of 1e-16 / h.
    above, below = (
        defined(*[np.float64(x) + sign * h * v for x, v in zip(given, tangents)], num_groups)
        for sign in (1, -1)
    )
    np.testing.assert_allclose(derivative, (above - below) / (2 * h), atol=5e-5)


@pytest.mark.parametrize("shape, num_groups", SHAPES)
def test_its_gradient_is_the_transpose_of_its_derivative(shape, num_groups):
    given, tangents = drawn(shape, 2), drawn(shape, 3)
    cotangent = drawn(shape, 4)[0]

    def function(*given):
        return normalize(*given, num_groups, EPSILON)

    derivative = jax.jvp(function, given, tangents)[1]
    gradients = jax.vjp(function, *given)[1](cotangent)
    for i in range(4):  # By each argument alone, so that none can hide another's fault.
        alone = [v if i == j else np.zeros_like(v) for j, v in enumerate(tangents)]
        expected = np.vdot(cotangent, np.float64(jax.jvp(function, given, alone)[1]))
        size = np.linalg.norm(cotangent) * np.linalg.norm(derivative)
        assert abs(np.vdot(gradients[i], np.float64(alone[i])) - expected) < 1e-6 * size


def test_a_batch_of_batches_and_its_gradient_are_each_their_own():
    batches = np.stack([drawn((2, 4, 4, 8), seed)[0] for seed in range(3)])
    _, *others = drawn((2, 4, 4, 8), 5)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(normalize(x, *others, 4, EPSILON))))(x)

    np.testing.assert_allclose(
        jax.vmap(gradient)(batches), np.stack([gradient(x) for x in batches]), atol=1e-6
    )


def test_the_module_has_the_parameters_of_flax_and_takes_bfloat16_in_float32():
    import flax.linen as nn

    x = jnp.bfloat16(drawn((2, 4, 4, 8), 6)[0])
    module = GroupNorm(4, EPSILON)
    fresh = module.init(jax.random.key(0), x)
    theirs = nn.GroupNorm(4, epsilon=EPSILON).init(jax.random.key(0), x)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), fresh, theirs))
    _, shift, scale, bias = drawn((2, 4, 4, 8), 7)
    for moved, given in ((0 * shift, ()), (shift, (shift,))):
        y = module.apply({"params": {"scale": scale, "bias": bias}}, x, *given)
        assert y.dtype == jnp.float32
        np.testing.assert_allclose(y, defined(np.float32(x), moved, scale, bias, 4), atol=1e-5)
