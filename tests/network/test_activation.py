"""Swish against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from ddpm_jax.network.activation import swish


def test_swish_and_its_derivative():
    x = np.concatenate([np.linspace(-12, 12, 97), [-1e4, -100, 100, 1e4]])
    y, dy = jax.jvp(swish, (jnp.float32(x),), (jnp.ones(len(x)),))
    sigmoid = 1 / (1 + np.exp(-np.float64(np.float32(x)).clip(-700)))
    assert_allclose(y, x * sigmoid, rtol=2e-6, atol=1e-30)
    # The sigmoid is known to the last digit of 1, 1e-7, and is multiplied by up to 1 + |x|.
    assert (np.abs(dy - sigmoid * (1 + x * (1 - sigmoid))) < 2e-7 * (1 + np.abs(x))).all()
    assert dy[-1] == 1 and dy[-4] == 0
