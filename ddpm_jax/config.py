"""From a config to the objects it describes: schedule, network, optimizer, settings.

`configs/cifar10.py` lists every setting. The functions of the rooms take plain arguments.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from ddpm_jax import errors
from ddpm_jax import optimizer as optimizer_lib
from ddpm_jax.data import augmentation
from ddpm_jax.data import source as source_lib
from ddpm_jax.data import value_range as range_lib
from ddpm_jax.data import vectors as vectors_lib
from ddpm_jax.diffusion import losses, process, rescaled
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError
from ddpm_jax.network import averages, unet
from ddpm_jax.optimizer import LearningRate
from ddpm_jax.samplers import settings as settings_lib

DTYPES = ("float32", "bfloat16")
MAX_TIMESTEPS = 1_000_000


def schedule(config: ml_collections.ConfigDict) -> schedule_lib.Schedule:
    """The noise schedule of `config.diffusion`.

    Raises:
        ValueError: a setting is unknown or out of its range.
    """
    settings, base = config.diffusion, _base_schedule(config)
    if settings.shift_size:
        base = rescaled.shifted(base, settings.shift_size)
    if settings.zero_terminal_snr:
        with errors.as_settings("diffusion"):
            base = rescaled.zero_terminal_snr(base)
    return base


def _base_schedule(config):
    """The schedule of its name, before it is shifted or rescaled."""
    settings = config.diffusion
    if not 1 <= settings.num_timesteps <= MAX_TIMESTEPS:
        raise UserError(
            f"must be at least 1 and at most {MAX_TIMESTEPS:,}",
            field="config.diffusion.num_timesteps", value=settings.num_timesteps,
            instead={"config.diffusion.num_timesteps": 1000},
        )
    if settings.schedule == "betas":
        if not settings.betas:
            raise UserError(
                "is empty, but config.diffusion.schedule=betas takes T >= 1 variances",
                field="config.diffusion.betas", value=settings.betas,
                instead={"config.diffusion.betas": (0.1, 0.2, 0.5)},
            )
        with errors.as_settings("diffusion", beta="diffusion.betas"):
            return schedule_lib.from_betas(settings.betas)
    errors.check_known(
        "config.diffusion.schedule", settings.schedule, (*schedule_lib.NAMED, "betas")
    )
    ends = dict(start="diffusion.beta_start", end="diffusion.beta_end", beta="diffusion.beta_end")
    with errors.as_settings("diffusion", **ends):
        return schedule_lib.named(
            settings.schedule, settings.num_timesteps, settings.beta_start, settings.beta_end
        )


def parameterization(config: ml_collections.ConfigDict) -> process.Parameterization:
    """What the network predicts and the variance of the reverse steps."""
    return process.Parameterization(config.diffusion.mean, config.diffusion.variance)


def objective(config: ml_collections.ConfigDict) -> losses.Objective:
    """What training minimizes."""
    names = {field.name for field in dataclasses.fields(losses.Objective)} - {"bins"}
    return losses.Objective(
        **{name: config.diffusion[name] for name in names}, bins=bins(config)
    )


def value_range(config: ml_collections.ConfigDict) -> range_lib.Range:
    """The values of pixels that are -1 and 1; () for uint8.

    Raises:
        UserError: `config.data.range` is no range.
    """
    return range_lib.checked(config.data.range)


def bins(config: ml_collections.ConfigDict) -> int:
    """How many values a pixel can have; 0 for floats, and where the data are still to say."""
    return config.data.range_bins if config.data.range else 256


def model(config: ml_collections.ConfigDict, channels: int) -> unet.UNet:
    """The network of `config.model` for images of `channels`."""
    settings = config.model.to_dict()
    errors.check_known("config.model.dtype", settings["dtype"], DTYPES)
    data = config.data
    fields = settings | {
        "num_classes": data.num_classes if data.labels else 0,
        "vector_size": len(data.vector_mean) if data.vectors else 0,
        "condition_channels": data.condition_channels if data.condition else 0,
        "augment_channels": len(augmentation.PARAMETERS) if data.augment else 0,
        "channel_multipliers": tuple(settings["channel_multipliers"]),
        "attention_resolutions": tuple(settings["attention_resolutions"]),
        "num_groups": settings["num_groups"] or None,
        "out_channels": parameterization(config).out_channels(channels),
        "dtype": jnp.dtype(settings["dtype"]),
    }
    with errors.as_settings("model"):
        return unet.UNet(**fields)


def learning_rate(config: ml_collections.ConfigDict) -> LearningRate:
    """Number of updates done -> the rate of the next one.

    Raises:
        ValueError: a setting does not suit the schedule of the rate.
    """
    names = {field.name for field in dataclasses.fields(LearningRate)} - {"moved_start"}
    rate = LearningRate(**{name: config.train[name] for name in names})
    with errors.as_settings("train"):
        rate.check()
    return rate


def optimizer(
    config: ml_collections.ConfigDict, rate: LearningRate | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adam after clipping the global norm, as in the paper, or AdamW.

    Args:
        rate: if it is not that of the config.
    """
    train = config.train
    return optimizer_lib.adamw(
        rate or learning_rate(config), b1=train.adam_b1, b2=train.adam_b2, eps=train.adam_eps,
        weight_decay=train.weight_decay, max_norm=train.grad_clip,
    )


