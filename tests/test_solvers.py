"""Fast samplers in a world whose best denoiser, and its exact ODE, are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle
import tracing
from ddpm_jax import grids, solvers
from ddpm_jax import schedule as schedules
from ddpm_jax.diffusion import predict_fn
from ddpm_jax.samplers import ancestral, standard_normal
from gaussian import (
    M, S, SHAPE, assert_moments, best_eps, ddim_moments, ddim_step, jit, keys, levels_of, optimal
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")
LINEAR = schedules.linear()
FULL = schedules.from_betas(np.linspace(1e-3, 0.4, 20))
CALLS = {name: 19 if name == "heun" else 20 for name in solvers.NAMED}
KERNEL = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 1, 1)), jnp.float32)


def tiny_network(x_t, t):
    return jax.lax.conv_general_dilated(
        x_t, KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ) + jnp.sin(t.astype(jnp.float32)).reshape(-1, 1, 1, 1)


# DDIM.


@pytest.mark.parametrize("settings, golden", [
    (dict(clip=False), 1.8056246515), (dict(clip=True), 1.0101198238),
    (dict(clip=True, rederive_eps=False), 0.5165205251),
])
def test_golden_ddim_step(settings, golden):
    """From 999 to 899 with eps = 0.5, by hand in float64."""
    schedule = schedules.respace(LINEAR, [899, 999])
    predict = predict_fn(schedule, lambda x, t: jnp.full_like(x, 0.5), **settings)
    x_899 = solvers.ddim(schedule, predict, jnp.ones((1, 1, 1, 1)), keys(1), stop=1)
    assert_allclose(x_899.item(), golden, rtol=2e-6)  # A few roundings of float32.


def sigma_of_a_step(eta):
    """Standard deviation of the noise of 990 -> 980, by drawing it."""
    schedule = schedules.respace(LINEAR, [980, 990])
    predict = predict_fn(schedule, lambda x, t: jnp.zeros_like(x), clip=True)
    samples = jit(lambda rngs: solvers.ddim(
        schedule, predict, jnp.zeros((1024, *SHAPE)), rngs, eta=eta, stop=1
    ))(keys(1024))
    return np.float64(samples).std()


def test_golden_ddim_noise():
    """sigma at eta = 1 by hand in float64, and half of it, to 4 standard errors."""
    error = 4 / np.sqrt(2 * 1024 * 64)
    assert_allclose(sigma_of_a_step(1.0), 0.4250651756, rtol=error)
    assert_allclose(sigma_of_a_step(0.5), 0.4250651756 / 2, rtol=error)


@pytest.mark.parametrize("steps", [list(range(20)), [0, 4, 9, 14, 19], [19], [3, 4]])
def test_ddim_without_noise_is_the_recursion(steps):
    schedule = schedules.respace(FULL, steps)
    predict = predict_fn(schedule, optimal(FULL), clip=False)
    x_T = np.linspace(-2, 2, 5)
    samples = jit(lambda x, rngs: solvers.ddim(schedule, predict, x, rngs))(
        jnp.asarray(x_T, jnp.float32).reshape(-1, 1, 1, 1), keys(5)
    )
    levels = [(1.0, 0.0), *np.transpose(levels_of(FULL))[steps]]
    expected = []
    for x in x_T:
        for here, before in zip(levels[:0:-1], levels[-2::-1]):
            x = ddim_step(here, before, x, best_eps(*here, x), 0.0)
        expected.append(x)
    # float32 in as many as 20 steps, and x_0 from eps divides by a signal down to 0.1.
    assert_allclose(samples.ravel(), expected, rtol=0, atol=2e-5)


def test_ddim_of_eta_1_is_the_ancestral_chain():
    """With the smaller variance, clipped or not, draw for draw and so in distribution."""
    schedule = schedules.respace(FULL, [0, 4, 9, 14, 19])
    rngs, x_T = keys(4), standard_normal(keys(4, seed=1), SHAPE)
    for clip in (False, True):
        predict = predict_fn(schedule, optimal(FULL), variance="fixed_small", clip=clip)
        with jax.debug_key_reuse(False):  # The same keys, on purpose.
            chain = jit(lambda x, rngs: ancestral(schedule, predict, x, rngs))(x_T, rngs)
            samples = jit(
                lambda x, rngs: solvers.ddim(schedule, predict, x, rngs, eta=1.0)
            )(x_T, rngs)
        # Two ways of writing one mean, in float32.
        assert_allclose(samples, chain, rtol=0, atol=2e-5)


@pytest.mark.parametrize("eta, num_steps", [
    (0.0, 10), (0.0, 50), (0.0, 1000), (0.5, 10), (1.0, 10), (1.0, 50), (1.0, 1000),
])
def test_ddim_moments(eta, num_steps):
    """Mean and variance are those of the affine recursion, to 5 standard errors."""
    steps = grids.uniform(1000, num_steps)
    schedule = schedules.respace(LINEAR, steps)
    predict = predict_fn(schedule, optimal(LINEAR), clip=False)
    x_T = standard_normal(keys(256, seed=1), SHAPE)
    samples = np.float64(jit(
        lambda x, rngs: solvers.ddim(schedule, predict, x, rngs, eta=eta)
    )(x_T, keys(256)))
    mean, variance = ddim_moments(np.transpose(levels_of(LINEAR))[steps], eta)
    assert_moments(samples, mean, variance)


def test_the_recursion_of_eta_1_is_the_ancestral_one():
    steps = [0, 4, 9, 14, 19]
    moments = ddim_moments(np.transpose(levels_of(FULL))[steps], 1.0)
    beta = oracle.visit(FULL.beta, [t + 1 for t in steps])
    assert_allclose(moments, oracle.chain_moments(beta, M, S, "fixed_small"), rtol=1e-9)


@pytest.mark.parametrize("chain", ["eta=0", "eta=1", "fixed_large"])
def test_the_bias_falls_as_one_over_the_steps(chain):
    """That of the variance against the data's, as T betas from 0.1 / T to 20 / T grow finer."""
    T, bias = [100, 200, 400, 800], []
    for n in T:
        schedule = schedules.linear(n, 0.1 / n, 20 / n)
        if chain == "fixed_large":
            variance = oracle.chain_moments(schedule.beta, M, S, chain)[1]
        else:
            levels = np.transpose(levels_of(schedule))
            variance = ddim_moments(levels, float(chain[-1]))[1]
        bias.append(abs(variance / S**2 - 1))
    slope = -np.polyfit(np.log(T), np.log(bias), 1)[0]
    assert 0.8 < slope < 1.3 and bias[-1] < 0.05


