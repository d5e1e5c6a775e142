"""The Inception network that FID and its relatives are defined on.

This is the network of 2015-12-05 (Szegedy et al. 2015, "Rethinking the Inception
Architecture for Computer Vision", as TensorFlow released it), not a later one of the same
name: its average pools leave out the padding, and its last block pools by the maximum. Layers
have the names of the PyTorch file that pytorch-fid and torch-fidelity share.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError

SIZE = 299  # pixels; the height and width that the network was trained on
# TPUs multiply float32 in bfloat16 by default, recent GPUs in TF32; features need float32.
PRECISION = jax.lax.Precision.HIGHEST


class Features(NamedTuple):
    """The network's outputs for b images, float32.

    Attributes:
        pool: [b, 2048], not negative, the mean over the last 8 x 8 positions (`pool_3` in
            TensorFlow); for FID, KID, precision and recall.
        spatial: [b, 2023], the first 7 channels of `mixed_6/conv`, flattened in the order
            [17, 17, 7] (row, column, channel); for sFID (Nash et al. 2021), as in the evaluator
            of ADM (Dhariwal and Nichol 2021). In the PyTorch file that layer, a 1x1 convolution
            with its norm and ReLU, is `Mixed_6d.branch1x1`.
        logits: [b, 1008], of the classes, WITHOUT the last layer's bias: OpenAI's code for
            the Inception Score multiplies `pool` by the weights alone, and comparable scores
            follow it (torch-fidelity calls these "logits_unbiased").
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array


def resize(images: jax.Array, size: int) -> jax.Array:
    """Images resized bilinearly as in TensorFlow 1, float32 [b, size, size, c], not rounded.

    Output pixel i lies at i * n / size of the n input pixels and mixes the two around it:
    corners are not aligned, centres are not shifted by a half, and shrinking does not smooth.
    FID is defined with this resizing; another one changes it.

    Args:
        images: float32 [b, h, w, c] of any size.
        size: height and width of the output, in pixels.
    """
    rows, columns = (_mixing(n, size) for n in images.shape[1:3])
    return jnp.einsum("yh,bhwc,xw->byxc", rows, images, columns, precision=PRECISION)


def _mixing(n: int, size: int) -> np.ndarray:
    """[size, n] weights of the input pixels in each output pixel; rows sum to 1."""
    place = np.arange(size, dtype=np.float32) * np.float32(n / size)
    before = place.astype(int)
    share = place - before
    weights = np.zeros((size, n), np.float32)
    np.add.at(weights, (np.arange(size), before), 1 - share)
    np.add.at(weights, (np.arange(size), np.minimum(before + 1, n - 1)), share)
    return weights


def conv(x, name, channels, kernel=(1, 1), stride=1, padding="SAME"):  # [b, h, w, c]
    """Convolution, bias and ReLU; the norm is folded into the first two when weights load."""
    return nn.relu(
        nn.Conv(channels, kernel, stride, padding, precision=PRECISION, name=name)(x)
    )


