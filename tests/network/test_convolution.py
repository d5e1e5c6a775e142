"""F(4, 3) against float64 on the host, and against every product taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import tracing
from ddpm_jax.network import convolution

SHAPE, CHANNELS = (2, 64, 16, 32), 48  # Of x, and of the output.


@pytest.fixture(autouse=True)
def few_products(monkeypatch):
    """Small arrays are fast too; the size is looked up wherever a function is traced."""
    monkeypatch.setattr(convolution, "FEWEST_PRODUCTS", 2**20)
    monkeypatch.setattr(convolution, "FEWEST_PIXELS", 80)


def arrays(shape=SHAPE, channels=CHANNELS, dtype=np.float32):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, shape[-1], channels)) / np.sqrt(9 * shape[-1])
    return rng.standard_normal(shape).astype(dtype), kernel.astype(dtype)


def conv(x, kernel, strides=(1, 1), padding="SAME"):
    return convolution.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=convolution.NHWC
    )


def in_float64(x, kernel):
    """The same nine products of every pixel."""
    _, h, w, _ = x.shape
    padded = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, i:i + h, j:j + w] @ np.float64(kernel[i, j]) for i in range(3) for j in range(3)
    )


def kernel_in_float64(x, y):
    """The gradient of sum(y conv(x, kernel)) by the kernel."""
    _, h, w, c = x.shape
    padded = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.float64(y).reshape(-1, y.shape[-1])
    return np.stack([
        np.stack([padded[:, i:i + h, j:j + w].reshape(-1, c).T @ y for j in range(3)])
        for i in range(3)
    ])


def is_fast(function, *given):
    return "conv3x3" in str(jax.make_jaxpr(function)(*given))


def test_it_is_the_convolution():
    x, kernel = arrays()
    assert is_fast(conv, x, kernel)
    # Outputs are about 1, the error's standard deviation 6e-7: seen 5e-6 at most of 18,432.
    assert_allclose(jax.jit(conv)(x, kernel), in_float64(x, kernel), rtol=0, atol=1e-5)


def test_it_rounds_a_few_times_as_much_as_the_plain_sum():
    x, kernel = arrays((4, 16, 16, 128), 128)
    exact = in_float64(x, kernel)
    fast, direct = (
        np.std(jax.jit(f)(x, kernel) - exact)
        for f in (convolution.winograd, convolution.direct)
    )
    assert fast < 3 * direct  # Seen: 1.4 to 2.6 times, by the number of channels.


def test_a_kernels_gradient_rounds_a_few_times_as_much_as_the_plain_sum():
    x, _ = arrays((4, 16, 16, 128), 128)
    y, _ = arrays((4, 16, 16, 128), 128)
    y = np.roll(y, 1)
    exact = kernel_in_float64(x, y)
    fast, direct = (
        np.std(jax.jit(f)(x, y) - exact)
        for f in (convolution.winograd_kernel, convolution.direct_kernel)
    )
    assert fast < 3 * direct  # Seen: 2.5 times, and 0.4 where the plain sum is long.


@pytest.mark.parametrize("images, pixels, in_turn", [
    (6, 200, 2), (6, 300, 3), (6, 10, 1), (7, 400, 1), (6, 4096, 6),
])
def test_images_are_taken_in_turn(monkeypatch, images, pixels, in_turn):
    monkeypatch.setattr(convolution, "CACHED_PIXELS", pixels)
    x, kernel = arrays((images, 6, 16, 64))  # 96 pixels each.
    # New functions, which JAX has not traced with other CACHED_PIXELS.
    winograd, winograd_kernel = (
        jax.jit(lambda *arrays, f=f: f(*arrays))
        for f in (convolution.winograd, convolution.winograd_kernel)
    )
    jaxpr = jax.make_jaxpr(winograd)(x, kernel).jaxpr
    scan, = (e for e in tracing.equations(jaxpr) if e.primitive.name == "scan")
    assert scan.params["length"] == images // in_turn
    y = in_float64(x, kernel)
    assert_allclose(winograd(x, kernel), y, rtol=0, atol=1e-5)
    exact = kernel_in_float64(x, y)
    fast = winograd_kernel(x, np.float32(y))
    # Seen: 1e-6 of the largest.
    assert_allclose(fast, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_an_image_that_is_not_finite_leaves_the_others():
    """Although the loop's output starts with values of the first."""
    x, kernel = arrays((64, 6, 16, 64))
    x[0] = np.nan
    y = jax.jit(convolution.winograd)(x, kernel)
    assert np.isnan(y[0]).all() and np.isfinite(y[1:]).all()


