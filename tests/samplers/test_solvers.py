"""Properties of the plans of all solvers, in float64 by a plain loop."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.samplers import dpm_solver
from ddpm_jax.samplers import heun as heun_lib
from ddpm_jax.samplers.settings import SAMPLERS, SOLVERS
from gaussian import best_eps, ode_end, run

LINEAR = schedule_lib.linear()
CALLS = {name: 19 if name == "heun" else 20 for name in SOLVERS}


@pytest.mark.parametrize("schedule", [LINEAR, schedule_lib.cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize("name, fewest, low, high", [
    # The first has steps of three calls, the second of two: 16 and 20 steps at first. The others
    # spend one more call on x_0.
    ("dpm_solver", 48, 2.8, 3.3), ("dpm_solver_2", 40, 1.9, 2.1),
    ("dpm_solver_pp", 40, 1.9, 2.1), ("dpm_solver_pp_3", 40, 1.9, 2.2),
    # The corrector adds one to the order; that of order 4 soon has no more digits to lose.
    ("unipc", 40, 2.9, 3.1), ("unipc_bh1", 40, 2.9, 3.1),
    ("unipc_3", 20, 3.5, 5.0), ("unipc_3_bh1", 20, 3.5, 5.0), ("heun", 80, 1.9, 2.1),
])
def test_solvers_converge_to_the_ode(schedule, name, fewest, low, high):
    """Their order is the slope of log error over log calls, up to 16 times as many."""
    calls = [fewest * 2**i for i in range(5)]
    one_more = name != "dpm_solver"
    errors = np.array([
        abs(run(SAMPLERS[name].plan(schedule, n + one_more), best_eps, 1.0)[-2]
            - ode_end(schedule, 1.0))
        for n in calls
    ])
    slope = -np.polyfit(np.log(calls), np.log(errors), 1)[0]
    assert low < slope < high
    assert np.all(errors[1:] < errors[:-1]) and errors[-1] < 2e-5


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 13, 14, 15, 16])
def test_every_step_is_exact_where_nothing_changes(name, num_steps):
    """If the network always predicts the same x_0 and eps, x stays on the line between them."""
    if name == "heun":
        num_steps = 2 * num_steps - 1
    plan = SAMPLERS[name].plan(LINEAR, num_steps)
    assert plan.num_calls == num_steps == len(plan.weights) == len(plan.keep)
    x_0, noise = 0.7, -1.3
    x = plan.signal[0] * x_0 + plan.sigma[0] * noise
    deterministic = plan.replace(spread=None)

    def predict(signal, sigma, x):
        return (x - signal * x_0) / sigma

    if name != "dpm_solver_pp_sde":
        passed = run(deterministic, predict, x)
        on_the_line = plan.signal[1:] * x_0 + plan.sigma[1:] * noise
        # atol: x / signal is 157 times x at first.
        assert_allclose(passed[:-1], on_the_line, rtol=0, atol=1e-9)
        assert_allclose(passed[-1], x_0, rtol=1e-9)
    else:  # x_0 keeps its place in the mean, and the variances add up to sigma^2.
        passed = run(deterministic, predict, plan.signal[0] * x_0)
        assert_allclose(passed[:-1], plan.signal[1:] * x_0, rtol=0, atol=1e-12)
        variance = (plan.keep * plan.sigma) ** 2
        variance += 0.0 if num_steps == 1 else plan.spread**2
        assert_allclose(variance[:-1], plan.sigma[1:] ** 2, rtol=1e-12)
        assert num_steps == 1 or np.all(plan.spread[:-1] > 0) and plan.spread[-1] == 0
    assert (plan.spread is None) == (name != "dpm_solver_pp_sde" or num_steps == 1)


def test_levels_are_told_as_fractional_t():
    """The network gets the t of the level that x is at."""
    for name, calls in CALLS.items():
        plan = SAMPLERS[name].plan(LINEAR, calls)
        ratio = np.exp(schedule_lib.half_log_snr(LINEAR, plan.t))
        assert_allclose(plan.signal / plan.sigma, ratio, rtol=1e-9)
        assert_allclose(plan.signal**2 + plan.sigma**2, 1)
        assert_allclose(plan.t[[0, -1]], [999, 0], atol=1e-9)


def test_levels_stop_where_nothing_is_left():
    """With the cosine schedule at lambda = -5.1, for any number of levels."""
    schedule = schedule_lib.cosine()
    for grid in (dpm_solver.log_snr, heun_lib.karras):
        for n in (1, 2, 30):
            t = grid(schedule, n)
            assert t.shape == (n,) and np.all(np.diff(t) > 0)
            assert_allclose(schedule_lib.half_log_snr(schedule, t[-1]), -5.1, rtol=1e-9)
            assert n == 1 or abs(t[0]) < 1e-9
    assert_allclose(dpm_solver.log_snr(schedule, 5)[-1], 995.08, atol=0.01)


def test_a_schedule_of_one_step_has_one_level():
    one = schedule_lib.linear(1)
    assert_allclose(dpm_solver.log_snr(one, 1), [0])
    assert_allclose(heun_lib.karras(one, 1), [0])
    noisy = schedule_lib.from_betas([1 - 1e-9])  # Noisier than lambda = -5.1 from the start.
    assert_allclose(dpm_solver.log_snr(noisy, 1), [0])
    with pytest.raises(ValueError, match="num_levels=2 is not possible: .* T=1 has one"):
        dpm_solver.log_snr(one, 2)
    with pytest.raises(ValueError, match="num_levels=0 is not possible"):
        heun_lib.karras(schedule_lib.linear(), 0)
