"""The convolution behind an upsampling: a TPU's, and the others', against float64 on the host."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddpm_jax.network import upsampling
from ddpm_jax.network.convolution import NHWC
from ddpm_jax.network.upsampling import conv_of_doubled

SHAPES = [(16, 3, 5, 4, 6), (1, 1, 1, 8, 8), (65, 4, 2, 16, 3)]  # b, h, w, c and k.


def arrays(b, h, w, c, k):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, c, k)) / np.sqrt(9 * c)
    return np.float32(rng.standard_normal((b, h, w, c))), np.float32(kernel)


def conv(x, kernel):
    return conv_of_doubled(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)


def in_float64(x, kernel):
    """Each pixel written twice along both axes, and nine products of each of these."""
    doubled = np.kron(np.float64(x), np.ones((1, 2, 2, 1)))
    _, h, w, _ = doubled.shape
    padded = np.pad(doubled, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, i:i + h, j:j + w] @ np.float64(kernel[i, j]) for i in range(3) for j in range(3)
    )


@pytest.fixture(params=["as_on_a_tpu", None])
def on_each_platform(request):
    if request.param:
        request.getfixturevalue(request.param)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_convolution_of_the_doubled_image(shape, on_each_platform):
    x, kernel = arrays(*shape)
    # Outputs are about 1: rounding of sums of up to 9 x 16 products.
    assert_allclose(jax.jit(conv)(x, kernel), in_float64(x, kernel), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_its_gradients_too(shape, on_each_platform):
    """The function is linear in each argument: <g, f(v)> of any v is the gradient times v."""
    x, kernel = arrays(*shape)
    y = in_float64(x, kernel)
    cotangent = np.cos(np.arange(y.size)).reshape(y.shape)
    by_x, by_kernel = jax.jit(jax.grad(
        lambda x, kernel: jnp.sum(conv(x, kernel) * cotangent.astype(np.float32)), (0, 1)
    ))(x, kernel)
    rng = np.random.default_rng(1)
    for gradient, along in (
        (by_x, lambda v: in_float64(v, kernel)), (by_kernel, lambda v: in_float64(x, v)),
    ):
        v = rng.standard_normal(gradient.shape)
        wanted = np.sum(along(v) * cotangent)
        atol = 1e-6 * np.linalg.norm(gradient) * np.linalg.norm(v)  # Rounding of each part.
        assert_allclose(np.sum(np.float64(gradient) * v), wanted, rtol=0, atol=atol)


def test_taps_are_added_in_float32(monkeypatch, as_on_a_tpu):
    """1 + 3 2^-8, which is 1 + 2^-6 in bfloat16. Added there in turn it would be 1 + 2^-7."""
    monkeypatch.setattr(upsampling, "ALONE", 1)
    monkeypatch.setattr(upsampling, "GRADIENTS", 1)
    x = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    kernel = jnp.full((3, 3, 1, 1), 2.0**-8, jnp.bfloat16).at[1, 1].set(1)
    assert (conv(x, kernel) == 1 + 2.0**-6).all()


@pytest.mark.parametrize("platform, forward, both", [
    ("tpu", 1, 3), ("cuda", 0, 0), ("rocm", 0, 0), ("cpu", 0, 0),
])
def test_only_a_tpu_leaves_the_repeated_pixels_out(platform, forward, both):
    """Of many images in the product and its gradients, of few in these alone, of one never."""
    def by_twos(function, shape):
        traced = jax.jit(function).trace(*arrays(*shape))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return len(re.findall(r"(?:dilate|stride) = \[2, 2\]", text))

    def gradients(x, kernel):
        return jax.vjp(conv, x, kernel)[1](conv(x, kernel))

    few, one, many = SHAPES
    assert by_twos(conv, many) == forward and by_twos(conv, few) == 0
    assert by_twos(gradients, many) == both
    assert by_twos(gradients, few) == both - forward and by_twos(gradients, one) == 0
