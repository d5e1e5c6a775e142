"""Settings of a run of a few steps; the fixture `tiny` of conftest.py gives it a tiny network."""

from ddpm_jax.configs import digits


def tiny_config(**settings):
    config = digits.get_config()
    config.diffusion.num_timesteps = 20
    config.diffusion.beta_end = 0.4
    config.train.batch_size = 16
    config.train.num_steps = 6
    config.train.log_every = 1
    config.train.eval_images = 16
    config.train.sample_images = 8
    config.update_from_flattened_dict(settings)
    return config
