"""Building blocks of the U-Net (Ho, Jain and Abbeel 2020, Appendix B).

Shapes in comments: b images, h and w pixels, c channels, d the width of the timestep embedding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from ddpm_jax.network.activation import swish
from ddpm_jax.network.apart import apart
from ddpm_jax.network.attention import attention
from ddpm_jax.network.convolution import NHWC, conv_general_dilated
from ddpm_jax.network.normalization import GroupNorm

fan_avg = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nn.initializers.zeros


def default_num_groups(channels: int) -> int:
    """The paper's 32 groups, or in narrow networks as many as leave 4 channels per group.

    With one channel per group the norm would remove the timestep's bias again.
    """
    return max(g for g in range(1, 33) if channels % g == 0 and (channels >= 4 * g or g == 1))


def group_norm(module: nn.Module, channels: int, name: str, *, swish: bool) -> GroupNorm:
    """GroupNorm with the settings of `module`, and a swish behind it or not."""
    num_groups = module.num_groups or default_num_groups(channels)
    return GroupNorm(num_groups, module.norm_eps, swish, name=name)


def conv3x3(channels: int, kernel_init: Any, dtype: Any, name: str) -> nn.Conv:
    """A 3x3 convolution of the torso, which keeps the image's size."""
    return nn.Conv(
        channels, (3, 3), dtype=dtype, kernel_init=kernel_init, name=name,
        conv_general_dilated=conv_general_dilated,
    )


