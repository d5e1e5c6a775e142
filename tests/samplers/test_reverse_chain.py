"""The ancestral chain in a world whose best denoiser is known in closed form."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle
import tracing
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Prediction, predict_fn
from ddpm_jax.diffusion.randomness import standard_normal
from ddpm_jax.errors import UserError
from ddpm_jax.samplers import ddim, inpainting, tableau
from ddpm_jax.samplers.reverse_chain import ancestral
from gaussian import M, S, SHAPE, assert_moments, keys, optimal

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_the_oracle_gives_the_data_back(variance):
    """Many small steps end near (M, S^2), so the recursion used below is right."""
    beta = np.linspace(5e-4, 0.1, 200)
    mean, spread = oracle.chain_moments(beta, M, S, variance)
    # The chain is exact as T grows; 200 steps miss S by up to 6 percent.
    assert_allclose([mean, np.sqrt(spread)], [M, S], rtol=0.1)


FULL = schedule_lib.from_betas(np.linspace(1e-3, 0.4, 20))
CHAINS = {
    "full": (FULL, list(range(20))),
    "respaced": (FULL, [0, 4, 9, 14, 19]),
}


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
@pytest.mark.parametrize("name", CHAINS)
def test_gaussian_world(name, variance):
    """Mean and variance of the samples are those of the recursion, to 5 standard errors."""
    full, timesteps = CHAINS[name]
    schedule = schedule_lib.respace(full, timesteps)
    predict = predict_fn(schedule, optimal(full), variance=variance, clip=False)
    rngs = keys(512)
    x_T = standard_normal(keys(512, seed=1), SHAPE)
    chain = jax.jit(lambda x_T, rngs: ancestral(schedule, predict, x_T, rngs))
    samples = np.float64(chain(x_T, rngs))
    beta = oracle.visit(full.beta, [t + 1 for t in timesteps])
    mean, spread = oracle.chain_moments(beta, M, S, variance)
    assert_moments(samples, mean, spread)


@pytest.mark.parametrize("num_steps", [10, 50, 1000])
def test_gaussian_world_of_the_papers_schedule(num_steps):
    steps = schedule_lib.evenly_spaced(1000, num_steps)
    full = schedule_lib.linear()
    schedule = schedule_lib.respace(full, steps)
    predict = predict_fn(schedule, optimal(full), clip=False)
    x_T = standard_normal(keys(256, seed=1), SHAPE)
    run = jax.jit(lambda x, rngs: ancestral(schedule, predict, x, rngs))
    samples = np.float64(run(x_T, keys(256)))
    beta = oracle.visit(full.beta, steps + 1)
    mean, spread = oracle.chain_moments(beta, M, S, "fixed_large")
    assert_moments(samples, mean, spread)


def test_the_chain_in_the_terms_of_karras(draw_given):
    """With beta-tilde it is Euler's step to a lower sigma, and fresh noise up to the next one."""
    noises = np.float32(np.random.default_rng(0).standard_normal((20, 2, *SHAPE)))
    x_T = np.float32(np.random.default_rng(1).standard_normal((2, *SHAPE)))
    predict = predict_fn(FULL, optimal(FULL), variance="fixed_small", clip=False)
    rngs = draw_given(noises)
    actual = jax.jit(lambda x: ancestral(FULL, predict, x, rngs))(x_T)
    signal = np.sqrt(np.cumprod(1 - FULL.beta))
    sigmas = [0.0, *np.sqrt(1 - signal**2) / signal]
    y = np.float64(x_T) / signal[-1]
    for t in range(19, -1, -1):
        high, low = sigmas[t + 1], sigmas[t]
        D = M + S**2 / (S**2 + high**2) * (y - M)  # The best denoiser of N(M, S^2).
        up = np.sqrt(low**2 * (high**2 - low**2) / high**2)
        down = np.sqrt(low**2 - up**2)
        y = y + (down - high) * (y - D) / high + up * noises[t]
    assert_allclose(actual, y, rtol=0, atol=2e-5)  # float32, 20 steps.


def tiny_network(kernel):
    def denoise(x_t, t):
        return jax.lax.conv_general_dilated(
            x_t, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return denoise


KERNEL = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 1, 1)), jnp.float32)


