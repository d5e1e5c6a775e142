"""Translates PyTorch state dicts of the paper's U-Net, in three formats, to our parameters.

A format is a table of its name for each place of our network. One loop reads a state dict by it,
another writes one. The formats are those of diffusers (`UNet2DModel`), of pytorch_diffusion and
DDIM (a port of the authors' names), and of improved-diffusion (Nichol and Dhariwal 2021).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from ddpm_jax.errors import UserError, shown
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.unet import UNet


class Format(NamedTuple):
    """The names that a format has for the places of our network.

    Attributes:
        modules: maps a pattern of our module to its name there. {up} counts the levels from the
            coarsest; {n} counts the blocks of improved-diffusion, which has no levels.
        parts: maps our layer inside a ResBlock or an AttentionBlock to its name there.
    """

    modules: Mapping[str, str]
    parts: Mapping[str, str]


FORMATS = {
    "diffusers": Format(
        {
            r"temb_dense_0": "time_embedding.linear_1",
            r"temb_dense_1": "time_embedding.linear_2",
            r"label_embedding": "class_embedding",
            r"conv_in|conv_out": "{name}",
            r"norm_out": "conv_norm_out",
            r"down_(?P<level>\d+)_block_(?P<j>\d+)": "down_blocks.{level}.resnets.{j}",
            r"down_(?P<level>\d+)_attn_(?P<j>\d+)": "down_blocks.{level}.attentions.{j}",
            r"down_(?P<level>\d+)_downsample": "down_blocks.{level}.downsamplers.0.conv",
            r"mid_block_1": "mid_block.resnets.0",
            r"mid_attn_1": "mid_block.attentions.0",
            r"mid_block_2": "mid_block.resnets.1",
            r"up_(?P<level>\d+)_block_(?P<j>\d+)": "up_blocks.{up}.resnets.{j}",
            r"up_(?P<level>\d+)_attn_(?P<j>\d+)": "up_blocks.{up}.attentions.{j}",
            r"up_(?P<level>\d+)_upsample": "up_blocks.{up}.upsamplers.0.conv",
        },
        {
            "temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut", "norm": "group_norm",
            "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",
        },
    ),
    "pytorch_diffusion": Format(
        {
            r"temb_dense_(?P<j>\d)": "temb.dense.{j}",
            r"conv_in|conv_out|norm_out": "{name}",
            r"(?P<way>down|up)_(?P<level>\d+)_(?P<kind>block|attn)_(?P<j>\d+)":
                "{way}.{level}.{kind}.{j}",
            r"mid_(?P<kind>block|attn)_(?P<j>\d)": "mid.{kind}_{j}",
            r"(?P<way>down|up)_(?P<level>\d+)_(?P<kind>downsample|upsample)":
                "{way}.{level}.{kind}.conv",
        },
        {},
    ),
    "improved_diffusion": Format(
        {
            r"temb_dense_0": "time_embed.0",
            r"temb_dense_1": "time_embed.2",
            r"label_embedding": "label_emb",
            r"conv_in": "input_blocks.0.0",
            r"norm_out": "out.0",
            r"conv_out": "out.2",
            r"down_(?P<level>\d+)_block_(?P<j>\d+)": "input_blocks.{n}.0",
            r"down_(?P<level>\d+)_attn_(?P<j>\d+)": "input_blocks.{n}.1",
            r"down_(?P<level>\d+)_downsample": "input_blocks.{n}.0.op",
            r"mid_block_1": "middle_block.0",
            r"mid_attn_1": "middle_block.1",
            r"mid_block_2": "middle_block.2",
            r"up_(?P<level>\d+)_block_(?P<j>\d+)": "output_blocks.{n}.0",
            r"up_(?P<level>\d+)_attn_(?P<j>\d+)": "output_blocks.{n}.1",
            r"up_(?P<level>\d+)_upsample": "output_blocks.{n}.{last}.conv",
        },
        {
            "norm1": "in_layers.0", "conv1": "in_layers.2", "temb_proj": "emb_layers.1",
            "norm2": "out_layers.0", "conv2": "out_layers.3", "nin_shortcut": "skip_connection",
        },
    ),
}
# A name that only this format has.
KNOWN_BY = {
    "time_embedding.linear_1.weight": "diffusers",
    "temb.dense.0.weight": "pytorch_diffusion",
    "time_embed.0.weight": "improved_diffusion",
}
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# Names of an attention block's layers in diffusers before 0.13, and since.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def to_params(
    state: Mapping[str, np.ndarray], model: UNet, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The network's parameters from a PyTorch state dict in any of `FORMATS`.

    Args:
        state: arrays by PyTorch's names, of any float type.
        model: the network that they are for.
        image_shape: (h, w, c) of the images, which decides at which levels the network attends.

    Returns:
        The tree of parameters, float32 NumPy. If the state dict has an embedding for every class
        and none for no class, the latter is the mean of the others.

    Raises:
        UserError: the format is none of these, the network has blocks of pixels or is
            self-conditioned, or a name is missing, left over or of another shape than there.
    """
    for field, plain in {"block_size": 1, "self_condition": False}.items():
        if getattr(model, field) != plain:
            raise UserError(
                "has no counterpart in the known formats", field=field,
                value=getattr(model, field), instead={field: plain},
            )
    format_name = _format_of(state)
    state = {_today(name): array for name, array in state.items()}
    if format_name == "improved_diffusion":
        state = _split_qkv(state, model.num_heads)
    params = {}
    for path, shape in trained_lib.shapes(model, image_shape).items():
        name = name_of(path, FORMATS[format_name], model, image_shape[0])
        params[path] = _leaf(state.pop(name, None), name, path, shape)
    if state:
        raise UserError(
            f"{_some(state)} has no place in the network; use the one that the weights were "
            "trained with."
        )
    return unflatten_dict(params)


