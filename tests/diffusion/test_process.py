"""The forward process, its posterior and the meaning of an output, against the oracle."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle
from ddpm_jax.diffusion import losses, process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import (
    LEARNED, MEANS, MEANS_OF_LEVELS, VARIANCES, Parameterization, dynamic_threshold, eps_from_x_0,
    model_log_variance, predict, predict_fn, q_mean_variance, q_posterior, q_sample, q_step,
    x_0_and_eps, x_0_from_eps,
)
from ddpm_jax.errors import UserError

SCHEDULES = {
    "linear": schedule_lib.linear(),
    "cosine": schedule_lib.cosine(20),
    "jsd": schedule_lib.jsd(20),
    "one step": schedule_lib.from_betas([0.3]),
}
FLOAT32 = dict(rtol=2e-6, atol=2e-6)  # A few float32 roundings (6e-8) of numbers up to 3.

EITHER_WAY = pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit], ids=["eager", "jit"]
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def all_ends(schedule):
    """Indices at both ends and in the middle."""
    last = schedule.num_timesteps - 1
    return jnp.array(sorted({0, min(1, last), last // 2, max(last - 1, 0), last}))


def pixels(t, *values):
    """For each value a batch [b, 1, 2, 1] with that value and its negative side by side."""
    signs = jnp.array([1.0, -1.0]).reshape(1, 1, 2, 1)
    return [jnp.full((len(t), 1, 2, 1), value) * signs for value in values]


@EITHER_WAY
@pytest.mark.parametrize("name", SCHEDULES)
def test_q_sample_is_the_composition_of_steps(name, transform):
    """Its coefficients, read off by x_0 and eps of 0 and 1."""
    schedule = SCHEDULES[name]
    t = all_ends(schedule)
    zero, one = pixels(t, 0.0, 1.0)
    sample = transform(lambda x_0, eps: q_sample(schedule, x_0, t, eps))
    mean, variance = transform(lambda x_0: q_mean_variance(schedule, x_0, t))(one)
    for i, step in enumerate(np.asarray(t) + 1):
        scale, expected = oracle.compose(schedule.beta, step)
        assert_allclose(sample(one, zero)[i, 0, 0], scale, **FLOAT32)
        assert_allclose(sample(zero, one)[i, 0, 0], np.sqrt(expected), **FLOAT32)
        assert_allclose(mean[i, 0, 0], scale, **FLOAT32)
        # atol is above the variance's 1e-4 by far, so relative alone.
        assert_allclose(variance[i, 0, 0], expected, rtol=2e-6)


@EITHER_WAY
def test_q_step_repeated_is_q_sample(transform):
    """Means and variances carried through 20 single steps, as linear maps."""
    schedule = schedule_lib.cosine(20)
    one, zero = jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1))
    step = transform(lambda x, t, eps: q_step(schedule, x, t, eps))
    sample = transform(lambda x, t, eps: q_sample(schedule, x, t, eps))
    mean, variance = one, 0.0
    for i in range(20):
        t = jnp.array([i])
        mean = step(mean, t, zero)
        noise = float(step(zero, t, one)[0, 0, 0, 0])
        variance = float(step(one, t, zero)[0, 0, 0, 0]) ** 2 * variance + noise**2
        # Twenty steps of float32, each within an ulp or two.
        assert_allclose(sample(one, t, zero), mean, rtol=1e-5)
        assert_allclose(sample(zero, t, one)[0, 0, 0, 0] ** 2, variance, rtol=1e-5)


@EITHER_WAY
@pytest.mark.parametrize("x_0, x_t", [(0.7, -1.3), (0.0, 1.0), (-1.0, -1.0)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_bayes_rule(name, x_0, x_t, transform):
    schedule = SCHEDULES[name]
    t = all_ends(schedule)
    posterior = transform(lambda x_0, x_t: q_posterior(schedule, x_0, x_t, t))
    mean, variance, log_variance = posterior(*pixels(t, x_0, x_t))
    assert mean.shape == (len(t), 1, 2, 1) and variance.shape == (len(t), 1, 1, 1)
    for i, step in enumerate(np.asarray(t) + 1):
        expected, spread = oracle.posterior(schedule.beta, step, x_0, x_t)
        assert_allclose(mean[i, 0, :, 0], [expected, -expected], **FLOAT32)
        assert_allclose(variance[i].item(), spread, rtol=2e-6)
        borrowed = oracle.reverse_variance(schedule.beta, step, "fixed_small")
        assert_allclose(log_variance[i].item(), np.log(borrowed), **FLOAT32)


@EITHER_WAY
@pytest.mark.parametrize("name", ["linear", "cosine", "one step"])
def test_eps_and_x_0_are_inverse(name, transform):
    schedule = SCHEDULES[name]
    t = all_ends(schedule)
    x_0, eps = pixels(t, 0.8, -1.7)
    x_t = q_sample(schedule, x_0, t, eps)
    found_x_0 = transform(lambda: x_0_from_eps(schedule, x_t, t, eps))()
    found_eps = transform(lambda: eps_from_x_0(schedule, x_t, t, x_0))()
    # x_t, up to 1.7, is rounded by 1e-7 and then divided by its scale of x_0 or of eps.
    signal, noise = schedule.sqrt_alpha_bar[t], schedule.sqrt_one_minus_alpha_bar[t]
    assert np.all(abs(found_x_0 - x_0) < 4e-7 / signal[:, None, None, None])
    assert np.all(abs(found_eps - eps) < 4e-7 / noise[:, None, None, None])


def predict_pixel(transform, x_t, output, t, schedule=SCHEDULES["linear"], **settings):
    """The prediction's four fields for one pixel."""
    run = transform(lambda output, x_t, t: predict(schedule, output, x_t, t, **settings))
    one = jnp.ones((1, 1, 1, 1))
    prediction = run(output * one, x_t * one, jnp.array([t]))
    return {name: value.item() for name, value in vars(prediction).items()}


