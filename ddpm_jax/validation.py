"""Checks of a config before any device work."""

import math

import ml_collections

from ddpm_jax import config as config_lib
from ddpm_jax import config_file, configs, errors
from ddpm_jax.configs import cifar10
from ddpm_jax.errors import UserError
from ddpm_jax.network import fields

PRECISIONS = ("default", "high", "highest")
T_SAMPLINGS = ("uniform", "antithetic", "importance")
_HUGE = 2**31 - 1  # Steps are int32.
_RANGES = {  # lowest, highest, a value that works
    "seed": (0, 2**32 - 1, 0),
    "data.image_size": (0, _HUGE, 32),
    "data.image_width": (0, _HUGE, 0),
    "data.channels": (0, _HUGE, 3),
    "data.holdout": (0, _HUGE, 0),
    "data.augment": (0, 1, 0.12),
    "data.range_bins": (0, 65536, 0),
    "data.num_classes": (0, 1_000_000, 0),
    "data.condition_channels": (0, _HUGE, 0),
    "data.factor": (2, _HUGE, 2),
    "model.channels": (2, _HUGE, 128),
    "model.num_res_blocks": (1, 100, 2),
    "model.block_size": (1, _HUGE, 1),
    "model.dropout": (0, 0.999, 0.1),
    "model.norm_eps": (1e-12, 1, 1e-6),
    "model.timestep_scale": (1e-9, _HUGE, 1.0),
    "diffusion.shift_size": (0, _HUGE, 256),
    "diffusion.sigmoid_bias": (-1000, 1000, 2.0),
    "diffusion.min_snr_gamma": (1e-9, _HUGE, 5.0),
    "diffusion.p2_k": (1e-9, _HUGE, 1.0),
    "diffusion.p2_gamma": (0, _HUGE, 1.0),
    "train.num_steps": (1, _HUGE, 800_000),
    "train.batch_size": (1, _HUGE, 128),
    "train.learning_rate": (1e-12, 1e38, 2e-4),
    "train.warmup_steps": (0, _HUGE, 5000),
    "train.decay_start": (0, _HUGE, 0),
    "train.end_learning_rate": (0, 1e38, 0.0),
    "train.weight_decay": (0, 1000, 0.01),
    "train.adam_b1": (0, 1 - 1e-9, 0.9),
    "train.adam_b2": (0, 1 - 1e-9, 0.999),
    "train.adam_eps": (1e-30, 1, 1e-8),
    "train.grad_clip": (0, _HUGE, 1.0),
    "train.ema_decay": (0, 1 - 1e-9, 0.9999),
    "train.accumulate": (1, _HUGE, 1),
    "train.label_dropout": (0, 1, 0.1),
    "train.max_skipped": (1, _HUGE, 10),
    "train.log_every": (0, _HUGE, 100),
    "train.eval_every": (0, _HUGE, 5000),
    "train.eval_images": (0, _HUGE, 1024),
    "train.checkpoint_every": (0, _HUGE, 5000),
    "train.checkpoint_minutes": (0, 1e9, 30.0),
    "train.ema_snapshot_every": (0, _HUGE, 1000),
    "train.keep": (1, _HUGE, 2),
    "train.keep_every": (0, _HUGE, 0),
    "train.sample_every": (0, _HUGE, 10_000),
    "train.sample_images": (1, _HUGE, 64),
    "distill.start_steps": (2, _HUGE, 256),
    "distill.end_steps": (1, _HUGE, 1),
    "distill.num_steps": (0, _HUGE, 0),
    "sample.num_images": (1, _HUGE, 64),
    "sample.dynamic_threshold": (0, 1, 0.995),
    "sample.batch_size": (0, _HUGE, 0),
    "sample.seed": (0, 2**63 - 1, 0),
    "sample.guidance": (0, _HUGE, 1.0),
    "sample.variants": (1, _HUGE, 4),
    "sample.operator_noise": (1e-6, _HUGE, 0.01),
    "sample.operator_scale": (0, _HUGE, 1.0),
    "sample.resamplings": (1, _HUGE, 1),
    "sample.jump_length": (1, _HUGE, 10),
    "evaluate.num_images": (0, _HUGE, 0),
    "evaluate.num_samples": (2, _HUGE, 50_000),
    "evaluate.num_draws": (2, _HUGE, 16),
    "evaluate.batch_size": (0, _HUGE, 0),
    "evaluate.ode_steps": (1, _HUGE, 200),
    "evaluate.ode_probes": (1, _HUGE, 1),
    "evaluate.seed": (0, 2**63 - 1, 0),
}
_STEPS_OF_A_CHAIN = ("train.sample_num_steps", "sample.num_steps")  # 0: all of num_timesteps.
_ITEMS = {  # type, lower and upper bound (outside), both in words, a value that works
    "model.channel_multipliers": (int, 0, math.inf, "whole numbers, at least one", (1, 2, 2, 2)),
    "model.attention_resolutions": (int, 0, math.inf, "whole numbers", (16,)),
    "diffusion.betas": ((int, float), 0, math.inf, "numbers in (0, 1]", (0.1, 0.2, 0.5)),
    "data.vectors": (str, "", chr(0x10FFFF), "names of numbers in the data", ("age",)),
    "data.class_names": (str, "", chr(0x10FFFF), "names of the classes", ("cat", "dog")),
    "data.vector_mean": ((int, float), -math.inf, math.inf, "finite numbers", (0.5, 20.0)),
    "data.vector_std": ((int, float), 0, math.inf, "numbers above 0", (0.1, 5.0)),
    "evaluate.sweep_steps": (int, 0, math.inf, "whole numbers, at least one", (10, 20, 50, 100)),
    "train.extra_ema_decays": (float, 0, 1, "numbers between 0 and 1", (0.999,)),
    "train.piecewise_steps": (int, 0, _HUGE, "whole numbers of steps", (400_000, 600_000)),
    "train.piecewise_scales": ((int, float), 0, math.inf, "numbers above 0", (0.1, 0.1)),
}
_NOT_EMPTY = ("model.channel_multipliers", "evaluate.sweep_steps")