def test_one_scan_that_calls_the_network_once():
    calls = []

    def denoise(x_t, t):
        calls.append(t)
        return tiny_network(KERNEL)(x_t, t)

    def chain(x_T, rngs):
        return ancestral(FULL, predict_fn(FULL, denoise), x_T, rngs)

    jaxpr = jax.make_jaxpr(chain)(jnp.zeros((2, *SHAPE)), keys(2)).jaxpr
    assert len(calls) == 1
    assert calls[0].shape == (2,) and calls[0].dtype == jnp.int32
    named = [(e.primitive.name, e) for e in tracing.equations(jaxpr)]
    names = [name for name, _ in named]
    scan, = (equation for name, equation in named if name == "scan")
    assert scan.params["length"] == 20 and "while" not in names
    assert names.count("conv_general_dilated") == 1
    inside = [e.primitive.name for e in tracing.equations(scan.params["jaxpr"].jaxpr)]
    assert inside.count("conv_general_dilated") == 1


def scripted(mean, log_variance=0.0):
    """A prediction with this mean and variance at every step."""

    def predict(x_t, t):
        return Prediction(
            eps=x_t, x_0=x_t, mean=mean(x_t, t),
            log_variance=jnp.full((x_t.shape[0], 1, 1, 1), log_variance, jnp.float32),
        )

    return predict


def test_no_noise_in_the_last_step():
    """For every key the result is exactly the mean of the step t = 0."""
    last = scripted(lambda x_t, t: jnp.where((t == 0)[:, None, None, None], 0.25, x_t))
    x_T = jnp.ones((2, *SHAPE))
    for schedule in (FULL, schedule_lib.from_betas([0.3])):
        samples = jax.jit(lambda rngs: ancestral(schedule, last, x_T, rngs))(keys(2))
        assert_array_equal(samples, jnp.full_like(x_T, 0.25))


def test_steps_run_from_the_last_to_the_first():
    """x -> 2 x + t, without noise, against a loop."""
    double = scripted(
        lambda x_t, t: 2 * x_t + t.astype(jnp.float32)[:, None, None, None], -np.inf
    )
    x_T = jnp.ones((1, 1, 1, 1))
    samples = jax.jit(lambda rngs: ancestral(FULL, double, x_T, rngs))(keys(1))
    expected = 1.0
    for t in range(19, -1, -1):
        expected = 2 * expected + t
    assert samples.item() == expected  # Integers below 2^24 are exact in float32.


def test_every_step_draws_new_noise_of_its_own_scale():
    """With mean x_t the noises add up as variances, not as one draw many times."""
    walk = scripted(lambda x_t, t: x_t, np.log(4.0))
    rngs, x_T = keys(256), jnp.zeros((256, *SHAPE))
    samples = np.float64(jax.jit(lambda rngs: ancestral(FULL, walk, x_T, rngs))(rngs))
    expected = 4.0 * 19
    assert abs(samples.var() - expected) < 5 * expected * np.sqrt(2 / samples.size)


def test_noise_is_addressed_by_key_and_step():
    """With mean x_t and four steps the sample is the sum of three draws."""
    walk = scripted(lambda x_t, t: x_t)
    schedule = schedule_lib.constant(4)

    def draw(rngs):
        samples = ancestral(schedule, walk, jnp.zeros((2, *SHAPE)), rngs)
        return samples, standard_normal(rngs, SHAPE)

    def expect(rng):
        each = [jax.random.normal(jax.random.fold_in(rng, t), SHAPE) for t in (1, 2, 3)]
        return sum(each), jax.random.normal(rng, SHAPE)

    rngs = keys(2)
    with jax.debug_key_reuse(False):  # The same keys, on purpose.
        walked, prior = jax.jit(draw)(rngs)
        for i in range(2):
            noise, first = jax.jit(expect)(rngs[i])
            assert_allclose(walked[i], noise, rtol=0, atol=2e-6)  # Summed in another order.
            assert_allclose(prior[i], first, rtol=0, atol=1e-6)  # Another compilation of erfinv.


def test_an_image_depends_on_its_own_key_alone():
    predict = predict_fn(FULL, tiny_network(KERNEL))
    rngs, x_T = keys(5), standard_normal(keys(5, seed=1), SHAPE)
    chain = jax.jit(lambda x_T, rngs: ancestral(FULL, predict, x_T, rngs))
    every = np.asarray(chain(x_T, rngs))
    # atol: XLA may tile another batch size otherwise, which moves the last float32 bits of
    # 20 steps on numbers up to 1.
    for rows in (np.array([2]), np.array([4, 1, 0])):
        some = chain(x_T[rows], rngs[rows])
        assert_allclose(some, every[rows], rtol=0, atol=1e-5)
    assert np.abs(every[0] - every[1]).max() > 0.1


