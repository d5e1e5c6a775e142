"""The programs of a run, lowered for accelerators that are not here, from shapes alone."""

import dataclasses
import functools
from typing import Any

import jax
import ml_collections
import numpy as np
from jax import stages

from ddpm_jax import config as config_lib
from ddpm_jax import planning, validation
from ddpm_jax.data import loading
from ddpm_jax.data.source import Source
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.inference import bits_per_dim
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import compilation
from ddpm_jax.runtime.targets import Target
from ddpm_jax.samplers.settings import Settings
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import state as state_lib
from ddpm_jax.training import sharding, timesteps
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import pmap_train_step


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of a run for a target, from shapes alone.

    Attributes:
        config: resolved.
        target: the devices.
        source: images to train on, or one that stands in for them.
        held_out: images to evaluate; None where there are none.
        there: whether the data are on this machine.
        sampler: how to sample.
    """

    config: ml_collections.ConfigDict
    target: Target
    source: Source
    held_out: Source | None
    there: bool
    sampler: Settings

    @functools.cached_property
    def state(self) -> TrainState:
        """The shapes of a training state."""
        config, channels = self.config, self.source.image_shape[-1]

        def fresh():
            importance = config.train.t_sampling == "importance"
            return state_lib.fresh(
                config_lib.model(config, channels), config_lib.optimizer(config),
                jax.random.key(0), self.source.image_shape,
                extra_averages=config_lib.extra_averages(config),
                loss_history=timesteps.fresh(config.diffusion.num_timesteps) if importance else {},
            )

        return jax.eval_shape(fresh)

    @functools.cached_property
    def held(self) -> sharding.Held:
        """The shapes of what the devices hold between training steps."""
        return sharding.held_shapes(
            self.state, self.config.train.shard_update, len(self.target.devices)
        )

    @functools.cached_property
    def trained(self) -> Trained:
        """The shapes of what is sampled."""
        shape = self.source.image_shape
        return Trained(
            self.state.ema_params, config_lib.model(self.config, shape[-1]),
            config_lib.schedule(self.config), config_lib.parameterization(self.config), shape,
        )

    def train(self, batch_size: int) -> stages.Lowered:
        """The step of `train`."""
        config = self.config
        step = pmap_train_step(
            schedule=config_lib.schedule(config), learning_rate=config_lib.learning_rate(config),
            settings=run_lib.step_settings(config, self.target.platform),
            devices=self.target.devices,
        )
        with jax.default_matmul_precision(config.train.matmul_precision):
            return compilation.lowered(step, *self.held, self._batch(batch_size), _key())

    def sample(self, batch_size: int) -> stages.Lowered:
        """The chain of `sample`."""
        trained = self.trained
        chain = sample_lib.pmap_chain(
            (trained.model,), (trained.diffusion,), trained.image_shape, self.sampler,
            devices=self.target.devices,
        )
        reverse = jax.eval_shape(lambda x: x, self.sampler.chain(trained.schedule))
        model_kwargs = self._batch(batch_size)
        keys = _key(*model_kwargs.pop("images").shape[:2])
        return compilation.lowered(chain, (trained.params,), reverse, keys, model_kwargs)

    def bits_per_dim(self, batch_size: int) -> stages.Lowered:
        """The terms of the bound, with the precision of evaluation."""
        terms = bits_per_dim.pmap_terms(
            self.trained, clip=self.config.sample.clip, devices=self.target.devices
        )
        model_kwargs = self._batch(batch_size)
        images = model_kwargs.pop("images")
        with jax.default_matmul_precision(self.config.evaluate.matmul_precision):
            return compilation.lowered(
                terms, self.trained.params, images, _key(*images.shape[:2]), model_kwargs
            )

    def _batch(self, batch_size):
        """The shapes of a batch of `Source.examples`, [d, b, ...] each."""
        num_devices = len(self.target.devices)
        each = (num_devices, batch_size // num_devices)
        examples = jax.eval_shape(lambda: self.source.examples(np.zeros(1, np.int64)))
        return {
            name: jax.ShapeDtypeStruct((*each, *x.shape[1:]), x.dtype)
            for name, x in examples.items()
        }


def _key(*shape):
    return jax.ShapeDtypeStruct(shape, jax.eval_shape(lambda: jax.random.key(0)).dtype)


def programs(
    config: ml_collections.ConfigDict, target: Target, data: Any = None
) -> Programs:
    """The programs of a run, once its settings are known to be sound.

    Args:
        config: as in `configs/cifar10.py`.
        target: of `targets.find`.
        data: as of `train`.

    Raises:
        ValueError: a setting is wrong, or neither it nor the data give the shape of the images.
    """
    config = validation.validate(config, num_devices=len(target.devices))
    config = evaluate_lib.check_evaluation(config)
    sampler = config_lib.sampling_settings(config)
    there = data is not None or loading.is_there(config.data.name, config.data.dir)
    if there:
        source, held_out = run_lib.open_data(config, data)
    else:
        source, held_out = planning.stand_in(config, num_images=1), None
    config = config_lib.resolved(config, source)
    validation.check_images(config, source.image_shape)
    return Programs(config, target, source, held_out, there, sampler)
