"""Heun's method: its levels and its calls. Its plan is tested in test_solvers.py."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.samplers import heun as heun_lib
from gaussian import M, S, best_eps, run


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


@pytest.mark.parametrize("churn", [
    dict(s_churn=4.0), dict(s_churn=90.0, s_noise=1.007), dict(s_churn=9.0, s_min=0.1, s_max=20.0),
])
def test_churn_is_algorithm_2(churn):
    """Of Karras et al. 2022, in y = x / signal, with noise but for the first level."""
    schedule = schedule_lib.linear()
    plan = heun_lib.heun(schedule, 17, **churn)
    z = np.random.default_rng(0).standard_normal(17)

    class Draws:
        def standard_normal(self, shape, calls=iter(z)):
            return next(calls)

    x_T = 0.8
    states = run(plan, best_eps, x_T, Draws())
    sigma = np.exp(-schedule_lib.half_log_snr(schedule, heun_lib.karras(schedule, 9)))[::-1]

    def slope(y, noise):  # (y - D(y)) / noise, of the best denoiser of N(M, S^2).
        return noise * (y - M) / (S**2 + noise**2)

    y = x_T * np.sqrt(1 + sigma[0] ** 2)
    for i, noise in enumerate(sigma):
        inside = i and churn.get("s_min", 0) <= noise <= churn.get("s_max", np.inf)
        gamma = min(churn["s_churn"] / 9, np.sqrt(2) - 1) if inside else 0
        high = min(noise * (1 + gamma), sigma[0])
        fresh = z[2 * i - 1] if i else 0.0  # Drawn at the end of the step behind.
        y = y + np.sqrt(high**2 - noise**2) * churn.get("s_noise", 1.0) * fresh
        if i:
            assert_allclose(states[2 * i - 1] * np.sqrt(1 + high**2), y, rtol=1e-9)
        if i + 1 == len(sigma):
            y = y - high * slope(y, high)
        else:
            euler = y + (sigma[i + 1] - high) * slope(y, high)
            y = y + (sigma[i + 1] - high) * (slope(y, high) + slope(euler, sigma[i + 1])) / 2
    assert_allclose(states[-1], y, rtol=1e-9)
    assert gamma or "s_max" in churn  # Noise was added.


def test_churn_keeps_the_distribution():
    """The moments of samples of N(M, S^2), by the plan's own recursion, with 200 levels."""
    plan = heun_lib.heun(schedule_lib.linear(), 399, s_churn=40.0)

    class Chosen:
        def __init__(self, place):
            self.numbers = iter(np.eye(399)[place] if place is not None else np.zeros(399))

        def standard_normal(self, shape):
            return next(self.numbers)

    mean = run(plan, best_eps, 0.0, Chosen(None))[-1]
    of_x_T = run(plan, best_eps, 1.0, Chosen(None))[-1] - mean
    of_noise = [run(plan, best_eps, 0.0, Chosen(i))[-1] - mean
                for i in np.flatnonzero(plan.spread)]
    assert_allclose(mean, M, atol=1e-3)
    # The steps are short, and the noise forgets x_T: its share would be all without.
    assert_allclose(np.sqrt(of_x_T**2 + np.sum(np.square(of_noise))), S, rtol=5e-3)
    assert abs(of_x_T) < 0.2 * S


@pytest.mark.parametrize("name", heun_lib.CHURN)
def test_negative_churn_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1.0 must be at least 0"):
        heun_lib.heun(schedule_lib.linear(), 3, **{name: -1.0})
