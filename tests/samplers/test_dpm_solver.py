"""Plans, in float64 by a plain loop, against the exact ODE and the published rules."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.samplers import dpm_solver
from ddpm_jax.samplers import heun as heun_lib
from ddpm_jax.samplers import settings as settings_lib
from gaussian import M, S, best_eps, run

LINEAR = schedule_lib.linear()
CALLS = {name: 19 if name == "heun" else 20 for name in settings_lib.NAMED}


def level(half_log_snr):
    """(signal, sigma) at lambda."""
    angle = np.arctan(np.exp(-half_log_snr))
    return np.cos(angle), np.sin(angle)


def exact(schedule, x):
    """Where the ODE takes x from the level of most noise to that of least."""
    ends = schedule_lib.half_log_snr(schedule, dpm_solver.log_snr(schedule, 2))
    (signal, sigma), (signal_T, sigma_T) = (level(end) for end in ends)
    stretch = np.hypot(signal * S, sigma) / np.hypot(signal_T * S, sigma_T)
    return signal * M + stretch * (x - signal_T * M)


@pytest.mark.parametrize("schedule", [LINEAR, schedule_lib.cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize("name, fewest, low, high", [
    # Steps of three calls, and of two: 16, and 20, at first. One call more is no step.
    ("dpm_solver", 48, 2.8, 3.3), ("dpm_solver_2", 40, 1.9, 2.1),
    ("dpm_solver_pp", 40, 1.9, 2.1), ("dpm_solver_pp_3", 40, 1.9, 2.2),
    ("heun", 80, 1.9, 2.1),
])
def test_solvers_converge_to_the_ode(schedule, name, fewest, low, high):
    """With their order: the slope of log error over log calls, up to 16 times as many."""
    calls = [fewest * 2**i for i in range(5)]
    one_more = name != "dpm_solver"
    errors = np.array([
        abs(run(settings_lib.named(name, schedule, n + one_more), best_eps, 1.0)[-2]
            - exact(schedule, 1.0))
        for n in calls
    ])
    slope = -np.polyfit(np.log(calls), np.log(errors), 1)[0]
    assert low < slope < high
    assert np.all(errors[1:] < errors[:-1]) and errors[-1] < 2e-5


def test_3m_has_less_error_than_2m():
    errors = [
        abs(run(settings_lib.named(name, LINEAR, 161), best_eps, 1.0)[-2] - exact(LINEAR, 1.0))
        for name in ("dpm_solver_pp_3", "dpm_solver_pp")
    ]
    assert 0.25 < errors[0] / errors[1] < 0.5


def moments(degree, h):
    """Integral of e^u u^degree over u from -h to 0, by a fine Gauss rule."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    u = h * (nodes - 1) / 2
    return h / 2 * np.sum(weights * np.exp(u) * u**degree)


def test_3m_is_exact_where_x_0_is_a_line_in_lambda():
    """And of a parabola takes half the bend. sigma_t / sigma_s x_s + signal_t times the
    integral of e^(lambda - lambda_t) x_0 is the exact step.
    """
    plan = dpm_solver.dpm_solver_pp(LINEAR, 30, order=3)
    log_snr = np.log(plan.signal / plan.sigma)
    for i in range(28):
        t, s = log_snr[i + 1], log_snr[i]
        known = min(i + 1, 3)
        line = {1: (1, 0), 2: (1, 0), 3: (1, 1)}[known]  # 2M is of the midpoint kind.
        for constant, slope in ((1, 0), line):
            x_0 = constant + slope * (log_snr[i::-1][:known] - t)
            expected = plan.signal[i + 1] * (
                constant * moments(0, t - s) + slope * moments(1, t - s)
            )
            assert_allclose(plan.weights[i][:known] @ x_0, expected, rtol=1e-9)
        if known == 3:  # (lambda - lambda_s)^2, which is 0 with slope 0 at s.
            bent = (log_snr[i::-1][:3] - s) ** 2
            whole = moments(2, t - s) + 2 * (t - s) * moments(1, t - s)
            whole += (t - s) ** 2 * moments(0, t - s)
            assert_allclose(plan.weights[i] @ bent, plan.signal[i + 1] * whole / 2, rtol=1e-6)
        assert_allclose(plan.keep[i], plan.sigma[i + 1] / plan.sigma[i])


