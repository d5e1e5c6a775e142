"""Group normalization against its definition in float64, and its own derivative against
differences of that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.network.normalization import GroupNorm, normalize

SHAPES = [((2, 4, 6, 8), 2), ((3, 5, 4, 12), 12), ((1, 2, 2, 6), 1), ((2, 16, 16, 64), 32)]
EPSILON = 1e-3  # Large enough to be seen.


def defined(x, shift, scale, bias, num_groups, swish=False):
    """Wu and He (2018), equations 1 to 3, of x + shift, in float64; then perhaps the swish."""
    b, h, w, c = x.shape
    shift, scale, bias = (np.float64(v)[:, None, None] for v in (shift, scale, bias))
    grouped = (np.float64(x) + shift).reshape(b, h * w, num_groups, c // num_groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((1, 3), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + EPSILON)).reshape(x.shape) * scale + bias
    return y / (1 + np.exp(-y)) if swish else y


def drawn(shape, seed):
    """x, shift, scale and bias, float32; channels with means and scales of their own."""
    rng = np.random.default_rng(seed)
    b, *_, c = shape
    x = rng.normal(rng.normal(0, 2, c), rng.uniform(0.5, 2, c), shape)
    shift, bias = rng.normal(0, 2, (b, c)), rng.normal(0, 1, (b, c))
    return [np.float32(v) for v in (x, shift, rng.uniform(0.5, 2, (b, c)), bias)]


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("shape, num_groups", SHAPES)
def test_it_is_what_the_paper_defines(shape, num_groups, swish):
    given = drawn(shape, 0)
    # Rounding of a sum of some numbers of about 1.
    np.testing.assert_allclose(
        normalize(*given, num_groups, EPSILON, swish), defined(*given, num_groups, swish),
        atol=1e-5,
    )


@pytest.mark.parametrize("of_shift", [False, True])
def test_a_large_mean_cancels_nothing(of_shift):
    x, shift, scale, bias = drawn((2, 8, 8, 8), 1)
    if of_shift:
        shift = shift + np.float32(1000)
    else:
        x = x + np.float32(1000)  # Whose square leaves float32 a variance of +-0.06.
    # Half of the last digit of 1000, 3e-5, over a standard deviation of about 1, times a scale,
    # once for x + shift and once for what is subtracted of it.
    np.testing.assert_allclose(
        normalize(x, shift, scale, bias, 2, EPSILON, False),
        defined(x, shift, scale, bias, 2), atol=3e-4,
    )


def test_bfloat16_is_normalized_in_float32():
    """To far below its own last digit, also about a mean of some standard deviations."""
    for mean in (0, 10):
        x, *others = drawn((2, 16, 16, 64), 8)
        x = jnp.bfloat16(x + np.float32(mean))
        given = np.float32(x), *others
        y = normalize(x, *others, 32, EPSILON, False)
        assert y.dtype == jnp.float32
        # bfloat16 knows a number of about 10 to 0.03.
        np.testing.assert_allclose(y, defined(*given, 32), atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("shape, num_groups", SHAPES)
def test_its_derivative_is_the_limit_of_differences(shape, num_groups, swish, dtype):
    given, tangents = ([v[0].astype(dtype), *v[1:]] for v in (drawn(shape, 2), drawn(shape, 3)))
    _, derivative = jax.jvp(
        lambda *xs: normalize(*xs, num_groups, EPSILON, swish), given, tangents
    )
    given, tangents = ([np.float64(x) for x in v] for v in (given, tangents))
    h = 1e-5  # In float64: errors of h^2, and of 1e-16 / h.
    above, below = (
        defined(*[x + sign * h * v for x, v in zip(given, tangents)], num_groups, swish)
        for sign in (1, -1)
    )
    # Without a reference the variance is known a few digits worse; bfloat16 itself to 4e-3.
    atol = 5e-5 if dtype == jnp.float32 else 5e-4
    np.testing.assert_allclose(derivative, (above - below) / (2 * h), atol=atol)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("shape, num_groups", SHAPES)
def test_its_gradient_is_the_transpose_of_its_derivative(shape, num_groups, swish, dtype):
    given, tangents = ([v[0].astype(dtype), *v[1:]] for v in (drawn(shape, 2), drawn(shape, 3)))
    cotangent = drawn(shape, 4)[0]

    def function(*given):
        return normalize(*given, num_groups, EPSILON, swish)

    derivative = jax.jvp(function, given, tangents)[1]
    gradients = jax.vjp(function, *given)[1](cotangent)
    # A gradient by a bfloat16 x is rounded to that, and of its numbers many are added.
    share = 1e-6 if dtype == jnp.float32 else 1e-3
    for i in range(4):  # By each argument alone, so that none can hide another's fault.
        alone = [v if i == j else np.zeros_like(v) for j, v in enumerate(tangents)]
        expected = np.vdot(cotangent, np.float64(jax.jvp(function, given, alone)[1]))
        size = np.linalg.norm(cotangent) * np.linalg.norm(derivative)
        found = np.vdot(np.float64(gradients[i]), np.float64(alone[i]))
        assert abs(found - expected) < share * size


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_gpu_takes_the_slope_anew(as_on_a_gpu, dtype):
    test_its_derivative_is_the_limit_of_differences(*SHAPES[0], True, dtype)
    test_its_gradient_is_the_transpose_of_its_derivative(*SHAPES[0], True, dtype)


def test_a_batch_of_batches_and_its_gradient_are_each_their_own():
    batches = np.stack([drawn((2, 4, 4, 8), seed)[0] for seed in range(3)])
    _, *others = drawn((2, 4, 4, 8), 5)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(normalize(x, *others, 4, EPSILON, True))))(x)

    np.testing.assert_allclose(
        jax.vmap(gradient)(batches), np.stack([gradient(x) for x in batches]), atol=1e-6
    )


def test_the_module_has_the_parameters_of_flax_and_adds_a_shift_and_a_modulation():
    import flax.linen as nn

    x, shift, scale, bias = drawn((2, 4, 4, 8), 6)
    module = GroupNorm(4, EPSILON)
    fresh = module.init(jax.random.key(0), x)
    theirs = nn.GroupNorm(4, epsilon=EPSILON).init(jax.random.key(0), x)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), fresh, theirs))
    params = {"params": {"scale": scale[0], "bias": bias[0]}}
    scale, bias = (np.broadcast_to(v[:1], (2, 8)) for v in (scale, bias))
    factor, added = drawn((2, 4, 4, 8), 7)[1:3]
    np.testing.assert_allclose(
        module.apply(params, x), defined(x, 0 * shift, scale, bias, 4), atol=1e-5
    )
    constant = shift[0] - 1
    plain = defined(x, shift + constant, scale, bias, 4)
    np.testing.assert_allclose(
        module.apply(params, x, shift, constant, (factor, added)),
        plain * (1 + factor[:, None, None]) + added[:, None, None], atol=1e-4,
    )