def extra_averages(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The names of the averages that are kept beside the EMA."""
    tracked = averages.TRACKED if config.train.ema_snapshot_every else ()
    return (*map(str, config.train.extra_ema_decays), *tracked)


def same_data(config: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> bool:
    """Whether both name the same data set, in the same folder or file."""
    return (config.data.name, config.data.dir) == (other.data.name, other.data.dir)


def data_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The arguments of `loading.load`, but for the split."""
    settings = config.data
    return dict(
        name=settings.name, data_dir=settings.dir, image_size=settings.image_size,
        image_width=settings.image_width, channels=settings.channels, holdout=settings.holdout,
        seed=config.seed, labels=settings.labels, num_classes=settings.num_classes,
        vectors=settings.vectors, condition=settings.condition, factor=settings.factor,
        image_column=settings.image_column, label_column=settings.label_column,
        value_range=value_range(config),
    )


def vector_scale(config: ml_collections.ConfigDict) -> vectors_lib.Scale:
    """The mean and the standard deviation of the numbers of the data; () where these are to say."""
    data = config.data
    return (tuple(data.vector_mean), tuple(data.vector_std)) if data.vector_mean else ()


def read_sampling(config: ml_collections.ConfigDict) -> settings_lib.Settings:
    """The settings of `config.sample`, unchecked."""
    names = (field.name for field in dataclasses.fields(settings_lib.Settings))
    with errors.as_settings("sample"):
        return settings_lib.Settings(**{name: config.sample[name] for name in names})


def sampling_settings(config: ml_collections.ConfigDict) -> settings_lib.Settings:
    """The settings of `config.sample`, checked on the schedule of the config."""
    settings, noise_schedule = read_sampling(config), schedule(config)
    with errors.as_settings("sample", num_levels="sample.num_steps"):
        settings.check()
        settings.chain(noise_schedule)
    return settings


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int] | None:
    """(h, w, c) where the config has all of it; None where the data decide."""
    height, channels = config.data.image_size, config.data.channels
    width = config.data.image_width or height
    return (height, width, channels) if height and channels else None


def resolved(
    config: ml_collections.ConfigDict, source: source_lib.Source
) -> ml_collections.ConfigDict:
    """A copy of the config with what the data decide filled in, as a run stores it.

    Raises:
        ValueError: the data have more classes than the config, or other values.
    """
    config = config.copy_and_resolve_references()
    data = config.data
    data.image_size, data.image_width, data.channels = source.image_shape
    data.labels = source.num_classes > 0
    data.condition = (data.condition or "stored") if source.condition_channels else ""
    if data.num_classes and source.num_classes > data.num_classes:
        raise UserError(
            f"is too few: the data have {source.num_classes} classes; write {{instead}}, or 0.",
            field="config.data.num_classes", value=data.num_classes,
            instead={"config.data.num_classes": source.num_classes},
        )
    data.num_classes = data.num_classes or source.num_classes
    data.class_names = _class_names(data, source)
    data.vectors = (data.vectors or ("vectors",)) if source.vector_size else ()
    data.vector_mean, data.vector_std = source.vector_scale or ((), ())
    data.condition_channels = source.condition_channels
    _resolve_values(data, source)
    return config


def _class_names(data, source):
    """The names of the classes: the config's, one for each, or those of the data."""
    names = tuple(data.class_names)
    if names and len(names) not in (data.num_classes, source.num_classes):
        raise UserError(
            f"has {len(names)} names for {data.num_classes} classes; write {{instead}}, those of "
            "the data.", field="config.data.class_names", value=names,
            instead={"config.data.class_names": source.class_names},
        )
    return names or source.class_names


def _resolve_values(data, source):
    """Fills in the range and the bins of the images; refuses others than the config's."""
    found = {
        "range": source.value_range, "range_bins": source.bins if source.value_range else 0,
    }
    for name, value in found.items():
        if data[name] and tuple(np.ravel(data[name])) != tuple(np.ravel(value)):
            raise UserError(
                f"is not that of the data, {value!r}", field=f"config.data.{name}",
                value=data[name], instead={f"config.data.{name}": value},
            )
        data[name] = value


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("GROUP.NAME", value) of every setting, lists as tuples."""
    for key, value in tree.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, list) else value
