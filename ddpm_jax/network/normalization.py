"""Group normalization (Wu and He 2018), and the swish behind it, with a derivative of their own.

The statistics are taken by channel and then by group, so every pass over the images runs along
their channels, which a CPU can vectorize, and one pass is enough. The derivative takes two sums
over the pixels, from which those by the image, the shift, the scale and the bias all follow.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.network import activation
from ddpm_jax.network.apart import apart


class GroupNorm(nn.Module):
    """Group normalization of NHWC images, in float32; the parameters of `flax.linen.GroupNorm`.

    Attributes:
        num_groups: it divides the channels.
        epsilon: added to the variance.
        swish: whether a swish follows.
    """

    num_groups: int
    epsilon: float
    swish: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        shift: jax.Array | None = None,
        constant: jax.Array | None = None,
        modulation: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """The normalized images.

        Args:
            x: [b, h, w, c].
            shift: [b, c] float32, added to x before.
            constant: [c] float32, added to all images before.
            modulation: (m, a), [b, c] float32 each, for (1 + m) norm + a, before the swish.

        Returns:
            [b, h, w, c] float32.
        """
        b, *_, c = x.shape
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        constant = jnp.zeros(c) if constant is None else constant
        # Together, so that the gradients by all three are one sum over the batch.
        stacked = jnp.stack([constant, scale, bias])[:, None]
        constant, scale, bias = jnp.broadcast_to(stacked, (3, b, c))
        if modulation is not None:
            factor, added = modulation
            scale, bias = scale * (1 + factor), bias * (1 + factor) + added
        shift = constant if shift is None else shift + constant
        return normalize(x, shift, scale, bias, self.num_groups, self.epsilon, self.swish)


def _normalize(x, shift, scale, bias, num_groups, epsilon, swish):
    """scale (x + shift - mean) / sqrt(variance + epsilon) + bias, by image and group.

    Args:
        x: [b, h, w, c] float32, or bfloat16, which is taken in float32.
        shift, scale, bias: [b, c] float32.
        num_groups: it divides c.
        epsilon: added to the variance.
        swish: whether the swish of this is wanted.

    Returns:
        [b, h, w, c] float32.
    """
    factor, offset, *_ = _as_affine(x, shift, scale, bias, num_groups, epsilon)
    y = _affine(x, factor, offset)
    return activation.swish(y) if swish else y


normalize = jax.custom_jvp(_normalize, nondiff_argnums=(4, 5, 6))


@normalize.defjvp
def _normalize_jvp(num_groups, epsilon, swish, primals, tangents):
    x, shift, scale, bias = primals
    # The barrier keeps the sums over pixels, for all of these, from sums over pixels and batch.
    dx, *others = tangents
    dshift, dscale, dbias = jax.lax.optimization_barrier(others)
    factor, offset, center, mean, sigma = _as_affine(x, shift, scale, bias, num_groups, epsilon)
    copies = apart(x, 3)  # One for each term: a GPU takes the slope of the swish anew in each.
    deviation = jnp.float32(copies[2]) - _pixels(center)
    n = x.shape[1] * x.shape[2]
    dx = jnp.float32(dx)
    if x.dtype == jnp.float32:  # Or a CPU takes the gradient by x anew for each of its readers.
        dx = jax.lax.optimization_barrier(dx)
    of_mean = _of_group(n * dshift + _sums(dx), n, num_groups)
    of_variance = _of_group(n * mean * dshift + _sums(deviation * dx), n, num_groups)
    of_mean = dbias + factor * (dshift - of_mean)
    of_variance = (dscale - factor * of_variance / sigma) / sigma
    # Terms that are the same at all pixels are added before they are broadcast: the transpose
    # then takes one sum over the pixels for them, and one for the factor of the deviation.
    dy = dx * _pixels(factor), _pixels(of_mean), deviation * _pixels(of_variance)
    y = _affine(x, factor, offset)
    if not swish:
        return y, sum(dy)
    if x.dtype == jnp.float32:  # A CPU is faster with one product.
        return activation.swish(y), activation.slope(y) * sum(dy)
    slopes = [activation.slope(_affine(copy, factor, offset)) for copy in copies]
    return activation.swish(y), sum(slope * part for slope, part in zip(slopes, dy))


def _as_affine(x, shift, scale, bias, num_groups, epsilon):
    """The norm as x factor + offset, and what its derivative needs.

    From one pass over x. E[z^2] - E[z]^2 of z = x + shift would cancel where the mean is large:
    so a float32 z is taken less the mean of its first pixel, and a bfloat16 x, whose own last
    digit is worse, is not.

    Returns:
        factor and offset; what to subtract from x for its deviation; that deviation's mean by
        channel; and the standard deviation; [b, c] each.
    """
    n = x.shape[1] * x.shape[2]
    reference = jnp.zeros_like(shift)
    if x.dtype == jnp.float32:
        reference = _of_group(x[:, 0, 0] + shift, 1, num_groups)
    z = jnp.float32(x) + _pixels(shift - reference)
    total = _sums(z)
    mean, square = _of_group(total, n, num_groups), _of_group(_sums(z**2), n, num_groups)
    sigma = jnp.sqrt(jnp.maximum(square - mean**2, 0) + epsilon)
    center, factor = reference + mean - shift, scale / sigma
    return factor, bias - center * factor, center, total / n - mean, sigma


def _affine(x, factor, offset):
    return jnp.float32(x) * _pixels(factor) + _pixels(offset)


def _pixels(x):  # [b, c] -> [b, 1, 1, c]
    return x[:, None, None]


def _sums(x):  # [b, h, w, c] -> [b, c]
    return x.sum((1, 2))


def _of_group(sums, n, num_groups):
    """Sums [b, c] over n pixels -> [b, c], each channel's the mean of its group."""
    c = sums.shape[-1]
    group = jnp.arange(c) // (c // num_groups)
    same = jnp.float32(group[:, None] == group[None])  # [c, c]: one small product.
    return jnp.dot(sums, same, precision="highest") / (n * c // num_groups)