@EITHER_WAY
@pytest.mark.parametrize(
    "clip, x_0, mean", [(True, 1.0, 0.5001102325), (False, 1.4483286357, 0.5014812470)]
)
def test_published_single_step(clip, x_0, mean, transform):
    actual = predict_pixel(transform, 0.5, 0.1, 500, clip=clip)
    # The clip moves the mean by 1e-3: far outside float32's rounding.
    assert_allclose([actual["x_0"], actual["mean"]], [x_0, mean], **FLOAT32)


@EITHER_WAY
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("mean", MEANS)
def test_predict_matches_the_oracle(mean, clip, variance, transform):
    """x_0 is clipped before the mean is formed, and eps re-derived from it."""
    schedule, x_t, output, t = SCHEDULES["linear"], 1.3, 0.4, jnp.array([0, 1, 500, 999])
    second = -0.7
    run = transform(lambda output, x_t, t: predict(
        schedule, output, x_t, t, mean=mean, clip=clip, variance=variance
    ))
    outputs = jnp.full((4, 1, 1, 1), output)
    if variance in LEARNED:
        outputs = jnp.concatenate([outputs, jnp.full((4, 1, 1, 1), second)], axis=-1)
    actual = run(outputs, jnp.full((4, 1, 1, 1), x_t), t)
    for i, step in enumerate(np.asarray(t) + 1):
        scale, spread = oracle.compose(schedule.beta, step)
        x_0 = oracle.implied_x_0(schedule.beta, step, x_t, output, mean)
        x_0 = min(max(x_0, -1), 1) if clip else x_0
        says_mean = mean == "x_prev"  # and there the clip is for the reported x_0 alone
        if variance in LEARNED:
            sigma_squared = oracle.learned_variance(schedule.beta, step, second, variance)
        else:
            sigma_squared = oracle.reverse_variance(schedule.beta, step, variance)
        expected = {
            "x_0": x_0,
            "eps": (x_t - scale * x_0) / np.sqrt(spread),
            "mean": output if says_mean
            else oracle.posterior(schedule.beta, step, x_0, x_t)[0],
            "log_variance": np.log(sigma_squared),
        }
        # Float32 rounds x_t by 1e-7; at t = 0, eps is that divided by 0.01, and late x_0 is
        # that divided by its weight in x_{t-1}.
        tolerance = {"eps": 2e-6 + 2e-7 / np.sqrt(spread)}
        if says_mean and not clip:
            tolerance["x_0"] = 2e-7 / schedule.posterior_coef_x_0[step - 1]
        for name, value in expected.items():
            assert_allclose(
                getattr(actual, name)[i].item(), value, rtol=2e-6,
                atol=tolerance.get(name, 2e-6), err_msg=f"{name} at step {step}",
            )


