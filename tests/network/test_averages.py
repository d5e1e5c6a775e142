"""Averages by power functions, against their weights written out and against quadrature."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddpm_jax.network import averages

TIMES = (np.arange(200_000) + 0.5) / 200_000  # Midpoints: errors of the integrals are 1e-9.


def weight(width, step, num_steps):
    """The weight of the parameters at each of TIMES * num_steps in the average at `step`."""
    power = averages.power(width)
    time = TIMES * num_steps / step
    return np.where(time < 1, (power + 1) / step * np.minimum(time, 1) ** power, 0)


def test_names():
    assert [averages.sigma_rel(name) for name in ("ema", "0.999", "sigma_rel=0.08")] == [
        None, None, 0.08,
    ]
    assert np.isnan(averages.sigma_rel("sigma_rel=wide"))


@pytest.mark.parametrize("width, power", [(0.05, 16.97), (0.10, 6.94)])
def test_the_powers_of_the_paper(width, power):
    assert_allclose(averages.power(width), power, atol=0.005)


@pytest.mark.parametrize("width", [0.01, 0.03, 0.1, 0.2, 0.28])
def test_the_width_is_the_standard_deviation_of_the_weight(width):
    p = weight(width, 1, 1) / len(TIMES)
    mean = np.sum(p * TIMES)
    assert_allclose(np.sqrt(np.sum(p * (TIMES - mean) ** 2)), width, rtol=1e-4)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.25])
def test_updates_sum_to_the_power_function(width):
    """Update tau has the weight (tau^(gamma+1) - (tau-1)^(gamma+1)) / t^(gamma+1) at step t."""
    name, steps = f"sigma_rel={width}", np.arange(1, 201)
    shares = [
        float(averages.share_at(name, step=jnp.int32(step), warmup=True)) for step in steps
    ]
    weights = np.zeros(len(steps))
    for i, share in enumerate(shares):
        weights *= 1 - share
        weights[i] = share
    exponent = averages.power(width) + 1
    wanted = (steps**exponent - (steps - 1.0) ** exponent) / 200.0**exponent
    assert_allclose(weights, wanted, rtol=0, atol=1e-6 * wanted.max())  # 200 roundings of 6e-8.


def test_late_shares_keep_their_digits():
    step = 2_000_000
    share = averages.share_at("sigma_rel=0.05", step=jnp.int32(step), warmup=False)
    exact = -np.expm1((averages.power(0.05) + 1) * np.log1p(-1 / step))
    assert_allclose(float(share), exact, rtol=1e-6)  # As 1 - 0.99999 it would be off by 1e-3.


def test_shares_of_exponential_averages():
    assert averages.share_at("0.999", step=jnp.int32(5), warmup=False) == 1 - 0.999
    early = averages.share_at("0.999", step=jnp.int32(5), warmup=True)
    assert_allclose(early, 1 - 6 / 15, rtol=1e-6)


@pytest.mark.parametrize("width", [0.03, 0.05, 0.08, 0.1, 0.15, 0.25])
@pytest.mark.parametrize("num_snapshots", [3, 8, 20])
def test_the_error_is_that_of_the_summed_weights(width, num_snapshots):
    step = 1000
    steps = np.repeat(np.linspace(0, step, num_snapshots + 1)[1:], 2)
    widths = np.tile([0.05, 0.1], num_snapshots)
    factors, error = averages.coefficients(steps, widths, step, width)
    summed = sum(f * weight(w, s, step) for f, s, w in zip(factors, steps, widths))
    wanted = weight(width, step, step)
    seen = np.linalg.norm(summed - wanted) / np.linalg.norm(wanted)
    assert_allclose(error, seen, rtol=1e-3, atol=1e-6)
    assert_allclose(factors.sum(), 1, rtol=1e-6)
    change = np.cos(np.arange(len(factors)))
    other = factors + 0.01 * (change - change.mean())  # No other sum with this total is nearer.
    farther = sum(f * weight(w, s, step) for f, s, w in zip(other, steps, widths))
    assert np.linalg.norm(farther - wanted) > np.linalg.norm(summed - wanted)


def test_what_was_tracked_is_taken_as_it_is():
    steps, widths = [400, 400, 1000, 1000], [0.05, 0.1, 0.05, 0.1]
    factors, error = averages.coefficients(steps, widths, 1000, 0.1)
    assert_allclose(factors, [0, 0, 0, 1], atol=1e-9)
    assert error < 1e-6


def test_more_snapshots_come_nearer():
    errors = [
        averages.coefficients(
            np.repeat(np.linspace(0, 1, n + 1)[1:], 2), np.tile([0.05, 0.1], n), 1, 0.15
        )[1] for n in (4, 8, 16, 32)
    ]
    assert all(after < before / 2 for before, after in zip(errors, errors[1:]))
    assert errors[-1] < 0.003
