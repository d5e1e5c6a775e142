"""The held-out loss of each image against the loss written out, and against that of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data import loading
from ddpm_jax.data import source as source_lib
from ddpm_jax.diffusion import losses
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.errors import UserError
from ddpm_jax.inference import held_out_loss
from ddpm_jax.network.trained import denoise_fn
from ddpm_jax.runtime import parallel
from nonzero import SHAPE, tiny_trained
from training_step import held_out_loss as of_training
from training_step import small_config

T, N = 12, 21


@pytest.fixture(scope="module")
def trained():
    return tiny_trained(schedule_lib.linear(T, 1e-2, 0.6), "eps", "fixed_large")


def test_each_image_has_its_own_t_and_noise(trained):
    pixels = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), np.uint8)
    seen = held_out_loss.of_source(
        trained, 3, source_lib.in_memory(pixels, "images"), losses.Objective(), batch_size=8
    )
    t = np.arange(N) * T // N
    alpha_bar = np.cumprod(1 - np.linspace(1e-2, 0.6, T))[t][:, None, None, None]
    eps = np.stack([
        jax.random.normal(jax.random.fold_in(jax.random.key(3), i), SHAPE) for i in range(N)
    ])
    x_t = np.sqrt(alpha_bar) * (pixels / 127.5 - 1) + np.sqrt(1 - alpha_bar) * eps
    predicted = denoise_fn(trained)(jnp.float32(x_t), jnp.int32(t))
    wanted = np.mean((eps - predicted) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(seen, wanted, rtol=1e-5)  # Float32 sums over the pixels.


def test_its_mean_is_that_of_training(trained):
    config = small_config(batch_size=16, eval_images=N)
    trained = trained.replace(schedule=schedule_lib.linear(20, 1e-4, 0.4))
    source = loading.load("digits", split="test")
    evaluate = of_training(config, trained.model, source)
    chosen = source.select(source_lib.spread(0, len(source) - 1, N))
    each = held_out_loss.of_source(trained, jax.random.key(2), chosen, losses.Objective())
    np.testing.assert_allclose(
        each.mean(), evaluate(parallel.replicate(trained.params)), rtol=2e-5
    )


def test_images_of_another_size_are_refused(trained):
    pixels = np.zeros((4, 5, 5, 1), np.uint8)
    with pytest.raises(UserError, match="images are .5, 5, 1., .*config.data.image_size"):
        held_out_loss.of_source(
            trained, 3, source_lib.in_memory(pixels, "images"), losses.Objective()
        )