def test_clipped_samples_stay_inside():
    predict = predict_fn(FULL, tiny_network(10 * KERNEL))
    chain = jax.jit(lambda x_T, rngs: ancestral(FULL, predict, x_T, rngs))
    samples = chain(jnp.ones((2, *SHAPE)), keys(2))
    assert samples.dtype == jnp.float32 and np.abs(samples).max() <= 1.0 + 1e-6  # An ulp.


def test_on_step_hears_of_every_step():
    heard = []

    def hear(t):
        jax.debug.callback(lambda t: heard.append(int(t)), t, ordered=True)

    x_T = jnp.zeros((1, 1, 1, 1))
    ancestral(FULL, scripted(lambda x_t, t: x_t), x_T, keys(1), on_step=hear)
    jax.effects_barrier()
    assert heard == list(range(19, -1, -1))


def test_a_chain_in_two_parts_is_the_chain():
    predict = predict_fn(FULL, tiny_network(KERNEL))
    rngs, x_T = keys(3), standard_normal(keys(3, seed=1), SHAPE)
    with jax.debug_key_reuse(False):  # The same keys, on purpose.
        whole = jax.jit(lambda x_T, rngs: ancestral(FULL, predict, x_T, rngs))(x_T, rngs)
        x_7 = jax.jit(lambda x_T, rngs: ancestral(FULL, predict, x_T, rngs, stop=7))(x_T, rngs)
        rest = jax.jit(lambda x_7, rngs: ancestral(FULL, predict, x_7, rngs, start=7))(x_7, rngs)
    # Different programs: some float32 roundings.
    assert_allclose(rest, whole, rtol=0, atol=1e-5)
    assert np.abs(x_7 - whole).max() > 0.1


def test_a_trajectory_holds_the_steps_asked_for():
    """x -> 2 x + t again; the prediction's x_0 is -x_t."""
    def predict(x_t, t):
        double = 2 * x_t + t.astype(jnp.float32)[:, None, None, None]
        return Prediction(
            eps=x_t, x_0=-x_t, mean=double, log_variance=jnp.full((1, 1, 1, 1), -np.inf)
        )

    x_T = jnp.ones((1, 1, 1, 1))
    x_0, trajectory = jax.jit(
        lambda rngs: ancestral(FULL, predict, x_T, rngs, trajectory=(19, 0, 16))
    )(keys(1))
    before, x = {}, 1.0
    for t in range(19, -1, -1):
        before[t] = x
        x = 2 * x + t
    assert x_0.item() == x
    assert_array_equal(trajectory.x_t.ravel(), [before[19], before[0], before[16]])
    assert_array_equal(trajectory.x_0, -trajectory.x_t)
    assert trajectory.x_t.shape == (3, 1, 1, 1, 1)


@pytest.mark.parametrize("arguments, says", [
    (dict(start=21), "start=21 and stop=0 must be .* <= 20"),
    (dict(start=5, stop=5), "start=5 and stop=5 must"),
    (dict(stop=-1), "stop=-1 must"),
    (dict(start=5, trajectory=(5,)), "trajectory=.5. must lie in 0..4"),
])
def test_steps_outside_the_chain_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        ancestral(FULL, scripted(lambda x, t: x), jnp.zeros((1, 1, 1, 1)), keys(1), **arguments)


@pytest.mark.parametrize("run", [
    lambda x, rngs: inspect.unwrap(ancestral)(FULL, None, x, rngs),
    lambda x, rngs: inspect.unwrap(ddim.invert)(FULL, None, x),
    lambda x, rngs: inspect.unwrap(ddim.slerp)(x, x, None),
    lambda x, rngs: inspect.unwrap(tableau.solve)(None, None, x, rngs),
    lambda x, rngs: inspect.unwrap(inpainting.inpaint)(
        None, None, np.float32(x), rngs, x, lambda known, x: x),
])
def test_images_are_floats(run):
    """Without the checks of annotations that only tests have."""
    with pytest.raises(UserError, match=r"=<uint8 \[1, 2, 2, 1\]> must be float in \[-1, 1\]"):
        run(np.zeros((1, 2, 2, 1), np.uint8), keys(1))
