"""Heun's method: its levels and its calls. Its plan is tested in test_solvers.py."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.samplers import heun as heun_lib


def test_karras_levels():
    schedule = schedule_lib.linear()
    sigma = np.exp(-schedule_lib.half_log_snr(schedule, heun_lib.karras(schedule, 18)))
    low, high = 0.010000500037, 157.40728081  # Of the handbook.
    expected = [
        (high ** (1 / 7) + i / 17 * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        for i in range(18)
    ]
    assert_allclose(sigma[::-1], expected, rtol=1e-8)


@pytest.mark.parametrize("num_steps, instead", [(20, 19), (-1, 1)])
def test_an_even_number_of_calls_is_refused(num_steps, instead):
    says = f"num_steps={num_steps} must be odd .* write num_steps={instead}"
    with pytest.raises(ValueError, match=says):
        heun_lib.heun(schedule_lib.linear(), num_steps)
