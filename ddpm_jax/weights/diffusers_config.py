"""The settings of diffusers' `UNet2DModel` and of its schedulers, and ours: both ways.

What one side cannot express is refused, by the name of its setting there; a setting that a file
leaves out has the default of diffusers.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.errors import UserError
from ddpm_jax.network import blocks
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet

VERSION = "0.30.0"  # Of diffusers, whose names of settings these are.
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
# Those that have none: they must be as here, the default first.
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
CHAINS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")


def network(
    settings: Mapping[str, Any], process: Mapping[str, Any], null_label: bool | None = None
) -> tuple[UNet, tuple[int, int, int]]:
    """The network of a `UNet2DModel`, and the shape (h, w, c) of its images.

    Args:
        settings: its `config.json`.
        process: the `scheduler_config.json`, which tells whether a variance comes out too.
        null_label: as of `pretrained.from_pretrained`.

    Raises:
        ValueError: a setting is one that our network cannot express.
    """
    get = DEFAULTS | {name: value for name, value in settings.items() if name in DEFAULTS}
    for name, right in _right_kinds(get).items():
        _refuse(not right, get, name, "diffusers has another kind of value there")
    _refuse(settings.get("_class_name", "UNet2DModel") != "UNet2DModel", settings,
            "_class_name", "write a folder of a UNet2DModel")
    widths = get["block_out_channels"]
    for name, allowed in FIXED.items():
        value = settings.get(name, allowed[0])
        if name == "time_embedding_dim" and value == 4 * widths[0]:
            continue
        _refuse(value not in allowed, settings, name, f"only {json.dumps(allowed[0])} can be")
    for name, known in (
        ("downsample_padding", PADDINGS), ("resnet_time_scale_shift", ("default", "scale_shift")),
        ("freq_shift", (0, 1)),
    ):
        _refuse_unknown(get, name, known)
    size, groups = get["sample_size"], get["norm_num_groups"]
    height, width = size if isinstance(size, tuple) else (size, size)
    _refuse(any(w % widths[0] for w in widths), get, "block_out_channels",
            "all must be multiples of the first")
    attends = _attends(get)
    scale_shift = get["resnet_time_scale_shift"] == "scale_shift"
    # With scale_shift their middle attention has a norm only where its groups are given.
    _refuse(get["attn_norm_num_groups"] not in ((groups,) if scale_shift else (None, groups)),
            get, "attn_norm_num_groups", f"with norm_num_groups={groups} only {groups} can be")
    outputs = 2 if process.get("variance_type") == "learned_range" else 1
    _refuse(get["out_channels"] % outputs, get, "out_channels", "half of them are the variance")
    channels = get["out_channels"] // outputs
    condition = get["in_channels"] - channels
    _refuse(condition < 0, get, "in_channels", f"the image that comes out has {channels}")
    num_classes = get["num_class_embeds"] or 0
    if null_label or (null_label is None and get[NULL_LABEL]):
        num_classes -= 1
        _refuse(num_classes < 1, get, "num_class_embeds",
                "a null label is one more than the classes; write null_label=False")
    return UNet(
        channels=widths[0], channel_multipliers=tuple(w // widths[0] for w in widths),
        num_res_blocks=get["layers_per_block"],
        attention_resolutions=tuple(height // 2**i for i, attend in enumerate(attends) if attend),
        dropout=get["dropout"], out_channels=get["out_channels"],
        num_heads=_num_heads(get, attends), scale_shift=scale_shift,
        embedding_order="cos_sin" if get["flip_sin_to_cos"] else "sin_cos",
        embedding_freq_shift=get["freq_shift"],
        downsample_padding=PADDINGS[get["downsample_padding"]],
        norm_eps=get["norm_eps"], num_groups=groups, num_classes=num_classes,
        condition_channels=condition,
    ), (height, width, channels)


def _attends(get) -> list[bool]:
    """Whether each level attends, from the finest."""
    for name, kind in (("down_block_types", "DownBlock2D"), ("up_block_types", "UpBlock2D")):
        _refuse(not set(get[name]) <= {kind, f"Attn{kind}"}, get, name,
                f"only {kind} and Attn{kind} can be")
        _refuse(len(get[name]) != len(get["block_out_channels"]), get, name,
                "there must be as many as of block_out_channels")
    down, up = ([kind.startswith("Attn") for kind in get[name]]
                for name in ("down_block_types", "up_block_types"))
    _refuse(up[::-1] != down, get, "up_block_types", "attention must be as in down_block_types")
    return down


def _num_heads(get, attends) -> int:
    """Ours are as many at every level; theirs have so many channels each."""
    size, widths = get["attention_head_dim"], get["block_out_channels"]
    if size is None:
        return 1
    attending = {w for w, attend in zip(widths, attends) if attend} | {widths[-1]}
    _refuse(size < 1 or len(attending) > 1 or widths[-1] % size, get, "attention_head_dim",
            f"attention at {sorted(attending)} channels must have one whole number of heads")
    return widths[-1] // size


def process(
    settings: Mapping[str, Any]
) -> tuple[schedule_lib.Schedule, Parameterization]:
    """The noise schedule and what the output means, from a `scheduler_config.json`.

    Raises:
        ValueError: a setting is one that our process cannot express.
    """
    get = {
        "_class_name": CHAINS[0], "num_train_timesteps": 1000, "beta_start": 1e-4,
        "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None,
        "prediction_type": "epsilon", "variance_type": "fixed_small",
        "rescale_betas_zero_snr": False,
    } | settings
    for name, known in (
        ("_class_name", CHAINS), ("beta_schedule", SCHEDULES), ("prediction_type", MEANS),
        ("variance_type", VARIANCES), ("rescale_betas_zero_snr", (False,)),
    ):
        _refuse_unknown(get, name, known)
    _refuse(not _is_count(get["num_train_timesteps"]), get, "num_train_timesteps",
            "it must be at least 1")
    betas = get["trained_betas"]
    schedule = schedule_lib.from_betas(betas) if betas is not None else (
        SCHEDULES[get["beta_schedule"]](
            get["num_train_timesteps"], get["beta_start"], get["beta_end"]
        )
    )
    return schedule, Parameterization(
        MEANS[get["prediction_type"]], VARIANCES[get["variance_type"]]
    )


def sampling_hints(settings: Mapping[str, Any]) -> list[str]:
    """Where its chains keep x_0 in other bounds than those of `sample`, with what to write."""
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


def network_settings(trained: Trained) -> dict[str, Any]:
    """The `config.json` of a `UNet2DModel` like the network.

    Raises:
        ValueError: a setting of ours is one that it cannot express.
    """
    model, (height, width, channels) = trained.model, trained.image_shape
    if not isinstance(model, UNet):
        raise UserError(
            f"model={type(model).__name__} cannot be expressed in diffusers; only a UNet can."
        )
    if model.timestep_scale != 1:
        raise UserError(
            f"model.timestep_scale={model.timestep_scale} cannot be expressed in diffusers; only "
            "1 can."
        )
    widths = tuple(model.channels * m for m in model.channel_multipliers)
    attends = [height // 2**i in model.attention_resolutions for i in range(len(widths))]
    groups = _num_groups(trained)
    paddings = {ours: theirs for theirs, ours in PADDINGS.items()}
    return {
        "_class_name": "UNet2DModel", "_diffusers_version": VERSION,
        **{name: allowed[0] for name, allowed in FIXED.items()},
        "sample_size": height if height == width else (height, width),
        "in_channels": channels + model.condition_channels, "out_channels": model.out_channels,
        "block_out_channels": widths, "layers_per_block": model.num_res_blocks,
        "down_block_types": ["Attn" * attend + "DownBlock2D" for attend in attends],
        "up_block_types": ["Attn" * attend + "UpBlock2D" for attend in reversed(attends)],
        "attention_head_dim": _head_dim(model, widths, attends), "dropout": model.dropout,
        "downsample_padding": paddings[model.downsample_padding],
        "flip_sin_to_cos": model.embedding_order == "cos_sin",
        "freq_shift": model.embedding_freq_shift, "norm_eps": model.norm_eps,
        "norm_num_groups": groups, "attn_norm_num_groups": groups if model.scale_shift else None,
        "resnet_time_scale_shift": "scale_shift" if model.scale_shift else "default",
        "num_class_embeds": model.num_classes + 1 if model.num_classes else None,
        NULL_LABEL: model.num_classes > 0,
    }


def _head_dim(model, widths, attends) -> int | None:
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
    norms = {
        leaf.shape[0] for path, leaf in leaves.items() if path[-1] == "scale"
    }
    groups = {model.num_groups or blocks.default_num_groups(width) for width in norms}
    if len(groups) > 1:
        raise UserError(
            f"model.num_groups={model.num_groups} is {sorted(groups)} groups by width, and "
            "diffusers has one norm_num_groups; train with such as "
            f"--config.model.num_groups={min(groups)}."
        )
    return groups.pop()


def process_settings(trained: Trained, clip: bool) -> dict[str, Any]:
    """The `scheduler_config.json` of a `DDPMScheduler` of the same process.

    Args:
        trained: a model with its full schedule.
        clip: whether its chains keep x_0 in [-1, 1].

    Raises:
        ValueError: a choice of ours is one that it cannot express.
    """
    found = {}
    for ours, table, theirs in (
        ("mean", MEANS, "prediction_type"), ("variance", VARIANCES, "variance_type"),
    ):
        value = getattr(trained.diffusion, ours)
        found[theirs] = next((name for name in table if table[name] == value), None)
        if found[theirs] is None:
            raise UserError(
                f"diffusion.{ours}={value!r} cannot be expressed in diffusers; only "
                f"{', '.join(dict.fromkeys(table.values()))} can."
            )
    beta, steps = np.asarray(trained.schedule.beta), trained.schedule.num_timesteps
    if not np.array_equal(trained.schedule.timesteps, np.arange(steps)):
        raise UserError(
            "schedule.timesteps are those of a respaced chain, which cannot be expressed in "
            "diffusers; save the model with its full schedule."
        )
    return {
        "_class_name": "DDPMScheduler", "_diffusers_version": VERSION, **found, **_betas(beta),
        "num_train_timesteps": steps, "clip_sample": clip,
    }


def _betas(beta) -> dict[str, Any]:
    """By the name of their schedule where it is one of theirs to the bit, else one by one."""
    ends = {"beta_start": float(beta[0]), "beta_end": float(beta[-1])}
    for name in ("linear", "squaredcos_cap_v2"):
        if np.array_equal(SCHEDULES[name](len(beta), *ends.values()).beta, beta):
            return {"beta_schedule": name, **ends}
    return {"beta_schedule": "linear", "trained_betas": beta.tolist(), **ends}


def _is_count(value) -> bool:
    return type(value) is int and value > 0


def _right_kinds(get) -> dict[str, bool]:
    """For settings by which others are computed, whether that can be done."""
    size, widths = get["sample_size"], get["block_out_channels"]
    counts = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")
    maybe = ("attention_head_dim", "attn_norm_num_groups", "num_class_embeds")
    return {
        **{name: _is_count(get[name]) for name in counts},
        **{name: get[name] is None or _is_count(get[name]) for name in maybe},
        **{name: isinstance(get[name], (int, float)) for name in ("dropout", "norm_eps")},
        **{name: isinstance(get[name], tuple) and all(isinstance(kind, str) for kind in get[name])
           for name in ("down_block_types", "up_block_types")},
        "block_out_channels": isinstance(widths, tuple) and widths != () and all(
            map(_is_count, widths)),
        "sample_size": _is_count(size) or isinstance(size, tuple) and len(size) == 2 and all(
            map(_is_count, size)),
    }


def _refuse(wrong, settings, name, instead):
    if wrong:
        raise UserError(f"{name}={json.dumps(settings[name])} cannot be taken over; {instead}.")


def _refuse_unknown(settings, name, known):
    _refuse(settings[name] not in tuple(known), settings, name,
            f"use one of {', '.join(map(str, known))}")
