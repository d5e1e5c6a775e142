"""Every step of our chains against the schedulers of diffusers, given outputs and noises.

`fixtures/make_schedulers.py` says which of theirs have no counterpart here.
"""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import predict_fn
from ddpm_jax.samplers import dpm_solver, reverse_chain, tableau
from ddpm_jax.samplers import ddim as ddim_lib
from ddpm_jax.samplers import heun as heun_lib
from ddpm_jax.samplers import unipc as unipc_lib

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
SCRIPT = runpy.run_path(str(FIXTURES / "make_schedulers.py"))
CASES = SCRIPT["cases"]()
with np.load(FIXTURES / "schedulers.npz") as stored:
    STORED = dict(stored)
LINEAR = schedule_lib.linear()
MEANS = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}


def kinds(settings):
    """Our settings of the prediction, from those of diffusers."""
    hook = None
    if settings.get("sample_max_value", 1.0) > 1:
        hook = functools.partial(
            process.dynamic_threshold, percentile=settings["dynamic_thresholding_ratio"]
        )
    clip = settings.get("clip_sample", settings.get("sample_max_value") == 1.0)
    return dict(
        mean=MEANS[settings.get("prediction_type", "epsilon")], clip=clip, denoised_fn=hook
    )


def by_grid(case, t, draws, draw_given):
    """The chain on the falling steps t: its end, and its trajectory."""
    x_T, outputs, seconds, noises = draws
    settings, n = case["settings"], len(t)
    variance = settings.get("variance_type", "fixed_large")
    if variance == "learned_range":
        outputs = np.concatenate([outputs, seconds], axis=-1)
    # With set_alpha_to_one=False the chain ends at the first step of the schedule, with its noise.
    stop = int(not settings.get("set_alpha_to_one", True))
    visited = schedule_lib.respace(LINEAR, [0] * stop + [int(step) for step in t[::-1]])
    numbered = visited.replace(timesteps=np.arange(n + stop))
    more, run = {}, reverse_chain.ancestral
    if case["scheduler"] == "DDIM":
        more["rederive_eps"] = case["given"].get("use_clipped_model_output", False)
        run = functools.partial(ddim_lib.ddim, eta=case["given"].get("eta", 0.0))
    predict = predict_fn(
        numbered, lambda x, i: jnp.asarray(outputs)[n - 1 + stop - i[0]], variance=variance,
        **kinds(settings), **more,
    )
    rngs = draw_given(np.concatenate([noises[:stop], noises[::-1]]))
    return jax.jit(lambda x: run(
        numbered, predict, x, rngs, stop=stop, trajectory=range(n + stop - 1, stop - 1, -1)
    ))(x_T)


def by_plan(case, t, draws, draw_given):
    """The solver at the levels of diffusers, with x scaled as there."""
    x_T, outputs, _, noises = draws
    settings, n = case["settings"], len(t)
    if case["scheduler"] == "HeunDiscrete":
        plan = heun_lib.heun(LINEAR, n)
    elif case["scheduler"] == "UniPCMultistep":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unipc_lib, "log_snr", lambda schedule, n: np.float64(t[::-1]))
            plan = unipc_lib.unipc(
                LINEAR, n, order=settings["solver_order"], variant=settings["solver_type"]
            )
    else:
        plan = dpm_solver.dpm_solver_pp(
            LINEAR, n, order=settings["solver_order"], sde="algorithm_type" in settings
        )
    assert_allclose(plan.t, t, rtol=0, atol=0.51)  # diffusers rounds t, only for the network.
    rngs = draw_given(noises)
    numbered = plan.replace(t=np.arange(n))
    return jax.jit(lambda x: tableau.solve(
        numbered, lambda x, i: jnp.asarray(outputs)[i[0].astype(jnp.int32)], x, rngs,
        trajectory=range(n - 1, -1, -1), **kinds(settings),
    ))(x_T), plan


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_that_of_diffusers(name, draw_given):
    case = CASES[name]
    t, x, x_0 = (STORED[f"{name}/{part}"] for part in ("t", "x", "x_0"))
    draws = SCRIPT["draws"](len(t))
    scheduler = case["scheduler"]
    if scheduler in ("DDPM", "DDIM"):
        last, kept = by_grid(case, t, draws, draw_given)
    else:
        (last, kept), plan = by_plan(case, t, draws, draw_given)
    passed = np.concatenate([kept.x_t[1:], last[None]])
    if scheduler == "HeunDiscrete":  # There x is divided by its signal, which is 1 at x_0.
        passed[:-1] /= np.reshape(plan.signal[1:], (-1, 1, 1, 1, 1))
    if case["settings"].get("solver_type") == "bh1":
        assert np.isnan(x[-1]).all()
        passed, x = passed[:-1], x[:-1]
    if scheduler == "UniPCMultistep":  # float32 on their side too.
        assert np.abs(passed - x).max() < 1e-5 * np.abs(x).max()
    assert_allclose(passed, x, rtol=1e-4, atol=1e-4)
    if scheduler != "HeunDiscrete":  # It does not report x_0.
        # There alpha_bar is a product in float32, and x_0 is at first a division by 0.006.
        assert_allclose(kept.x_0, x_0, rtol=5e-4, atol=5e-4)
    assert np.abs(passed[-1]).max() > 0.1


def test_the_fixture_has_the_cases_of_the_script():
    assert {name.rpartition("/")[0] for name in STORED} - {""} == set(CASES)
    assert (FIXTURES / "schedulers.npz").stat().st_size < 200_000
