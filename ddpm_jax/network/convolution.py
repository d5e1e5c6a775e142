"""3x3 convolutions: on CPU with half the multiplications, elsewhere the platform's own.

Four neighbouring outputs of a row of 3 taps need 6 products of sums of inputs and of taps, not 12:
F(4, 3) of Winograd (1980), here along the width of the image only, where Lavin and Gray (2016)
apply it along both axes. The 6 products, of all taps along the height at once, are one product of
matrices. A kernel's gradient is the transpose of the same sums. A large batch is processed a few
images at a time, so that the sums are still in the cache when they are read.

The rounding error in float32 is at most three times that of the plain sum. Where
`jax.default_matmul_precision` is "highest" every product is taken.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

NHWC = ("NHWC", "HWIO", "NHWC")
EXACT = ("highest", "float32")  # JAX's two names for one precision.
# Coefficients of Lavin and Gray (2016): of 6 inputs, of 3 taps, and of 6 products in 4 outputs.
INPUTS = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0),
          (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
TAPS = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
OUTPUTS = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
# From about here on the sums are faster, and save more time than their compilation takes: measured
# on two cores with AVX-512 only.
FEWEST_PRODUCTS, FEWEST_CHANNELS, FEWEST_PIXELS = 2**24, 32, 1024
CACHED_PIXELS = 4096  # Per piece, at 64 to 512 channels; twice or half as many are as fast.


def conv_general_dilated(
    x: jax.Array, kernel: jax.Array, window_strides, padding, **settings
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of NHWC images, for `flax.linen.Conv`.

    Args:
        x: [b, h, w, c].
        kernel: [i, j, c, k].
        window_strides, padding, **settings: as there.

    Returns:
        [b, h', w', k].
    """
    plain = dict(settings, window_strides=window_strides, padding=padding)
    if _is_3x3(plain, kernel.shape) and _pays(x, kernel):
        return _conv3x3.bind(x, kernel, turned=False)
    return jax.lax.conv_general_dilated(x, kernel, **plain)


def _is_3x3(settings, shape) -> bool:
    """Whether this is a plain 3x3 convolution that keeps the image's size."""
    plain = dict(window_strides=(1, 1), padding="SAME", lhs_dilation=(1, 1), rhs_dilation=(1, 1),
                 feature_group_count=1)
    return shape[:2] == (3, 3) and all(
        value is None or name in plain and value == plain[name]
        for name, value in settings.items() if name != "dimension_numbers"
    )


def _pays(x, kernel) -> bool:
    """Whether the sums may replace the products here, and cost less."""
    return (
        x.dtype == kernel.dtype == jnp.float32
        and 3 * (-x.shape[2] % 4) <= x.shape[2]
        and (pixels := math.prod(x.shape[:3])) >= FEWEST_PIXELS
        and pixels * math.prod(kernel.shape[2:]) >= FEWEST_PRODUCTS
        and min(kernel.shape[2:]) >= FEWEST_CHANNELS
        and jax.config.jax_default_matmul_precision not in EXACT
    )


def direct(x: jax.Array, kernel: jax.Array, *, turned: bool = False) -> jax.Array:
    """The convolution [b, h, w, c] and [3, 3, c, k] -> [b, h, w, k] with every product taken.

    With `turned` the kernel is [3, 3, k, c] and is turned about its centre: the transpose of the
    convolution by its image.
    """
    kernel = jnp.flip(kernel, (0, 1)).swapaxes(2, 3) if turned else kernel
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)


def direct_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    """The kernel's gradient, [b, h, w, c] and [b, h, w, k] -> [3, 3, c, k]: `direct` transposed."""
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], y.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: direct(x, kernel), kernel)(y)[0]


def winograd(x: jax.Array, kernel: jax.Array, *, turned: bool = False) -> jax.Array:
    """The convolution of `direct`, by F(4, 3) along the width; the last four may be incomplete."""
    kernel = jnp.flip(kernel, (0, 1)) if turned else kernel
    k = kernel.shape[2 if turned else 3]
    taps = _sums(TAPS, [kernel[:, j] for j in range(3)])  # [6, 3, c, k], or [6, 3, k, c].
    if turned:
        taps, product = taps.reshape(6, 3 * k, -1), "jpc,jkc->jpk"
    else:
        taps, product = jnp.concatenate([taps[:, i] for i in range(3)], axis=-1), "jpc,jck->jpk"

    def of_some(x):
        b, h, w, c = x.shape
        # One product for the three taps along the height, whose rows are then added.
        rows = jnp.einsum(product, _sums(INPUTS, _columns(x, 1)).reshape(6, -1, c), taps)
        rows = rows.reshape(6, b, h + 2, -1, 3 * k)
        y = sum(rows[:, :, i:i + h, :, i * k:(i + 1) * k] for i in range(3))
        y = jnp.moveaxis(_sums(OUTPUTS, list(y)), 0, 3)  # [b, h, ceil(w / 4), 4, k]
        return y.reshape(b, h, -1, k)[:, :, :w]

    def write_some(i, y):
        return jax.lax.dynamic_update_index_in_dim(y, of_some(pieces[i]), i, 0)

    pieces = _in_turn(x)
    # Any values would do. Zeros, as of `jax.lax.map`, would be kept, and copied for each loop.
    y = jnp.full((*pieces.shape[:-1], k), pieces[0, 0, 0, 0, 0])
    return jax.lax.fori_loop(0, len(pieces), write_some, y).reshape(*x.shape[:3], k)


