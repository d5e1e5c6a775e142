"""From a config to what it describes: checks first, then schedule, network and optimizer.

`configs/cifar10.py` lists every setting. Below this module functions take plain arguments.
"""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import ml_collections
import optax

from ddpm_jax import diffusion as diffusion_lib
from ddpm_jax import losses, sampling, sources, unet, wandb_writer
from ddpm_jax import schedule as schedule_lib
from ddpm_jax.configs import cifar10

DTYPES = ("float32", "bfloat16")
PRECISIONS = ("default", "high", "highest")
SCORES = ("fid", "sfid", "kid", "is", "precision_recall", "frechet_pixels")
EVALUATIONS = ("bpd", "ode_bpd", "progressive", "draws", *SCORES, "sweep",
               "nearest_pixels", "nearest_features")
AGAINST_REFERENCES = ("fid", "sfid", "kid", "precision_recall", "frechet_pixels")
DRAWN = ("progressive", "sweep")  # Without a single value.
T_SAMPLINGS = ("uniform", "antithetic", "importance")


def schedule(config: ml_collections.ConfigDict) -> schedule_lib.Schedule:
    """The noise schedule of `config.diffusion`, or ValueError naming the setting."""
    settings = config.diffusion
    if settings.num_timesteps < 1:
        raise ValueError(
            f"config.diffusion.num_timesteps={settings.num_timesteps} is too few; a chain has "
            "at least 1 step; try --config.diffusion.num_timesteps=1000."
        )
    if settings.schedule == "betas":
        return _named("betas", settings.betas, lambda: schedule_lib.from_betas(settings.betas))
    if settings.schedule not in schedule_lib.NAMED:
        raise ValueError(
            f"config.diffusion.schedule={settings.schedule!r} is not known; use one of "
            f"{', '.join(schedule_lib.NAMED)}, or betas with config.diffusion.betas."
        )
    for name in ("beta_start", "beta_end"):
        if not 0 < settings[name] <= 1:
            raise ValueError(
                f"config.diffusion.{name}={settings[name]:g} must lie in (0, 1]; try "
                f"--config.diffusion.{name}={1e-4 if name == 'beta_start' else 0.02:g}."
            )
    return _named("schedule", settings.schedule, lambda: schedule_lib.named(
        settings.schedule, settings.num_timesteps, settings.beta_start, settings.beta_end
    ))


def _named(setting, value, build):
    """Puts the setting's name before the message of an error in `build`."""
    try:
        return build()
    except ValueError as error:
        raise ValueError(f"config.diffusion.{setting}={value!r}: {error}") from None


def parameterization(config: ml_collections.ConfigDict) -> diffusion_lib.Parameterization:
    """What the network predicts and the variance of the reverse steps."""
    return diffusion_lib.Parameterization(config.diffusion.mean, config.diffusion.variance)


def objective(config: ml_collections.ConfigDict) -> losses.Objective:
    """What training minimises."""
    names = (field.name for field in dataclasses.fields(losses.Objective))
    return losses.Objective(**{name: config.diffusion[name] for name in names})


def model(config: ml_collections.ConfigDict, channels: int) -> unet.UNet:
    """The network of `config.model` for images of `channels`."""
    settings = config.model.to_dict()
    if settings["dtype"] not in DTYPES:
        raise ValueError(
            f"config.model.dtype={settings['dtype']!r} is not known; use one of "
            f"{', '.join(DTYPES)}."
        )
    data = config.data
    return unet.UNet(**(settings | {
        "num_classes": data.num_classes if data.labels else 0,
        "condition_channels": data.condition_channels if data.condition else 0,
        "channel_multipliers": tuple(settings["channel_multipliers"]),
        "attention_resolutions": tuple(settings["attention_resolutions"]),
        "num_groups": settings["num_groups"] or None,
        "out_channels": parameterization(config).out_channels(channels),
        "dtype": jnp.dtype(settings["dtype"]),
    }))


def learning_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Linear warm-up from 0 at the first update, then constant."""
    rate, steps = config.train.learning_rate, config.train.warmup_steps
    return optax.schedules.linear_schedule(0.0, rate, steps) if steps else (
        optax.schedules.constant_schedule(rate)
    )


def optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam after clipping the global norm (0: no clipping), as in the paper."""
    clip = config.train.grad_clip
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adam(learning_rate(config)),
    )