def validate(
    config: ml_collections.ConfigDict, *, num_devices: int
) -> ml_collections.ConfigDict:
    """Checks every relation between settings that can be checked without the data.

    Args:
        config: as in `configs/cifar10.py`.
        num_devices: devices of all processes together.

    Returns:
        The config, as `checked` returns it.

    Raises:
        ValueError: one line with the setting, its value, the rule and what to write instead.
    """
    config = checked(config)
    with errors.as_settings("diffusion"):
        config_lib.parameterization(config).check(config_lib.schedule(config))
        config_lib.objective(config).check(
            config_lib.parameterization(config), config_lib.schedule(config)
        )
    config_lib.learning_rate(config)
    errors.check_known("config.train.t_sampling", config.train.t_sampling, T_SAMPLINGS)
    check_batch(config.train.batch_size, config.train.accumulate, num_devices)
    check_precision("train", config.train.matmul_precision)
    _check_profile(config.train.profile, config.train.num_steps)
    shape = config_lib.image_shape(config)
    if shape:
        check_images(config, shape)
    return config


def checked(config: ml_collections.ConfigDict | str) -> ml_collections.ConfigDict:
    """A copy of the config, with the type of each setting as in `configs/cifar10.py`.

    A string names one of the package, or a file (see `config_file.named`).

    Raises:
        UserError: for the first setting that is unknown, of another type or out of its range.
    """
    if isinstance(config, str):
        config = config_file.named(config)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            "is no config; write config=ddpm_jax.configs.cifar10.get_config(), and change that, or "
            "the name of one, for example 'digits'.",
            field="config", value=config,
        )
    settings, known = dict(config_lib.leaves(config)), cifar10.get_config()
    defaults = dict(config_lib.leaves(known))
    for setting in settings:
        if setting not in defaults:
            raise UserError(
                f"is no setting; did you mean config.{configs.nearest(setting)}?",
                field=f"config.{setting}", value=settings[setting],
            )
    settings = {
        setting: _typed(setting, settings.get(setting), default)
        for setting, default in defaults.items()
    }
    of_a_chain = {name: (0, settings["diffusion.num_timesteps"], 0) for name in _STEPS_OF_A_CHAIN}
    for setting, (low, high, works) in (_RANGES | of_a_chain).items():
        value = settings[setting]
        if not low <= value <= high:
            rule = f"at least {low:g}" if value < low else f"in [{low:g}, {high:g}]"
            raise _refused(setting, value, f"must be {rule}", works)
    for setting in _ITEMS:
        settings[setting] = _typed_items(setting, settings[setting])
    known.update_from_flattened_dict(settings)
    known.data.range = config_lib.value_range(known)
    mean, std = known.data.vector_mean, known.data.vector_std
    if len(mean) != len(std):
        raise _refused(
            "data.vector_std", std, f"must have as many numbers as config.data.vector_mean={mean}",
            (1.0,) * len(mean),
        )
    return known


def _refused(setting, value, rule, works):
    field = f"config.{setting}"
    return UserError(rule, field=field, value=value, instead={field: works})


def _typed(setting, value, default):
    """The value, a whole float as an int where that is what the setting takes."""
    kind = type(default)
    if kind is int:
        value = _whole(value)
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool):
        raise _refused(setting, value, f"must be {configs.KINDS[kind]}", default)
    return value


def _whole(value):
    """The value as an int, if it is whole; else as it is."""
    try:
        return errors.whole_number("", value)
    except UserError:
        return value


def _typed_items(setting, values):
    """The values of a tuple, whole floats as ints where that is what it takes."""
    kind, low, high, rule, works = _ITEMS[setting]
    values = tuple(map(_whole, values)) if kind is int else values
    allowed = all(
        isinstance(v, kind) and not isinstance(v, bool) and low < v < high for v in values
    )
    if not allowed or (setting in _NOT_EMPTY and not values):
        raise _refused(setting, values, f"must be {rule}", works)
    return values


