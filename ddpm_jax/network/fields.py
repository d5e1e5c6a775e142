"""What the fields of a U-Net may be: their types, and values that suit images and each other."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import errors
from ddpm_jax.errors import UserError, check_known
from ddpm_jax.network.blocks import default_num_groups

PADDINGS = {"asymmetric": (0, 1), "symmetric": (1, 1)}  # Before and after, on either axis.
# Fields that change neither the parameters nor what they mean: training's own, and the precision.
FREE = ("dropout", "dtype")


def _word(field, value):
    if not isinstance(value, str):
        raise UserError("must be a string.", field=field, value=value)
    return value


def _dtype(field, value):
    try:
        if not isinstance(value, (np.ndarray, jax.Array)):  # These have one, and are none.
            jnp.dtype(value)
            return value
    except (TypeError, ValueError, SyntaxError):  # NumPy reads words in its own language.
        pass
    raise UserError("is no dtype; write jnp.float32 or jnp.bfloat16.", field=field, value=value)


# What reads each field of a network.
TYPES = {
    "channels": errors.whole_number, "channel_multipliers": errors.whole_numbers,
    "num_res_blocks": errors.whole_number, "attention_resolutions": errors.whole_numbers,
    "dropout": errors.number, "out_channels": errors.whole_number,
    "num_heads": errors.whole_number, "scale_shift": errors.flag,
    "embedding_freq_shift": errors.whole_number, "timestep_scale": errors.number,
    "norm_eps": errors.number, "num_groups": errors.whole_number,
    "num_classes": errors.whole_number, "vector_size": errors.whole_number,
    "condition_channels": errors.whole_number,
    "augment_channels": errors.whole_number, "block_size": errors.whole_number,
    "self_condition": errors.flag,
    "embedding_order": _word, "downsample_padding": _word, "dtype": _dtype,
}


def check(model: nn.Module, height: int, width: int) -> None:
    """Raises UserError where a setting of the network is unknown or does not suit the images.

    Its fields are those of the network, `height` and `width`. Costs nothing inside a trace.
    """
    _check_size(model, height, width)
    _check_channels(model)
    _check_heads(model, height)
    check_known("embedding_order", model.embedding_order, ("sin_cos", "cos_sin"))
    check_known("downsample_padding", model.downsample_padding, tuple(PADDINGS))


def check_new(model: nn.Module) -> None:
    """Raises UserError where a network could be computed, but should not be trained from scratch.

    With one channel per group the norm removes the bias of t that is added before it. Networks
    of others have been trained with it all the same.
    """
    if not model.scale_shift and model.num_groups in _widths(model)[1:]:
        raise UserError(
            "makes groups of one channel where a block has as many channels: the norm would "
            "remove the timestep's bias", **_groups(model),
        )


def level_heights(model: nn.Module, height: int) -> list[int]:
    """The height of each level, for images of this height."""
    first = height // model.block_size
    return [first // 2**level for level in range(len(model.channel_multipliers))]


def _widths(model: nn.Module) -> list[int]:
    """The channels of the first convolution and of each level."""
    return [model.channels * multiplier for multiplier in (1, *model.channel_multipliers)]


def _groups(model: nn.Module) -> dict[str, Any]:
    """What a `UserError` about `num_groups` names, with a number that suits all widths."""
    suitable = default_num_groups(int(np.gcd.reduce(_widths(model))))
    return dict(field="num_groups", value=model.num_groups, instead={"num_groups": suitable})


def _check_size(model: nn.Module, height: int, width: int) -> None:
    levels, block_size = len(model.channel_multipliers), model.block_size
    if block_size < 1:
        raise UserError(
            "must be at least 1", field="block_size", value=block_size, instead={"block_size": 1}
        )
    factor = block_size * 2 ** (levels - 1)
    blocks = " and {block_size}" if block_size > 1 else ""
    for field, size in (("height", height), ("width", width)):
        if size % factor:
            raise UserError(
                f"does not divide by {factor}, as the {levels} levels of {{channel_multipliers}}"
                f"{blocks} need", field=field, value=size,
                given={
                    "channel_multipliers": model.channel_multipliers, "block_size": block_size
                },
                instead={field: max(1, round(size / factor)) * factor},
            )
    heights = level_heights(model, height)
    for resolution in model.attention_resolutions:
        if resolution not in heights:
            raise UserError(
                f"has {resolution}, which never occurs at an image height of {height}: the levels "
                f"have {', '.join(map(str, heights))}", field="attention_resolutions",
                value=model.attention_resolutions,
                instead={"attention_resolutions": (heights[min(1, levels - 1)],)},
            )


def _check_channels(model: nn.Module) -> None:
    if model.channels < 2:
        raise UserError(
            "leaves no sinusoid to embed the timestep", field="channels", value=model.channels,
            instead={"channels": 32},
        )
    for width in _widths(model):
        if model.num_groups is not None and (model.num_groups < 1 or width % model.num_groups):
            raise UserError(f"does not divide {width} channels", **_groups(model))


def _check_heads(model: nn.Module, height: int) -> None:
    """At the levels that attend, and in the middle."""
    *_, last = widths = _widths(model)[1:]
    attending = {last} | {
        width for width, height in zip(widths, level_heights(model, height))
        if height in model.attention_resolutions
    }
    for width in sorted(attending):
        if model.num_heads < 1 or width % model.num_heads:
            raise UserError(
                f"does not divide {width} channels", field="num_heads", value=model.num_heads,
                instead={"num_heads": 1},
            )
