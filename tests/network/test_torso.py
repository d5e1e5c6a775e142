"""Which parameters the torso takes in bfloat16: all those, and no others, are cast before."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.network import torso
from ddpm_jax.network.trained import leaves
from ddpm_jax.network.unet import UNet
from filled import fill, shapes
from nonzero import TinyNet

MODEL = UNet(
    channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,),
    num_classes=3, scale_shift=True, dtype=jnp.bfloat16,
)
X, T, LABELS = np.ones((1, 8, 8, 3), np.float32), np.ones(1, np.int32), np.ones(1, np.int32)


def output(params):
    x = jnp.sin(jnp.arange(X.size, dtype=jnp.float32)).reshape(X.shape)
    return MODEL.apply({"params": params}, x, T, train=False, labels=LABELS)


def test_what_every_call_casts_is_cast_before_and_the_output_is_the_same():
    params = fill(shapes(MODEL, X, T, train=False, labels=LABELS))
    cast = torso.cast(MODEL, params)
    np.testing.assert_array_equal(jax.jit(output)(cast), jax.jit(output)(params))
    program = jax.make_jaxpr(output)(params).jaxpr
    rounded = {
        path for path, invar in zip(leaves(params), program.invars)
        if any(
            eqn.params.get("new_dtype") == jnp.bfloat16 and invar in eqn.invars
            for eqn in program.eqns
        )
    }
    assert rounded == {path for path, leaf in leaves(cast).items() if leaf.dtype == jnp.bfloat16}
    assert len(rounded) > 20


def test_a_network_of_your_own_takes_its_parameters_as_they_are():
    params = fill(shapes(TinyNet(), X, T, train=False))
    assert torso.cast(TinyNet(), params) is params
