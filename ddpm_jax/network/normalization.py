"""Group normalization (Wu and He 2018), with a derivative of its own.

The statistics are taken by channel and then by group, so every pass over the images runs along
their channels, which a CPU can vectorize, and one pass is enough. The derivative takes two sums
over the pixels, from which those by the image, the scale and the bias all follow.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class GroupNorm(nn.Module):
    """Group normalization of NHWC images, in float32; the parameters of `flax.linen.GroupNorm`.

    Attributes:
        num_groups: it divides the channels.
        epsilon: added to the variance.
    """

    num_groups: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        """Normalizes x [b, h, w, c] + shift [b, c]; returns [b, h, w, c] float32."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        shift = jnp.zeros((len(x), *channels)) if shift is None else shift
        return normalize(jnp.float32(x), shift, scale, bias, self.num_groups, self.epsilon)


def _normalize(x, shift, scale, bias, num_groups, epsilon):
    """(x + shift - mean) / sqrt(variance + epsilon) scale + bias, by image and group.

    Args:
        x: [b, h, w, c] float32.
        shift: [b, c] float32.
        scale, bias: [c] float32.
        num_groups: it divides c.
        epsilon: added to the variance.

    Returns:
        [b, h, w, c] float32.
    """
    mean, _, sigma = _statistics(x, shift, num_groups, epsilon)
    return _affine(x - _pixels(mean), sigma, scale, bias)


normalize = jax.custom_jvp(_normalize, nondiff_argnums=(4, 5))


@normalize.defjvp
def _normalize_jvp(num_groups, epsilon, primals, tangents):
    x, shift, scale, bias = primals
    dx, dshift, dscale, dbias = tangents
    mean, offset, sigma = _statistics(x, shift, num_groups, epsilon)
    deviation = x - _pixels(mean)
    y = _affine(deviation, sigma, scale, bias)
    scale, dscale, dbias = scale[None], dscale[None], dbias[None]
    dx, dshift = dx / _pixels(sigma), dshift / sigma
    # Terms that are the same at all pixels are added before they are broadcast: the transpose
    # then takes one sum over the pixels for them, and one for the factor of the deviation.
    of_mean = dshift + _means(dx)
    of_variance = _means(deviation * dx) + offset * dshift
    of_mean = dbias + scale * (dshift - _of_group(of_mean, num_groups))
    of_variance = (dscale - scale * _of_group(of_variance, num_groups) / sigma) / sigma
    return y, dx * _pixels(scale) + _pixels(of_mean) + deviation * _pixels(of_variance)


def _affine(deviation, sigma, scale, bias):
    return deviation * _pixels(scale[None] / sigma) + _pixels(bias[None])


def _pixels(x):  # [b, c] -> [b, 1, 1, c]
    return x[:, None, None]


def _means(x):  # [b, h, w, c] -> [b, c]
    return x.mean((1, 2))


def _statistics(x, shift, num_groups, epsilon):
    """What to subtract from x for its deviation, its deviation's mean, and sigma; [b, c] each.

    From one pass over x. E[x^2] - E[x]^2 would cancel where the mean is large, so that x is taken
    less one of its pixels.
    """
    pixel = x[:, 0, 0]
    x = x - _pixels(pixel)
    mean = _means(x)
    variance = jnp.maximum(_means(x**2) - mean**2, 0)
    mean = mean + (pixel + shift)
    group_mean = _of_group(mean, num_groups)
    offset = mean - group_mean
    variance = _of_group(variance + offset**2, num_groups)
    return group_mean - shift, offset, jnp.sqrt(variance + epsilon)


def _of_group(x, num_groups):
    """[b, c] -> [b, c], each channel's the mean of its group."""
    c = x.shape[-1]
    group = jnp.arange(c) // (c // num_groups)
    same = jnp.float32(group[:, None] == group[None])  # [c, c]: one small product.
    return jnp.dot(x, same / (c // num_groups), precision="highest")
