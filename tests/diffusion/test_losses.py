"""Every objective against plain Python, one pixel at a time, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import oracle
from ddpm_jax.diffusion import losses
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.losses import Objective, training_loss
from ddpm_jax.diffusion.process import LEARNED, MEANS, Parameterization, VARIANCES

SCHEDULE = schedule_lib.linear(50, 1e-3, 0.3)
T = np.array([0, 1, 25, 49])
RNG = np.random.default_rng(0)
SHAPE = (4, 4, 2, 3)
PIXELS = RNG.integers(0, 256, SHAPE)
PIXELS[:, 0] = np.arange(2).reshape(1, 2, 1) * 255  # black and white: the open bins
X_0 = (PIXELS / 127.5 - 1).astype(np.float32)
EPS = RNG.standard_normal(SHAPE).astype(np.float32)
# Errors of a few tenths: L_0 then has pixels on and off the floor of 1e-12.
OFF = 0.3 * RNG.standard_normal(SHAPE).astype(np.float32)
SECOND = RNG.uniform(-1.5, 1.5, SHAPE).astype(np.float32)
SPREAD = {"learned": SECOND - 3, "learned_range": SECOND}

PAIRS = [(mean, variance) for mean in MEANS for variance in VARIANCES]

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def each(function):
    """A [4, h, w, c] array of function(1-based step, index of the pixel)."""
    values = np.empty(SHAPE)
    for index in np.ndindex(*SHAPE):
        values[index] = function(T[index[0]] + 1, index)
    return values


def x_t_at(step, index):
    scale, variance = oracle.compose(SCHEDULE.beta, step)
    return scale * X_0[index] + np.sqrt(variance) * EPS[index]


def target_at(step, index, mean):
    if mean == "x_prev":
        return oracle.posterior(SCHEDULE.beta, step, X_0[index], x_t_at(step, index))[0]
    scale, variance = oracle.compose(SCHEDULE.beta, step)
    v = scale * EPS[index] - np.sqrt(variance) * X_0[index]
    return {"eps": EPS[index], "x_0": X_0[index], "v": v}[mean]


def output_of(mean, variance):
    """An output that misses its target by OFF, float64 [4, h, w, c or 2 c]."""
    output = each(lambda step, index: target_at(step, index, mean) + OFF[index])
    return np.concatenate([output, SPREAD[variance]], -1) if variance in LEARNED else output


def bits_at(step, index, output, mean, variance):
    """The term of the bound at one pixel."""
    beta, x_t = SCHEDULE.beta, x_t_at(step, index)
    x_0 = oracle.implied_x_0(beta, step, x_t, output[index], mean)
    model_mean = oracle.posterior(beta, step, x_0, x_t)[0]
    if variance in LEARNED:
        spread = oracle.learned_variance(beta, step, SPREAD[variance][index], variance)
    else:
        spread = oracle.reverse_variance(beta, step, variance)
    if step == 1:
        nats = -oracle.decoder_log_probability(PIXELS[index], model_mean, np.sqrt(spread))
    else:
        true = oracle.posterior(beta, step, X_0[index], x_t)
        nats = oracle.gaussian_kl(*true, model_mean, spread)
    return nats / np.log(2)


def loss_of(mean, variance, transform=jax.jit, **objective):
    output = output_of(mean, variance).astype(np.float32)
    return transform(lambda x_0, t, eps: training_loss(
        SCHEDULE, lambda x_t, t: jnp.asarray(output), x_0, t, eps,
        parameterization=Parameterization(mean, variance), objective=Objective(**objective),
    ))(jnp.asarray(X_0), jnp.asarray(T), jnp.asarray(EPS))


def average(values):
    return values.mean(axis=(1, 2, 3))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("mean", MEANS)
def test_simple_is_the_mean_squared_error_of_what_is_predicted(mean, transform):
    output = 0.1 * EPS  # the same for every mean; the targets differ
    actual = transform(lambda x_0, t, eps: training_loss(
        SCHEDULE, lambda x_t, t: jnp.asarray(output), x_0, t, eps,
        parameterization=Parameterization(mean),
    ))(jnp.asarray(X_0), jnp.asarray(T), jnp.asarray(EPS))
    expected = average(each(
        lambda step, index: (target_at(step, index, mean) - output[index]) ** 2
    ))
    assert actual.shape == (4,) and actual.dtype == jnp.float32
    # A sum of 24 float32 squares.
    assert_allclose(actual, expected, rtol=1e-5)


# float32: an error of 2e-7 in a mean, over a standard deviation of 0.02 that the mean misses
# by up to ten times itself, and the decoder's slope of z there.
BITS = dict(rtol=5e-4, atol=1e-5)


@pytest.mark.parametrize("mean, variance", PAIRS)
def test_vlb_is_the_term_of_the_bound(mean, variance):
    output = output_of(mean, variance)[..., :3]
    expected = average(each(
        lambda step, index: bits_at(step, index, output, mean, variance)
    ))
    assert_allclose(loss_of(mean, variance, loss="vlb"), expected, **BITS)
    assert_allclose(loss_of(mean, variance, loss="rescaled_vlb"), 50 * expected, **BITS)


@pytest.mark.parametrize("mean, variance", [p for p in PAIRS if p[1] in LEARNED])
def test_hybrid_adds_the_bound_and_trains_the_variance_by_it_alone(mean, variance):
    parts = [loss_of(mean, variance, loss=loss) for loss in ("vlb", "hybrid", "rescaled_hybrid")]
    vlb, hybrid, rescaled = (np.asarray(part, np.float64) for part in parts)
    squared = np.mean(OFF.astype(np.float64) ** 2, axis=(1, 2, 3))
    assert_allclose(hybrid, squared + vlb, rtol=2e-5)
    assert_allclose(rescaled, squared + 50 / 1000 * vlb, rtol=2e-5)

    output = jnp.asarray(output_of(mean, variance), jnp.float32)

    def total(output, loss):
        return training_loss(
            SCHEDULE, lambda x_t, t: output, jnp.asarray(X_0), jnp.asarray(T), jnp.asarray(EPS),
            parameterization=Parameterization(mean, variance), objective=Objective(loss),
        ).sum()

    of_hybrid, of_vlb = (jax.grad(total)(output, loss) for loss in ("hybrid", "vlb"))
    # The mean learns from the squared error, 2 (output - target) / pixels, alone.
    assert_allclose(of_hybrid[..., :3], 2 * OFF / 24, rtol=1e-3, atol=1e-6)
    assert np.abs(of_vlb[..., :3] - of_hybrid[..., :3]).max() > 1e-3
    assert_allclose(of_hybrid[..., 3:], of_vlb[..., 3:], rtol=1e-5)
    assert np.abs(of_hybrid[1:3, ..., 3:]).min() > 0


def test_the_bound_is_trained_without_clipping():
    """Where x_0 leaves [-1, 1] a clipped prediction would have no gradient."""
    def total(output):
        return training_loss(
            SCHEDULE, lambda x_t, t: output, jnp.asarray(X_0), jnp.asarray(T), jnp.asarray(EPS),
            parameterization=Parameterization("x_0"), objective=Objective("vlb"),
        ).sum()

    gradient = jax.grad(total)(jnp.full(SHAPE, 1.5))
    assert np.abs(gradient[1:]).min() > 0


def snr(step):
    scale, variance = oracle.compose(SCHEDULE.beta, step)
    return scale**2 / variance


@pytest.mark.parametrize("mean", ["eps", "x_0", "v"])
@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_a_weighting_weighs_the_same_error_for_every_mean(mean, weighting):
    """An error of eps counts the same whether eps, x_0 or v is predicted."""
    settings = dict(min_snr_gamma=2.0, p2_k=0.7, p2_gamma=1.5)
    plain = np.asarray(loss_of(mean, "fixed_large"), np.float64)
    weighted = loss_of(mean, "fixed_large", weighting=weighting, **settings)
    for step, squared, actual in zip(T + 1, plain, weighted):
        scale, variance = oracle.compose(SCHEDULE.beta, step)
        # Squared error of x_0 for a unit squared error of what is predicted.
        of_x_0 = {"eps": variance / scale**2, "x_0": 1.0, "v": variance}[mean]
        if weighting == "min_snr":
            expected = min(snr(step), 2.0) * of_x_0 * squared
        else:
            expected = (0.7 + snr(step)) ** -1.5 * snr(step) * of_x_0 * squared
        assert_allclose(actual, expected, rtol=2e-5)  # float32


def test_the_network_sees_x_t_once():
    for objective in (Objective(), Objective("vlb")):
        calls = []
        training_loss(
            SCHEDULE, lambda *call: calls.append(call) or call[0], X_0, T, EPS,
            objective=objective,
        )
        (x_t, t), = calls
        assert_array_equal(t, T)
        # Three float32 roundings of numbers up to 4.
        assert_allclose(x_t, each(x_t_at), rtol=0, atol=1e-6)


def test_the_network_gets_the_original_step():
    respaced = schedule_lib.respace(SCHEDULE, [7, 30, 49])
    seen = []
    training_loss(
        respaced, lambda x, t: seen.append(t) or x, X_0, np.array([2, 0, 1, 1]), EPS
    )
    assert_array_equal(seen[0], [49, 7, 30, 30])


def test_a_bfloat16_output_is_compared_in_float32():
    loss = training_loss(
        SCHEDULE, lambda x_t, t: jnp.zeros(x_t.shape, jnp.bfloat16), X_0, T, EPS
    )
    assert loss.dtype == jnp.float32
    # bfloat16 would be off by 1e-3.
    assert_allclose(loss, np.mean(EPS**2, axis=(1, 2, 3)), rtol=1e-5)


LOG_SCALE = 0.5 * -9.8167251353  # of the paper's first step


@pytest.mark.parametrize("value, mean, log_scale, expected", [
    (128, 128 / 127.5 - 1, LOG_SCALE, -0.9050181142),
    (0, -1.0, LOG_SCALE, -0.3534412087),
    (255, 1.0, LOG_SCALE, -0.3534412087),
    (128, 130 / 127.5 - 1, LOG_SCALE, -2.9585112272),
    (0, 1.0, LOG_SCALE, -27.6310211),  # the floor, ln(1e-12)
    (128, 0.0, 0.0, -5.7670652010),
    (128, 0.0, -1.0, -4.7671310264),
    (128, 0.0, -3.0, -2.7712044062),
])
def test_golden_values_of_the_decoder(value, mean, log_scale, expected):
    actual = losses.discretized_gaussian_log_likelihood(
        jnp.float32(value / 127.5 - 1), jnp.float32(mean), jnp.float32(log_scale)
    )
    assert_allclose(actual, expected, rtol=3e-6)  # float32, times a slope of z of 2


@pytest.mark.parametrize("bins", [17, 4096, 65536])
def test_the_decoder_of_other_numbers_of_bins(bins):
    values = np.unique([0, 1, bins // 3, bins // 2, bins - 2, bins - 1])
    for mean, deviation in ((0.1, 0.3), (-1.0, 0.02), (1.0, 0.005)):
        log_scale = np.log(deviation)
        actual = losses.discretized_gaussian_log_likelihood(
            jnp.asarray(values * 2 / (bins - 1) - 1, jnp.float32), jnp.float32(mean),
            jnp.float32(log_scale), bins,
        )
        expected = [oracle.decoder_log_probability(v, mean, deviation, bins) for v in values]
        # Float32: x is off by 6e-8, which z of at most 4 deviations turns into 5e-5.
        likely = np.array(expected) > -18
        assert likely.any()
        assert_allclose(actual[likely], np.array(expected)[likely], rtol=0, atol=1e-4)
    x = jnp.asarray(np.arange(bins) * 2 / (bins - 1) - 1, jnp.float32)
    every = losses.discretized_gaussian_log_likelihood(
        x, jnp.float32(0.2), jnp.float32(-3.0), bins
    )
    # `bins` floors of 1e-12, and float32 beside edges that are 3e-5 / 0.05 apart.
    assert_allclose(np.exp(np.float64(every)).sum(), 1, rtol=0, atol=1e-4)


@pytest.mark.parametrize("log_scale", [LOG_SCALE, -7.0, -3.0, -1.0, 0.0, 2.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.2, 0.5, 1.0])
def test_the_decoder_is_a_distribution_over_256_values(mean, log_scale):
    x = jnp.asarray(np.arange(256) / 127.5 - 1, jnp.float32)
    log_probability = losses.discretized_gaussian_log_likelihood(
        x, jnp.float32(mean), jnp.float32(log_scale)
    )
    # 256 floors of 1e-12, and float32.
    assert_allclose(np.exp(np.float64(log_probability)).sum(), 1, rtol=0, atol=1e-5)


def test_the_decoder_is_exact_in_the_tails():
    """Where a difference of two float32 CDFs is all rounding (6e-8 of 1)."""
    deviation = 0.05
    for value, miss in ((100, 4.5), (100, -4.8), (180, 5.0), (30, -4.2)):
        mean = value / 127.5 - 1 + miss * deviation
        actual = losses.discretized_gaussian_log_likelihood(
            jnp.float32(value / 127.5 - 1), jnp.float32(mean), jnp.float32(np.log(deviation))
        )
        expected = oracle.decoder_log_probability(value, mean, deviation)
        assert -27.6 < expected < -10
        assert_allclose(actual, expected, rtol=2e-5)  # float32, times a slope of z of 10


def test_the_decoder_has_a_gradient_wherever_the_network_may_stray():
    def log_probability(mean, log_scale):
        return losses.discretized_gaussian_log_likelihood(jnp.float32(0.2), mean, log_scale)

    for mean in (-100.0, 0.2, 0.3, 100.0):
        for log_scale in (-30.0, -5.0, 0.0, 30.0):
            gradient = jax.grad(log_probability, (0, 1))(mean, log_scale)
            assert np.all(np.isfinite(gradient)), (mean, log_scale)


@pytest.mark.parametrize("objective, mean, variance, message", [
    ({"loss": "L2"}, "eps", "fixed_large", "loss='L2' is not known; use one of simple"),
    ({"weighting": "snr"}, "eps", "fixed_large", "weighting='snr' is not known"),
    ({}, "eps", "learned_range", "loss='simple' cannot .* write loss='hybrid'"),
    ({"loss": "hybrid"}, "eps", "fixed_small", "loss='hybrid' cannot .*variance='learned_range'"),
    ({"loss": "rescaled_hybrid"}, "eps", "fixed_small", "loss='rescaled_hybrid' cannot"),
    ({"loss": "vlb", "weighting": "p2"}, "eps", "fixed_large", "weighting='p2' cannot go"),
    ({"weighting": "sigmoid", "loss": "vlb"}, "v", "fixed_large", "weighting='sigmoid' cannot go"),
    ({"weighting": "min_snr"}, "x_prev", "fixed_large", "cannot go with mean='x_prev'"),
])
def test_pairs_that_train_nothing_are_refused(objective, mean, variance, message):
    with pytest.raises(ValueError, match=message):
        Objective(**objective).check(Parameterization(mean, variance))


def test_every_row_of_table_2_is_allowed():
    for mean, variance, loss in (
        ("x_prev", "learned", "vlb"), ("x_prev", "fixed_large", "vlb"),
        ("x_prev", "fixed_large", "simple"), ("eps", "learned", "vlb"),
        ("eps", "fixed_large", "vlb"), ("eps", "fixed_large", "simple"),
    ):
        assert Objective(loss).check(Parameterization(mean, variance)) is None


def test_objectives_are_hashable():
    assert hash(Objective()) == hash(dataclasses.replace(Objective("vlb"), loss="simple"))


@pytest.mark.parametrize(
    "pixel, mean, log_scale, nats",
    [
        (128, 128, None, -0.9050181142),
        (0, 0, None, -0.3534412087),
        (255, 255, None, -0.3534412087),
        (128, 130, None, -2.9585112272),
        (128, 255, None, -27.6310211),
        (128, 127.5, 0.0, -5.7670652010),
        (128, 127.5, -1.0, -4.7671310264),
        (128, 127.5, -3.0, -2.7712044062),
    ],
)
def test_decoder_as_published(pixel, mean, log_scale, nats):
    log_scale = -9.8167251353 / 2 if log_scale is None else log_scale
    x, mean = (jnp.full((1, 1, 1, 1), v / 127.5 - 1, jnp.float32) for v in (pixel, mean))
    scale = jnp.full((1, 1, 1, 1), log_scale, jnp.float32)
    actual = jax.jit(losses.discretized_gaussian_log_likelihood)(x, mean, scale)
    # Pixels are rounded by 6e-8 and divided by scales down to 0.007; the slope there is 2.
    assert_allclose(actual.item(), nats, rtol=1e-5)


@pytest.mark.parametrize("log_scale", [-9.8167251353 / 2, -3.0, -1.0, 0.0, 1.0])
def test_decoder_is_a_distribution_over_the_256_values(log_scale):
    means = jnp.asarray([-1.2, -1.0, -0.7, 0.0, 0.5019, 1.0, 1.3], jnp.float32)
    x = jnp.asarray(np.arange(256) / 127.5 - 1, jnp.float32).reshape(1, 256, 1, 1)
    mean = means.reshape(-1, 1, 1, 1)
    scale = jnp.full((7, 1, 1, 1), log_scale, jnp.float32)
    log_p = jax.jit(losses.discretized_gaussian_log_likelihood)(
        jnp.broadcast_to(x, (7, 256, 1, 1)), jnp.broadcast_to(mean, (7, 256, 1, 1)), scale
    )
    total = np.exp(np.float64(log_p)).sum(axis=1)
    # Neighbours' edges, rounded apart by 1e-7 and divided by 0.007, leave 1e-5 between
    # them; the floor adds 256e-12.
    assert_allclose(total, np.ones((7, 1, 1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mean", ["eps", "x_0", "v"])
def test_the_sigmoid_weighs_the_error_of_eps_over_log_snr(mean):
    """A change of variable: the mean over steps is the mean over log SNR."""
    schedule = schedule_lib.linear(1000)
    alpha_bar = np.cumprod(1 - schedule.beta)
    log_snr = np.log(alpha_bar / (1 - alpha_bar))
    objective = Objective(weighting="sigmoid", sigmoid_bias=1.5)
    t = jnp.arange(1000)
    weight = np.float64(losses.weight(schedule, t, mean, objective))
    snr = np.exp(log_snr)
    to_eps = {"eps": 1, "x_0": snr, "v": snr / (snr + 1)}[mean]  # Error of eps over that error.
    on_eps = weight / to_eps
    # Mean over t of weight times f(log SNR), for some f, against quadrature on log SNR itself.
    for f in (lambda x: np.ones_like(x), lambda x: np.exp(-np.square(x - 2) / 8)):
        x = np.linspace(log_snr[-1], log_snr[0], 100_001)
        expected = np.mean(f(x) / (1 + np.exp(x - 1.5)))
        # The steps at the ends span half of what they count for: the first, 2 percent of all.
        assert_allclose(np.mean(on_eps * f(log_snr)), expected, rtol=0.03)


def test_the_sigmoid_needs_an_end_of_log_snr():
    with pytest.raises(ValueError, match="weighting='sigmoid' cannot go with a schedule whose"):
        Objective(weighting="sigmoid").check(Parameterization("v"), schedule_lib.jsd(10))