@EITHER_WAY
def test_clipped_prediction_agrees_with_itself(transform):
    """x_t is again the mixture of the x_0 and eps that were reported."""
    schedule = SCHEDULES["linear"]
    actual = predict_pixel(transform, 1.0, 0.5, 999)
    assert actual["x_0"] == 1.0
    assert_allclose(actual["eps"], 0.9936672335, **FLOAT32)
    mixture = (
        schedule.sqrt_alpha_bar[999] * actual["x_0"]
        + schedule.sqrt_one_minus_alpha_bar[999] * actual["eps"]
    )
    assert_allclose(mixture, 1.0, **FLOAT32)


@EITHER_WAY
@pytest.mark.parametrize(
    "variance, expected",
    [
        ("fixed_large", [-9.8167251353, -9.0286863719, -8.8750127914, -4.6011741767,
                         -3.9120230054]),
        ("fixed_small", [-9.8167251353, -9.8167251353, -9.3671214974, -4.6020395501,
                         -3.9120238291]),
    ],
)
def test_published_log_variances(variance, expected, transform):
    """Index 0 is the posterior's at index 1 in both."""
    t = jnp.array([0, 1, 2, 499, 999])
    x_t = jnp.zeros((5, 1, 1, 1))
    schedule = SCHEDULES["linear"]
    actual = transform(lambda t: model_log_variance(schedule, x_t, t, variance))(t)
    # Two float32 roundings of numbers below 10 (5e-7 each).
    assert_allclose(actual.ravel(), expected, atol=1.5e-6, rtol=0)


@EITHER_WAY
@pytest.mark.parametrize("clip, expected", [(True, 0.9), (False, 2.7)])
def test_denoised_fn_comes_before_the_clip(clip, expected, transform):
    """3 becomes 0.9 and is left alone; clipped first it would become 0.3."""
    actual = predict_pixel(
        transform, 0.5, 3.0 if clip else 9.0, 500, mean="x_0", clip=clip,
        denoised_fn=lambda x: 0.3 * x,
    )
    assert_allclose(actual["x_0"], expected, **FLOAT32)
    mean = oracle.posterior(SCHEDULES["linear"].beta, 501, expected, 0.5)[0]
    assert_allclose(actual["mean"], mean, **FLOAT32)


@EITHER_WAY
def test_denoised_fn_without_clip_still_re_derives_eps(transform):
    actual = predict_pixel(
        transform, 0.5, 0.1, 500, clip=False, denoised_fn=lambda x: jnp.zeros_like(x)
    )
    noise = oracle.compose(SCHEDULES["linear"].beta, 501)[1] ** 0.5
    assert_allclose(actual["eps"], 0.5 / noise, **FLOAT32)


@EITHER_WAY
@pytest.mark.parametrize("changes", [
    dict(clip=True), dict(clip=False, denoised_fn=lambda x: 0.1 * x), dict(clip=False),
])
@pytest.mark.parametrize("mean", MEANS)
def test_eps_may_stay_the_networks(mean, changes, transform):
    """x_0 = 3, whatever it is changed to: eps is that of the 3, and nothing else moves."""
    schedule = schedule_lib.linear(20, 1e-3, 0.3)
    scale, variance = oracle.compose(schedule.beta, 8)
    eps = (0.5 - 3 * scale) / np.sqrt(variance)
    output = {"eps": eps, "x_0": 3.0, "v": scale * eps - np.sqrt(variance) * 3,
              "x_prev": oracle.posterior(schedule.beta, 8, 3.0, 0.5)[0]}[mean]
    own, ours = (
        predict_pixel(transform, 0.5, output, 7, schedule, mean=mean, rederive_eps=again, **changes)
        for again in (False, True)
    )
    # As above; x_{t-1} tells x_0 with a weight of 0.1.
    assert_allclose(own.pop("eps"), eps, rtol=2e-5)
    left = ours.pop("eps")
    assert own == ours
    changed = (0.5 - scale * ours["x_0"]) / np.sqrt(variance)
    assert_allclose(left, changed, rtol=2e-5, atol=2e-5)