def data_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The arguments of `data.load`, but for the split."""
    settings = config.data
    return dict(
        name=settings.name, data_dir=settings.dir, image_size=settings.image_size,
        image_width=settings.image_width, channels=settings.channels, holdout=settings.holdout,
        seed=config.seed, labels=settings.labels, condition=settings.condition,
        factor=settings.factor,
    )


def sampling_settings(config: ml_collections.ConfigDict) -> sampling.Settings:
    """How to sample, checked."""
    settings = config.sample
    found = sampling.Settings(
        settings.sampler, settings.num_steps or None, settings.eta, settings.grid, settings.clip,
        settings.guidance, tuple(settings.guidance_interval),
        settings.rederive_eps, settings.dynamic_threshold,
    )
    found.check()
    return found


def with_sampler(
    config: ml_collections.ConfigDict, sampler: str, num_steps: int
) -> ml_collections.ConfigDict:
    """A copy of the config that samples so; what the sampler has no use for is at its default."""
    config = config.copy_and_resolve_references()
    settings = config.sample
    settings.sampler, settings.num_steps = sampler, num_steps
    if sampler != "ddim":
        settings.eta, settings.rederive_eps = 0.0, True
    if sampler not in ("ddim", "ancestral"):
        settings.grid = "uniform"
    return config


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int] | None:
    """(h, w, c) where the config says all of it, None where the data will."""
    height, channels = config.data.image_size, config.data.channels
    width = config.data.image_width or height
    return (height, width, channels) if height and channels else None


def resolved(
    config: ml_collections.ConfigDict, source: sources.Source
) -> ml_collections.ConfigDict:
    """A copy of the config that says what the data are, as it is stored with a run.

    Raises:
        ValueError: the data have more classes than the config.
    """
    config = config.copy_and_resolve_references()
    data = config.data
    data.image_size, data.image_width, data.channels = source.image_shape
    data.labels, data.condition = source.num_classes > 0, (
        (data.condition or "stored") if source.condition_channels else ""
    )
    if data.num_classes and source.num_classes > data.num_classes:
        raise ValueError(
            f"config.data.num_classes={data.num_classes}, but {data.name} has "
            f"{source.num_classes}; write --config.data.num_classes={source.num_classes}, or 0."
        )
    data.num_classes = data.num_classes or source.num_classes
    data.condition_channels = source.condition_channels
    return config


def validate(config: ml_collections.ConfigDict, *, num_devices: int) -> None:
    """Checks every relation between settings that can be checked without the data.

    Args:
        config: as in `configs/cifar10.py`.
        num_devices: devices of all processes together.

    Raises:
        ValueError: one line naming the setting, its value, the rule and what works.
    """
    check_numbers(config)
    parameterization(config).check(schedule(config))
    objective(config).check(parameterization(config))
    if config.train.t_sampling not in T_SAMPLINGS:
        raise ValueError(
            f"config.train.t_sampling={config.train.t_sampling!r} is not known; use one of "
            f"{', '.join(T_SAMPLINGS)}."
        )
    _check_batch(config.train.batch_size, config.train.accumulate, num_devices)
    _check_precision("train", config.train.matmul_precision)
    _check_profile(config.train)
    wandb_writer.check(config.train.wandb)
    shape = image_shape(config)
    if shape:
        check_images(config, shape)


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError naming the first single number that is out of its range."""
    huge = float("inf")
    for setting, low, high, works in (  # lowest, highest, a value that works
        ("seed", 0, huge, 0),
        ("data.image_size", 0, huge, 32),
        ("data.image_width", 0, huge, 0),
        ("data.channels", 0, huge, 3),
        ("data.holdout", 0, huge, 0),
        ("data.num_classes", 0, huge, 0),
        ("data.condition_channels", 0, huge, 0),
        ("data.factor", 2, huge, 2),
        ("model.channels", 2, huge, 128),
        ("model.num_res_blocks", 1, huge, 2),
        ("model.dropout", 0, 0.999, 0.1),
        ("model.norm_eps", 1e-12, 1, 1e-6),
        ("model.timestep_scale", 1e-9, huge, 1.0),
        ("diffusion.min_snr_gamma", 1e-9, huge, 5.0),
        ("diffusion.p2_k", 1e-9, huge, 1.0),
        ("diffusion.p2_gamma", 0, huge, 1.0),
        ("train.num_steps", 1, huge, 800_000),
        ("train.batch_size", 1, huge, 128),
        ("train.learning_rate", 1e-12, huge, 2e-4),
        ("train.warmup_steps", 0, huge, 5000),
        ("train.grad_clip", 0, huge, 1.0),
        ("train.ema_decay", 0, 1 - 1e-9, 0.9999),
        ("train.accumulate", 1, huge, 1),
        ("train.label_dropout", 0, 1, 0.1),
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
        ("sample.seed", 0, huge, 0),
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
        ("evaluate.seed", 0, huge, 0),
    ):
        group, _, name = setting.rpartition(".")
        value = (config[group] if group else config)[name]
        if not low <= value <= high:
            rule = f"at least {low:g}" if high == huge else f"in [{low:g}, {high:g}]"
            raise ValueError(
                f"config.{setting}={value} must be {rule}; try --config.{setting}={works}."
            )
    _check_tuples(config)


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
        bad = [v for v in values if not isinstance(v, kind) or v <= 0]
        if bad or (name in ("channel_multipliers", "sweep_steps") and not values):
            raise ValueError(
                f"config.{setting}={values!r} must be {rule}; try "
                f'--config.{setting}="{works}".'
            )


