"""What a training run is made of: its config, data, schedule, network and first state."""

import dataclasses
from typing import Any

import jax
import ml_collections

from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.data import loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.data.source import Source
from ddpm_jax.diffusion import randomness
from ddpm_jax.errors import UserError
from ddpm_jax.runtime import parallel
from ddpm_jax.training import memory_check, timesteps, warm_start
from ddpm_jax.training import state as state_lib
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import StepSettings
from ddpm_jax.workdir import run_folder, wandb_writer
from ddpm_jax.workdir.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of, once its settings are known to be sound.

    Attributes:
        config: with the shape of the images in it.
        workdir: made and writable; None where nothing is to be kept.
        source: images to train on.
        held_out: images kept from training; None where there are none.
        schedule: the noise schedule.
        model: the network.
    """

    config: ml_collections.ConfigDict
    workdir: Any
    source: Any
    held_out: Any
    schedule: Any
    model: Any

    def rng(self, use: int) -> jax.Array:
        """The key of one use of randomness, of those below the seed of a run."""
        return randomness.below(self.config.seed, use)


def prepare(config: ml_collections.ConfigDict, workdir: Any, data: Any) -> Run:
    """Checks everything, makes the workdir and opens the data; compiles nothing.

    Args:
        config, data: as of `train`.
        workdir: None writes nothing.

    Raises:
        ValueError: as `train` does.
    """
    validation.validate(config, num_devices=jax.device_count())
    wandb_writer.check(config.train.wandb)
    if shape := config_lib.image_shape(config):  # Known before there are data.
        memory_check.check(config, shape)
    workdir = workdir if workdir is None else run_folder.create(workdir)
    source, held_out = open_data(config, data)
    config = config_lib.resolved(config, source)
    validation.check_images(config, source.image_shape)
    memory_check.check(config, source.image_shape)
    parallel.check_same(config=run_folder.dump(config), data=(len(source), source.image_shape))
    model = config_lib.model(config, source.image_shape[-1])
    return Run(config, workdir, source, held_out, config_lib.schedule(config), model)


def fresh_state(run: Run) -> TrainState:
    """The state at step 0."""
    train = run.config.train
    importance_sampled = train.t_sampling == "importance"
    return state_lib.create(
        run.model, config_lib.optimizer(run.config), run.rng(randomness.INIT),
        run.source.image_shape, extra_ema_decays=tuple(train.extra_ema_decays),
        loss_history=(
            timesteps.fresh(run.schedule.num_timesteps) if importance_sampled else {}
        ),
    )


def first_state(run: Run, checkpoints: Checkpoints) -> TrainState:
    """The state of the newest checkpoint; where there is none, a fresh one or a warm start."""
    state = fresh_state(run)
    restored = checkpoints.restore(state_lib.to_saved(state), added=state_lib.ADDED)
    return state.replace(**restored[1]) if restored else warm_start.state(
        state, run.config.train.warm_start, run.model, run.source.image_shape
    )


def open_data(config: ml_collections.ConfigDict, data: Any):
    """The images to train on and those held out (None where there are none)."""
    if data is not None:
        source = data if isinstance(data, Source) else source_lib.from_array(data)
        there = {"labels": source.num_classes, "condition": source.condition_channels}
        for name in there:
            if config.data[name] and not there[name]:
                raise UserError(
                    f"config.data.{name}={config.data[name]!r}, but the array given has none; pass "
                    f"data=ddpm_jax.data.from_array(images, {name}=...)."
                )
        return source, None
    settings = config_lib.data_settings(config)
    return tuple(loading.load(split=split, **settings) for split in ("train", "test"))


def step_settings(config: ml_collections.ConfigDict) -> StepSettings:
    """The settings of `train_step` from a config."""
    return StepSettings(
        parameterization=config_lib.parameterization(config),
        objective=config_lib.objective(config),
        t_sampling=config.train.t_sampling,
        random_flip=config.data.random_flip,
        label_dropout=config.train.label_dropout,
        null_label=config.data.num_classes,
        accumulate=config.train.accumulate,
        remat=config.train.remat,
        ema_decay=config.train.ema_decay,
        ema_warmup=config.train.ema_warmup,
        log_every=config.train.log_every,
    )