@EITHER_WAY
def test_x_0_survives_a_last_beta_of_one(transform):
    """With beta = 1 nothing of x_0 is in x_t, and the mean is the prediction's alone."""
    schedule = SCHEDULES["jsd"]
    actual = predict_pixel(transform, 0.5, 0.25, 19, schedule, mean="x_0")
    scale = oracle.compose(schedule.beta, 19)[0]
    assert_allclose(
        [actual["x_0"], actual["eps"], actual["mean"]], [0.25, 0.5, scale * 0.25], **FLOAT32
    )


@EITHER_WAY
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_predictions_are_float32_for_any_output(dtype, transform):
    x_t, t = jnp.ones((2, 2, 2, 1)), jnp.array([3, 5])
    run = transform(lambda output: predict(SCHEDULES["linear"], output, x_t, t, clip=False))
    prediction = run(jnp.ones((2, 2, 2, 1), dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(prediction)} == {jnp.dtype("float32")}


@EITHER_WAY
def test_the_network_is_told_the_original_step(transform):
    respaced = schedule_lib.respace(schedule_lib.linear(), [0, 400, 999])

    def repeat_t(x_t, t):
        return jnp.broadcast_to(t.astype(jnp.float32).reshape(-1, 1, 1, 1), x_t.shape)

    run = predict_fn(respaced, repeat_t, mean="x_0", clip=False)
    prediction = transform(run)(jnp.zeros((3, 1, 2, 1)), jnp.array([2, 0, 1]))
    assert_array_equal(prediction.x_0[:, 0, 0, 0], [999, 0, 400])
    # The coefficients are the respaced chain's, beta_1 of it from 0 to 400.
    assert_allclose(
        prediction.log_variance[2].item(),
        np.log(oracle.visit(schedule_lib.linear().beta, [1, 401, 1000])[1]), **FLOAT32,
    )


@EITHER_WAY
def test_predict_fn_passes_the_settings_on(transform):
    schedule = schedule_lib.linear()
    run = predict_fn(schedule, lambda x, t: x, mean="x_0", variance="fixed_small")
    prediction = transform(run)(jnp.full((1, 1, 1, 1), 3.0), jnp.array([1]))
    assert prediction.x_0.item() == 1.0
    assert_allclose(prediction.log_variance.item(), -9.8167251353, **FLOAT32)


@EITHER_WAY
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("mean", MEANS)
def test_every_output_holds_on_a_respaced_chain(mean, variance, transform):
    """A network that knows x_0, and half-way between the variances, is as right in few steps."""
    full, x_0, x_t, steps = schedule_lib.linear(50, 1e-3, 0.3), 0.3, 0.8, [5, 20, 49]
    respaced = schedule_lib.respace(full, steps)
    scale, spread = (full.sqrt_alpha_bar, full.sqrt_one_minus_alpha_bar)
    eps = (x_t - scale * x_0) / spread
    mid = 0.5 * (full.posterior_log_variance + np.log(full.beta))
    by_step = {  # what the network has learned to say at each step of the full chain
        "eps": eps, "x_0": np.full(50, x_0), "v": scale * eps - spread * x_0,
        "x_prev": np.array([oracle.posterior(full.beta, t, x_0, x_t)[0] for t in range(1, 51)]),
        "learned": mid, "learned_range": np.zeros(50),
    }

    def denoise_fn(x, step):
        kinds = [mean, variance] if variance in LEARNED else [mean]
        rows = [jnp.asarray(by_step[kind], jnp.float32)[step] for kind in kinds]
        return jnp.stack(rows, axis=-1).reshape(len(x), 1, 1, len(kinds))

    run = predict_fn(respaced, denoise_fn, mean=mean, variance=variance, full=full, clip=False)
    actual = transform(run)(jnp.full((3, 1, 1, 1), x_t), jnp.arange(3))
    beta = oracle.visit(full.beta, np.add(steps, 1))
    for i in range(3):
        # As above; x_{t-1} of the last step holds x_0 with a weight of 0.01.
        assert_allclose(actual.x_0[i].item(), x_0, atol=1e-4)
        mean_of_x_prev = oracle.posterior(beta, i + 1, x_0, x_t)[0]
        assert_allclose(actual.mean[i].item(), mean_of_x_prev, atol=5e-5)
        if variance in LEARNED:
            middle = np.sqrt(oracle.reverse_variance(beta, i + 1, "fixed_small") * beta[i])
        else:
            middle = oracle.reverse_variance(beta, i + 1, variance)
        assert_allclose(actual.log_variance[i].item(), np.log(middle), rtol=0, atol=5e-4)


@pytest.mark.parametrize("full", [
    schedule_lib.linear(1000), schedule_lib.cosine(1000), schedule_lib.linear(4000),
    schedule_lib.cosine(4000), schedule_lib.from_betas([0.3]), schedule_lib.from_betas([0.3, 1.0]),
], ids=["linear 1000", "cosine 1000", "linear 4000", "cosine 4000", "one step", "last beta 1"])
def test_an_error_in_a_learned_variance_stays_between_the_bounds(full):
    """They nearly agree where t is large: dividing by their distance would multiply the error."""
    learned = jnp.log(jnp.float32(full.beta))
    for num_steps in {min(n, full.num_timesteps) for n in (250, 50, 20, 10)}:
        visited = schedule_lib.evenly_spaced(full.num_timesteps, num_steps)
        respaced = schedule_lib.respace(full, visited)

        @jax.jit
        def log_variance(error):
            def denoise_fn(x, step):
                return jnp.stack([0 * x[..., 0], learned[step].reshape(-1, 1, 1) + error], -1)

            run = predict_fn(respaced, denoise_fn, variance="learned", full=full)
            t = jnp.arange(num_steps)
            return jnp.ravel(run(jnp.zeros((num_steps, 1, 1, 1)), t).log_variance)

        beta = oracle.visit(full.beta, visited + 1)
        low, high = np.log([
            [oracle.reverse_variance(beta, i + 1, kind) for i in range(num_steps)]
            for kind in ("fixed_small", "fixed_large")
        ])
        for error in (-5.0, -0.05, 0.05, 5.0):
            actual = log_variance(error)
            assert np.all(np.isfinite(actual))
            actual = actual[1:]  # The first step adds no noise.
            rounding = 2e-6  # Of logarithms down to -15, in float32.
            assert np.all((low[1:] - rounding <= actual) & (actual <= high[1:] + rounding))


@EITHER_WAY
@pytest.mark.parametrize("shape", [(), (2, 1, 1, 1)], ids=["one level", "one per image"])
@pytest.mark.parametrize("mean", MEANS_OF_LEVELS)
def test_an_output_means_x_0_and_eps_at_its_level(mean, shape, transform):
    x_0, eps = (np.float32(np.random.default_rng(i).normal(size=(2, 3, 3, 1))) for i in (0, 1))
    signal, sigma = jnp.full(shape, 0.28, jnp.float32), jnp.full(shape, 0.96, jnp.float32)
    output = {"eps": eps, "x_0": x_0, "v": signal * eps - sigma * x_0}[mean]
    read = transform(lambda *arrays: x_0_and_eps(*arrays, mean))
    actual = read(output, signal * x_0 + sigma * eps, signal, sigma)
    # A few float32 roundings of numbers up to 3, over a signal of 0.28.
    assert_allclose(actual[0], x_0, rtol=0, atol=1e-5)
    assert_allclose(actual[1], eps, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings, schedule, message",
    [
        (dict(mean="noise"), "linear", r"^mean='noise' .*use one of eps, x_0"),
        (dict(variance="learnt"), "linear", r"variance='learnt' .*one of fixed_large"),
        (dict(mean="eps"), "jsd", r"^mean='eps' .*last beta is 1.*mean='x_0'"),
    ],
)
def test_parameterization_refuses(settings, schedule, message):
    with pytest.raises(ValueError, match=message):
        Parameterization(**settings).check(SCHEDULES[schedule])


@pytest.mark.parametrize(
    "settings, schedule",
    [
        (dict(), "linear"),
        (dict(), "one step"),
        (dict(mean="x_0", variance="fixed_small"), "jsd"),
    ],
)
def test_parameterization_accepts(settings, schedule):
    Parameterization(**settings).check(SCHEDULES[schedule])


def test_dynamic_threshold():
    rng = np.random.default_rng(0)
    x_0 = np.float32(rng.standard_normal((3, 8, 8, 2)) * [[[[0.1]]], [[[1.0]]], [[[4.0]]]])
    result = jax.jit(dynamic_threshold)(x_0)
    for image, found in zip(x_0.astype(np.float64), result):
        ordered = np.sort(np.abs(image).ravel())
        place = 0.995 * 127  # Of 128 pixels, between the last but one and the last.
        low = ordered[int(place)]
        s = max(low + (place - int(place)) * (ordered[int(place) + 1] - low), 1.0)
        assert_allclose(found, np.clip(image, -s, s) / s, rtol=1e-5)  # float32.
    assert_array_equal(result[0], x_0[0])
    whole = dynamic_threshold(x_0, percentile=1.0)
    assert_allclose(np.abs(whole[2]).max(), 1.0)
    for percentile in (0.0, 1.5, 99.5):
        with pytest.raises(ValueError, match=f"percentile={percentile} must lie in"):
            dynamic_threshold(x_0, percentile)


SCHEDULE, FLOATS = schedule_lib.linear(20), np.zeros((2, 2, 2, 1), np.float32)
TWO = np.array([3, 7], np.int32)
CALLS = {
    "training_loss": lambda x, t: losses.training_loss(SCHEDULE, lambda x, t: x, x, t, FLOATS),
    "vlb_term": lambda x, t: losses.vlb_term(SCHEDULE, None, x, FLOATS, t),
    "q_sample": lambda x, t: process.q_sample(SCHEDULE, x, t, FLOATS),
    "q_sample of eps": lambda x, t: process.q_sample(SCHEDULE, FLOATS, t, x),
    "q_step": lambda x, t: process.q_step(SCHEDULE, x, t, FLOATS),
    "q_mean_variance": lambda x, t: process.q_mean_variance(SCHEDULE, x, t),
    "q_posterior": lambda x, t: process.q_posterior(SCHEDULE, x, FLOATS, t),
    "x_0_from_eps": lambda x, t: process.x_0_from_eps(SCHEDULE, x, t, FLOATS),
    "eps_from_x_0": lambda x, t: process.eps_from_x_0(SCHEDULE, FLOATS, t, x),
    "v_from_eps": lambda x, t: process.v_from_eps(SCHEDULE, x, t, FLOATS),
    "x_0_from_v": lambda x, t: process.x_0_from_v(SCHEDULE, x, t, FLOATS),
    "x_0_from_x_prev": lambda x, t: process.x_0_from_x_prev(SCHEDULE, x, t, FLOATS),
    "predict": lambda x, t: process.predict(SCHEDULE, FLOATS, x, t),
}


@pytest.fixture
def unchecked(monkeypatch):
    """The functions as outside of tests, where no annotation is checked."""
    for module in (process, losses, schedule_lib):
        for name, function in vars(module).copy().items():
            if inspect.isfunction(function):
                monkeypatch.setattr(module, name, inspect.unwrap(function))


@pytest.mark.usefixtures("unchecked")
@EITHER_WAY
@pytest.mark.parametrize("call", CALLS)
def test_images_are_floats_and_steps_whole(call, transform):
    for dtype in ("uint8", "int32", "bool"):
        with pytest.raises(UserError, match=rf"=<{dtype}.*2, 2, 2, 1\]> must be float in \[-1, 1"):
            transform(CALLS[call])(FLOATS.astype(dtype), TWO)
    for dtype in ("float32", "bool"):
        with pytest.raises(UserError, match=rf"t=<{dtype}.*2\]> must be an array of integers"):
            transform(CALLS[call])(FLOATS, TWO.astype(dtype))
