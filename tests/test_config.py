"""Objects that are built from a config."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.configs import cifar10
from ddpm_jax.diffusion import rescaled
from ddpm_jax.samplers.settings import Settings


def test_warm_up_is_linear_from_zero():
    config = cifar10.get_config()
    rate = config_lib.learning_rate(config)
    np.testing.assert_allclose(
        [rate(step) for step in (0, 2500, 5000, 10**6)], [0, 1e-4, 2e-4, 2e-4],
        rtol=1e-6,  # float32
    )
    config.train.warmup_steps = 0
    assert config_lib.learning_rate(config)(0) == 2e-4


@pytest.mark.parametrize("settings, says", [
    (dict(sampler="euler"), "config.sample.sampler='euler' is not known; use one of ancestral"),
    (dict(eta=0.5), "config.sample.eta=0.5 is for 'ddim' alone, and has no effect with "
     "config.sample.sampler='ancestral'; write --config.sample.eta=0.0."),
    (dict(sampler="heun"), "config.sample.sampler='heun' needs .*--config.sample.num_steps=21."),
    (dict(sampler="heun", num_steps=4), "config.sample.num_steps=4 .*--config.sample.num_steps=3."),
    (dict(grid="5,x"), "config.sample.grid='5,x' must be 1 to 1000 whole numbers"),
    (dict(grid="ddim50", num_steps=9),
     "config.sample.num_steps=9 does not go with config.sample.grid='ddim50', .*num_steps=50."),
    (dict(guidance_interval=(9.0, 3.0)), r'--config.sample.guidance_interval="\(100, 700\)".'),
])
def test_mistakes_in_sampling_are_told_as_flags(settings, says):
    config = cifar10.get_config()
    config.sample.update(settings)
    with pytest.raises(ValueError, match=says) as error:
        config_lib.sampling_settings(config)
    assert "\n" not in str(error.value)


def test_sampling_settings_have_the_names_of_the_config():
    config = cifar10.get_config()
    config.sample.update(dict(sampler="ddim", num_steps=50, eta=0.5, guidance=2.0))
    settings = config_lib.sampling_settings(config)
    assert settings == Settings("ddim", 50, 0.5, guidance=2.0)
    config.sample.num_steps = 0
    assert config_lib.sampling_settings(config).num_steps is None


def test_the_optimizer_has_the_settings_of_the_config():
    config = cifar10.get_config()
    config.train.update(dict(
        learning_rate=0.1, warmup_steps=0, adam_b1=0.8, adam_b2=0.95, adam_eps=1e-3, grad_clip=0.5,
        weight_decay=0.3,
    ))
    params, grads = {"kernel": jnp.array([2.0])}, {"kernel": jnp.array([4.0])}
    tx = config_lib.optimizer(config)
    updates, _ = tx.update(grads, tx.init(params), params, norm=jnp.float32(4.0))
    # Clipped to 0.5; the averages of one gradient are itself and its square.
    np.testing.assert_allclose(
        updates["kernel"], [-0.1 * (0.5 / (0.5 + 1e-3) + 0.3 * 2)], rtol=1e-6
    )


def test_a_mistake_in_a_schedule_is_told_as_a_flag():
    config = cifar10.get_config()
    config.train.decay_start = 5
    with pytest.raises(ValueError, match="^config.train.decay_start=5 is for .*"
                       "config.train.schedule='constant'; write --config.train.decay_start=0.$"):
        config_lib.learning_rate(config)


def test_a_schedule_is_shifted_and_then_rescaled():
    config = cifar10.get_config()
    plain = config_lib.schedule(config)
    config.diffusion.shift_size = 256
    shifted = config_lib.schedule(config)
    np.testing.assert_array_equal(shifted.beta, rescaled.shifted(plain, 256).beta)
    config.diffusion.zero_terminal_snr = True
    np.testing.assert_array_equal(
        config_lib.schedule(config).beta, rescaled.zero_terminal_snr(shifted).beta
    )


def test_zero_terminal_snr_needs_another_mean():
    config = cifar10.get_config()
    config.diffusion.zero_terminal_snr = True
    with pytest.raises(ValueError, match="config.diffusion.mean='eps' cannot go with a schedule"):
        validation.validate(config, num_devices=1)
    config.diffusion.mean = "v"
    validation.validate(config, num_devices=1)
    config.diffusion.num_timesteps = 1
    with pytest.raises(ValueError, match="config.diffusion.num_timesteps=1 needs two steps"):
        validation.validate(config, num_devices=1)
