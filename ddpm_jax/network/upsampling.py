"""The convolution behind an upsampling, which a TPU takes without the pixels that are repeated."""

import jax
import jax.numpy as jnp

from ddpm_jax.network.convolution import conv_general_dilated

# Fewest images on a device from which on a product is faster without the repeated pixels: alone,
# in a step of training, and for its gradients. By the cycles of XLA's compilers for v3 and v4,
# which multiply by the zeros between pixels of fewer; for v5e and v6e the first two could be 16.
ALONE, IN_TRAINING, GRADIENTS = 64, 32, 16


def conv_of_doubled(
    x: jax.Array, kernel: jax.Array, window_strides, padding, **settings
) -> jax.Array:
    """A 3x3 convolution of x with each pixel twice along both axes, for `flax.linen.Conv`.

    On a TPU with many images each output takes the 4 products that differ, not 9: taps that fall
    on the same pixel are added in float32. The sums are the same up to their rounding.

    Args:
        x: [b, h, w, c].
        kernel: [3, 3, c, k].
        window_strides, padding, **settings: as of `jax.lax.conv_general_dilated`; strides of 1, and
            "SAME".

    Returns:
        [b, 2h, 2w, k].
    """
    def repeated(x, kernel):
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return conv_general_dilated(x, kernel, window_strides, padding, **settings)

    def summed(x, kernel):
        # A zero behind each pixel of x, and a kernel of 4 rows: the sums of two neighbours.
        rows = kernel.astype(jnp.float32)
        rows = _pad(rows, ((1, 0), (0, 0))) + _pad(rows, ((0, 1), (0, 0)))
        taps = _pad(rows, ((0, 0), (1, 0))) + _pad(rows, ((0, 0), (0, 1)))
        dilated = settings | {"lhs_dilation": (2, 2)}
        return jax.lax.conv_general_dilated(
            x, taps.astype(kernel.dtype), window_strides, ((2, 2), (2, 2)), **dilated
        )

    @jax.custom_jvp
    def on_a_tpu(x, kernel):
        return (summed if len(x) >= ALONE else repeated)(x, kernel)

    @on_a_tpu.defjvp
    def _(primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        y = (summed if len(x) >= IN_TRAINING else repeated)(x, kernel)
        return y, summed(dx, kernel) + summed(x, dkernel)

    tpu = on_a_tpu if len(x) >= GRADIENTS else repeated
    return jax.lax.platform_dependent(x, kernel, tpu=tpu, default=repeated)


def _pad(kernel, zeros):
    return jnp.pad(kernel, (*zeros, (0, 0), (0, 0)))