def _check_batch(batch_size, accumulate, num_devices):
    if batch_size % num_devices:
        nearest = max(1, round(batch_size / num_devices)) * num_devices
        raise ValueError(
            f"config.train.batch_size={batch_size} does not divide over {num_devices} devices; "
            f"try --config.train.batch_size={nearest}."
        )
    share = batch_size // num_devices
    if share % accumulate:
        works = max(k for k in range(1, accumulate) if share % k == 0)
        raise ValueError(
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
        raise ValueError(
            f"config.train.profile={train.profile!r} must be the first and the last step to trace, "
            f"whole numbers in 1..{train.num_steps}, or () for none; try "
            f'--config.train.profile="{(min(20, train.num_steps), min(25, train.num_steps))}".'
        )


def check_evaluation(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError naming the first setting by which nothing can be measured."""
    check_numbers(config)
    settings = config.evaluate
    for metric in settings.metrics:
        if metric not in EVALUATIONS:
            raise ValueError(
                f"config.evaluate.metrics has {metric!r}, which is not known; use some of "
                f"{', '.join(EVALUATIONS)}, written as --config.evaluate.metrics=\"('bpd',)\"."
            )
    if not settings.metrics:
        raise ValueError(
            "config.evaluate.metrics=() asks for nothing; try "
            "--config.evaluate.metrics=\"('bpd',)\"."
        )
    which = settings.checkpoints
    if which not in ("newest", "all", "follow") and not which.isdigit():
        raise ValueError(
            f"config.evaluate.checkpoints={which!r} must be newest, all, follow or a step; try "
            "--config.evaluate.checkpoints=newest."
        )
    if "sweep" in settings.metrics:
        _check_sweep(config)
    names = ["/".join(filter(None, item)) for item in measured(config) if item[0] not in DRAWN]
    if settings.best and settings.best not in names:
        raise ValueError(
            f"config.evaluate.best={settings.best!r} is not measured; use one of "
            f"{', '.join(names)}, such as --config.evaluate.best={names[0]}."
            if names else f"config.evaluate.best={settings.best!r} needs a metric with a value; "
            "add such as 'bpd' to config.evaluate.metrics."
        )
    _check_precision("evaluate", settings.matmul_precision)


def _check_sweep(config):
    settings, found = config.evaluate, schedule(config)
    if settings.sweep_metric not in SCORES:
        raise ValueError(
            f"config.evaluate.sweep_metric={settings.sweep_metric!r} is no score of samples; use "
            f"one of {', '.join(SCORES)}."
        )
    if not settings.sweep_samplers:
        raise ValueError(
            "config.evaluate.sweep_samplers=() leaves no rows; try "
            "--config.evaluate.sweep_samplers=\"('ddim', 'dpm_solver_pp')\"."
        )
    for sampler in settings.sweep_samplers:
        for steps in settings.sweep_steps:
            try:
                how = sampling_settings(with_sampler(config, sampler, steps))
                calls = how.num_calls(found)
            except ValueError as error:
                raise ValueError(
                    f"config.evaluate.sweep_steps has {steps}, and {sampler!r} of "
                    f"config.evaluate.sweep_samplers cannot: {error}"
                ) from None
            if calls != steps:
                raise ValueError(
                    f"config.evaluate.sweep_steps has {steps}, and {sampler!r} makes {calls} "
                    f"calls on config.sample.grid={config.sample.grid!r}; write "
                    "--config.sample.grid=uniform."
                )
            if config.diffusion.mean == "x_prev" and not how.by_grid:
                raise ValueError(
                    f"config.evaluate.sweep_samplers has {sampler!r}, which cannot go with "
                    "config.diffusion.mean='x_prev'; use 'ancestral' and 'ddim' alone."
                )


def measured(config: ml_collections.ConfigDict) -> list[tuple[str, str | None]]:
    """(metric, reference or None) of everything that `config.evaluate` asks for."""
    settings = config.evaluate

    def references(metric):
        scored = settings.sweep_metric if metric == "sweep" else metric
        return map(str, settings.references) if scored in AGAINST_REFERENCES else (None,)

    return [(metric, against) for metric in settings.metrics for against in references(metric)]


def _check_precision(group, value):
    if value not in PRECISIONS:
        raise ValueError(
            f"config.{group}.matmul_precision={value!r} is not known; use one of "
            f"{', '.join(PRECISIONS)}."
        )


def check_images(config: ml_collections.ConfigDict, shape: tuple[int, int, int]) -> None:
    """Raises ValueError where the network does not suit images of `shape` (h, w, c)."""
    try:
        unet.check(model(config, shape[-1]), *shape[:2])
    except ValueError as error:
        raise ValueError(str(error).replace("model.", "config.model.").replace(
            "--config.config.", "--config.")) from None


def warnings(config: ml_collections.ConfigDict) -> list[str]:
    """One line for each choice that runs but is likely not meant."""
    lines = []
    end = schedule(config).alpha_bar[-1]
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


def dump(config: ml_collections.ConfigDict) -> str:
    """The config as JSON text."""
    return config.to_json(indent=2)


def parse(text: str) -> ml_collections.ConfigDict:
    """The config that `dump` wrote, locked, lists as tuples again.

    Settings that it does not have, being older than they are, get the value of
    `configs/cifar10.py`, which is what they were before they could be set.
    """
    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: frozen(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, list) else value

    with cifar10.get_config().unlocked() as config:
        config.update(ml_collections.ConfigDict(frozen(json.loads(text))))
    return config


# What a workdir's parameters and optimizer state depend on; the rest may change on resume.
_FIXED = ("model", "diffusion", "data.image_size", "data.image_width", "data.channels",
          "data.labels", "data.num_classes", "data.condition", "data.condition_channels",
          "data.factor", "train.extra_ema_decays", "train.t_sampling")
_FREE = ("model.dropout", "model.dtype")


def check_same_run(
    config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, workdir: Any
) -> None:
    """Raises ValueError naming the first setting in which `workdir` holds another model."""
    def leaves(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key, tuple(value) if isinstance(value, (list, tuple)) else value

    now, before = (dict(leaves(c.to_dict())) for c in (config, stored))
    for name, value in now.items():
        fixed = name.startswith(tuple(f"{group}." for group in _FIXED)) or name in _FIXED
        if fixed and name not in _FREE and value != before.get(name):
            raise ValueError(
                f"config.{name}={value!r}, but {workdir} was made with {before.get(name)!r}; "
                f"write --config.{name}={before.get(name)!r}, or name another --workdir."
            )


def as_stored(
    config: ml_collections.ConfigDict, stored: ml_collections.ConfigDict, workdir: Any
) -> ml_collections.ConfigDict:
    """`config` for use with a finished run: how to sample is its own, the model the run's.

    Raises:
        ValueError: it describes another model than the run's.
    """
    config = config.copy_and_resolve_references()
    for name in ("image_size", "image_width", "channels", "num_classes", "condition_channels"):
        config.data[name] = config.data[name] or stored.data[name]
    config.train = stored.train
    check_same_run(config, stored, workdir)
    return config