def test_ddim_without_noise_forgets_its_keys():
    predict = predict_fn(FULL, tiny_network)
    x_T = standard_normal(keys(2, seed=1), SHAPE)
    chain = jit(lambda x, rngs: solvers.ddim(FULL, predict, x, rngs))
    assert_array_equal(chain(x_T, keys(2)), chain(x_T, keys(2, seed=7)))


def test_ddim_keeps_start_stop_and_the_trajectory():
    predict = predict_fn(FULL, tiny_network)
    x_T = standard_normal(keys(2, seed=1), SHAPE)

    def run(x, rngs, **settings):
        return solvers.ddim(FULL, predict, x, rngs, eta=0.5, **settings)

    rngs = keys(2)
    with jax.debug_key_reuse(False):  # The same keys, on purpose.
        whole, trajectory = jit(lambda x: run(x, rngs, trajectory=(6, 0)))(x_T)
        x_7 = jit(lambda x: run(x, rngs, stop=7))(x_T)
        rest = jit(lambda x: run(x, rngs, start=7))(x_7)
    # Compiled apart: some float32 roundings, each up to some 10 times larger at the end.
    assert_allclose(rest, whole, rtol=0, atol=1e-5)
    assert_allclose(trajectory.x_t[0], x_7, rtol=0, atol=1e-5)
    assert_array_equal(trajectory.x_0[1], whole)  # The last step gives x_0 itself.
    with pytest.raises(ValueError, match="start=21 and stop=0 must be"):
        run(x_T, rngs, start=21)
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"eta={eta} must lie in 0..1; write eta=0"):
            solvers.ddim(FULL, predict, x_T, rngs, eta=eta)