def winograd_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    """The gradient of `direct_kernel`, as the transpose of `winograd`."""
    h, w, c, k = *x.shape[1:], y.shape[-1]

    def add_some(products, images):
        x, y = images
        y = jnp.pad(y, ((0, 0), (1, 1), (0, -w % 4), (0, 0)))
        y = y.reshape(len(x), h + 2, -1, 4, k)
        y = _sums(zip(*OUTPUTS), [y[:, :, :, j] for j in range(4)])
        rows = jnp.concatenate([y[:, :, 2 - i:2 - i + h] for i in range(3)], axis=-1)
        x = _sums(INPUTS, _columns(x, 0))
        return products + jnp.einsum(
            "jpc,jpk->jck", x.reshape(6, -1, c), rows.reshape(6, -1, 3 * k)
        ), None

    zeros = jnp.zeros((6, c, 3 * k), x.dtype)
    products = jax.lax.scan(add_some, zeros, (_in_turn(x), _in_turn(y)))[0]
    kernel = _sums(zip(*TAPS), list(products.reshape(6, c, 3, k)))  # [3 columns, c, 3 rows, k]
    return kernel.transpose(2, 0, 1, 3)


def _in_turn(x):
    """[b, h, w, c] -> [b / n, n, h, w, c], with n images whose sums fit into the cache."""
    b, h, w, _ = x.shape
    n = max(n for n in range(1, b + 1) if b % n == 0 and (n == 1 or n * h * w <= CACHED_PIXELS))
    return x.reshape(b // n, n, *x.shape[1:])


def _columns(x, rows):
    """The 6 columns that 4 neighbouring outputs depend on, each [b, h + 2 rows, ceil(w / 4), c]."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (rows, rows), (1, 3 + -w % 4), (0, 0)))
    fours = x.reshape(b, h + 2 * rows, -1, 4, c)
    return [fours[:, :, :-1, j] for j in range(4)] + [fours[:, :, 1:, j] for j in range(2)]


def _sums(rows, terms):
    """sum_j row[j] terms[j] for each row, stacked."""
    return jnp.stack([_sum(row, terms) for row in rows])


def _sum(row, terms):
    """Without factors of 0, 1 and -1: XLA would drop them too, but they are tens of thousands."""
    (first, total), *rest = [
        (a, term if abs(a) == 1 else float(abs(a)) * term) for a, term in zip(row, terms) if a
    ]
    for a, term in rest:
        total = total + term if a * first > 0 else total - term
    return total if first > 0 else -total


def _primitive(name, shape, plain, on_cpu):
    """A bilinear operation that runs `on_cpu` on CPU and `plain` elsewhere."""
    product = Primitive(name)
    product.def_impl(jax.jit(product.bind, static_argnames="turned"))
    product.def_abstract_eval(
        lambda x, y, **turned: x.update(shape=shape(x.shape, y.shape, **turned))
    )
    mlir.register_lowering(product, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(
        product, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu"
    )
    return product


_conv3x3 = _primitive(
    "conv3x3", lambda x, kernel, turned: (*x[:3], kernel[2 if turned else 3]), direct, winograd
)
_kernel3x3 = _primitive(
    "kernel3x3", lambda x, y: (3, 3, x[3], y[3]), direct_kernel, winograd_kernel
)


def _batched_conv(args, axes, **turned):
    x, kernel = args
    if axes[1] is not None:  # A kernel per example occurs in nobody's training.
        return jax.vmap(lambda x, kernel: direct(x, kernel, **turned), axes)(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    y = _conv3x3.bind(x.reshape(-1, *x.shape[2:]), kernel, **turned)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


# Both are linear in each argument, and the transpose by either is again one of the two.
ad.defbilinear(
    _conv3x3,
    lambda y, x, kernel, turned: _conv3x3.bind(y, kernel, turned=not turned),
    lambda y, x, kernel, turned: _kernel3x3.bind(y, x) if turned else _kernel3x3.bind(x, y),
)
ad.defbilinear(
    _kernel3x3,
    lambda kernel, x, y: _conv3x3.bind(y, kernel, turned=True),
    lambda kernel, x, y: _conv3x3.bind(x, kernel, turned=False),
)
batching.primitive_batchers[_conv3x3] = _batched_conv
batching.primitive_batchers[_kernel3x3] = lambda args, axes: (
    jax.vmap(direct_kernel, axes)(*args), 0
)
