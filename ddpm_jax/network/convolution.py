"""3x3 convolutions: on CPU with half the multiplications, elsewhere the platform's own.

Four neighbouring outputs of a row of 3 taps need 6 products of sums of inputs and of taps, not 12:
F(4, 3) of Winograd (1980), here along the width of the image only, where Lavin and Gray (2016)
apply it along both axes. The products are convolutions of 3 taps along the height, and run as fast
as any convolution. The sums cost less than they save from 32 channels and one million products
per tap on. A kernel's gradient is the transpose of the same sums. A large batch is processed a few
images at a time, so that the sums are still in the cache when they are read.

The rounding error is two to three times that of the plain sum in float32. Where
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
# From about here on the sums are faster, measured on two cores.
FEWEST_PRODUCTS, FEWEST_CHANNELS = 2**20, 32
TURNED_PIXELS = 16  # With more pixels per channel it is faster to transpose a turned kernel first.
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
        and x.shape[2] % 4 == 0
        and math.prod(x.shape[:3]) * math.prod(kernel.shape[2:]) >= FEWEST_PRODUCTS
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
    """The convolution of `direct`, by F(4, 3) along the width, which must divide by 4."""
    kernel = jnp.flip(kernel, (0, 1)) if turned else kernel
    taps = _sums(TAPS, [kernel[:, j] for j in range(3)])
    product = _along_height
    if turned and math.prod(x.shape[:3]) <= TURNED_PIXELS * min(kernel.shape[2:]):
        product = _along_height_turned
    elif turned:
        taps = [g.swapaxes(1, 2) for g in taps]  # After the sums, which are fast along rows.

    def of_some(x):
        products = [product(d, g) for d, g in zip(_sums(INPUTS, _columns(x)), taps)]
        return jnp.stack(_sums(OUTPUTS, products), axis=3).reshape(*x.shape[:3], -1)

    return jax.lax.map(of_some, _in_turn(x)).reshape(*x.shape[:3], -1)


def _along_height(d, g):
    """[b, h, w, c] and [3, c, k] -> [b, h, w, k], by 3 taps along the height."""
    b, h, w, c = d.shape
    # In one dimension, with taps one row apart: XLA runs a 3x1 kernel on a single core.
    y = jax.lax.conv_general_dilated(
        d.reshape(b, h * w, c), g, (1,), ((w, w),), rhs_dilation=(w,),
        dimension_numbers=("NHC", "HIO", "NHC"),
    )
    return y.reshape(b, h, w, -1)


def _along_height_turned(d, g):
    """`_along_height` of [3, k, c]; matrix products read it in this order, transposing is slow."""
    h = d.shape[1]
    d = jnp.pad(d, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return sum(jnp.einsum("bhwc,kc->bhwk", d[:, i:i + h], g[i]) for i in range(3))


def winograd_kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    """The gradient of `direct_kernel`, as the transpose of `winograd`."""
    b, h, w, c = x.shape
    k = y.shape[-1]

    def add_some(kernel, images):
        x, y = images
        # The padding makes XLA write the array once; otherwise every sum would compute it again.
        fours = jnp.pad(y, ((0, 0), (1, 1), (0, 0), (0, 0))).reshape(-1, h + 2, w // 4, 4, k)
        taps = []
        for d, m in zip(
            _sums(INPUTS, _columns(x)), _sums(zip(*OUTPUTS), [fours[:, :, :, j] for j in range(4)])
        ):
            d = d.reshape(-1, c)
            rows = [m[:, 2 - i:2 - i + h].reshape(-1, k) for i in range(3)]
            taps.append(jnp.stack([(row.T @ d).T for row in rows]))
        return kernel + jnp.stack(_sums(zip(*TAPS), taps), axis=1), None

    zeros = jnp.zeros((3, 3, c, k), x.dtype)
    return jax.lax.scan(add_some, zeros, (_in_turn(x), _in_turn(y)))[0]


def _in_turn(x):
    """[b, h, w, c] -> [b / n, n, h, w, c], with n images whose sums fit into the cache."""
    b, h, w, _ = x.shape
    n = max(n for n in range(1, b + 1) if b % n == 0 and (n == 1 or n * h * w <= CACHED_PIXELS))
    return x.reshape(b // n, n, *x.shape[1:])


def _columns(x):
    """The 6 columns that 4 neighbouring outputs depend on, each [b, h, w / 4, c]."""
    b, h, w, c = x.shape
    fours = jnp.pad(x, ((0, 0), (0, 0), (1, 3), (0, 0))).reshape(b, h, w // 4 + 1, 4, c)
    return [fours[:, :, :-1, j] for j in range(4)] + [fours[:, :, 1:, j] for j in range(2)]


def _sums(rows, terms):
    """sum_j row[j] terms[j] for each row; zeros are left out."""
    return [sum(float(a) * term for a, term in zip(row, terms) if a) for row in rows]


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
