"""Attention against its definition in float64, and its own derivative against differences of
that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.network.attention import attention

SHAPES = [(2, 5, 3), (3, 16, 8), (1, 1, 4)]


def defined(q, k, v):
    """Vaswani et al. (2017), equation 1, in float64."""
    q, k, v = (np.float64(x) for x in (q, k, v))
    logits = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def drawn(shape, seed):
    """q, k and v, float32, with logits of several units."""
    return np.float32(2 * np.random.default_rng(seed).standard_normal((3, *shape)))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_the_paper_defines(shape):
    given = drawn(shape, 0)
    # Logits of up to 20 are known to 1e-6, and so are the exponentials to a share of 1e-6.
    np.testing.assert_allclose(attention(*given), defined(*given), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gpu_divides_before_the_product(as_on_a_gpu, shape):
    test_it_is_what_the_paper_defines(shape)
    test_its_derivative_is_the_limit_of_differences(shape)
    test_its_gradient_is_the_transpose_of_its_derivative(shape)
    test_bfloat16_takes_its_softmax_in_float32()


def test_bfloat16_takes_its_softmax_in_float32():
    q, k, v = (jnp.bfloat16(x) for x in drawn((3, 16, 8), 9))
    y = attention(q, k, v)
    assert y.dtype == jnp.bfloat16
    # Weights that sum to 1, rounded by up to 2^-9 each, of values of up to 8; and the output.
    np.testing.assert_allclose(np.float64(y), defined(q, k, v), atol=2**-9 * 16)

    def total(q, k, v):
        return jnp.sum(jnp.float32(attention(q, k, v)) ** 2)

    def exactly(q, k, v):
        weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / jnp.sqrt(8.0))
        return jnp.sum((weights @ v) ** 2)

    ours = jax.grad(total, (0, 1, 2))(q, k, v)
    theirs = jax.grad(exactly, (0, 1, 2))(*(jnp.float32(x) for x in (q, k, v)))
    for a, b in zip(ours, theirs):
        # Products of three numbers of 8 bits.
        np.testing.assert_allclose(np.float64(a), b, atol=0.02 * np.abs(b).max())


def test_large_logits_do_not_overflow():
    q, k, v = 30 * drawn((2, 5, 3), 1)
    # Logits of thousands are known to 1e-3: each place attends to one other, or to near ones.
    np.testing.assert_allclose(attention(q, k, v), defined(q, k, v), rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_its_derivative_is_the_limit_of_differences(shape):
    given, tangents = drawn(shape, 2), drawn(shape, 3)
    _, derivative = jax.jvp(attention, tuple(given), tuple(tangents))
    h = 1e-5  # In float64: errors of h^2, and of 1e-16 / h.
    above, below = (defined(*(np.float64(given) + sign * h * tangents)) for sign in (1, -1))
    # Terms of up to 50, with logits known to 1e-6.
    np.testing.assert_allclose(derivative, (above - below) / (2 * h), atol=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_its_gradient_is_the_transpose_of_its_derivative(shape):
    given, tangents = drawn(shape, 4), drawn(shape, 5)
    _, derivative = jax.jvp(attention, tuple(given), tuple(tangents))
    cotangent = drawn(shape, 6)[0]
    gradients = jax.vjp(attention, *given)[1](cotangent)
    size = np.linalg.norm(cotangent) * np.linalg.norm(derivative)
    for i in range(3):  # By each argument alone, so that none can hide another's fault.
        alone = [x if i == j else np.zeros_like(x) for j, x in enumerate(tangents)]
        _, derivative = jax.jvp(attention, tuple(given), tuple(alone))
        expected = np.vdot(cotangent, np.float64(derivative))
        # Sums of float32 numbers, each known to some 1e-7 of its size.
        assert abs(np.vdot(gradients[i], np.float64(alone[i])) - expected) < 1e-5 * size


def test_a_second_derivative_is_that_of_the_definition():
    """As guidance by a gradient takes, in training."""
    given, tangents = drawn((2, 5, 3), 7), drawn((2, 5, 3), 8)

    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k) / jnp.sqrt(3.0))
        return weights @ v

    def twice(f):
        return jax.jvp(jax.grad(lambda *x: (f(*x) ** 2).sum(), (0, 1, 2)), given, tangents)[1]

    given, tangents = tuple(given), tuple(tangents)
    for ours, theirs in zip(twice(attention), twice(plain)):
        # Numbers of up to some hundreds, of float32 sums.
        np.testing.assert_allclose(ours, theirs, atol=1e-2)


def test_one_array_of_places_by_places_is_kept():
    given = drawn((2, 7, 3), 9)
    kept = jax.tree.leaves(jax.vjp(attention, *given)[1])
    assert sum(x.shape == (2, 7, 7) for x in kept) == 1


def test_bfloat16_is_multiplied_and_float32_summed():
    q, k, v = (jnp.bfloat16(x) for x in drawn((2, 64, 8), 10))
    y = attention(q, k, v)
    assert y.dtype == jnp.bfloat16
    # A rounding of each weight and of the output, 2^-9 each of a value of up to 6.
    np.testing.assert_allclose(np.float32(y), defined(q, k, v), atol=3e-2)
