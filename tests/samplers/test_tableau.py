"""Plans run by `solve`, in a world whose best denoiser, and its exact ODE, are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tracing
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.randomness import standard_normal
from ddpm_jax.samplers import dpm_solver, tableau
from ddpm_jax.samplers import heun as heun_lib
from ddpm_jax.samplers.settings import SAMPLERS, SOLVERS
from gaussian import M, S, SHAPE, best_eps, keys, optimal, run
from nonzero import convolution

pytestmark = pytest.mark.usefixtures("strict_dtypes")
LINEAR = schedule_lib.linear()
CALLS = {name: 19 if name == "heun" else 20 for name in SOLVERS}


@pytest.mark.parametrize("name, mean", [(name, "eps") for name in SOLVERS] + [
    (name, mean) for name in ("dpm_solver", "dpm_solver_pp") for mean in ("x_0", "v")
])
def test_solve_is_the_loop(name, mean):
    plan = SAMPLERS[name].plan(LINEAR, CALLS[name])
    x_T = np.linspace(-2, 2, 5)
    rngs = keys(5)
    chain = jax.jit(lambda x, rngs: tableau.solve(
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


# Calls, and the tolerances of the mean (absolute; 5 standard errors are 0.007) and of the standard
# deviation (relative). The error of the solver itself, which the loop in float64 has too, is far
# above the statistical one. 20 calls are too few for Heun: 10 levels up to sigma = 157.
TOLERANCES = {
    "dpm_solver": (18, 0.007, 0.02), "dpm_solver_2": (20, 0.007, 0.1),
    "dpm_solver_pp": (12, 0.007, 0.04), "dpm_solver_pp_3": (15, 0.007, 0.04),
    "dpm_solver_pp_sde": (15, 0.007, 0.06), "heun": (49, 0.007, 0.06),
    "unipc": (15, 0.007, 0.045), "unipc_bh1": (20, 0.007, 0.045), "unipc_3": (15, 0.007, 0.025),
    "unipc_3_bh1": (15, 0.007, 0.025),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_gaussian_world(name):
    """About ten calls lead from the noise to the data."""
    calls, of_mean, of_deviation = TOLERANCES[name]
    plan = SAMPLERS[name].plan(LINEAR, calls)
    x_T = standard_normal(keys(512, seed=1), SHAPE)
    chain = jax.jit(lambda x, rngs: tableau.solve(plan, optimal(LINEAR), x, rngs, clip=False))
    samples = np.float64(chain(x_T, keys(512)))
    assert abs(samples.mean() - M) < of_mean
    assert abs(samples.std() / S - 1) < of_deviation


def test_the_sde_converges_in_distribution():
    """With many calls the moments are right to 5 standard errors, and nothing is left of x_T."""
    x_T = standard_normal(keys(512, seed=1), SHAPE)
    plan = dpm_solver.dpm_solver_pp(LINEAR, 200, sde=True)
    samples = np.float64(jax.jit(lambda x, rngs: tableau.solve(
        plan, optimal(LINEAR), x, rngs, clip=False
    ))(x_T, keys(512)))
    n = samples.size
    # The x_0 predicted at the first level is narrower than S^2 by the noise there, 0.01.
    deviation = S**2 / np.hypot(S, 0.01)
    assert abs(samples.mean() - M) < 5 * S / np.sqrt(n)
    assert abs(samples.std() / deviation - 1) < 5 / np.sqrt(2 * n)
    assert abs(np.corrcoef(samples.ravel(), np.ravel(x_T))[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_scan_that_calls_the_network_once(name):
    calls = []

    def denoise(x_t, t):
        calls.append(t)
        return convolution(x_t, t)

    plan = SAMPLERS[name].plan(LINEAR, CALLS[name])
    jaxpr = jax.make_jaxpr(lambda x, rngs: tableau.solve(plan, denoise, x, rngs))(
        jnp.zeros((2, *SHAPE)), keys(2)
    ).jaxpr
    assert len(calls) == 1
    assert calls[0].shape == (2,) and calls[0].dtype == jnp.float32
    named = [(e.primitive.name, e) for e in tracing.equations(jaxpr)]
    names = [name for name, _ in named]
    scan, = (equation for name, equation in named if name == "scan")
    assert scan.params["length"] == plan.num_calls == CALLS[name] and "while" not in names
    assert names.count("conv_general_dilated") == 1
    inside = [e.primitive.name for e in tracing.equations(scan.params["jaxpr"].jaxpr)]
    assert inside.count("conv_general_dilated") == 1
    # Only the SDE draws noise.
    assert any("random" in name for name in inside) == (name == "dpm_solver_pp_sde")


def test_on_step_and_the_network_hear_of_every_call():
    heard, steps_seen = [], []
    plan = heun_lib.heun(LINEAR, 7)

    def hear(i):
        jax.debug.callback(lambda i: heard.append(int(i)), i, ordered=True)

    def denoise(x_t, t):
        jax.debug.callback(lambda t: steps_seen.append(float(t[0])), t, ordered=True)
        return x_t

    tableau.solve(plan, denoise, jnp.zeros((1, 1, 1, 1)), keys(1), on_step=hear)
    jax.effects_barrier()
    assert heard == list(range(6, -1, -1))
    assert_allclose(steps_seen, plan.t, atol=1e-4)  # float32 of up to 999.


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_pp_sde", "heun"])
def test_a_trajectory_holds_the_calls_asked_for(name):
    """By the calls left, in the requested order: x before each, and the clipped x_0."""
    plan = SAMPLERS[name].plan(LINEAR, 7)
    x_T, rngs = standard_normal(keys(2, seed=1), SHAPE), keys(2)
    seen = []

    def denoise(x_t, t):
        jax.debug.callback(lambda x: seen.append(np.array(x)), x_t, ordered=True)
        return convolution(x_t, t)

    x, kept = jax.jit(lambda x, rngs: tableau.solve(
        plan, denoise, x, rngs, trajectory=(0, 6, 2)
    ))(x_T, rngs)
    jax.effects_barrier()
    assert len(seen) == 7 and kept.x_t.shape == kept.x_0.shape == (3, 2, *SHAPE)
    for place, left in enumerate((0, 6, 2)):
        call = 6 - left
        assert_array_equal(kept.x_t[place], seen[call])
        at = jnp.full((2,), plan.t[call], jnp.float32)
        eps = np.float64(convolution(jnp.asarray(seen[call]), at))
        x_0 = (seen[call] - plan.sigma[call] * eps) / plan.signal[call]
        # float32, divided by a signal of 0.006 or more.
        assert_allclose(kept.x_0[place], np.clip(x_0, -1, 1), rtol=0, atol=1e-3)
    assert_array_equal(kept.x_t[1], x_T)
    assert_array_equal(kept.x_0[0], x)  # The last call gives x_0 itself.
    with pytest.raises(ValueError, match=r"trajectory=\[7\] must lie in 0..6, the steps"):
        tableau.solve(plan, convolution, x_T, rngs, trajectory=(7,))


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_pp_sde"])
def test_an_image_depends_on_its_own_key_alone(name):
    plan = SAMPLERS[name].plan(LINEAR, 8)
    rngs, x_T = keys(5), standard_normal(keys(5, seed=1), SHAPE)
    chain = jax.jit(lambda x, rngs: tableau.solve(plan, convolution, x, rngs))
    every = np.asarray(chain(x_T, rngs))
    # XLA may tile another batch size otherwise, which moves the last float32 bits.
    for rows in (np.array([2]), np.array([4, 1, 0])):
        some = chain(x_T[rows], rngs[rows])
        assert_allclose(some, every[rows], rtol=0, atol=1e-4)
    assert np.abs(every[0] - every[1]).max() > 0.1
    other = chain(x_T, keys(5, seed=9))
    assert (np.abs(other - every).max() > 0.1) == (name == "dpm_solver_pp_sde")


@pytest.mark.parametrize("name", SOLVERS)
def test_clipped_samples_stay_inside_even_of_the_cosine(name):
    """With a network that is far off, at alpha_bar = 2e-9 and below."""
    plan = SAMPLERS[name].plan(schedule_lib.cosine(), CALLS[name])
    x_T = standard_normal(keys(2, seed=1), SHAPE)
    chain = jax.jit(lambda x, rngs: tableau.solve(
        plan, lambda x, t: 3 * convolution(x, t), x, rngs
    ))
    assert np.abs(chain(x_T, keys(2))).max() <= 1


def test_the_cosine_without_clipping():
    """The samples of the best denoiser, to float32 through a signal of 0.006."""
    schedule = schedule_lib.cosine()
    x_T = np.linspace(-2, 2, 5)
    for name in ("dpm_solver", "dpm_solver_pp"):
        plan = SAMPLERS[name].plan(schedule, 50)
        samples = jax.jit(lambda x, rngs: tableau.solve(
            plan, optimal(schedule), x, rngs, clip=False
        ))(jnp.asarray(x_T, jnp.float32).reshape(-1, 1, 1, 1), keys(5))
        # The noise left at the first level is not part of x_0; 2M is off by 0.3 percent.
        assert_allclose(samples.ravel(), M + S * x_T, rtol=0, atol=0.005)


def test_clipping_moves_eps_too():
    """One step of DPM-Solver-1 is DDIM: the golden step, from 999 to 899."""
    schedule = schedule_lib.respace(LINEAR, [899, 999])
    plan = dpm_solver.dpm_solver(schedule, 1, denoise=False)
    for clip, golden in ((False, 1.8056246515), (True, 1.0101198238)):
        x = tableau.solve(
            plan, lambda x, t: jnp.full_like(x, 0.5), jnp.ones((1, 1, 1, 1)), keys(1),
            clip=clip,
        )
        assert_allclose(x.item(), golden, rtol=2e-6)  # A few roundings of float32.


def test_denoised_fn_comes_before_the_clipping():
    plan = dpm_solver.dpm_solver_pp(LINEAR, 1)
    settings = dict(mean="x_0", denoised_fn=lambda x_0: x_0 / 4)
    x_T = jnp.zeros((1, 1, 1, 1))
    for says, clip, expected in ((2.0, True, 0.5), (8.0, True, 1.0), (8.0, False, 2.0)):
        x_0 = tableau.solve(
            plan, lambda x, t: jnp.full_like(x, says), x_T, keys(1), clip=clip, **settings
        )
        assert x_0.item() == expected


def test_denoised_fn_moves_eps_without_clipping():
    plan = dpm_solver.dpm_solver(LINEAR, 1, denoise=False)
    x = tableau.solve(
        plan, lambda x, t: jnp.zeros_like(x), jnp.ones((1, 1, 1, 1)), keys(1), clip=False,
        denoised_fn=jnp.zeros_like,
    )
    # With x_0 = 0 all of x is noise, which shrinks with sigma: float32 of 157 x - 156.99 x.
    assert_allclose(x.item(), 0.01 / plan.sigma[0], rtol=0, atol=3e-5)


def test_a_learned_variance_is_dropped():
    def two(x_t, t):
        return jnp.concatenate([convolution(x_t, t), jnp.full_like(x_t, jnp.nan)], axis=-1)

    plan = dpm_solver.dpm_solver_pp(LINEAR, 5)
    x_T = standard_normal(keys(2, seed=1), SHAPE)
    assert_array_equal(
        tableau.solve(plan, two, x_T, keys(2, seed=2), variance="learned_range"),
        tableau.solve(plan, convolution, x_T, keys(2, seed=3)),
    )


def test_a_plan_may_be_an_argument():
    """One compiled chain serves plans of one shape."""
    chain = jax.jit(lambda plan, x, rngs: tableau.solve(plan, optimal(LINEAR), x, rngs))
    x_T = jnp.zeros((1, 1, 1, 1))
    plan = dpm_solver.dpm_solver_pp(LINEAR, 6)
    outside = chain(plan, x_T, keys(1))
    with_constants = jax.jit(lambda x, rngs: tableau.solve(plan, optimal(LINEAR), x, rngs))
    # atol: constants are folded in one of the programs only.
    assert_allclose(outside, with_constants(x_T, keys(1)), rtol=0, atol=1e-5)


def test_a_schedule_of_one_step():
    one = schedule_lib.linear(1)
    for name in SOLVERS:
        x_0 = tableau.solve(
            SAMPLERS[name].plan(one, 1), lambda x, t: jnp.zeros_like(x),
            jnp.full((1, 1, 1, 1), 0.5), keys(1),
        )
        assert_allclose(x_0.item(), 0.5 / np.sqrt(one.alpha_bar[0]), rtol=1e-6)
    with pytest.raises(ValueError, match="num_levels=5 is not possible"):
        dpm_solver.dpm_solver_pp(one, 5)


def test_x_prev_cannot_be_solved():
    with pytest.raises(ValueError, match="mean='x_prev' cannot go with a solver"):
        tableau.solve(
            heun_lib.heun(LINEAR, 1), convolution, jnp.zeros((1, 1, 1, 1)), keys(1), mean="x_prev"
        )