class UnbiasedConv3x3(nn.Module):
    """`conv3x3` and its bias, not yet added: the norm behind it has sums over the pixels for it."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x):  # [b, h, w, c] -> [b, h, w, k] and [k]
        kernel = self.param("kernel", fan_avg, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", zeros, (self.channels,))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        y = conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)
        return y, bias


class Dense(nn.Module):
    """A dense layer over the channels of the torso, with the parameters of `flax.linen.Dense`.

    It is one product of matrices, with all leading axes as one: with more, XLA's CPU backend
    transposes an image for the gradient by the kernel.

    Attributes:
        channels: of the output.
        kernel_init: of the kernel; the bias starts at zero.
        dtype: of the product and the output.
    """

    channels: int
    kernel_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):  # [..., c] -> [..., channels]
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.channels))
        bias = self.param("bias", zeros, (self.channels,))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return _dense(x, kernel, bias)


@jax.custom_jvp
def _dense(x, kernel, bias):
    """x kernel + bias, [..., k], in the type of x [..., c] and the kernel; the bias is float32."""
    def at_the_end(x, kernel, bias):  # Of the product, where a GPU adds it in float32.
        flat = x.reshape(-1, x.shape[-1])
        y = jnp.dot(flat, kernel, preferred_element_type=jnp.float32) + bias[None]
        return y.astype(x.dtype).reshape(*x.shape[:-1], -1)

    def after(x, kernel, bias):
        return _product(x, kernel) + _as_row(bias, x)

    return jax.lax.platform_dependent(
        x, kernel, bias, cuda=at_the_end, rocm=at_the_end, default=after
    )


@_dense.defjvp
def _dense_jvp(primals, tangents):
    (x, kernel, bias), (dx, dkernel, dbias) = primals, tangents
    # In the type of x, so that the products of the gradient are.
    dy = _product(dx, kernel) + _product(x, dkernel) + _as_row(dbias, x)
    return _dense(x, kernel, bias), dy


def _product(x, kernel):
    return jnp.dot(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)


def _as_row(bias, x):
    """The bias, to be added to all but the last axis of what has the axes and the type of x."""
    return bias.astype(x.dtype).reshape(*(1,) * (x.ndim - 1), -1)


def timestep_embedding(
    t: jax.Array, dim: int, *, order: str = "sin_cos", freq_shift: int = 1
) -> jax.Array:
    """Sinusoids of t at `dim // 2` frequencies from 1 down to 1e-4, float32 [b, dim].

    Args:
        t: [b] int32 or float32 steps, not scaled.
        dim: width; an odd one ends with a zero.
        order: "sin_cos" as in the paper's code, or "cos_sin" as in improved-diffusion.
        freq_shift: frequencies are exp(-i ln(1e4) / (dim // 2 - freq_shift)); 1 in the
            paper's code, 0 in improved-diffusion.
    """
    half = dim // 2
    exponent = np.arange(half) / max(half - freq_shift, 1)
    angles = jnp.float32(t)[:, None] * jnp.asarray(1e4**-exponent, jnp.float32)[None]
    waves = {"sin": jnp.sin(angles), "cos": jnp.cos(angles)}
    embedding = jnp.concatenate([waves[name] for name in order.split("_")], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class Dropout(nn.Module):
    """Dropout whose mask for an image depends on the image's place in the global batch.

    So neither the number of devices nor micro-batches change it. The address of a mask is flax's
    of the module, then the place. Each value takes 16 random bits: the rate is rounded to a
    multiple of 1/65536, and the values that stay are scaled by the rounded rate.
    """

    rate: float

    @nn.compact
    def __call__(self, x, places, *, train: bool):  # x: [b, h, w, c]; places: int32 [b]
        if not train or self.rate == 0:
            return x
        rng = self.make_rng("dropout")
        height, *row = x.shape[1:]
        dropped = min(round(self.rate * 2**16), 2**16 - 1)

        def keep(place):
            # Threefry takes most of the time, so both halves of a word are used: the low ones for
            # the upper rows. Halves side by side would cost a TPU a quarter of a step in layouts.
            key = jax.random.fold_in(rng, place)
            words = jax.random.bits(key, (-(-height // 2), *row), jnp.uint32)
            low, high = words & 0xFFFF, words >> 16
            return jnp.concatenate([low >= dropped, high >= dropped])[:height]

        stays = 1 - dropped / 2**16
        return jnp.where(jax.vmap(keep)(places), x / stays, jnp.zeros_like(x))


class ResBlock(nn.Module):
    """Two 3x3 convolutions around the timestep's bias, with a residual connection.

    The last convolution starts at zero, so a fresh block is the identity (or a plain 1x1
    projection where the channel count changes).
    """

    channels: int
    dropout: float
    scale_shift: bool
    num_groups: int | None
    norm_eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x, temb, places, *, train: bool):  # x: [b, h, w, c]; temb: [b, d]
        h = group_norm(self, x.shape[-1], "norm1", swish=True)(x)
        h, shift = UnbiasedConv3x3(self.channels, self.dtype, name="conv1")(h)
        width = self.channels * (2 if self.scale_shift else 1)
        temb = nn.Dense(width, kernel_init=fan_avg, name="temb_proj")(swish(temb))
        norm2 = group_norm(self, self.channels, "norm2", swish=True)
        if self.scale_shift:
            h = norm2(h, None, shift, jnp.split(temb, 2, axis=-1))
        else:
            h = norm2(h, temb, shift)
        h = Dropout(self.dropout)(h, places, train=train)
        h = conv3x3(self.channels, zeros, self.dtype, "conv2")(h)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, fan_avg, self.dtype, name="nin_shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, softmax in float32, with a residual connection.

    The output projection starts at zero, so a fresh block is the identity.
    """

    num_heads: int
    num_groups: int | None
    norm_eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x):  # [b, h, w, c]
        b, height, width, c = x.shape
        depth = c // self.num_heads
        h = group_norm(self, c, "norm", swish=False)(x).astype(self.dtype)

        def project(name, h):  # [b, h, w, c] -> [b heads, h w, depth]
            heads = Dense(c, fan_avg, self.dtype, name=name)(h)
            heads = heads.reshape(b, height * width, self.num_heads, depth).swapaxes(1, 2)
            return heads.reshape(-1, height * width, depth)

        # As one product, which a GPU's compiler would make of them, they are cut apart again.
        h = attention(*map(project, "qkv", apart(h, 3)))
        h = h.reshape(b, self.num_heads, height * width, depth).swapaxes(1, 2).reshape(x.shape)
        return x + Dense(c, zeros, self.dtype, name="proj_out")(h)
