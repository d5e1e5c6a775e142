"""Our network and process as settings of diffusers: `UNet2DModel` and `DDPMScheduler`.

What diffusers cannot express is refused, by the name of our setting.
"""

from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.network import blocks
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet
from ddpm_jax.weights import diffusers_config

_PLAIN = {  # The only value, of fields that diffusers lacks.
    "timestep_scale": 1, "vector_size": 0, "block_size": 1, "self_condition": False,
}


def network_settings(trained: Trained) -> dict[str, Any]:
    """The `config.json` of a `UNet2DModel` like the network.

    Raises:
        UserError: it cannot express a setting of ours.
    """
    model, (height, width, channels) = trained.model, trained.image_shape
    if not isinstance(model, UNet):
        raise UserError(
            f"model={type(model).__name__} cannot be expressed in diffusers; only a UNet can."
        )
    for field, plain in _PLAIN.items():
        if getattr(model, field) != plain:
            raise UserError(
                f"model.{field}={getattr(model, field)} cannot be expressed in diffusers; only "
                f"{plain} can."
            )
    widths = tuple(model.channels * m for m in model.channel_multipliers)
    attends = [height // 2**i in model.attention_resolutions for i in range(len(widths))]
    groups = _num_groups(trained)
    paddings = {ours: theirs for theirs, ours in diffusers_config.PADDINGS.items()}
    return {
        "_class_name": "UNet2DModel", "_diffusers_version": diffusers_config.VERSION,
        **{name: allowed[0] for name, allowed in diffusers_config.FIXED.items()},
        "sample_size": height if height == width else (height, width),
        "in_channels": channels + model.condition_channels, "out_channels": model.out_channels,
        "block_out_channels": widths, "layers_per_block": model.num_res_blocks,
        "down_block_types": [f"{_attn(attend)}DownBlock2D" for attend in attends],
        "up_block_types": [f"{_attn(attend)}UpBlock2D" for attend in reversed(attends)],
        "attention_head_dim": _head_dim(model, widths, attends), "dropout": model.dropout,
        "downsample_padding": paddings[model.downsample_padding],
        "flip_sin_to_cos": model.embedding_order == "cos_sin",
        "freq_shift": model.embedding_freq_shift, "norm_eps": model.norm_eps,
        "norm_num_groups": groups, "attn_norm_num_groups": groups if model.scale_shift else None,
        "resnet_time_scale_shift": "scale_shift" if model.scale_shift else "default",
        "num_class_embeds": model.num_classes + 1 if model.num_classes else None,
        diffusers_config.NULL_LABEL: model.num_classes > 0,
    }


def _attn(attends: bool) -> str:
    return "Attn" if attends else ""


def _head_dim(model, widths, attends) -> int | None:
    """The channels of a head, or None for one head."""
    attending = {w for w, attend in zip(widths, attends) if attend} | {widths[-1]}
    if model.num_heads > 1 and len(attending) > 1:
        raise UserError(
            f"model.num_heads={model.num_heads} at {sorted(attending)} channels cannot be "
            "expressed in diffusers, where attention_head_dim is one number; only 1 head can."
        )
    return widths[-1] // model.num_heads if model.num_heads > 1 else None


def _num_groups(trained) -> int:
    """The one number of groups that every norm has."""
    model, leaves = trained.model, trained_lib.leaves(trained.params)
    norms = {leaf.shape[0] for path, leaf in leaves.items() if path[-1] == "scale"}
    groups = {model.num_groups or blocks.default_num_groups(width) for width in norms}
    if len(groups) > 1:
        raise UserError(
            f"model.num_groups={model.num_groups} is {sorted(groups)} groups by width, and "
            "diffusers has one norm_num_groups; train with, for example, "
            f"--config.model.num_groups={min(groups)}."
        )
    return groups.pop()


def process_settings(trained: Trained, clip: bool) -> dict[str, Any]:
    """The `scheduler_config.json` of a `DDPMScheduler` of the same process.

    Args:
        trained: a model with its full schedule.
        clip: whether its chains keep x_0 in [-1, 1].

    Raises:
        UserError: it cannot express a choice of ours.
    """
    beta, steps = np.asarray(trained.schedule.beta), trained.schedule.num_timesteps
    if not np.array_equal(trained.schedule.timesteps, np.arange(steps)):
        raise UserError(
            "schedule.timesteps are those of a respaced chain, which cannot be expressed in "
            "diffusers; save the model with its full schedule."
        )
    return {
        "_class_name": "DDPMScheduler", "_diffusers_version": diffusers_config.VERSION,
        "prediction_type": _their_name(diffusers_config.MEANS, "mean", trained.diffusion.mean),
        "variance_type": _their_name(
            diffusers_config.VARIANCES, "variance", trained.diffusion.variance),
        **_betas(beta), "num_train_timesteps": steps, "clip_sample": clip,
        # Whose last step has to be visited, where it keeps nothing of x_0.
        **({"timestep_spacing": "trailing"} if beta[-1] == 1 else {}),
    }


def _their_name(table, field, ours):
    """The first of their names for our value of a field of the diffusion."""
    for name, value in table.items():
        if value == ours:
            return name
    raise UserError(
        f"diffusion.{field}={ours!r} cannot be expressed in diffusers; only "
        f"{', '.join(dict.fromkeys(table.values()))} can."
    )


def _betas(beta) -> dict[str, Any]:
    """The betas by the name of their schedule if it gives the same bits, else one by one."""
    ends = {"beta_start": float(beta[0]), "beta_end": float(beta[-1])}
    for name in ("linear", "squaredcos_cap_v2"):
        if np.array_equal(diffusers_config.SCHEDULES[name](len(beta), *ends.values()).beta, beta):
            return {"beta_schedule": name, **ends}
    return {"beta_schedule": "linear", "trained_betas": beta.tolist(), **ends}
