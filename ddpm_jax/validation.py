"""Checks of a config before any device work: one line a mistake."""

import math

import ml_collections

from ddpm_jax import config as config_lib
from ddpm_jax import errors
from ddpm_jax.configs import cifar10
from ddpm_jax.errors import UserError
from ddpm_jax.network import unet

PRECISIONS = ("default", "high", "highest")
_KINDS = {  # Of a setting's type: what it may be, in words.
    bool: (bool, "True or False"), int: (int, "a whole number"),
    float: ((int, float), "a number"), str: (str, "a text"), tuple: (tuple, "a tuple"),
}
T_SAMPLINGS = ("uniform", "antithetic", "importance")


def validate(config: ml_collections.ConfigDict, *, num_devices: int) -> None:
    """Checks every relation between settings that can be checked without the data.

    Args:
        config: as in `configs/cifar10.py`.
        num_devices: devices of all processes together.

    Raises:
        ValueError: one line naming the setting, its value, the rule and what works.
    """
    check_numbers(config)
    with errors.as_settings("diffusion"):
        config_lib.parameterization(config).check(config_lib.schedule(config))
        config_lib.objective(config).check(config_lib.parameterization(config))
    if config.train.t_sampling not in T_SAMPLINGS:
        raise UserError(
            f"config.train.t_sampling={config.train.t_sampling!r} is not known; use one of "
            f"{', '.join(T_SAMPLINGS)}."
        )
    _check_batch(config.train.batch_size, config.train.accumulate, num_devices)
    check_precision("train", config.train.matmul_precision)
    _check_profile(config.train)
    shape = config_lib.image_shape(config)
    if shape:
        check_images(config, shape)


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError naming the first setting of another type or out of its range."""
    _check_types(config)
    huge = 2**31 - 1  # Steps are int32.
    for setting, low, high, works in (  # lowest, highest, a value that works
        ("seed", 0, 2**32 - 1, 0),
        ("data.image_size", 0, huge, 32),
        ("data.image_width", 0, huge, 0),
        ("data.channels", 0, huge, 3),
        ("data.holdout", 0, huge, 0),
        ("data.num_classes", 0, 1_000_000, 0),
        ("data.condition_channels", 0, huge, 0),
        ("data.factor", 2, huge, 2),
        ("model.channels", 2, huge, 128),
        ("model.num_res_blocks", 1, 100, 2),
        ("model.dropout", 0, 0.999, 0.1),
        ("model.norm_eps", 1e-12, 1, 1e-6),
        ("model.timestep_scale", 1e-9, huge, 1.0),
        ("diffusion.min_snr_gamma", 1e-9, huge, 5.0),
        ("diffusion.p2_k", 1e-9, huge, 1.0),
        ("diffusion.p2_gamma", 0, huge, 1.0),
        ("train.num_steps", 1, huge, 800_000),
        ("train.batch_size", 1, huge, 128),
        ("train.learning_rate", 1e-12, 1e38, 2e-4),
        ("train.warmup_steps", 0, huge, 5000),
        ("train.grad_clip", 0, huge, 1.0),
        ("train.ema_decay", 0, 1 - 1e-9, 0.9999),
        ("train.accumulate", 1, huge, 1),
        ("train.label_dropout", 0, 1, 0.1),
        ("train.max_skipped", 1, huge, 10),
        ("train.log_every", 1, huge, 100),
        ("train.eval_every", 1, huge, 5000),
        ("train.eval_images", 0, huge, 1024),
        ("train.checkpoint_every", 1, huge, 5000),
        ("train.keep", 1, huge, 2),
        ("train.keep_every", 0, huge, 0),
        ("train.sample_every", 1, huge, 10_000),
        ("train.sample_images", 1, huge, 64),
        ("train.sample_num_steps", 0, config.diffusion.num_timesteps, 0),
        ("sample.num_images", 1, huge, 64),
        ("sample.num_steps", 0, config.diffusion.num_timesteps, 0),
        ("sample.dynamic_threshold", 0, 1, 0.995),
        ("sample.batch_size", 0, huge, 0),
        ("sample.seed", 0, 2**32 - 1, 0),
        ("sample.guidance", 0, huge, 1.0),
        ("sample.variants", 1, huge, 4),
        ("sample.resamplings", 1, huge, 1),
        ("sample.jump_length", 1, huge, 10),
        ("evaluate.num_images", 0, huge, 0),
        ("evaluate.num_samples", 2, huge, 50_000),
        ("evaluate.num_draws", 2, huge, 16),
        ("evaluate.batch_size", 0, huge, 0),
        ("evaluate.ode_steps", 1, huge, 200),
        ("evaluate.ode_probes", 1, huge, 1),
        ("evaluate.seed", 0, 2**32 - 1, 0),
    ):
        group, _, name = setting.rpartition(".")
        value = (config[group] if group else config)[name]
        if not low <= value <= high:
            rule = f"at least {low:g}" if value < low else f"in [{low:g}, {high:g}]"
            raise UserError(
                f"config.{setting}={value} must be {rule}; try --config.{setting}={works}."
            )
    _check_tuples(config)


def _check_types(config):
    found = dict(config_lib.leaves(config))
    for setting, base in config_lib.leaves(cifar10.get_config()):
        kind, word = _KINDS[type(base)]
        value = found.get(setting)
        if not isinstance(value, kind) or isinstance(value, bool) != isinstance(base, bool):
            raise UserError(
                f"config.{setting}={value!r} must be {word}; try --config.{setting}=\"{base}\"."
            )


def _check_tuples(config):
    for setting, kind, rule, works in (
        ("model.channel_multipliers", int, "whole numbers, at least one", "(1, 2, 2, 2)"),
        ("model.attention_resolutions", int, "whole numbers", "(16,)"),
        ("diffusion.betas", (int, float), "numbers in (0, 1]", "(0.1, 0.2, 0.5)"),
        ("evaluate.sweep_steps", int, "whole numbers, at least one", "(10, 20, 50, 100)"),
        ("train.extra_ema_decays", float, "numbers between 0 and 1", "(0.999,)"),
    ):
        group, name = setting.split(".")
        values = config[group][name]
        high = 1 if name == "extra_ema_decays" else math.inf
        bad = [v for v in values
               if isinstance(v, bool) or not isinstance(v, kind) or not 0 < v < high]
        if bad or (name in ("channel_multipliers", "sweep_steps") and not values):
            raise UserError(
                f"config.{setting}={values!r} must be {rule}; try "
                f'--config.{setting}="{works}".'
            )


def _check_batch(batch_size, accumulate, num_devices):
    if batch_size % num_devices:
        nearest = max(1, round(batch_size / num_devices)) * num_devices
        raise UserError(
            f"config.train.batch_size={batch_size} does not divide over {num_devices} devices; "
            f"try --config.train.batch_size={nearest}."
        )
    share = batch_size // num_devices
    if share % accumulate:
        works = max(k for k in range(1, accumulate) if share % k == 0)
        raise UserError(
            f"config.train.accumulate={accumulate} does not divide the {share} images that "
            f"each device has of config.train.batch_size={batch_size}; try "
            f"--config.train.accumulate={works}."
        )


def _check_profile(train):
    whole = all(isinstance(step, int) for step in train.profile)
    if train.profile and not (
        whole and len(train.profile) == 2
        and 1 <= train.profile[0] <= train.profile[1] <= train.num_steps
    ):
        raise UserError(
            f"config.train.profile={train.profile!r} must be the first and the last step to trace, "
            f"whole numbers in 1..{train.num_steps}, or () for none; try "
            f'--config.train.profile="{(min(20, train.num_steps), min(25, train.num_steps))}".'
        )


def check_precision(group, value):
    if value not in PRECISIONS:
        raise UserError(
            f"config.{group}.matmul_precision={value!r} is not known; use one of "
            f"{', '.join(PRECISIONS)}."
        )


def check_images(config: ml_collections.ConfigDict, shape: tuple[int, int, int]) -> None:
    """Raises ValueError where the network does not suit images of `shape` (h, w, c)."""
    with errors.as_settings("model", height="data.image_size", width="data.image_width"):
        unet.check(config_lib.model(config, shape[-1]), *shape[:2])


def warnings(config: ml_collections.ConfigDict) -> list[str]:
    """One line for each choice that runs but is likely not meant."""
    lines = []
    end = config_lib.schedule(config).alpha_bar[-1]
    if end > 0.01:
        lines.append(
            f"alpha_bar ends at {end:.3g}, above 0.01: sampling starts from pure noise that "
            "training never sees, so samples will be poor; use --config.diffusion.schedule=cosine "
            f"or larger betas such as --config.diffusion.beta_end={_enough(config):g}."
        )
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


def _enough(config) -> float:
    """A last beta at which a linear schedule of this length ends below 0.01."""
    return min(0.999, 0.02 * 1000 / config.diffusion.num_timesteps)
