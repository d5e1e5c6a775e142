"""The table of samplers, and the settings that go with each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.samplers.reverse_chain import StepChain, StepSampler
from ddpm_jax.samplers.settings import SAMPLERS, SOLVERS, SPECIAL, Settings
from ddpm_jax.samplers.tableau import PlanChain

SCHEDULE = schedule_lib.linear(20, 1e-3, 0.4)


def test_the_table_names_every_sampler():
    assert list(SAMPLERS) == [
        "ancestral", "ddim", "dpm_solver", "dpm_solver_2", "dpm_solver_pp", "dpm_solver_pp_3",
        "dpm_solver_pp_sde", "unipc", "unipc_bh1", "unipc_3", "unipc_3_bh1", "heun",
    ]
    assert SOLVERS == tuple(SAMPLERS)[2:]
    assert SPECIAL == {"eta", "grid", "rederive_eps", "s_churn", "s_min", "s_max", "s_noise"}
    assert samplers.Settings is Settings


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_chain_calls_the_network_as_often_as_asked(name):
    settings = Settings(name, 7)
    chain = settings.chain(SCHEDULE)
    assert chain.num_calls == settings.num_calls(SCHEDULE) == 7
    assert isinstance(chain, PlanChain if name in SOLVERS else StepChain)
    assert settings.by_grid == (name not in SOLVERS)


def test_all_steps_are_the_schedule_itself():
    chain = Settings().chain(SCHEDULE)
    assert chain.schedule is SCHEDULE and chain.full is None
    chain = Settings(grid="ddim5").chain(SCHEDULE)
    assert chain.num_calls == 5 and chain.full is SCHEDULE


@pytest.mark.parametrize("name", SAMPLERS)
def test_chains_of_equal_settings_share_a_program(name):
    """Arrays are arguments, and settings are static and compared by value."""
    traces = []

    @jax.jit
    def draw(chain, x_T):
        traces.append(chain.num_calls)
        rngs = jax.random.split(jax.random.key(0), len(x_T))
        return chain.run(lambda x, t: 0.5 * x, process.Parameterization("x_0"), x_T, rngs)

    x_T = jnp.full((2, 4, 4, 1), 0.01)  # Too small to be clipped.
    first = draw(Settings(name, 5).chain(SCHEDULE), x_T)
    second = draw(Settings(name, 5).chain(schedule_lib.linear(20, 1e-4, 0.3)), x_T)
    assert traces == [5] and not np.array_equal(first, second)
    draw(Settings(name, 5, clip=False).chain(SCHEDULE), x_T)
    assert traces == [5, 5]


def test_a_new_sampler_is_one_entry(monkeypatch):
    """The sampler here halves the mean of every step."""
    def step(schedule, predict_fn, settings):
        def predict(x_t, t):
            prediction = predict_fn(x_t, t)
            return prediction.replace(mean=prediction.mean / 2, log_variance=None)

        return predict

    monkeypatch.setitem(SAMPLERS, "halving", StepSampler(step))
    settings = Settings("halving", 3)
    settings.check()
    x_T = jnp.ones((1, 4, 4, 1))
    rngs = jax.random.split(jax.random.key(0), 1)
    images = settings.chain(SCHEDULE).run(
        lambda x, t: jnp.zeros_like(x), process.Parameterization(), x_T, rngs)
    # Without noise x_0 is x_t / sqrt(alpha_bar), and the mean at t = 0 is x_0, halved.
    assert 0 < np.abs(images).max() <= 0.5
    with pytest.raises(ValueError, match="eta=0.5 is for 'ddim' alone, .* sampler='halving'"):
        dataclasses.replace(settings, eta=0.5).check()


@pytest.mark.parametrize("name, kept", [
    ("ancestral", {"grid"}), ("ddim", {"eta", "grid", "rederive_eps"}), ("heun", set()),
])
def test_another_sampler_keeps_the_settings_that_it_reads(name, kept):
    base = Settings("ddim", 5, 0.5, "trailing", False, 2.0, (3, 9), False, 0.9)
    settings = base.with_sampler(name, 7)
    assert (settings.sampler, settings.num_steps) == (name, 7)
    for field in dataclasses.fields(Settings)[2:]:
        expected = field.default if field.name in SPECIAL - kept else getattr(base, field.name)
        assert getattr(settings, field.name) == expected
    settings.check()
    with pytest.raises(ValueError, match="sampler='euler' is not known"):
        base.with_sampler("euler", 7)


def test_lists_become_tuples_and_no_steps_are_all():
    settings = Settings(num_steps=0, grid=[0, 9], guidance=2.0, guidance_interval=[3, 9])
    assert settings == Settings(grid=(0, 9), guidance=2.0, guidance_interval=(3, 9))
    assert hash(settings) == hash(Settings(
        None, grid=np.array([0, 9]), guidance=2.0, guidance_interval=(3, 9)).with_sampler(
            "ancestral", None))


@pytest.mark.parametrize("settings, says", [
    (Settings("euler"), "sampler='euler' is not known; use one of ancestral, ddim, dpm_solver,"),
    (Settings("heun"), "sampler='heun' needs num_steps, .*; write num_steps=21."),
    (Settings("ddim", eta=1.5), "eta=1.5 must lie in 0..1: .*; write eta=1.0."),
    (Settings(eta=0.5), "eta=0.5 is for 'ddim' alone, .*; write eta=0.0."),
    (Settings("heun", 5, grid="trailing"), "grid='trailing' is for .*; write grid='uniform'."),
    (Settings(rederive_eps=False), "rederive_eps=False is for 'ddim' alone"),
    (Settings("ddim", clip=False, rederive_eps=False), "has no effect where x_0 is neither"),
    (Settings(guidance=-1.0), "guidance=-1.0 must be at least 0"),
    (Settings(guidance=2.0, guidance_interval=(9, 3)), r"guidance_interval=\(9, 3\) must be"),
    (Settings(guidance_interval=(3, 9)), "with guidance other than 1"),
    (Settings(dynamic_threshold=99.5), "dynamic_threshold=99.5 must lie in 0..1, a fraction"),
])
def test_mistakes_are_told_in_one_line(settings, says):
    with pytest.raises(ValueError, match=says) as error:
        settings.check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings, says", [
    (dict(sampler="ddim", s_churn=1.0), "s_churn=1.0 is for 'heun' alone"),
    (dict(sampler="heun", num_steps=9, s_min=0.5), "s_churn=0.0 is 0, so s_min=0.5, .* no effect"),
    (dict(sampler="heun", num_steps=9, s_noise=1.1), "s_churn=0.0 is 0, so .*s_noise=1.1"),
    (dict(sampler="heun", num_steps=9, s_churn="a"), "s_churn='a' must be a finite number"),
])
def test_churn_that_has_no_effect_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Settings(**settings).check()
