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
    def __call__(self, x: jax.Array) -> jax.Array:  # [b, h, w, c] -> the same, float32
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        return normalize(jnp.float32(x), scale, bias, self.num_groups, self.epsilon)


def _normalize(x, scale, bias, num_groups, epsilon):
    """(x - mean) / sqrt(variance + epsilon) scale + bias, by image and group.

    Args:
        x: [b, h, w, c] float32.
        scale, bias: [c] float32.
        num_groups: it divides c.
        epsilon: added to the variance.

    Returns:
        [b, h, w, c] float32.
    """
    mean, sigma = _statistics(x, num_groups, epsilon)
    return _affine(x - mean, sigma, scale, bias)


normalize = jax.custom_jvp(_normalize, nondiff_argnums=(3, 4))


@normalize.defjvp
def _normalize_jvp(num_groups, epsilon, primals, tangents):
    x, scale, bias = primals
    dx, dscale, dbias = tangents
    mean, sigma = _statistics(x, num_groups, epsilon)
    deviation = x - mean
    y = _affine(deviation, sigma, scale, bias)
    scale, dx = _row(scale), dx / sigma
    # Terms that are the same at all pixels are added before they are broadcast: the transpose
    # then takes one sum over the pixels for them, and one for the factor of the deviation.
    of_mean = _row(dbias) - scale * _group_mean(dx, num_groups)
    of_variance = (_row(dscale) - scale * _group_mean(deviation * dx, num_groups) / sigma) / sigma
    return y, dx * scale + of_mean + deviation * of_variance


def _affine(deviation, sigma, scale, bias):
    return deviation * (_row(scale) / sigma) + _row(bias)


def _row(x):  # [c] -> [1, 1, 1, c]
    return x[None, None, None]


def _statistics(x, num_groups, epsilon):
    """The mean and the standard deviation of each channel's group, [b, 1, 1, c].

    From one pass over x. E[x^2] - E[x]^2 would cancel where the mean is large, so that x is taken
    less one of its pixels.
    """
    shift = x[:, 0, 0]
    x = x - shift[:, None, None]
    mean, square = x.mean((1, 2)), (x**2).mean((1, 2))  # [b, c]
    variance = jnp.maximum(square - mean**2, 0)
    mean = mean + shift
    group_mean = _of_group(mean, num_groups)
    variance = _of_group(variance + (mean - group_mean) ** 2, num_groups)
    return group_mean[:, None, None], jnp.sqrt(variance + epsilon)[:, None, None]


def _group_mean(x, num_groups):
    """[b, h, w, c] -> [b, 1, 1, c], each channel's the mean of its group."""
    return _of_group(x.mean((1, 2)), num_groups)[:, None, None]


def _of_group(x, num_groups):
    """[b, c] -> [b, c], each channel's the mean of its group."""
    c = x.shape[-1]
    group = jnp.arange(c) // (c // num_groups)
    same = jnp.float32(group[:, None] == group[None])  # [c, c]: one small product.
    return jnp.dot(x, same / (c // num_groups), precision="highest")
