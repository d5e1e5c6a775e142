"""3x3 convolutions: on CPU with half the multiplications, elsewhere the platform's own.

Four neighbouring outputs of a row of 3 taps need 6 products of sums of inputs and of taps, not 12:
F(4, 3) of Winograd (1980), here along the width of the image only, as Lavin and Gray (2016) have
it along both. The products are convolutions of 3 taps along the height, so what remains runs as
fast as any. The sums cost less than they save from about 16 pixels and 64 channels on.

In float32, with two to three times the rounding error of the plain sum. Where
`jax.default_matmul_precision` is "highest" every product is taken.
"""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

NHWC = ("NHWC", "HWIO", "NHWC")
EXACT = ("highest", "float32")  # JAX's two words for one precision.
# Of Lavin and Gray (2016): the sums of 6 inputs, of 3 taps, and of 6 products to 4 outputs.
INPUTS = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0),
          (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
TAPS = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
OUTPUTS = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


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
        return _conv3x3.bind(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, **plain)


def _is_3x3(settings, shape) -> bool:
    """Whether it is the convolution of a 3x3 kernel that keeps the size, and nothing more."""
    plain = dict(window_strides=(1, 1), padding="SAME", lhs_dilation=(1, 1), rhs_dilation=(1, 1),
                 feature_group_count=1)
    return shape[:2] == (3, 3) and all(
        value is None or name in plain and value == plain[name]
        for name, value in settings.items() if name != "dimension_numbers"
    )


def _pays(x, kernel) -> bool:
    """Whether the sums cost less than the products saved, and may stand for them."""
    return (
        x.dtype == kernel.dtype == jnp.float32
        and x.shape[2] % 4 == 0 and x.shape[2] >= 16 and min(kernel.shape[2:]) >= 64
        and jax.config.jax_default_matmul_precision not in EXACT
    )


def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[b, h, w, c] and [3, 3, c, k] -> [b, h, w, k], every product taken."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as `direct`, by F(4, 3) along the width, which must divide by 4."""
    b, h, w, c = x.shape
    fours = jnp.pad(x, ((0, 0), (0, 0), (1, 3), (0, 0))).reshape(b, h, w // 4 + 1, 4, c)
    columns = [fours[:, :, :-1, j] for j in range(4)] + [fours[:, :, 1:, j] for j in range(2)]
    products = [
        jax.lax.conv_general_dilated(
            d, g[:, None], (1, 1), ((1, 1), (0, 0)), dimension_numbers=NHWC
        )
        for d, g in zip(_sums(INPUTS, columns), _sums(TAPS, [kernel[:, j] for j in range(3)]))
    ]
    return jnp.stack(_sums(OUTPUTS, products), axis=3).reshape(b, h, w, -1)


def _sums(rows, terms):
    """sum_j row[j] terms[j] of each row, without the terms that are 0."""
    return [sum(float(a) * term for a, term in zip(row, terms) if a) for row in rows]


def _kernel_gradient(cotangent, x, kernel):
    shape = kernel.aval.shape
    return jax.linear_transpose(
        lambda kernel: direct(x, kernel), jax.ShapeDtypeStruct(shape, x.dtype)
    )(cotangent)[0]


def _image_gradient(cotangent, x, kernel):
    return _conv3x3.bind(cotangent, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


def _batched(args, axes):
    x, kernel = args
    if axes[1] is not None:  # A kernel an example: nobody's training.
        return jax.vmap(direct, axes)(x, kernel), 0
    x = jnp.moveaxis(x, axes[0], 0)
    y = _conv3x3.bind(x.reshape(-1, *x.shape[2:]), kernel)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


_conv3x3 = Primitive("conv3x3")
_conv3x3.def_impl(jax.jit(lambda x, kernel: _conv3x3.bind(x, kernel)))
_conv3x3.def_abstract_eval(
    lambda x, kernel: x.update(shape=(*x.shape[:3], kernel.shape[3]))
)
ad.defbilinear(_conv3x3, _image_gradient, _kernel_gradient)
batching.primitive_batchers[_conv3x3] = _batched
mlir.register_lowering(_conv3x3, mlir.lower_fun(direct, multiple_results=False))
mlir.register_lowering(
    _conv3x3, mlir.lower_fun(winograd, multiple_results=False), platform="cpu"
)