@pytest.mark.parametrize("T", [1, 2])
def test_ddim_of_the_shortest_chains(T):
    schedule = schedules.linear(T)
    predict = predict_fn(schedule, lambda x, t: jnp.zeros_like(x))
    samples = solvers.ddim(schedule, predict, jnp.full((1, 2, 2, 1), 0.5), keys(1))
    assert_allclose(samples, 0.5 / np.sqrt(schedule.alpha_bar[-1]), rtol=1e-6)


# Plans, in float64 by a plain loop.


def run(plan, predict, x, rng=None):
    """x after each call; predict(signal, sigma, x) -> eps."""
    passed, start, said = [], x, [0.0] * plan.weights.shape[1]
    for i in range(plan.num_calls):
        signal, sigma = plan.signal[i], plan.sigma[i]
        eps = predict(signal, sigma, x)
        said = [(x - sigma * eps) / signal if plan.says_x_0[i] else eps] + said[:-1]
        x = plan.keep[i] * start + sum(w * s for w, s in zip(plan.weights[i], said))
        if plan.spread is not None:
            x = x + plan.spread[i] * rng.standard_normal(np.shape(x))
        start = x if plan.commit[i] else start
        passed.append(x)
    return passed


def level(half_log_snr):
    """(signal, sigma) at lambda."""
    angle = np.arctan(np.exp(-half_log_snr))
    return np.cos(angle), np.sin(angle)


def exact(schedule, x):
    """Where the ODE takes x from the level of most noise to that of least."""
    ends = grids.half_log_snr(schedule, grids.log_snr(schedule, 2))
    (signal, sigma), (signal_T, sigma_T) = (level(end) for end in ends)
    stretch = np.hypot(signal * S, sigma) / np.hypot(signal_T * S, sigma_T)
    return signal * M + stretch * (x - signal_T * M)


@pytest.mark.parametrize("schedule", [LINEAR, schedules.cosine()], ids=["linear", "cosine"])
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
        abs(run(solvers.named(name, schedule, n + one_more), best_eps, 1.0)[-2]
            - exact(schedule, 1.0))
        for n in calls
    ])
    slope = -np.polyfit(np.log(calls), np.log(errors), 1)[0]
    assert low < slope < high
    assert np.all(errors[1:] < errors[:-1]) and errors[-1] < 2e-5


def test_3m_has_less_error_than_2m():
    errors = [
        abs(run(solvers.named(name, LINEAR, 161), best_eps, 1.0)[-2] - exact(LINEAR, 1.0))
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
    plan = solvers.dpm_solver_pp(LINEAR, 30, order=3)
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
    step = solvers._third([-1.4, -0.3], 0.2, t) @ (levels - levels[0]) ** 2
    whole = moments(2, h) + 2 * h * moments(1, h) + h**2 * moments(0, h)
    assert_allclose(step, level(t)[0] * whole / 2, rtol=1e-12)


@pytest.mark.parametrize("name", solvers.NAMED)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 13, 14, 15, 16])
def test_every_step_is_exact_where_nothing_changes(name, num_steps):
    """The network says one x_0, or one eps, always: then x is on the line between them."""
    if name == "heun":
        num_steps = 2 * num_steps - 1
    plan = solvers.named(name, LINEAR, num_steps)
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
        plan = solvers.named(name, LINEAR, calls)
        ratio = np.exp(grids.half_log_snr(LINEAR, plan.t))
        assert_allclose(plan.signal / plan.sigma, ratio, rtol=1e-9)
        assert_allclose(plan.signal**2 + plan.sigma**2, 1)
        assert_allclose(plan.t[[0, -1]], [999, 0], atol=1e-9)


@pytest.mark.parametrize("K, orders", [
    (1, [1]), (2, [2]), (3, [2, 1]), (4, [3, 1]), (5, [3, 2]), (6, [3, 2, 1]),
    (12, [3, 3, 3, 2, 1]), (13, [3, 3, 3, 3, 1]), (14, [3, 3, 3, 3, 2]),
])
def test_calls_of_order_3_are_split_as_published(K, orders):
    plan = solvers.dpm_solver(LINEAR, K, denoise=False)
    ends = np.flatnonzero(plan.commit)
    assert np.diff(ends, prepend=-1).tolist() == orders
    # The steps begin at levels even in lambda, whatever their orders.
    begins = np.append(0, ends[:-1] + 1)
    expected = grids.log_snr(LINEAR, len(orders) + 1)[:0:-1]
    assert_allclose(plan.t[begins], expected, atol=1e-9)
    with_denoising = solvers.dpm_solver(LINEAR, K + 1)
    assert_allclose(with_denoising.t[:-1], plan.t, atol=1e-9)
    assert with_denoising.num_calls == K + 1 and abs(with_denoising.t[-1]) < 1e-9


