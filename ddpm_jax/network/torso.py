"""The parameters that the U-Net's torso takes in its own type, cast once for many calls."""

from typing import Any

import flax.linen as nn
import jax

from ddpm_jax.network.unet import UNet

# By the module's name, or its last word: the arrays that it casts to its type at every call.
_CAST = {
    **dict.fromkeys(("conv1", "nin_shortcut", "q", "k", "v", "proj_out"), {"kernel"}),
    **dict.fromkeys(("conv2", "downsample", "upsample"), {"kernel", "bias"}),
}


def cast(model: nn.Module, params: Any) -> Any:
    """The parameters with those of the torso in its type; the network's output is the same.

    For a chain of many calls: a GPU would otherwise cast them again in each.

    Args:
        model: the network. One that is no `UNet` takes its parameters as they are.
        params: float32.
    """
    if not isinstance(model, UNet):
        return params

    def cast_one(path, leaf):
        *_, module, name = (key.key for key in path)
        arrays = _CAST.get(module) or _CAST.get(module.rpartition("_")[2], ())
        return leaf.astype(model.dtype) if name in arrays else leaf

    return jax.tree_util.tree_map_with_path(cast_one, params)