def check_batch(batch_size: int, accumulate: int, num_devices: int) -> None:
    """Raises UserError where a batch does not divide over the devices, or its share not by parts.

    Args:
        batch_size, accumulate: of `config.train`.
        num_devices: devices of all processes together.
    """
    if batch_size % num_devices:
        nearest = max(1, round(batch_size / num_devices)) * num_devices
        raise _refused(
            "train.batch_size", batch_size, f"does not divide over {num_devices} devices", nearest
        )
    share = batch_size // num_devices
    if share % accumulate:
        works = max(k for k in range(1, accumulate) if share % k == 0)
        raise _refused(
            "train.accumulate", accumulate, f"does not divide the {share} images that each device "
            f"has of config.train.batch_size={batch_size}", works,
        )


def _check_profile(profile, num_steps):
    if not profile:
        return
    whole = all(isinstance(step, int) for step in profile)
    if not (whole and len(profile) == 2 and 1 <= profile[0] <= profile[1] <= num_steps):
        raise _refused(
            "train.profile", profile,
            f"must be the first and the last step to trace, whole numbers in 1..{num_steps}, or "
            "() for none",
            (min(20, num_steps), min(25, num_steps)),
        )


def check_precision(group: str, value: str) -> None:
    """Raises UserError where `matmul_precision` of this group of settings is not known."""
    errors.check_known(f"config.{group}.matmul_precision", value, PRECISIONS)


def check_images(config: ml_collections.ConfigDict, shape: tuple[int, int, int]) -> None:
    """Raises ValueError where the network does not suit images of `shape` (h, w, c)."""
    model = config_lib.model(config, shape[-1])
    with errors.as_settings("model", height="data.image_size", width="data.image_width"):
        fields.check(model, *shape[:2])
        if not config.train.warm_start:  # Else the network is of others, and has learned so.
            fields.check_new(model)


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where a term of the bound is trained on floats, which have no bins.

    Args:
        config: of `config_lib.resolved`.
    """
    if config.diffusion.loss != "simple" and not config_lib.bins(config):
        raise _refused(
            "diffusion.loss", config.diffusion.loss, "needs pixels of whole numbers, for each of "
            "which the bound has a bin, and the data are floats", "simple",
        )


def warnings(config: ml_collections.ConfigDict) -> list[str]:
    """One line for each choice that runs but is likely not meant."""
    lines = []
    end = config_lib.schedule(config).alpha_bar[-1]
    if end > 0.01:
        lines.append(
            f"alpha_bar ends at {end:.3g}, above 0.01: sampling starts from pure noise that "
            "training never sees, so samples will be poor; use --config.diffusion.schedule=cosine "
            f"or larger betas, for example --config.diffusion.beta_end={_enough(config):g}."
        )
    rate = config_lib.learning_rate(config)
    if rate.schedule != "constant" and rate.start >= rate.num_steps:
        lines.append(
            f"config.train.schedule={rate.schedule!r} has no effect before step {rate.start:,}, "
            f"but config.train.num_steps={rate.num_steps}; lower --config.train.warmup_steps or "
            "--config.train.decay_start."
        )
    lines += _outlasting(config.train)
    mean, variance, loss = (config.diffusion[name] for name in ("mean", "variance", "loss"))
    if mean == "x_prev" and loss == "simple":
        lines.append(
            "diffusion.mean='x_prev' with diffusion.loss='simple' was unstable in the paper (its "
            "Table 2); --config.diffusion.loss=vlb or --config.diffusion.mean=eps is not."
        )
    if mean == "eps" and variance == "learned" and loss.endswith("vlb"):
        lines.append(
            "diffusion.mean='eps' with diffusion.variance='learned' was unstable in the paper "
            "(its Table 2); --config.diffusion.variance=learned_range with "
            "--config.diffusion.loss=rescaled_hybrid is not."
        )
    return lines


def _outlasting(train) -> list[str]:
    """One line for each setting of `config.train` that takes longer than the run."""
    lines, num_steps = [], train.num_steps
    if num_steps > 1 and train.warmup_steps >= num_steps:
        lines.append(
            f"config.train.warmup_steps={train.warmup_steps} outlasts config.train.num_steps="
            f"{num_steps}: the learning rate stays near 0 and the network learns little; write "
            f"--config.train.warmup_steps={num_steps // 10}."
        )
    horizon = round(1 / (1 - train.ema_decay))
    if num_steps > 1 and horizon > num_steps and not train.ema_warmup:
        lines.append(
            f"config.train.ema_decay={train.ema_decay} averages over {horizon:,} steps, and "
            f"config.train.num_steps={num_steps}: {train.ema_decay**num_steps:.0%} of the average "
            "is where it began, and so are samples; write --config.train.ema_warmup=True."
        )
    return lines


def _enough(config) -> float:
    """A last beta at which a linear schedule of this length ends below 0.01."""
    return min(0.999, 0.02 * 1000 / config.diffusion.num_timesteps)
