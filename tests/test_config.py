"""Objects that are built from a config."""

import numpy as np

from ddpm_jax import config as config_lib
from ddpm_jax.configs import cifar10


def test_warm_up_is_linear_from_zero():
    config = cifar10.get_config()
    rate = config_lib.learning_rate(config)
    np.testing.assert_allclose(
        [rate(step) for step in (0, 2500, 5000, 10**6)], [0, 1e-4, 2e-4, 2e-4],
        rtol=1e-6,  # float32
    )
    config.train.warmup_steps = 0
    assert config_lib.learning_rate(config)(0) == 2e-4