def _format_of(state: Mapping[str, np.ndarray]) -> str:
    for name, format_name in KNOWN_BY.items():
        if name in state:
            return format_name
    raise UserError(
        f"the names of the weights are of no known format (for example {_some(state)}); "
        f"{', '.join(FORMATS)} are."
    )


def _leaf(array, name, path, shape):
    """An array of the state dict as the parameter at `path`, of that shape."""
    if array is None:
        raise UserError(
            f"{name} is missing: the network has {'/'.join(path)} of shape {shape} there; use "
            "the network that the weights were trained with."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{name} is {array.dtype}, not a float; save the weights in float32.")
    leaf = _from_torch(array, shape, path[-1])
    if leaf.shape != shape:
        raise UserError(
            f"{name} is {leaf.shape} and the network's {'/'.join(path)} {shape} (in our "
            "order); use the network that the weights were trained with."
        )
    return leaf


def from_params(params: Any, model: UNet, height: int) -> dict[str, np.ndarray]:
    """The state dict of diffusers' `UNet2DModel`, the inverse of `to_params`; float32.

    Without the embedding of augmentations, which adds nothing to an image as it is.
    """
    return {
        name_of(path, FORMATS["diffusers"], model, height): _to_torch(leaf, path)
        for path, leaf in trained_lib.leaves(params).items() if path[0] != "augment_embedding"
    }


def name_of(path: tuple[str, ...], names: Format, model: UNet, height: int) -> str:
    """The name in a format of the parameter at `path`, in a network for images of this height."""
    for pattern, there in names.modules.items():
        match = re.fullmatch(pattern, path[0])
        if match:
            values = _counted(path[0], match.groupdict(), model, height)
            parts = [names.parts.get(part, part) for part in path[1:-1]]
            return ".".join([there.format(name=path[0], **values), *parts, LEAVES[path[-1]]])
    raise UserError(f"{'/'.join(path)} of the network has no counterpart in this format.")


def _counted(name, values, model, height):
    """The fields of a table's names: those of the pattern, with up, n and last (see `Format`)."""
    if "level" not in values:
        return values
    level, last = int(values["level"]), len(model.channel_multipliers) - 1
    blocks = model.num_res_blocks + 1  # Per level, with the layer that changes its resolution.
    if name.startswith("down"):
        n = level * blocks + 1 + int(values.get("j", model.num_res_blocks))
    else:
        n = (last - level) * blocks + int(values.get("j", model.num_res_blocks))
    attends = height // 2**level in model.attention_resolutions
    return values | {"up": last - level, "n": n, "last": 2 if attends else 1}


def _today(name):
    """The name that today's diffusers would write."""
    parts = name.split(".")
    if "attentions" in parts:
        parts = [RENAMED.get(part, part) for part in parts]
    return ".".join(parts)


def _split_qkv(state, num_heads):
    """improved-diffusion's one layer for q, k and v, [head, (q, k, v), channel], as three."""
    split = {}
    for name, array in state.items():
        before, qkv, leaf = name.rpartition(".qkv.")
        if not qkv:
            split[name] = array
            continue
        try:
            heads = array.reshape(num_heads, 3, -1, *array.shape[1:])
        except ValueError:
            raise UserError(
                f"{name} {array.shape} does not divide into {num_heads} heads; use the "
                "num_heads that the weights were trained with."
            ) from None
        for i, part in enumerate("qkv"):
            split[f"{before}.{part}.{leaf}"] = heads[:, i].reshape(-1, *array.shape[1:])
    return split


def _from_torch(array, shape, leaf):
    """A PyTorch array in our order; theirs is OIHW or, for dense layers, OI or OI11."""
    array = np.asarray(array, np.float32)
    if leaf == "kernel":
        if len(shape) == 2 and array.ndim > 2 and set(array.shape[2:]) == {1}:
            array = array.reshape(array.shape[:2])
        array = np.transpose(array, (*range(2, array.ndim), 1, 0)) if array.ndim > 1 else array
    if leaf == "embedding" and array.shape == (shape[0] - 1, shape[1]):
        array = np.concatenate([array, array.mean(axis=0, keepdims=True)])
    return np.ascontiguousarray(array)


def _to_torch(array, path):
    """The inverse of `_from_torch`; the shortcut of a block is a 1x1 convolution in PyTorch."""
    array = np.asarray(array, np.float32)
    if path[-1] == "kernel":
        array = np.transpose(array, (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2)))
        array = array[..., None, None] if path[-2] == "nin_shortcut" else array
    return np.ascontiguousarray(array)


def _some(state):
    return shown(next(iter(state)))[1:-1] if state else "nothing"
