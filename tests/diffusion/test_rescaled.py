"""Schedules made of others: log SNR moved alike at every step, and nothing left at the end."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddpm_jax.diffusion import rescaled
from ddpm_jax.diffusion import schedule as schedule_lib


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("size, base", [(256, 64), (32, 64), (128, 32)])
def test_a_shift_moves_log_snr_alike_at_every_step(name, size, base):
    schedule = schedule_lib.named(name, 200, 1e-4, 0.02)
    moved = rescaled.shifted(schedule, size, base=base)
    # Twice lambda; each beta is rounded, and alpha_bar is the product of 200.
    after, before = map(schedule_lib.half_log_snr_table, (moved, schedule))
    assert_allclose(2 * (after - before), 2 * np.log(base / size), rtol=1e-9)
    assert_allclose(rescaled.shifted(schedule, 64).beta, schedule.beta, rtol=1e-9)
    with pytest.raises(ValueError, match="size=0 must be"):
        rescaled.shifted(schedule, 0)


@pytest.mark.parametrize("name", ["linear", "quadratic", "cosine"])
def test_nothing_is_left_at_a_zero_terminal_snr(name):
    """Algorithm 1 of Lin et al. 2024: a line through sqrt(alpha_bar)."""
    schedule = schedule_lib.named(name, 50, 1e-3, 0.2)
    end = rescaled.zero_terminal_snr(schedule)
    assert end.beta[-1] == 1 and end.alpha_bar[-1] == 0
    assert_allclose(end.alpha_bar[0], schedule.alpha_bar[0], rtol=1e-12)
    slope, offset = np.polyfit(schedule.sqrt_alpha_bar, end.sqrt_alpha_bar, 1)
    assert_allclose(slope * schedule.sqrt_alpha_bar + offset, end.sqrt_alpha_bar, atol=1e-12)
    assert slope > 1 and offset < 0
    with pytest.raises(ValueError, match="num_timesteps=1 needs two steps or more"):
        rescaled.zero_terminal_snr(schedule_lib.linear(1))


def test_the_rescaled_betas_are_those_of_diffusers():
    """Of its rescale_zero_terminal_snr on the paper's schedule in float64, version 0.42.1."""
    beta = rescaled.zero_terminal_snr(schedule_lib.linear()).beta
    theirs = [1e-4, 0.0001206866355106806, 0.010292617426392092, 0.7522672311504667, 1.0]
    assert_allclose(beta[[0, 1, 500, 998, 999]], theirs, rtol=1e-9)