def test_calls_of_order_2():
    for K, orders in {1: [1], 2: [2], 5: [2, 2, 1], 6: [2, 2, 2]}.items():
        plan = solvers.dpm_solver(LINEAR, K, order=2, denoise=False)
        assert np.diff(np.flatnonzero(plan.commit), prepend=-1).tolist() == orders


@pytest.mark.parametrize("calls, orders", [
    (1, [1]), (2, [1, 1]), (3, [1, 2, 1]), (6, [1, 2, 3, 3, 2, 1]),
    (14, [1, 2] + [3] * 10 + [2, 1]), (15, [1, 2] + [3] * 12 + [1]),
])
def test_orders_of_the_multistep(calls, orders):
    """The first from too little history, the last where few calls make the end unstable."""
    plan = solvers.dpm_solver_pp(LINEAR, calls, order=3)
    assert np.count_nonzero(plan.weights, axis=1).tolist() == orders
    plan = solvers.dpm_solver_pp(LINEAR, calls, order=2)
    assert np.count_nonzero(plan.weights, axis=1).tolist() == np.minimum(orders, 2).tolist()


# Plans, run by `solve`.


@pytest.mark.parametrize("name, mean", [(name, "eps") for name in solvers.NAMED] + [
    (name, mean) for name in ("dpm_solver", "dpm_solver_pp") for mean in ("x_0", "v")
])
def test_solve_is_the_loop(name, mean):
    plan = solvers.named(name, LINEAR, CALLS[name])
    x_T = np.linspace(-2, 2, 5)
    rngs = keys(5)
    chain = jit(lambda x, rngs: solvers.solve(
        plan, optimal(LINEAR, mean), x, rngs, mean=mean, clip=False
    ))
    samples = chain(jnp.asarray(x_T, jnp.float32).reshape(-1, 1, 1, 1), rngs)

    class Draws:
        calls = iter(range(plan.num_calls))

        def standard_normal(self, shape):
            i = next(self.calls)
            return np.array([
                jax.random.normal(jax.random.fold_in(rng, i), (1, 1, 1)).item()
                for rng in rngs
            ])

    with jax.debug_key_reuse(False):  # The same keys, on purpose.
        expected = run(plan, best_eps, x_T, Draws())[-1]
    assert samples.dtype == jnp.float32
    # float32, where x_0 comes from eps by a division by a signal of 0.006.
    assert_allclose(samples.ravel(), expected, rtol=0, atol=2e-4)


# Calls, and tolerances: of the mean (absolute; 5 standard errors are 0.007) and of the
# standard deviation (relative), where the solver's own error, as of the loop in float64, is
# far above the statistical one. 20 calls are too few for Heun, 10 levels up to sigma = 157.
TOLERANCES = {
    "dpm_solver": (18, 0.007, 0.02), "dpm_solver_2": (20, 0.007, 0.1),
    "dpm_solver_pp": (12, 0.007, 0.04), "dpm_solver_pp_3": (15, 0.007, 0.04),
    "dpm_solver_pp_sde": (15, 0.007, 0.06), "heun": (49, 0.007, 0.06),
}


@pytest.mark.parametrize("name", solvers.NAMED)
def test_gaussian_world(name):
    """Some ten calls bring the noise to the data."""
    calls, of_mean, of_deviation = TOLERANCES[name]
    plan = solvers.named(name, LINEAR, calls)
    x_T = standard_normal(keys(512, seed=1), SHAPE)
    chain = jit(lambda x, rngs: solvers.solve(plan, optimal(LINEAR), x, rngs, clip=False))
    samples = np.float64(chain(x_T, keys(512)))
    assert abs(samples.mean() - M) < of_mean
    assert abs(samples.std() / S - 1) < of_deviation


