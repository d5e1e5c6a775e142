"""A small training step, with a state whose every leaf is non-zero."""

import jax
import jax.numpy as jnp

from ddpm_jax import config as config_lib
from ddpm_jax.configs import digits
from ddpm_jax.training import monitoring
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import state as state_lib
from ddpm_jax.training import step as step_lib
from ddpm_jax.training import timesteps
from nonzero import SHAPE, nonzero_params

BATCH = 16


def small_config(**train):
    config = digits.get_config()
    config.model.channels, config.model.num_groups = 8, 0
    config.model.dropout = 0.0
    config.diffusion.num_timesteps = 20
    config.diffusion.beta_end = 0.4
    config.train.batch_size = BATCH
    config.train.ema_warmup = False
    config.train.warmup_steps = 0
    for name, value in train.items():
        config.train[name] = value
    return config


def state_of(config, model):
    state = state_lib.create(
        model, config_lib.optimizer(config), jax.random.key(0), SHAPE,
        extra_averages=config_lib.extra_averages(config),
        loss_history=timesteps.fresh(config.diffusion.num_timesteps)
        if config.train.t_sampling == "importance" else None,
    )
    params = jax.tree.map(jnp.asarray, nonzero_params(model))
    # The average differs from the parameters, so that confusing the two is noticed.
    ema = jax.tree.map(lambda x: 2 * x, params)
    return state.replace(params=params, ema_params=ema)


def step_of(config):
    return step_lib.pmap_train_step(
        schedule=config_lib.schedule(config),
        learning_rate=config_lib.learning_rate(config),
        settings=run_lib.step_settings(config),
    )


def held_out_loss(config, model, source):
    return monitoring.held_out_loss(
        source, jax.random.key(2), model=model, schedule=config_lib.schedule(config),
        parameterization=config_lib.parameterization(config),
        objective=config_lib.objective(config), num_images=config.train.eval_images,
        batch_size=config.train.batch_size,
    )
