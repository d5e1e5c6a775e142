"""Plans of DPM-Solver and DPM-Solver++ against the published rules, in float64."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.samplers import dpm_solver
from ddpm_jax.samplers.settings import SAMPLERS
from gaussian import best_eps, level, ode_end, run

LINEAR = schedule_lib.linear()


def test_3m_has_less_error_than_2m():
    errors = [
        abs(run(SAMPLERS[name].plan(LINEAR, 161), best_eps, 1.0)[-2] - ode_end(LINEAR, 1.0))
        for name in ("dpm_solver_pp_3", "dpm_solver_pp")
    ]
    assert 0.25 < errors[0] / errors[1] < 0.5


def moments(degree, h):
    """Integral of e^u u^degree over u from -h to 0, by Gauss quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    u = h * (nodes - 1) / 2
    return h / 2 * np.sum(weights * np.exp(u) * u**degree)


def test_3m_is_exact_where_x_0_is_a_line_in_lambda():
    """For a parabola it takes half of the curvature. sigma_t / sigma_s x_s + signal_t times the
    integral of e^(lambda - lambda_t) x_0 is the exact step.
    """
    plan = dpm_solver.dpm_solver_pp(LINEAR, 30, order=3)
    log_snr = np.log(plan.signal / plan.sigma)
    for i in range(28):
        t, s = log_snr[i + 1], log_snr[i]
        known = min(i + 1, 3)
        line = {1: (1, 0), 2: (1, 0), 3: (1, 1)}[known]  # 2M is a midpoint rule.
        for constant, slope in ((1, 0), line):
            x_0 = constant + slope * (log_snr[i::-1][:known] - t)
            expected = plan.signal[i + 1] * (
                constant * moments(0, t - s) + slope * moments(1, t - s)
            )
            assert_allclose(plan.weights[i][:known] @ x_0, expected, rtol=1e-9)
        if known == 3:  # (lambda - lambda_s)^2: value and slope are 0 at s.
            bent = (log_snr[i::-1][:3] - s) ** 2
            whole = moments(2, t - s) + 2 * (t - s) * moments(1, t - s)
            whole += (t - s) ** 2 * moments(0, t - s)
            assert_allclose(plan.weights[i] @ bent, plan.signal[i + 1] * whole / 2, rtol=1e-6)
        assert_allclose(plan.keep[i], plan.sigma[i + 1] / plan.sigma[i])


def test_3m_between_uneven_levels():
    """(lambda - lambda_s)^2 has slope 0 at s, so only half of its integral is taken."""
    levels, t = np.array([0.2, -0.3, -1.4]), 0.9
    h = t - levels[0]
    weights = dpm_solver.third_order_weights([-1.4, -0.3], 0.2, t)
    step = weights @ (levels - levels[0]) ** 2
    whole = moments(2, h) + 2 * h * moments(1, h) + h**2 * moments(0, h)
    assert_allclose(step, level(t)[0] * whole / 2, rtol=1e-12)


@pytest.mark.parametrize("K, orders", [
    (1, [1]), (2, [2]), (3, [2, 1]), (4, [3, 1]), (5, [3, 2]), (6, [3, 2, 1]),
    (12, [3, 3, 3, 2, 1]), (13, [3, 3, 3, 3, 1]), (14, [3, 3, 3, 3, 2]),
])
def test_calls_of_order_3_are_split_as_published(K, orders):
    plan = dpm_solver.dpm_solver(LINEAR, K, denoise=False)
    ends = np.flatnonzero(plan.commit)
    assert np.diff(ends, prepend=-1).tolist() == orders
    # The steps begin at levels evenly spaced in lambda, whatever their orders.
    begins = np.append(0, ends[:-1] + 1)
    expected = dpm_solver.log_snr(LINEAR, len(orders) + 1)[:0:-1]
    assert_allclose(plan.t[begins], expected, atol=1e-9)
    with_denoising = dpm_solver.dpm_solver(LINEAR, K + 1)
    assert_allclose(with_denoising.t[:-1], plan.t, atol=1e-9)
    assert with_denoising.num_calls == K + 1 and abs(with_denoising.t[-1]) < 1e-9


def test_calls_of_order_2():
    for K, orders in {1: [1], 2: [2], 5: [2, 2, 1], 6: [2, 2, 2]}.items():
        plan = dpm_solver.dpm_solver(LINEAR, K, order=2, denoise=False)
        assert np.diff(np.flatnonzero(plan.commit), prepend=-1).tolist() == orders


@pytest.mark.parametrize("calls, orders", [
    (1, [1]), (2, [1, 1]), (3, [1, 2, 1]), (6, [1, 2, 3, 3, 2, 1]),
    (14, [1, 2] + [3] * 10 + [2, 1]), (15, [1, 2] + [3] * 12 + [1]),
])
def test_orders_of_the_multistep(calls, orders):
    """Low at first for lack of history, and at the end where few calls would be unstable."""
    plan = dpm_solver.dpm_solver_pp(LINEAR, calls, order=3)
    assert np.count_nonzero(plan.weights, axis=1).tolist() == orders
    plan = dpm_solver.dpm_solver_pp(LINEAR, calls, order=2)
    assert np.count_nonzero(plan.weights, axis=1).tolist() == np.minimum(orders, 2).tolist()


@pytest.mark.parametrize("make, says", [
    (lambda: dpm_solver.dpm_solver(LINEAR, 5, order=1), "order=1 is not known; write order=2"),
    (lambda: dpm_solver.dpm_solver_pp(LINEAR, 5, order=4), "order=4 is not known"),
    (lambda: dpm_solver.dpm_solver_pp(LINEAR, 5, order=3, sde=True), "order=3 cannot go with"),
    (lambda: dpm_solver.dpm_solver(LINEAR, 0), "num_steps=0 is too few network calls"),
    (lambda: dpm_solver.dpm_solver_pp(LINEAR, 0), "num_steps=0 is too few network calls"),
    (lambda: dpm_solver.dpm_solver_pp(schedule_lib.jsd(10), 5), "last beta is 1"),
])
def test_mistakes_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_golden_log_snr_levels():
    """DPM-Solver's grid of 20 steps, computed for the handbook in units of t + 1."""
    t = dpm_solver.log_snr(schedule_lib.linear(), 21)
    golden = [
        1000, 950.98, 899.29, 844.45, 785.82, 722.56, 653.59, 577.54, 493.11, 400.32,
        303.31, 212.44, 139.04, 86.92, 52.73, 31.15, 17.81, 9.72, 4.96, 2.36, 1,
    ]
    assert_allclose(t[::-1] + 1, golden, atol=0.0051)  # Rounded to two places.


def test_levels_of_a_respaced_schedule_are_in_original_steps():
    schedule = schedule_lib.respace(schedule_lib.linear(), np.arange(99, 1000, 100))
    assert_allclose(dpm_solver.log_snr(schedule, 3)[[0, -1]], [99, 999], atol=1e-9)


def test_a_schedule_that_keeps_nothing_has_no_levels():
    with pytest.raises(ValueError, match="last beta is 1 keeps nothing of x_0"):
        dpm_solver.log_snr(schedule_lib.jsd(10), 3)