def average_pool(x):
    """Means over 3x3 neighbours, fewer at the border, as TensorFlow takes them."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def max_pool(x):
    """Maxima over 3x3 neighbours, fewer at the border."""
    return nn.max_pool(x, (3, 3), padding="SAME")


def halve(x):
    """Maxima over 3x3 pixels inside the image, at every second pixel."""
    return nn.max_pool(x, (3, 3), (2, 2))


class InceptionA(nn.Module):
    """Branches of 1x1, 5x5, two 3x3 and a pool, at 35x35 pixels."""

    pool_channels: int

    @nn.compact
    def __call__(self, x):
        b5 = conv(x, "branch5x5_1", 48)
        b3 = conv(x, "branch3x3dbl_1", 64)
        b3 = conv(b3, "branch3x3dbl_2", 96, (3, 3))
        return jnp.concatenate([
            conv(x, "branch1x1", 64),
            conv(b5, "branch5x5_2", 64, (5, 5)),
            conv(b3, "branch3x3dbl_3", 96, (3, 3)),
            conv(average_pool(x), "branch_pool", self.pool_channels),
        ], axis=-1)


class InceptionB(nn.Module):
    """From 35x35 pixels to 17x17."""

    @nn.compact
    def __call__(self, x):
        b3 = conv(x, "branch3x3dbl_1", 64)
        b3 = conv(b3, "branch3x3dbl_2", 96, (3, 3))
        return jnp.concatenate([
            conv(x, "branch3x3", 384, (3, 3), 2, "VALID"),
            conv(b3, "branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
            halve(x),
        ], axis=-1)


class InceptionC(nn.Module):
    """Branches of 1x1, one and two 7x7 as rows and columns, and a pool, at 17x17 pixels."""

    channels: int

    @nn.compact
    def __call__(self, x):
        c = self.channels
        b7 = conv(x, "branch7x7_1", c)
        b7 = conv(b7, "branch7x7_2", c, (1, 7))
        b77 = conv(x, "branch7x7dbl_1", c)
        b77 = conv(b77, "branch7x7dbl_2", c, (7, 1))
        b77 = conv(b77, "branch7x7dbl_3", c, (1, 7))
        b77 = conv(b77, "branch7x7dbl_4", c, (7, 1))
        return jnp.concatenate([
            conv(x, "branch1x1", 192),
            conv(b7, "branch7x7_3", 192, (7, 1)),
            conv(b77, "branch7x7dbl_5", 192, (1, 7)),
            conv(average_pool(x), "branch_pool", 192),
        ], axis=-1)


class InceptionD(nn.Module):
    """From 17x17 pixels to 8x8."""

    @nn.compact
    def __call__(self, x):
        b3 = conv(x, "branch3x3_1", 192)
        b7 = conv(x, "branch7x7x3_1", 192)
        b7 = conv(b7, "branch7x7x3_2", 192, (1, 7))
        b7 = conv(b7, "branch7x7x3_3", 192, (7, 1))
        return jnp.concatenate([
            conv(b3, "branch3x3_2", 320, (3, 3), 2, "VALID"),
            conv(b7, "branch7x7x3_4", 192, (3, 3), 2, "VALID"),
            halve(x),
        ], axis=-1)


class InceptionE(nn.Module):
    """Branches of 1x1, a row and a column of 3, the same after a 3x3, and a pool, at 8x8."""

    pool: Callable

    @nn.compact
    def __call__(self, x):
        b3 = conv(x, "branch3x3_1", 384)
        b33 = conv(x, "branch3x3dbl_1", 448)
        b33 = conv(b33, "branch3x3dbl_2", 384, (3, 3))
        return jnp.concatenate([
            conv(x, "branch1x1", 320),
            conv(b3, "branch3x3_2a", 384, (1, 3)),
            conv(b3, "branch3x3_2b", 384, (3, 1)),
            conv(b33, "branch3x3dbl_3a", 384, (1, 3)),
            conv(b33, "branch3x3dbl_3b", 384, (3, 1)),
            conv(self.pool(x), "branch_pool", 192),
        ], axis=-1)


class Inception(nn.Module):
    """images -> Features, with converted weights; 11 billion FLOPs per image."""

    @nn.compact
    def __call__(self, images) -> Features:
        """Applies the network, after resizing to 299x299 and scaling by (v - 128) / 128.

        Args:
            images: [b, h, w, 3], uint8 or float32 in 0..255 (also in between), of any size.

        Raises:
            UserError: the images do not have 3 channels.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(
                f"images have shape {list(images.shape)}, but Inception needs [b, h, w, 3]; turn "
                "one channel into three with images.repeat(3, axis=-1)."
            )
        x = (resize(jnp.float32(images), SIZE) - 128) / 128
        x = conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, "VALID")
        x = conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, "VALID")
        x = halve(conv(x, "Conv2d_2b_3x3", 64, (3, 3)))
        x = conv(x, "Conv2d_3b_1x1", 80)
        x = halve(conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"))
        x = InceptionA(32, name="Mixed_5b")(x)
        x = InceptionA(64, name="Mixed_5c")(x)
        x = InceptionA(64, name="Mixed_5d")(x)
        x = InceptionB(name="Mixed_6a")(x)
        x = InceptionC(128, name="Mixed_6b")(x)
        x = InceptionC(160, name="Mixed_6c")(x)
        x = InceptionC(160, name="Mixed_6d")(x)
        spatial = x[..., :7].reshape(len(x), -1)  # Of branch1x1, which comes first.
        x = InceptionC(192, name="Mixed_6e")(x)
        x = InceptionD(name="Mixed_7a")(x)
        x = InceptionE(average_pool, name="Mixed_7b")(x)
        x = InceptionE(max_pool, name="Mixed_7c")(x)
        pool = x.mean((1, 2))
        logits = nn.Dense(1008, use_bias=False, precision=PRECISION, name="fc")(pool)
        return Features(pool, spatial, logits)
