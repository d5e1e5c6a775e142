"""What is watched while training: the held-out loss and the cost of grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as config_lib
from ddpm_jax.configs import cifar10, digits
from ddpm_jax.data import loading
from ddpm_jax.diffusion import losses, randomness
from ddpm_jax.runtime import parallel
from ddpm_jax.training import monitoring
from ddpm_jax.training import run as run_lib
from nonzero import SHAPE, TinyNet, nonzero_params
from training_step import held_out_loss, small_config

# Relative float32 roundings: eight shares are summed in another order than one batch.
SAME = dict(rtol=2e-5, atol=1e-7)


def grid_cost(config, sets):
    settings = run_lib.loop_settings(config)
    return monitoring.grid_cost(settings, config.diffusion.num_timesteps, sets=sets)


def test_held_out_loss_counts_a_ragged_batch_exactly():
    model, params = TinyNet(), nonzero_params(TinyNet())
    source = loading.load("digits", split="test")
    losses_of = {}
    for batch in (8, 16):
        config = small_config(batch_size=batch, eval_images=21)
        evaluate = held_out_loss(config, model, source)
        losses_of[batch] = evaluate(parallel.replicate(params))
    np.testing.assert_allclose(losses_of[8], losses_of[16], **SAME)

    images = source.read(np.linspace(0, 299, 21).round().astype(int)) / np.float32(127.5) - 1
    rngs = randomness.image_keys(jax.random.key(2), jnp.arange(21))
    eps = jax.vmap(lambda rng: jax.random.normal(rng, SHAPE))(rngs)
    loss = losses.training_loss(
        config_lib.schedule(config),
        jax.jit(lambda x, t: model.apply({"params": params}, x, t, train=False)),
        images.astype(np.float32), jnp.arange(21) * 20 // 21, eps,
    )
    np.testing.assert_allclose(losses_of[8], loss.mean(), **SAME)


@pytest.mark.parametrize("make", [cifar10.get_config, digits.get_config, small_config])
@pytest.mark.parametrize("sample_every", [1, 30, 1000, 10**6])
def test_grids_cost_at_most_a_tenth(make, sample_every):
    config = make()
    config.train.sample_every = sample_every
    for sets in (1, 2):
        images, steps = grid_cost(config, sets=sets)
        training_calls = 3 * min(sample_every, config.train.num_steps) * config.train.batch_size
        assert images >= 1 and steps >= 1
        assert images * steps * sets <= max(training_calls / 10, sets)


def test_a_grid_is_full_where_the_run_pays_for_it():
    assert grid_cost(cifar10.get_config(), sets=2) == (64, 1000)
    assert grid_cost(digits.get_config(), sets=1) == (64, 150)
