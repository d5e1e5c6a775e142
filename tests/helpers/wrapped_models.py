"""The model of fixtures/make_wrappings.py: its network, weights, and outputs of diffusers."""

import functools
import pathlib
import runpy
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_allclose

import ddpm_jax
from ddpm_jax.network.unet import UNet

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures/wrappings"
SHAPE = (8, 8, 1)
MODEL = UNet(
    channels=4, channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=(),
    dropout=0.0, out_channels=1, embedding_order="cos_sin", embedding_freq_shift=0,
    downsample_padding="symmetric", norm_eps=1e-5, num_groups=4,
)
SCRIPT = runpy.run_path(str(FOLDER.with_name("make_wrappings.py")))
with np.load(FOLDER / "outputs.npz") as stored:
    OUTPUTS = dict(stored)


@functools.cache
def weights(name="unet"):
    """The state dict of "unet" or "unet_ema", as diffusers wrote it."""
    return safetensors.numpy.load_file(
        FOLDER / "checkpoint-500" / name / "diffusion_pytorch_model.safetensors")


def from_state_dict(source, **keywords):
    """`ddpm_jax.from_state_dict` for the network of the fixtures."""
    return ddpm_jax.from_state_dict(source, MODEL, image_shape=SHAPE, **keywords)


@functools.cache
def params(name="unet"):
    """The parameters of "unet" or "unet_ema"."""
    return from_state_dict(weights(name)).params


def quietly(read, *arguments, **keywords):
    """What `read` returns, and its warnings' lines about a choice between networks."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = read(*arguments, **keywords)
    return result, [str(w.message) for w in caught if "running average" in str(w.message)]


run = jax.jit(lambda params: MODEL.apply(
    {"params": params}, SCRIPT["X"], jnp.array(SCRIPT["T"]), train=False))


def assert_is(trained, name):
    """Asserts the outputs of diffusers: "model", "average" or "half"."""
    # float32 sums in another order: 2e-6 seen. The three are more than 1e-3 apart.
    assert_allclose(run(trained.params), OUTPUTS[name], rtol=0, atol=2e-5)


def refused(message, read, *arguments, **keywords):
    """Asserts a UserError of one bounded line."""
    with pytest.raises(ddpm_jax.errors.UserError, match=message) as error:
        read(*arguments, **keywords)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