def test_3m_between_uneven_levels():
    """(lambda - lambda_s)^2 has slope 0 at s: half of its integral is all that is taken."""
    levels, t = np.array([0.2, -0.3, -1.4]), 0.9
    h = t - levels[0]
    step = dpm_solver._third([-1.4, -0.3], 0.2, t) @ (levels - levels[0]) ** 2
    whole = moments(2, h) + 2 * h * moments(1, h) + h**2 * moments(0, h)
    assert_allclose(step, level(t)[0] * whole / 2, rtol=1e-12)


@pytest.mark.parametrize("name", settings_lib.NAMED)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 13, 14, 15, 16])
def test_every_step_is_exact_where_nothing_changes(name, num_steps):
    """The network says one x_0, or one eps, always: then x is on the line between them."""
    if name == "heun":
        num_steps = 2 * num_steps - 1
    plan = settings_lib.named(name, LINEAR, num_steps)
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
    """The network hears the t whose level x is of."""
    for name, calls in CALLS.items():
        plan = settings_lib.named(name, LINEAR, calls)
        ratio = np.exp(schedule_lib.half_log_snr(LINEAR, plan.t))
        assert_allclose(plan.signal / plan.sigma, ratio, rtol=1e-9)
        assert_allclose(plan.signal**2 + plan.sigma**2, 1)
        assert_allclose(plan.t[[0, -1]], [999, 0], atol=1e-9)


@pytest.mark.parametrize("K, orders", [
    (1, [1]), (2, [2]), (3, [2, 1]), (4, [3, 1]), (5, [3, 2]), (6, [3, 2, 1]),
    (12, [3, 3, 3, 2, 1]), (13, [3, 3, 3, 3, 1]), (14, [3, 3, 3, 3, 2]),
])
def test_calls_of_order_3_are_split_as_published(K, orders):
    plan = dpm_solver.dpm_solver(LINEAR, K, denoise=False)
    ends = np.flatnonzero(plan.commit)
    assert np.diff(ends, prepend=-1).tolist() == orders
    # The steps begin at levels even in lambda, whatever their orders.
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
    """The first from too little history, the last where few calls make the end unstable."""
    plan = dpm_solver.dpm_solver_pp(LINEAR, calls, order=3)
    assert np.count_nonzero(plan.weights, axis=1).tolist() == orders
    plan = dpm_solver.dpm_solver_pp(LINEAR, calls, order=2)
    assert np.count_nonzero(plan.weights, axis=1).tolist() == np.minimum(orders, 2).tolist()


@pytest.mark.parametrize("make, says", [
    (lambda: settings_lib.named("euler", LINEAR, 5), "solver='euler' is not known; use one"),
    (lambda: dpm_solver.dpm_solver(LINEAR, 5, order=1), "order=1 is not known; write order=2"),
    (lambda: dpm_solver.dpm_solver_pp(LINEAR, 5, order=4), "order=4 is not known"),
    (lambda: dpm_solver.dpm_solver_pp(LINEAR, 5, order=3, sde=True), "order=3 cannot go with"),
    (lambda: dpm_solver.dpm_solver(LINEAR, 0), "num_steps=0 is too few network calls"),
    (lambda: dpm_solver.dpm_solver_pp(LINEAR, 0), "num_steps=0 is too few network calls"),
    (lambda: heun_lib.heun(LINEAR, 20), "num_steps=20 must be odd .* write num_steps=19"),
    (lambda: heun_lib.heun(LINEAR, -1), "num_steps=-1 must be odd .* write num_steps=1"),
    (lambda: dpm_solver.dpm_solver_pp(schedule_lib.jsd(10), 5), "last beta is 1"),
])
def test_mistakes_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