def test_the_sde_converges_in_distribution():
    """Many calls: the moments to 5 standard errors, and nothing left of x_T."""
    x_T = standard_normal(keys(512, seed=1), SHAPE)
    plan = solvers.dpm_solver_pp(LINEAR, 200, sde=True)
    samples = np.float64(jit(lambda x, rngs: solvers.solve(
        plan, optimal(LINEAR), x, rngs, clip=False
    ))(x_T, keys(512)))
    n = samples.size
    # x_0 predicted at the first level is S^2 narrower by the noise there, 0.01.
    deviation = S**2 / np.hypot(S, 0.01)
    assert abs(samples.mean() - M) < 5 * S / np.sqrt(n)
    assert abs(samples.std() / deviation - 1) < 5 / np.sqrt(2 * n)
    assert abs(np.corrcoef(samples.ravel(), np.ravel(x_T))[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("name", solvers.NAMED)
def test_one_scan_that_calls_the_network_once(name):
    calls = []

    def denoise(x_t, t):
        calls.append(t)
        return tiny_network(x_t, t)

    plan = solvers.named(name, LINEAR, CALLS[name])
    jaxpr = jax.make_jaxpr(lambda x, rngs: solvers.solve(plan, denoise, x, rngs))(
        jnp.zeros((2, *SHAPE)), keys(2)
    ).jaxpr
    assert len(calls) == 1
    assert calls[0].shape == (2,) and calls[0].dtype == jnp.float32
    found = [(e.primitive.name, e) for e in tracing.equations(jaxpr)]
    names = [name for name, _ in found]
    scan, = (equation for name, equation in found if name == "scan")
    assert scan.params["length"] == plan.num_calls == CALLS[name] and "while" not in names
    assert names.count("conv_general_dilated") == 1
    inside = [e.primitive.name for e in tracing.equations(scan.params["jaxpr"].jaxpr)]
    assert inside.count("conv_general_dilated") == 1
    # Only the SDE draws.
    assert any("random" in name for name in inside) == (name == "dpm_solver_pp_sde")


def test_ddim_is_one_scan_of_one_call():
    jaxpr = jax.make_jaxpr(
        lambda x, rngs: solvers.ddim(FULL, predict_fn(FULL, tiny_network), x, rngs)
    )(jnp.zeros((2, *SHAPE)), keys(2)).jaxpr
    names = [equation.primitive.name for equation in tracing.equations(jaxpr)]
    assert names.count("scan") == names.count("conv_general_dilated") == 1


def test_on_step_and_the_network_hear_of_every_call():
    heard, told = [], []
    plan = solvers.heun(LINEAR, 7)

    def hear(i):
        jax.debug.callback(lambda i: heard.append(int(i)), i, ordered=True)

    def denoise(x_t, t):
        jax.debug.callback(lambda t: told.append(float(t[0])), t, ordered=True)
        return x_t

    solvers.solve(plan, denoise, jnp.zeros((1, 1, 1, 1)), keys(1), on_step=hear)
    jax.effects_barrier()
    assert heard == list(range(6, -1, -1))
    assert_allclose(told, plan.t, atol=1e-4)  # float32 of up to 999.


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_pp_sde", "heun"])
def test_a_trajectory_holds_the_calls_asked_for(name):
    """By calls left, in the order asked for; x before each, and the x_0 that it is clipped to."""
    plan = solvers.named(name, LINEAR, 7)
    x_T, rngs = standard_normal(keys(2, seed=1), SHAPE), keys(2)
    seen = []

    def denoise(x_t, t):
        jax.debug.callback(lambda x: seen.append(np.array(x)), x_t, ordered=True)
        return tiny_network(x_t, t)

    x, kept = jit(lambda x, rngs: solvers.solve(
        plan, denoise, x, rngs, trajectory=(0, 6, 2)
    ))(x_T, rngs)
    jax.effects_barrier()
    assert len(seen) == 7 and kept.x_t.shape == kept.x_0.shape == (3, 2, *SHAPE)
    for place, left in enumerate((0, 6, 2)):
        call = 6 - left
        assert_array_equal(kept.x_t[place], seen[call])
        at = jnp.full((2,), plan.t[call], jnp.float32)
        eps = np.float64(tiny_network(jnp.asarray(seen[call]), at))
        x_0 = (seen[call] - plan.sigma[call] * eps) / plan.signal[call]
        # float32, divided by a signal of 0.006 or more.
        assert_allclose(kept.x_0[place], np.clip(x_0, -1, 1), rtol=0, atol=1e-3)
    assert_array_equal(kept.x_t[1], x_T)
    assert_array_equal(kept.x_0[0], x)  # The last call gives x_0 itself.
    with pytest.raises(ValueError, match=r"trajectory=\[7\] must lie in 0..6, the steps run"):
        solvers.solve(plan, tiny_network, x_T, rngs, trajectory=(7,))


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_pp_sde"])
def test_an_image_depends_on_its_own_key_alone(name):
    plan = solvers.named(name, LINEAR, 8)
    rngs, x_T = keys(5), standard_normal(keys(5, seed=1), SHAPE)
    chain = jit(lambda x, rngs: solvers.solve(plan, tiny_network, x, rngs))
    every = np.asarray(chain(x_T, rngs))
    # XLA may tile another batch size otherwise, which moves the last float32 bits.
    for rows in (np.array([2]), np.array([4, 1, 0])):
        some = chain(x_T[rows], rngs[rows])
        assert_allclose(some, every[rows], rtol=0, atol=1e-4)
    assert np.abs(every[0] - every[1]).max() > 0.1
    other = chain(x_T, keys(5, seed=9))
    assert (np.abs(other - every).max() > 0.1) == (name == "dpm_solver_pp_sde")


@pytest.mark.parametrize("name", solvers.NAMED)
def test_clipped_samples_stay_inside_even_of_the_cosine(name):
    """Of a network that is wrong by far, at alpha_bar = 2e-9 and below."""
    plan = solvers.named(name, schedules.cosine(), CALLS[name])
    x_T = standard_normal(keys(2, seed=1), SHAPE)
    chain = jit(lambda x, rngs: solvers.solve(
        plan, lambda x, t: 3 * tiny_network(x, t), x, rngs
    ))
    assert np.abs(chain(x_T, keys(2))).max() <= 1


def test_the_cosine_without_clipping():
    """The samples of the best denoiser, to float32 through a signal of 0.006."""
    schedule = schedules.cosine()
    x_T = np.linspace(-2, 2, 5)
    for name in ("dpm_solver", "dpm_solver_pp"):
        plan = solvers.named(name, schedule, 50)
        samples = jit(lambda x, rngs: solvers.solve(
            plan, optimal(schedule), x, rngs, clip=False
        ))(jnp.asarray(x_T, jnp.float32).reshape(-1, 1, 1, 1), keys(5))
        # What noise is left at the first level is x_0's no more; 2M is off by 0.3 percent.
        assert_allclose(samples.ravel(), M + S * x_T, rtol=0, atol=0.005)


def test_clipping_moves_eps_too():
    """One step of DPM-Solver-1 is DDIM: the golden step, from 999 to 899."""
    schedule = schedules.respace(LINEAR, [899, 999])
    plan = solvers.dpm_solver(schedule, 1, denoise=False)
    for clip, golden in ((False, 1.8056246515), (True, 1.0101198238)):
        x = solvers.solve(
            plan, lambda x, t: jnp.full_like(x, 0.5), jnp.ones((1, 1, 1, 1)), keys(1),
            clip=clip,
        )
        assert_allclose(x.item(), golden, rtol=2e-6)  # A few roundings of float32.


def test_denoised_fn_comes_before_the_clipping():
    plan = solvers.dpm_solver_pp(LINEAR, 1)
    settings = dict(mean="x_0", denoised_fn=lambda x_0: x_0 / 4)
    x_T = jnp.zeros((1, 1, 1, 1))
    for says, clip, expected in ((2.0, True, 0.5), (8.0, True, 1.0), (8.0, False, 2.0)):
        x_0 = solvers.solve(
            plan, lambda x, t: jnp.full_like(x, says), x_T, keys(1), clip=clip, **settings
        )
        assert x_0.item() == expected


def test_denoised_fn_moves_eps_without_clipping():
    plan = solvers.dpm_solver(LINEAR, 1, denoise=False)
    x = solvers.solve(
        plan, lambda x, t: jnp.zeros_like(x), jnp.ones((1, 1, 1, 1)), keys(1), clip=False,
        denoised_fn=jnp.zeros_like,
    )
    # x_0 = 0 makes all of x noise, which shrinks with sigma: float32 of 157 x - 156.99 x.
    assert_allclose(x.item(), 0.01 / plan.sigma[0], rtol=0, atol=3e-5)


def test_a_learned_variance_is_dropped():
    def two(x_t, t):
        return jnp.concatenate([tiny_network(x_t, t), jnp.full_like(x_t, jnp.nan)], axis=-1)

    plan = solvers.dpm_solver_pp(LINEAR, 5)
    x_T = standard_normal(keys(2, seed=1), SHAPE)
    assert_array_equal(
        solvers.solve(plan, two, x_T, keys(2, seed=2), variance="learned_range"),
        solvers.solve(plan, tiny_network, x_T, keys(2, seed=3)),
    )


def test_a_plan_may_be_an_argument():
    """One compiled chain serves plans of one shape."""
    chain = jit(lambda plan, x, rngs: solvers.solve(plan, optimal(LINEAR), x, rngs))
    x_T = jnp.zeros((1, 1, 1, 1))
    plan = solvers.dpm_solver_pp(LINEAR, 6)
    outside = chain(plan, x_T, keys(1))
    with_constants = jit(lambda x, rngs: solvers.solve(plan, optimal(LINEAR), x, rngs))
    # atol: constants are folded, or not.
    assert_allclose(outside, with_constants(x_T, keys(1)), rtol=0, atol=1e-5)


def test_a_schedule_of_one_step():
    one = schedules.linear(1)
    for name in solvers.NAMED:
        x_0 = solvers.solve(
            solvers.named(name, one, 1), lambda x, t: jnp.zeros_like(x),
            jnp.full((1, 1, 1, 1), 0.5), keys(1),
        )
        assert_allclose(x_0.item(), 0.5 / np.sqrt(one.alpha_bar[0]), rtol=1e-6)
    with pytest.raises(ValueError, match="num_levels=5 is not possible"):
        solvers.dpm_solver_pp(one, 5)


def test_dynamic_threshold():
    rng = np.random.default_rng(0)
    x_0 = np.float32(rng.standard_normal((3, 8, 8, 2)) * [[[[0.1]]], [[[1.0]]], [[[4.0]]]])
    result = jit(solvers.dynamic_threshold)(x_0)
    for image, found in zip(x_0.astype(np.float64), result):
        ordered = np.sort(np.abs(image).ravel())
        place = 0.995 * 127  # Of 128 pixels, between the last but one and the last.
        low = ordered[int(place)]
        s = max(low + (place - int(place)) * (ordered[int(place) + 1] - low), 1.0)
        assert_allclose(found, np.clip(image, -s, s) / s, rtol=1e-5)  # float32.
    assert_array_equal(result[0], x_0[0])
    whole = solvers.dynamic_threshold(x_0, percentile=1.0)
    assert_allclose(np.abs(whole[2]).max(), 1.0)
    for percentile in (0.0, 1.5, 99.5):
        with pytest.raises(ValueError, match=f"percentile={percentile} must lie in"):
            solvers.dynamic_threshold(x_0, percentile)


@pytest.mark.parametrize("make, says", [
    (lambda: solvers.named("euler", LINEAR, 5), "solver='euler' is not known; use one"),
    (lambda: solvers.dpm_solver(LINEAR, 5, order=1), "order=1 is not known; write order=2"),
    (lambda: solvers.dpm_solver_pp(LINEAR, 5, order=4), "order=4 is not known"),
    (lambda: solvers.dpm_solver_pp(LINEAR, 5, order=3, sde=True), "order=3 cannot go with"),
    (lambda: solvers.dpm_solver(LINEAR, 0), "num_steps=0 is too few network calls"),
    (lambda: solvers.dpm_solver_pp(LINEAR, 0), "num_steps=0 is too few network calls"),
    (lambda: solvers.heun(LINEAR, 20), "num_steps=20 must be odd .* write num_steps=19"),
    (lambda: solvers.heun(LINEAR, -1), "num_steps=-1 must be odd .* write num_steps=1"),
    (lambda: solvers.dpm_solver_pp(schedules.jsd(10), 5), "last beta is 1"),
    (lambda: solvers.solve(
        solvers.heun(LINEAR, 1), tiny_network, jnp.zeros((1, 1, 1, 1)), keys(1),
        mean="x_prev",
    ), "mean='x_prev' cannot go with a solver"),
])
def test_mistakes_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
