"""Translates the settings of diffusers' `UNet2DModel` and its schedulers to ours.

What ours cannot express is refused, by the name of the setting; a setting that a file leaves out
has the default of diffusers. `diffusers_export` has the way back.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.diffusion.rescaled import zero_terminal_snr
from ddpm_jax.errors import UserError
from ddpm_jax.network.unet import UNet

VERSION = "0.30.0"  # Of diffusers, from which the names of the settings are.
NULL_LABEL = "_null_label"  # Ours: diffusers keeps names with "_" and makes nothing of them.
# Settings of UNet2DModel that have a counterpart here, with the defaults of diffusers.
DEFAULTS = {
    "sample_size": None, "in_channels": 3, "out_channels": 3,
    "block_out_channels": (224, 448, 672, 896), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
    "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
    "attention_head_dim": 8, "dropout": 0.0, "downsample_padding": 1, "flip_sin_to_cos": True,
    "freq_shift": 0, "norm_eps": 1e-5, "norm_num_groups": 32, "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default", "num_class_embeds": None, NULL_LABEL: False,
}
# Settings that have none: one of these values, the default first.
FIXED = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",), "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",), "upsample_type": ("conv",), "act_fn": ("silu", "swish"),
    "add_attention": (True,), "class_embed_type": (None,), "time_embedding_dim": (None,),
}
PADDINGS = {0: "asymmetric", 1: "symmetric"}
MEANS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
# "learned" is the variance itself there and its logarithm here; "fixed_large_log" gives NaN.
VARIANCES = {
    "fixed_small": "fixed_small", "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large", "learned_range": "learned_range",
}
SCHEDULES = {
    "linear": schedule_lib.linear,
    "scaled_linear": schedule_lib.quadratic,
    "squaredcos_cap_v2": lambda num_timesteps, start, end: schedule_lib.cosine(num_timesteps),
    "sigmoid": lambda num_timesteps, start, end: schedule_lib.from_betas(
        start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, num_timesteps)))
    ),
}
# Of schedulers.
PROCESS_DEFAULTS = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4,
    "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None,
    "prediction_type": "epsilon", "variance_type": "fixed_small",
    "rescale_betas_zero_snr": False,
}
CHAINS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler",
          "UniPCMultistepScheduler")


def network(
    settings: Mapping[str, Any], process: Mapping[str, Any], null_label: bool | None = None
) -> tuple[UNet, tuple[int, int, int]]:
    """The network of a `UNet2DModel`, and the shape (h, w, c) of its images.

    Args:
        settings: its `config.json`.
        process: the `scheduler_config.json`, which says whether a variance comes out too.
        null_label: as in `pretrained.from_pretrained`.

    Raises:
        UserError: our network cannot express a setting.
    """
    theirs = DEFAULTS | {name: value for name, value in settings.items() if name in DEFAULTS}
    if theirs["sample_size"] is None:
        raise UserError(
            "sample_size=null does not tell the size of its images", instead={"image_size": 32},
        )
    _check_kinds(theirs, _network_kinds(theirs))
    _check_fixed(settings, theirs["block_out_channels"][0])
    _check_known(theirs, {
        "downsample_padding": PADDINGS, "resnet_time_scale_shift": ("default", "scale_shift"),
        "freq_shift": (0, 1),
    })
    size, widths = theirs["sample_size"], theirs["block_out_channels"]
    height, width = size if isinstance(size, tuple) else (size, size)
    _refuse_if(any(w % widths[0] for w in widths), theirs, "block_out_channels",
               "all must be multiples of the first")
    attends = _attends(theirs)
    channels, condition_channels = _channels(theirs, process)
    return UNet(
        channels=widths[0], channel_multipliers=tuple(w // widths[0] for w in widths),
        num_res_blocks=theirs["layers_per_block"],
        attention_resolutions=tuple(height // 2**i for i, attend in enumerate(attends) if attend),
        dropout=theirs["dropout"], out_channels=theirs["out_channels"],
        num_heads=_num_heads(theirs, attends), scale_shift=_scale_shift(theirs),
        embedding_order="cos_sin" if theirs["flip_sin_to_cos"] else "sin_cos",
        embedding_freq_shift=theirs["freq_shift"],
        downsample_padding=PADDINGS[theirs["downsample_padding"]],
        norm_eps=theirs["norm_eps"], num_groups=theirs["norm_num_groups"],
        num_classes=_num_classes(theirs, null_label), condition_channels=condition_channels,
    ), (height, width, channels)


def _check_fixed(settings, first_width):
    """Refuses settings that have no counterpart here, unless they are as here."""
    _refuse_if(settings.get("_class_name", "UNet2DModel") != "UNet2DModel", settings,
               "_class_name", "write a folder of a UNet2DModel")
    for name, allowed in FIXED.items():
        value = settings.get(name, allowed[0])
        if name == "time_embedding_dim" and value == 4 * first_width:
            continue
        _refuse_if(value not in allowed, settings, name,
                   f"only {json.dumps(allowed[0])} can be")


def _attends(theirs) -> list[bool]:
    """Whether each level attends, from the finest."""
    for name, kind in (("down_block_types", "DownBlock2D"), ("up_block_types", "UpBlock2D")):
        _refuse_if(not set(theirs[name]) <= {kind, f"Attn{kind}"}, theirs, name,
                   f"only {kind} and Attn{kind} can be")
        _refuse_if(len(theirs[name]) != len(theirs["block_out_channels"]), theirs, name,
                   "there must be as many as of block_out_channels")
    down, up = ([kind.startswith("Attn") for kind in theirs[name]]
                for name in ("down_block_types", "up_block_types"))
    _refuse_if(up[::-1] != down, theirs, "up_block_types",
               "attention must be as in down_block_types")
    return down


def _channels(theirs, process) -> tuple[int, int]:
    """The channels of an image, and those of the image that goes in beside it."""
    outputs = 2 if process.get("variance_type") == "learned_range" else 1
    _refuse_if(theirs["out_channels"] % outputs, theirs, "out_channels",
               "half of them are the variance")
    channels = theirs["out_channels"] // outputs
    condition_channels = theirs["in_channels"] - channels
    _refuse_if(condition_channels < 0, theirs, "in_channels",
               f"the image that comes out has {channels}")
    return channels, condition_channels


def _num_heads(theirs, attends) -> int:
    """The number of heads at every level; theirs have a fixed number of channels each."""
    size, widths = theirs["attention_head_dim"], theirs["block_out_channels"]
    if size is None:
        return 1
    attending = {w for w, attend in zip(widths, attends) if attend} | {widths[-1]}
    _refuse_if(
        size < 1 or len(attending) > 1 or widths[-1] % size, theirs, "attention_head_dim",
        f"attention at {sorted(attending)} channels must have one whole number of heads",
    )
    return widths[-1] // size


def _scale_shift(theirs) -> bool:
    groups = theirs["norm_num_groups"]
    scale_shift = theirs["resnet_time_scale_shift"] == "scale_shift"
    # With scale_shift their middle attention has a norm only if its groups are given.
    allowed = (groups,) if scale_shift else (None, groups)
    _refuse_if(theirs["attn_norm_num_groups"] not in allowed, theirs, "attn_norm_num_groups",
               f"with norm_num_groups={groups} only {groups} can be")
    return scale_shift


def _num_classes(theirs, null_label) -> int:
    """The number of classes, without the null label that the last one may be."""
    num_labels = theirs["num_class_embeds"] or 0
    if null_label or (null_label is None and theirs[NULL_LABEL]):
        _refuse_if(num_labels < 2, theirs, "num_class_embeds",
                   "a null label is one more than the classes; write null_label=False")
        return num_labels - 1
    return num_labels


def process(
    settings: Mapping[str, Any]
) -> tuple[schedule_lib.Schedule, Parameterization]:
    """The noise schedule and what the output means, from a `scheduler_config.json`.

    Raises:
        UserError: our process cannot express a setting.
    """
    theirs = PROCESS_DEFAULTS | settings
    _check_known(theirs, {
        "_class_name": CHAINS, "beta_schedule": SCHEDULES, "prediction_type": MEANS,
        "variance_type": VARIANCES, "rescale_betas_zero_snr": (False, True),
    })
    steps, betas = theirs["num_train_timesteps"], theirs["trained_betas"]
    _refuse_if(not _is_count(steps), theirs, "num_train_timesteps", "it must be at least 1")
    _check_kinds(theirs, {
        "trained_betas": betas is None or _all(betas, _is_number),
        "beta_start": _is_number(theirs["beta_start"]),
        "beta_end": _is_number(theirs["beta_end"]),
    })
    if betas is not None:
        schedule = schedule_lib.from_betas(betas)
    else:
        schedule = SCHEDULES[theirs["beta_schedule"]](
            steps, theirs["beta_start"], theirs["beta_end"])
    if theirs["rescale_betas_zero_snr"]:
        schedule = zero_terminal_snr(schedule)
    return schedule, Parameterization(
        MEANS[theirs["prediction_type"]], VARIANCES[theirs["variance_type"]]
    )


def check_names(settings: Mapping[str, Any]) -> None:
    """Raises UserError where a setting of a scheduler, written by hand, is misspelt."""
    for name in settings.keys() - PROCESS_DEFAULTS.keys():
        known = difflib.get_close_matches(str(name), PROCESS_DEFAULTS, 1, cutoff=0.85)
        if known:
            raise UserError(
                f"is no setting of a scheduler; write {known[0]!r}.",
                field="scheduler", value={name: settings[name]},
            )


def sampling_hints(settings: Mapping[str, Any]) -> list[str]:
    """What its chains do otherwise than `sample` does, and what to write for the same."""
    spacing = []
    if settings.get("timestep_spacing") == "trailing":
        spacing = ["timestep_spacing=\"trailing\": write sample(..., grid='trailing')"]
    return spacing + _hints_on_x_0(settings)


def _hints_on_x_0(settings):
    if settings.get("thresholding"):
        ratio = settings.get("dynamic_thresholding_ratio", 0.995)
        return [f"thresholding=true: write sample(..., dynamic_threshold={ratio})"]
    if not settings.get("clip_sample", True):
        return ["clip_sample=false: write sample(..., clip=False)"]
    if settings.get("clip_sample_range", 1.0) != 1.0:
        return [
            f"clip_sample_range={settings['clip_sample_range']}, which is 1 here: write "
            "sample(..., clip=False), or clip in a denoised_fn"
        ]
    return []


def _network_kinds(theirs) -> dict[str, bool]:
    """Whether the values from which others are computed are of the kind that diffusers has."""
    size, widths = theirs["sample_size"], theirs["block_out_channels"]
    counts = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")
    maybe = ("attention_head_dim", "attn_norm_num_groups", "num_class_embeds")
    return {
        **{name: _is_count(theirs[name]) for name in counts},
        **{name: theirs[name] is None or _is_count(theirs[name]) for name in maybe},
        **{name: _is_number(theirs[name]) for name in ("dropout", "norm_eps")},
        **{name: _all(theirs[name], lambda x: isinstance(x, str))
           for name in ("down_block_types", "up_block_types")},
        "block_out_channels": _all(widths, _is_count) and len(widths) > 0,
        "sample_size": _is_count(size) or _all(size, _is_count) and len(size) == 2,
    }


def _is_count(value) -> bool:
    return type(value) is int and value > 0


def _is_number(value) -> bool:
    return isinstance(value, (int, float))


def _all(values, is_right) -> bool:
    return isinstance(values, tuple) and all(map(is_right, values))


def _check_kinds(theirs, right):
    for name in right:
        _refuse_if(not right[name], theirs, name, "diffusers has another kind of value there")


def _check_known(theirs, known):
    for name, values in known.items():
        _refuse_if(theirs[name] not in tuple(values), theirs, name,
                   f"use one of {', '.join(map(str, values))}")


def _refuse_if(wrong, theirs, name, instead):
    if wrong:
        value = json.dumps(theirs[name], default=str)
        value = value if len(value) <= 200 else f"{value[:100]}...{value[-100:]}"
        raise UserError(f"{name}={value} cannot be taken over; {instead}.")
