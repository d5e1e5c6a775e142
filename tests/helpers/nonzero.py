"""Networks and parameters with no zero leaf: a fresh network outputs zero and hides faults."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.network.blocks import Dropout
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet

SHAPE = (8, 8, 1)


class TinyNet(nn.Module):
    """A network with all that training needs, in three layers that compile in a second."""

    dropout: float = 0.0
    out_channels: int | None = None
    num_classes: int = 0
    vector_size: int = 0
    condition_channels: int = 0
    augment_channels: int = 0
    self_condition: bool = False
    channels: int = 4
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, t, x_0=None, *, train, places=None, labels=None, vectors=None,
                 condition=None, augmentation=None, remat=False):
        places = jnp.arange(len(x)) if places is None else places
        channels, inputs = x.shape[-1], [x]
        if self.self_condition:
            inputs.append(jnp.zeros_like(x) if x_0 is None else x_0)
        if self.condition_channels:
            empty = jnp.zeros((*x.shape[:3], self.condition_channels))
            inputs.append(empty if condition is None else condition)
        h = nn.Conv(self.channels, (3, 3), name="conv_in")(jnp.concatenate(inputs, axis=-1))
        if self.num_classes:
            labels = jnp.full(len(x), self.num_classes) if labels is None else labels
            embed = nn.Embed(self.num_classes + 1, self.channels, name="labels")
            h = h + 10 * embed(labels)[:, None, None, :]
        if self.vector_size:
            wanted = jnp.zeros((len(x), 1 + self.vector_size)) if vectors is None else vectors
            assert wanted.shape == (len(x), 1 + self.vector_size)
            embed = nn.Dense(self.channels, use_bias=False, name="vectors")
            h = h + embed(wanted)[:, None, None, :]
        if self.augment_channels:
            told = jnp.zeros((len(x), self.augment_channels))
            told = told if augmentation is None else augmentation
            embed = nn.Dense(self.channels, use_bias=False, name="augmentation")
            h = h + embed(told)[:, None, None, :]
        temb = nn.Dense(self.channels, name="temb")(jnp.float32(t)[:, None] / 20)
        h = h + temb[:, None, None, :]
        h = Dropout(self.dropout)(nn.swish(h), places, train=train)
        return nn.Conv(self.out_channels or channels, (3, 3), name="conv_out")(h)


class Pair(nn.Module):
    """A mean and a variance, each from a tiny network."""

    @nn.compact
    def __call__(self, x, t, *, train):
        outputs = [TinyNet(name=name)(x, t, train=train) for name in ("mean", "variance")]
        return jnp.concatenate(outputs, axis=-1)


def tiny_trained(schedule, mean="eps", variance="fixed_large"):
    """A tiny network with what it needs, for any kind of output."""
    model = Pair() if variance.startswith("learned") else TinyNet()
    return Trained(
        nonzero_params(model), model, schedule, Parameterization(mean, variance), SHAPE
    )


def tiny_net(params, x_t, t):
    """The output of `TinyNet()`."""
    return TinyNet().apply({"params": params}, x_t, t, train=False)


def convolution(x_t, t):
    """A network of one fixed 3x3 convolution, moved by t; one channel."""
    kernel = np.float32(np.random.default_rng(0).standard_normal((3, 3, 1, 1)))
    return jax.lax.conv_general_dilated(
        x_t, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ) + jnp.sin(t.astype(jnp.float32)).reshape(-1, 1, 1, 1)


def tiny_unet(**settings):
    """A U-Net that compiles in seconds, with every kind of block."""
    return UNet(**({
        "channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1,
        "attention_resolutions": (4,), "dropout": 0.0, "out_channels": 1,
    } | settings))


def nonzero_params(model, shape=SHAPE, seed=0):
    """Every leaf drawn from N(0, 0.1^2), norm scales about 1."""
    def init():
        x, t = jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32)
        return model.init(jax.random.key(0), x, t, train=False)["params"]

    random = np.random.default_rng(seed)

    def fill(path, leaf):
        offset = 1.0 if path[-1].key == "scale" else 0.0
        return np.float32(offset + 0.1 * random.standard_normal(leaf.shape))

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(init))
