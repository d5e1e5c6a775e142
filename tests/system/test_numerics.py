"""Faster arithmetic changes the losses of a hundred steps on digits by no more than it may."""

import numpy as np
import pytest

from ddpm_jax.configs import digits
from ddpm_jax.data import loading
from ddpm_jax.training import loop
from ddpm_jax.workdir.metrics_file import read_metrics

STEPS = 100


def losses(workdir, **settings):
    """The loss of every step, [STEPS]: digits at 32x32 in a network of 32 channels."""
    config = digits.get_config()
    config.update_from_flattened_dict({
        "model.channels": 32, "model.channel_multipliers": (1,), "model.num_res_blocks": 1,
        "model.attention_resolutions": (), "train.num_steps": STEPS, "train.batch_size": 8,
        "train.log_every": 1, "train.eval_images": 0, "train.eval_every": STEPS,
        "train.sample_every": STEPS, "train.sample_images": 1, "train.checkpoint_every": STEPS,
        "train.warmup_steps": 10, "diffusion.num_timesteps": 50, **settings,
    })
    images = np.kron(loading.digits("train")[0][:256], np.ones((1, 4, 4, 1), np.uint8))
    loop.train(config, workdir, images)
    return np.array([row["loss"] for row in read_metrics(workdir)])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Without Winograd or bfloat16, and without recomputing activations."""
    loss = losses(tmp_path_factory.mktemp("plain"), **{"train.matmul_precision": "highest"})
    assert loss.shape == (STEPS,) and loss[-10:].mean() < loss[:10].mean() / 2
    return loss


@pytest.mark.slow
@pytest.mark.parametrize("settings, bound", [
    # Adam divides by the size of past gradients, so rounding errors grow with the steps: measured
    # 7e-7, 1.2e-2 and 4e-7. A row of Winograd's coefficients wrong by 0.1 % gives 6e-4.
    ({}, 1e-5), ({"model.dtype": "bfloat16"}, 3e-2), ({"train.remat": True}, 1e-5),
])
def test_a_hundred_steps_have_the_losses_of_plain_float32(tmp_path, plain, settings, bound):
    fast = losses(tmp_path, **settings)
    assert np.any(fast != plain)  # So the setting has an effect.
    np.testing.assert_allclose(fast, plain, rtol=bound)
