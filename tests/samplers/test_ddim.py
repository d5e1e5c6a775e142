"""DDIM against its recursion; inversion against the ODE, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle
import tracing
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import predict_fn
from ddpm_jax.diffusion.randomness import standard_normal
from ddpm_jax.samplers import reverse_chain
from ddpm_jax.samplers import ddim as ddim_lib
from ddpm_jax.samplers import steps as steps_lib
from ddpm_jax.samplers.reverse_chain import ancestral
from gaussian import (
    M, S, SHAPE, assert_moments, best_eps, ddim_moments, ddim_step, keys, levels_of, optimal,
)
from nonzero import convolution

pytestmark = pytest.mark.usefixtures("strict_dtypes")
LINEAR = schedule_lib.linear()
FULL = schedule_lib.from_betas(np.linspace(1e-3, 0.4, 20))


@pytest.mark.parametrize("settings, golden", [
    (dict(clip=False), 1.8056246515), (dict(clip=True), 1.0101198238),
    (dict(clip=True, rederive_eps=False), 0.5165205251),
])
def test_golden_ddim_step(settings, golden):
    """From 999 to 899 with eps = 0.5, by hand in float64."""
    schedule = schedule_lib.respace(LINEAR, [899, 999])
    predict = predict_fn(schedule, lambda x, t: jnp.full_like(x, 0.5), **settings)
    x_899 = ddim_lib.ddim(schedule, predict, jnp.ones((1, 1, 1, 1)), keys(1), stop=1)
    assert_allclose(x_899.item(), golden, rtol=2e-6)  # A few roundings of float32.


def sigma_of_a_step(eta):
    """Standard deviation of the noise of the step 990 -> 980, from samples of it."""
    schedule = schedule_lib.respace(LINEAR, [980, 990])
    predict = predict_fn(schedule, lambda x, t: jnp.zeros_like(x), clip=True)
    samples = jax.jit(lambda rngs: ddim_lib.ddim(
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
    schedule = schedule_lib.respace(FULL, steps)
    predict = predict_fn(schedule, optimal(FULL), clip=False)
    x_T = np.linspace(-2, 2, 5)
    samples = jax.jit(lambda x, rngs: ddim_lib.ddim(schedule, predict, x, rngs))(
        jnp.asarray(x_T, jnp.float32).reshape(-1, 1, 1, 1), keys(5)
    )
    levels = [(1.0, 0.0), *np.transpose(levels_of(FULL))[steps]]
    expected = []
    for x in x_T:
        for here, before in zip(levels[:0:-1], levels[-2::-1]):
            x = ddim_step(here, before, x, best_eps(*here, x), 0.0)
        expected.append(x)
    # float32 in up to 20 steps, where x_0 is eps divided by a signal of 0.1 or more.
    assert_allclose(samples.ravel(), expected, rtol=0, atol=2e-5)


def test_ddim_of_eta_1_is_the_ancestral_chain():
    """With the smaller variance, clipped or not: equal draw for draw."""
    schedule = schedule_lib.respace(FULL, [0, 4, 9, 14, 19])
    rngs, x_T = keys(4), standard_normal(keys(4, seed=1), SHAPE)
    for clip in (False, True):
        predict = predict_fn(schedule, optimal(FULL), variance="fixed_small", clip=clip)
        with jax.debug_key_reuse(False):  # The same keys, on purpose.
            chain = jax.jit(lambda x, rngs: ancestral(schedule, predict, x, rngs))(x_T, rngs)
            samples = jax.jit(
                lambda x, rngs: ddim_lib.ddim(schedule, predict, x, rngs, eta=1.0)
            )(x_T, rngs)
        # Two formulas for the same mean, in float32.
        assert_allclose(samples, chain, rtol=0, atol=2e-5)


@pytest.mark.parametrize("eta, num_steps", [
    (0.0, 10), (0.0, 50), (0.0, 1000), (0.5, 10), (1.0, 10), (1.0, 50), (1.0, 1000),
])
def test_ddim_moments(eta, num_steps):
    """Mean and variance are those of the affine recursion, to 5 standard errors."""
    steps = steps_lib.uniform(1000, num_steps)
    schedule = schedule_lib.respace(LINEAR, steps)
    predict = predict_fn(schedule, optimal(LINEAR), clip=False)
    x_T = standard_normal(keys(256, seed=1), SHAPE)
    samples = np.float64(jax.jit(
        lambda x, rngs: ddim_lib.ddim(schedule, predict, x, rngs, eta=eta)
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
    """The bias of the variance, for T betas from 0.1 / T to 20 / T and growing T."""
    T, bias = [100, 200, 400, 800], []
    for n in T:
        schedule = schedule_lib.linear(n, 0.1 / n, 20 / n)
        if chain == "fixed_large":
            variance = oracle.chain_moments(schedule.beta, M, S, chain)[1]
        else:
            levels = np.transpose(levels_of(schedule))
            variance = ddim_moments(levels, float(chain[-1]))[1]
        bias.append(abs(variance / S**2 - 1))
    slope = -np.polyfit(np.log(T), np.log(bias), 1)[0]
    assert 0.8 < slope < 1.3 and bias[-1] < 0.05


def test_ddim_without_noise_forgets_its_keys():
    predict = predict_fn(FULL, convolution)
    x_T = standard_normal(keys(2, seed=1), SHAPE)
    chain = jax.jit(lambda x, rngs: ddim_lib.ddim(FULL, predict, x, rngs))
    assert_array_equal(chain(x_T, keys(2)), chain(x_T, keys(2, seed=7)))


@pytest.mark.parametrize("eta, draws", [(0.0, 0), (0.5, 1)])
def test_ddim_draws_noise_where_it_adds_some(eta, draws):
    jaxpr = jax.make_jaxpr(
        lambda x, rngs: ddim_lib.ddim(FULL, predict_fn(FULL, convolution), x, rngs, eta=eta)
    )(jnp.zeros((2, *SHAPE)), keys(2)).jaxpr
    names = [equation.primitive.name for equation in tracing.equations(jaxpr)]
    assert names.count("random_bits") == draws


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_images_wait_for_their_ddim_step(eta):
    """In one chain, the second image runs from the start, the first when 5 steps are left."""
    predict = ddim_lib.ddim_fn(FULL, predict_fn(FULL, convolution), eta)
    x, rngs = standard_normal(keys(2, seed=1), SHAPE), keys(2)
    together = jax.jit(lambda x, rngs: ancestral(
        FULL, reverse_chain.waiting(predict, jnp.asarray([5, 20])), x, rngs))(x, rngs)
    for i, start in enumerate((5, 20)):
        alone = jax.jit(lambda x, rngs: ancestral(FULL, predict, x, rngs, start=start))
        # One network call per step, with two images or one.
        assert_allclose(together[i:i + 1], alone(x[i:i + 1], rngs[i:i + 1]), rtol=0, atol=1e-5)


def test_ddim_keeps_start_stop_and_the_trajectory():
    predict = predict_fn(FULL, convolution)
    x_T = standard_normal(keys(2, seed=1), SHAPE)

    def run(x, rngs, **settings):
        return ddim_lib.ddim(FULL, predict, x, rngs, eta=0.5, **settings)

    rngs = keys(2)
    with jax.debug_key_reuse(False):  # The same keys, on purpose.
        whole, trajectory = jax.jit(lambda x: run(x, rngs, trajectory=(6, 0)))(x_T)
        x_7 = jax.jit(lambda x: run(x, rngs, stop=7))(x_T)
        rest = jax.jit(lambda x: run(x, rngs, start=7))(x_7)
    # Different programs: some float32 roundings, each up to about 10 times larger at the end.
    assert_allclose(rest, whole, rtol=0, atol=1e-5)
    assert_allclose(trajectory.x_t[0], x_7, rtol=0, atol=1e-5)
    assert_array_equal(trajectory.x_0[1], whole)  # The last step gives x_0 itself.
    with pytest.raises(ValueError, match="start=21 and stop=0 must be"):
        run(x_T, rngs, start=21)
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"eta={eta} must lie in 0..1: 0 adds no noise"):
            ddim_lib.ddim(FULL, predict, x_T, rngs, eta=eta)


@pytest.mark.parametrize("T", [1, 2])
def test_ddim_of_the_shortest_chains(T):
    schedule = schedule_lib.linear(T)
    predict = predict_fn(schedule, lambda x, t: jnp.zeros_like(x))
    samples = ddim_lib.ddim(schedule, predict, jnp.full((1, 2, 2, 1), 0.5), keys(1))
    assert_allclose(samples, 0.5 / np.sqrt(schedule.alpha_bar[-1]), rtol=1e-6)


def test_ddim_is_one_scan_of_one_call():
    jaxpr = jax.make_jaxpr(
        lambda x, rngs: ddim_lib.ddim(FULL, predict_fn(FULL, convolution), x, rngs)
    )(jnp.zeros((2, *SHAPE)), keys(2)).jaxpr
    names = [equation.primitive.name for equation in tracing.equations(jaxpr)]
    assert names.count("scan") == names.count("conv_general_dilated") == 1


# Inversion, and arcs between noises.


def there_and_back(num_steps, x_0):
    """(x_T, the x_0 it leads back to) with this many steps each way."""
    schedule = schedule_lib.respace(LINEAR, steps_lib.uniform(1000, num_steps))
    predict = predict_fn(schedule, optimal(LINEAR), clip=False)
    keys = jax.random.split(jax.random.key(0), len(x_0))

    @jax.jit
    def both(x_0):
        x_T = ddim_lib.invert(schedule, predict, x_0)
        return x_T, ddim_lib.ddim(schedule, predict, x_T, keys)

    return jax.device_get(both(x_0))


def test_errors_fall_with_the_number_of_steps():
    """The exact flow keeps every quantile; Euler misses it by O(1 / steps), slope 1."""
    quantile = np.random.default_rng(0).standard_normal((4, *SHAPE))
    x_0 = np.float32(M + S * quantile)
    scale, variance = oracle.compose(LINEAR.beta, 1000)
    exact = scale * M + np.sqrt(scale**2 * S**2 + variance) * quantile
    to_x_T, to_x_0 = [], []
    for num_steps in (50, 100, 200):
        x_T, again = there_and_back(num_steps, x_0)
        to_x_T.append(np.sqrt(np.mean((x_T - exact) ** 2)))
        to_x_0.append(np.sqrt(np.mean((again - x_0) ** 2)))
    for errors in (to_x_T, to_x_0):
        slopes = np.log2(np.array(errors[:-1]) / errors[1:])
        assert_allclose(slopes, 1.0, atol=0.2)  # The next order still matters at 50 steps.
    assert to_x_T[-1] < 0.03 and to_x_0[-1] < 0.02


def test_every_step_is_that_of_the_paper():
    """Eq. 14 reversed: x / signal changes by eps times the change of sigma / signal."""
    schedule = schedule_lib.from_betas([0.1, 0.3, 0.2, 0.5])
    x_0 = np.random.default_rng(1).uniform(-1, 1, (2, *SHAPE))
    levels = [oracle.compose(schedule.beta, steps) for steps in range(5)]

    def eps(x, t):
        return np.sin(3.0) * x + 0.1 * (t + 1.0)

    y, ratio = x_0, 0.0
    for steps in range(1, 5):
        scale, variance = levels[steps]
        # The network gets the step below; for the clean image that is step 0.
        eps_below = eps(levels[steps - 1][0] * y, max(steps - 2, 0))
        y, ratio = y + (np.sqrt(variance) / scale - ratio) * eps_below, np.sqrt(variance) / scale
    predict = predict_fn(
        schedule, lambda x, t: np.float32(np.sin(3.0)) * x
        + 0.1 * (t.astype(jnp.float32) + 1.0)[:, None, None, None], clip=False,
    )
    x_T = jax.jit(lambda x: ddim_lib.invert(schedule, predict, x))(np.float32(x_0))
    assert_allclose(x_T, levels[4][0] * y, rtol=0, atol=2e-6)  # Four steps of float32.


def test_inversion_is_one_scan_that_calls_the_network_once():
    calls, steps = [], []

    def denoise(x, t):
        calls.append(t)
        return jax.lax.dot(x.reshape(len(x), -1), jnp.ones((64, 64))).reshape(x.shape)

    predict = predict_fn(LINEAR, denoise, clip=False)
    jaxpr = jax.make_jaxpr(lambda x: ddim_lib.invert(
        LINEAR, predict, x, on_step=steps.append))(jnp.zeros((2, *SHAPE))).jaxpr
    named = [(e.primitive.name, e) for e in tracing.equations(jaxpr)]
    scan, = (equation for name, equation in named if name == "scan")
    assert scan.params["length"] == 1000 and not scan.params["reverse"]
    assert [name for name, _ in named].count("dot_general") == 1
    assert len(calls) == len(steps) == 1 and calls[0].shape == (2,)


def test_an_arc_keeps_the_norm_and_turns_evenly():
    random = np.random.default_rng(2)
    x, y = random.standard_normal((2, 5, *SHAPE))
    y *= np.sqrt((x**2).sum((1, 2, 3)) / (y**2).sum((1, 2, 3)))[:, None, None, None]
    theta = np.arccos((x * y).sum((1, 2, 3)) / (x**2).sum((1, 2, 3)))
    lam = np.array([0.0, 0.25, 0.5, 0.7, 1.0])
    actual = np.float64(ddim_lib.slerp(np.float32(x), np.float32(y), jnp.float32(lam)))
    assert_allclose((actual**2).sum((1, 2, 3)), (x**2).sum((1, 2, 3)), rtol=1e-5)  # float32
    turned = np.arccos(((actual * x).sum((1, 2, 3)) / (x**2).sum((1, 2, 3))).clip(-1, 1))
    assert_allclose(turned, lam * theta, rtol=0, atol=1e-3)  # arccos near 1
    assert_allclose(actual[0], x[0], rtol=0, atol=1e-6)
    assert_allclose(actual[-1], y[-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-4, 2e-3])
def test_an_arc_between_nearly_equal_images_is_a_line(apart):
    x = np.random.default_rng(3).standard_normal((1, *SHAPE))
    y = x + apart * np.roll(x, 1)
    actual = ddim_lib.slerp(np.float32(x), np.float32(y), jnp.float32([0.3]))
    # Arc and line differ by the square of the angle; the rest is rounding of float32.
    assert_allclose(actual, 0.7 * x + 0.3 * y, rtol=0, atol=1e-6 + apart**2)