@pytest.mark.parametrize("width", [3, 4, 6, 7, 9, 14, 28])
def test_the_width_need_not_divide_by_4(width):
    x, kernel = arrays((3, 5, width, 32))
    y = np.roll(x[..., :CHANNELS - 16], 1, axis=1)
    turned = np.ascontiguousarray(kernel.swapaxes(2, 3))
    fast = jax.jit(convolution.winograd)(x, kernel)
    assert_allclose(fast, in_float64(x, kernel), rtol=0, atol=1e-5)  # As above.
    fast = jax.jit(functools.partial(convolution.winograd, turned=True))(x, turned)
    assert_allclose(fast, in_float64(x, np.flip(kernel, (0, 1))), rtol=0, atol=1e-5)
    exact = kernel_in_float64(x, y)
    fast = jax.jit(convolution.winograd_kernel)(x, y)
    assert_allclose(fast, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


TRANSFORMS = {
    "the gradient by the image": lambda f, x, k: jax.grad(
        lambda x: jnp.sum(jnp.sin(f(x, k))))(x),
    "the gradient by the kernel": lambda f, x, k: jax.grad(
        lambda k: jnp.sum(jnp.sin(f(x, k))))(k),
    "a tangent": lambda f, x, k: jax.jvp(f, (x, k), (x + 1, 2 * k - 1))[1],
    "a batch of tangents": lambda f, x, k: jax.vmap(
        lambda probe: jax.jvp(lambda x: f(x, k), (x,), (probe,))[1])(jnp.stack([x, 1 - x])),
    "a tangent of the gradient": lambda f, x, k: jax.jvp(
        jax.grad(lambda x: jnp.sum(jnp.sin(f(x, k)))), (x,), (x + 1,))[1],
    "a tangent of the kernel's gradient": lambda f, x, k: jax.jvp(
        jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k))), 1), (x, k), (x + 1, 2 * k - 1))[1],
    "the gradient of a gradient's length": lambda f, x, k: jax.grad(
        lambda x: jnp.sum(jax.grad(lambda k: jnp.sum(jnp.sin(f(x, k))))(k) ** 2))(x),
    "its gradient by the kernel": lambda f, x, k: jax.grad(
        lambda k: jnp.sum(jax.grad(lambda k: jnp.sum(jnp.sin(f(x, k))))(k) ** 2))(k),
    "the kernel's gradient of each image": lambda f, x, k: jax.vmap(
        jax.grad(lambda k, x: jnp.sum(jnp.sin(f(x[None], k)))), (None, 0))(k, x),
    "a batch within": lambda f, x, k: jax.vmap(f, (3, None))(jnp.stack([x, 1 - x], axis=3), k),
    "a kernel each": lambda f, x, k: jax.vmap(f, (None, 0))(x, jnp.stack([k, 1 - k])),
    "the image's gradient for a kernel each": lambda f, x, k: jax.vmap(
        jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k)))), (None, 0))(x, jnp.stack([k, 1 - k])),
    "what is made again": lambda f, x, k: jax.grad(
        jax.checkpoint(lambda x: jnp.sum(jnp.sin(f(x, k)))))(x),
    "two devices": lambda f, x, k: jax.pmap(f, "batch", in_axes=(0, None))(
        x.reshape(2, 1, *x.shape[1:]), k),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_of_it(name):
    x, kernel = map(jnp.asarray, arrays())
    fast, direct = (TRANSFORMS[name](f, x, kernel) for f in (conv, convolution.direct))
    # Rounding, of sums whose terms are of this size.
    assert_allclose(fast, direct, rtol=0, atol=2e-5 * np.abs(direct).max())


def test_other_platforms_have_their_own():
    traced = jax.jit(conv).trace(*arrays())
    for platform, products in (("cpu", 0), ("cuda", 1), ("tpu", 1)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == products
    traced = jax.jit(jax.grad(lambda k, x: jnp.sum(conv(x, k)))).trace(*reversed(arrays()))
    for platform, products in (("cpu", 1), ("cuda", 0), ("tpu", 0)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.dot_general") == products


def test_it_pays_from_some_products_on():
    assert is_fast(conv, *arrays((1, 43, 16, 32)))  # 1.06 million a tap.
    assert is_fast(conv, *arrays((2, 64, 14, 32)))


@pytest.mark.parametrize("case", [
    dict(shape=(2, 150, 5, 32)), dict(shape=(1, 42, 16, 32)), dict(shape=(2, 64, 16, 31)),
    dict(channels=31), dict(dtype=jnp.bfloat16), dict(shape=(1, 9, 8, 256), channels=256),
])
def test_where_it_does_not_pay(case):
    x, kernel = arrays(**case)
    assert not is_fast(conv, x, kernel)
    assert_allclose(
        np.float32(conv(x, kernel)), np.float32(convolution.direct(x, kernel)), rtol=0, atol=0
    )


@pytest.mark.parametrize("strides, padding", [((2, 2), ((0, 1), (0, 1))), ((1, 1), "VALID")])
def test_another_convolution_is_left_alone(strides, padding):
    x, kernel = arrays()
    assert not is_fast(lambda x, k: conv(x, k, strides, padding), x, kernel)
    exact = in_float64(x, kernel)[:, 1:-1, 1:-1]  # Of both: the pixels whose taps are all inside.
    if strides == (2, 2):
        exact = in_float64(x, kernel)[:, 1::2, 1::2]
    assert_allclose(conv(x, kernel, strides, padding), exact, rtol=0, atol=1e-5)


def test_a_kernel_of_another_size_is_left_alone():
    x, kernel = arrays()
    assert not is_fast(conv, x, kernel[:1, :1])


@pytest.mark.parametrize("setting", [
    dict(precision="highest"), dict(feature_group_count=2), dict(rhs_dilation=(2, 2)),
    dict(batch_group_count=2), dict(preferred_element_type=jnp.float32),
])
def test_what_is_asked_for_is_done(setting):
    x, kernel = arrays()
    kernel = kernel[:, :, :SHAPE[3] // setting.get("feature_group_count", 1)]
    settings = dict(setting, dimension_numbers=convolution.NHWC)
    given = x, kernel, (1, 1), "SAME"
    assert_allclose(
        convolution.conv_general_dilated(*given, **settings),
        jax.lax.conv_general_dilated(*given, **settings), rtol=0, atol=0,
    )


@pytest.mark.parametrize("precision", ["highest", "float32"])
def test_highest_precision_takes_every_product(precision):
    x, kernel = arrays()
    with jax.default_matmul_precision(precision):
        assert not is_fast(conv, x, kernel)
    assert is_fast(conv, x, kernel)
