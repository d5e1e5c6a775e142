"""Bits/dim, against a float64 walk, Gaussian worlds and published numbers."""

import itertools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import nonzero
import oracle
import tracing
from ddpm_jax.data import loading
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.losses import discretized_gaussian_log_likelihood
from ddpm_jax.diffusion.ode_likelihood import ode_bits_per_dim, ode_log_density
from ddpm_jax.diffusion.process import MEANS, VARIANCES, predict_fn
from ddpm_jax.diffusion.variational_bound import (
    Terms, prior_term, rate_distortion, total_bits, vlb_terms,
)
from ddpm_jax.network.unet import UNet

FAST = {"xla_backend_optimization_level": 0}  # Compiles in half the time.
LINEAR = schedule_lib.linear()
SHAPE = (8, 8, 1)
M, S = 0.3, 0.25  # Pixels are N(M, S^2), independent.
TFDS = os.environ.get("TFDS_DATA_DIR", "")
needs_cifar10 = pytest.mark.skipif(
    not (TFDS and os.path.isdir(os.path.join(TFDS, "cifar10"))),
    reason="no cifar10 below $TFDS_DATA_DIR",
)


def jit(f):
    return jax.jit(f, compiler_options=FAST)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def draws(rng, num_timesteps, shape):
    """The noise of an image at every t, [T, *shape], by its address."""
    def draw(t):
        return jax.random.normal(jax.random.fold_in(rng, t), shape)

    return jax.vmap(draw)(jnp.arange(num_timesteps))


def grid_pixels(n, shape=SHAPE, seed=0):
    """Pixels N(M, S^2) rounded to the 256 values, as whole numbers [n, *shape]."""
    x = np.random.default_rng(seed).normal(M, S, (n, *shape))
    return np.clip(np.round((x + 1) * 127.5), 0, 255)


def normal_cdf(z):
    return 0.5 * (1 + np.vectorize(math.erf)(z / np.sqrt(2)))


# The prior term.


@pytest.mark.parametrize(
    "mean_square, bits", [(0, 5.87e-10), (1 / 4, 7.28e-6), (1 / 3, 9.70e-6), (1, 2.91e-5)]
)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_prior_term_as_published(mean_square, bits, transform):
    x_0 = jnp.full((2, *SHAPE), math.sqrt(mean_square), jnp.float32)
    actual = transform(lambda x_0: prior_term(LINEAR, x_0))(x_0)
    assert actual.shape == (2,) and actual.dtype == jnp.float32
    # Three digits are published.
    assert_allclose(actual, [bits, bits], rtol=1e-3)


@pytest.mark.parametrize("name", ["linear", "quadratic", "cosine", "warmup10"])
def test_prior_term_by_its_series(name):
    """-a - log(1 - a) = a^2 / 2 + a^3 / 3 + ..., which cancels nowhere."""
    schedule = schedule_lib.named(name, 1000, 1e-4, 0.02)
    scale, _ = oracle.compose(schedule.beta, 1000)
    series = sum(scale ** (2 * k) / k for k in range(2, 8))
    x_0 = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)))
    for image in (x_0, np.zeros_like(x_0)):
        square = np.mean(np.float64(image) ** 2, axis=(1, 2, 3))
        expected = 0.5 * (scale**2 * square + series) / np.log(2)
        # A float32 mean of 64 squares; the rest of cosine's, 3e-18, is a difference of
        # numbers near 2e-9 that float64 keeps to 1e-25.
        assert_allclose(prior_term(schedule, image), expected, rtol=1e-6)


def test_prior_term_of_a_short_chain_is_the_divergence_of_two_normals():
    beta = [0.1, 0.3]
    scale, variance = oracle.compose(beta, 2)
    x_0 = np.full((1, *SHAPE), 0.7, np.float32)
    expected = 0.5 * ((scale * 0.7) ** 2 + variance - 1 - np.log(variance)) / np.log(2)
    assert_allclose(prior_term(schedule_lib.from_betas(beta), x_0), [expected], rtol=1e-6)


def test_prior_term_is_nothing_where_the_last_beta_is_one():
    x_0 = np.ones((2, *SHAPE), np.float32)
    assert_array_equal(prior_term(schedule_lib.jsd(10), x_0), [0, 0])


# The bound against a walk in float64.


def decoder_bits(x, mean, sd):
    """-log2 of the pixel's bin by the tanh CDF, from whichever tail keeps more digits."""
    def below(z):
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    high, low = (x - mean + 1 / 255) / sd, (x - mean - 1 / 255) / sd
    swap = low + high > 0
    p = np.where(swap, below(-low) - below(-high), below(high) - below(low))
    p = np.where(x < -0.999, below(high), np.where(x > 0.999, below(-low), p))
    return -np.log2(np.maximum(p, 1e-12))


def step_variance(beta, step, kind, output):
    """Variance of the reverse step, with the second half of a learned output."""
    if kind == "learned":
        return np.exp(output)
    if kind == "learned_range":
        small = np.log(oracle.reverse_variance(beta, step, "fixed_small"))
        part = (output + 1) / 2
        return np.exp(part * np.log(beta[step - 1]) + (1 - part) * small)
    return oracle.reverse_variance(beta, step, kind)


def walk(beta, x_0, noise, network, mean="eps", variance="fixed_large", clip=True):
    """The terms of one image [h, w, c], from the network's outputs at the paper's steps.

    Returns (bits, error of x_0, error of eps), each [T] with step 1 first.
    """
    x_0 = np.float64(x_0)
    found = []
    for step in range(1, len(beta) + 1):
        scale, spread = oracle.compose(beta, step)
        eps = np.float64(noise[step - 1])
        x_t = scale * x_0 + np.sqrt(spread) * eps
        output = np.float64(network(np.float32(x_t)[None], np.int32([step - 1]))[0])
        channels = x_0.shape[-1]
        said, learned = output[..., :channels], output[..., channels:]
        if mean == "eps":
            guess = (x_t - np.sqrt(spread) * said) / scale
        elif mean == "v":
            guess = scale * x_t - np.sqrt(spread) * said
        elif mean == "x_0":
            guess = said
        else:  # The posterior mean is affine in x_0.
            at_0 = oracle.posterior(beta, step, 0.0, x_t)[0]
            at_1 = oracle.posterior(beta, step, 1.0, x_t)[0]
            guess = (said - at_0) / (at_1 - at_0)
        guess = np.clip(guess, -1, 1) if clip else guess
        centre = oracle.posterior(beta, step, guess, x_t)[0] if mean != "x_prev" else said
        sigma2 = step_variance(beta, step, variance, learned)
        if step == 1:
            bits = decoder_bits(x_0, centre, np.sqrt(sigma2))
        else:
            truth, tau2 = oracle.posterior(beta, step, x_0, x_t)
            nats = np.log(sigma2 / tau2) + (tau2 + (truth - centre) ** 2) / sigma2 - 1
            bits = nats / 2 / np.log(2)
        eps_error = (x_t - scale * guess) / np.sqrt(spread) - eps
        found.append([np.mean(bits), np.mean((guess - x_0) ** 2), np.mean(eps_error**2)])
    return np.transpose(found)


def prior_bits(beta, x_0):
    scale, variance = oracle.compose(beta, len(beta))
    square = np.mean((scale * np.float64(x_0)) ** 2)
    return (square + variance - 1 - np.log(variance)) / 2 / np.log(2)


KINDS = list(itertools.product(MEANS, VARIANCES))
TINY = nonzero.tiny_unet(out_channels=2)


def tiny_output(params, x_t, t):
    return 0.3 * TINY.apply({"params": params}, x_t, t, train=False)  # [b, h, w, 2]


def as_kind(mean, variance, raw, x_t):
    """The two channels of `raw` as the output of this kind, not too far from the truth."""
    said, learned = raw[..., :1], raw[..., 1:]
    if mean in ("x_0", "x_prev"):
        said = x_t + 0.1 * said  # As is, it would hit the decoder's floor in every pixel.
    if variance == "learned":
        learned = learned - 5
    learns = variance in ("learned", "learned_range")
    return jnp.concatenate([said, learned], axis=-1) if learns else said


@pytest.mark.parametrize("clip", [True, False])
def test_every_kind_of_network_matches_the_walk(clip):
    """T = 50, 16 images; the output for each is read as another mean and variance."""
    schedule = schedule_lib.linear(50, 1e-3, 0.2)
    params = nonzero.nonzero_params(TINY)
    x_0 = np.float32(grid_pixels(len(KINDS)) / 127.5 - 1)
    rngs = keys(len(KINDS))

    def bound(params, x_0, rngs):
        def predict(x_t, t):
            raw = tiny_output(params, x_t, t)

            def read(i):
                mean, variance = KINDS[i]
                x = x_t[i : i + 1]
                said = as_kind(mean, variance, raw[i : i + 1], x)
                prediction = predict_fn(
                    schedule, lambda x_t, t: said, mean=mean, variance=variance, clip=clip
                )(x, t[i : i + 1])
                log_variance = jnp.broadcast_to(prediction.log_variance, x.shape)
                return prediction.replace(log_variance=log_variance)

            rows = [read(i) for i in range(len(KINDS))]
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)

        return vlb_terms(schedule, predict, x_0, rngs)

    terms = jit(bound)(params, x_0, rngs)
    assert terms.vlb.shape == terms.mse_x_0.shape == terms.mse_eps.shape == (16, 50)
    network = jit(lambda x_t, t: tiny_output(params, x_t, t))
    for i, (mean, variance) in enumerate(KINDS):
        def kind(x_t, t):
            return as_kind(mean, variance, network(x_t, t), x_t)

        noise = draws(rngs[i], 50, SHAPE)
        bits, mse_x_0, mse_eps = walk(
            schedule.beta, x_0[i], noise, kind, mean, variance, clip
        )
        expected = bits.sum() + prior_bits(schedule.beta, x_0[i])
        assert_allclose(total_bits(terms)[i], expected, rtol=1e-5, err_msg=str(KINDS[i]))
        # Float32 rounds both means, up to 1, by 1e-7; of a late step they differ by 1e-3.
        assert_allclose(terms.vlb[i], bits, rtol=2e-4, atol=2e-6, err_msg=str(KINDS[i]))
        assert_allclose(terms.mse_x_0[i], mse_x_0, rtol=2e-5, err_msg=str(KINDS[i]))
        assert_allclose(terms.mse_eps[i], mse_eps, rtol=2e-4, err_msg=str(KINDS[i]))


@needs_cifar10
def test_the_cifar10_network_matches_the_walk():
    """The full size, random weights none of which is zero, two test images, eight steps."""
    images = loading.load("cifar10", split="test", data_dir="").read(np.arange(2))
    x_0 = np.float32(images / 127.5 - 1)
    timesteps = np.array([0, 1, 5, 20, 100, 300, 600, 999])
    schedule = schedule_lib.respace(LINEAR, timesteps)
    model = UNet()
    params = nonzero.nonzero_params(model, (32, 32, 3))
    calls = {}

    def hear(t, x_t, output):
        calls[int(t[0])] = np.asarray(x_t), np.asarray(output)

    def bound(params, x_0, rngs):
        def denoise(x_t, t):
            output = model.apply({"params": params}, x_t, t, train=False)
            jax.debug.callback(hear, t, x_t, output)
            return output

        return vlb_terms(schedule, predict_fn(schedule, denoise), x_0, rngs)

    rngs = keys(2)
    # Unlike `jit`, with XLA's optimizations: they save more here than they cost.
    terms = jax.jit(bound)(params, x_0, rngs)
    jax.effects_barrier()
    assert sorted(calls) == list(timesteps)
    beta = oracle.visit(LINEAR.beta, timesteps + 1)
    for i in range(2):
        def network(x_t, t):
            seen, output = calls[timesteps[t.item()]]
            assert_allclose(seen[i : i + 1], x_t, rtol=0, atol=1e-6)  # Two ulps of 4.
            return output[i : i + 1]

        assert 0.5 < np.std(calls[999][1][i]) < 5
        noise = draws(rngs[i], 8, (32, 32, 3))
        bits, mse_x_0, mse_eps = walk(beta, x_0[i], noise, network)
        expected = bits.sum() + prior_bits(beta, x_0[i])
        assert_allclose(total_bits(terms)[i], expected, rtol=1e-5)
        # Means of 3072 float32 numbers; at t = 0 an error of x_t, 1e-7, is divided by 0.01.
        assert_allclose(terms.vlb[i], bits, rtol=2e-5)
        assert_allclose(terms.mse_x_0[i], mse_x_0, rtol=2e-5)
        assert_allclose(terms.mse_eps[i], mse_eps, rtol=2e-4)


@pytest.mark.parametrize(
    "schedule", [schedule_lib.from_betas([0.3]), schedule_lib.jsd(5)], ids=["T = 1", "beta_T = 1"]
)
def test_the_shortest_chain_and_one_that_keeps_nothing(schedule):
    x_0, rngs = np.float32(grid_pixels(1) / 127.5 - 1), keys(1)
    predict = predict_fn(schedule, lambda x_t, t: x_t / 2, mean="x_0")
    terms = jit(lambda x_0, rngs: vlb_terms(schedule, predict, x_0, rngs))(x_0, rngs)
    noise = draws(rngs[0], schedule.num_timesteps, SHAPE)
    bits, mse_x_0, _ = walk(
        schedule.beta, x_0[0], noise, lambda x_t, t: x_t / 2, mean="x_0"
    )
    # Float32 means of 64 numbers.
    assert_allclose(terms.vlb[0], bits, rtol=1e-5)
    assert_allclose(terms.mse_x_0[0], mse_x_0, rtol=1e-5)
    curve = rate_distortion(terms.vlb[0], terms.prior[0], terms.mse_x_0[0])
    rate = prior_bits(schedule.beta, x_0[0])
    assert_allclose(curve.rate[0], rate, rtol=1e-6, atol=1e-12)


# The bound in worlds that are known.


@pytest.mark.parametrize(
    "variance, floor", [("fixed_large", 0.486419), ("fixed_small", 0.0)]
)
def test_a_perfect_mean_pays_for_its_variance_alone(variance, floor):
    """And in L_0 for a bin at its centre."""
    x_0 = jnp.asarray(np.clip(grid_pixels(2), 1, 254) / 127.5 - 1, jnp.float32)
    predict = predict_fn(
        LINEAR, lambda x_t, t: x_0, mean="x_0", variance=variance, clip=False
    )
    terms = jit(lambda rngs: vlb_terms(LINEAR, predict, x_0, rngs))(keys(2))
    kl = np.float64(terms.vlb[:, 1:])
    # Six digits are published; float32 adds up to an ulp of 1 (1e-7) to each of 999 terms,
    # either way.
    assert_allclose(kl.sum(axis=1), [floor, floor], rtol=0, atol=5e-6)
    if variance == "fixed_large":
        published = [0.17512, 0.07462, 0.04323, 0.02888]
        assert_allclose(kl[0, :4], published, rtol=0, atol=6e-6)
    # -log of the bin's probability as published, in nats; z is rounded by 1e-5.
    assert_allclose(terms.vlb[:, 0], 0.9050181142 / np.log(2), rtol=1e-5)
    assert_array_equal(terms.mse_x_0, jnp.zeros_like(terms.mse_x_0))


def gaussian_terms(beta, variance):
    """What the bound of N(M, S^2) costs on average where E[x_0 | x_t] is known.

    Returns (variance of x_0 given x_t, cost of a perfect mean, cost of a unit error of
    x_0), each [T] with step 1 first; of the costs the first entry means nothing.
    """
    found = []
    for step in range(1, len(beta) + 1):
        scale, spread = oracle.compose(beta, step)
        left = 1 / (1 / S**2 + scale**2 / spread)
        tau2 = oracle.posterior(beta, max(step, 2), 0.0, 0.0)[1]
        sigma2 = oracle.reverse_variance(beta, step, variance)
        weight = oracle.posterior(beta, step, 1.0, 0.0)[0]  # Its mean is linear in both.
        mismatch = (np.log(sigma2 / tau2) + tau2 / sigma2 - 1) / 2
        found.append([left, mismatch / np.log(2), weight**2 / sigma2 / 2 / np.log(2)])
    return np.transpose(found)


def interpolated_sigma(schedule):
    """t -> sqrt(1 / alpha_bar - 1); between two steps its logarithm is linear in t."""
    scale, spread = np.transpose([
        oracle.compose(schedule.beta, step + 1) for step in range(len(schedule.beta))
    ])
    log_sigma = np.float32(0.5 * np.log(spread) - np.log(scale))
    steps = np.arange(log_sigma.size, dtype=np.float32)
    return lambda t: jnp.exp(jnp.interp(jnp.float32(t), steps, log_sigma))


def best_eps(schedule):
    """(x_t, t) -> E[eps | x_t] where x_0 ~ N(M, S^2); t may lie between two steps."""
    sigma_at = interpolated_sigma(schedule)

    def denoise(x_t, t):
        sigma = sigma_at(t)[:, None, None, None]
        y = x_t * jnp.sqrt(1 + sigma**2)
        return sigma * (y - M) / (S**2 + sigma**2)

    return denoise


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_terms_of_a_gaussian_are_their_closed_form(variance):
    """Each term is its error times the oracle's weight, and the errors are the oracle's."""
    schedule = schedule_lib.linear(100, 1e-3, 0.2)
    n = 256
    x_0 = np.random.default_rng(0).normal(M, S, (n, *SHAPE)).astype(np.float32)
    predict = predict_fn(schedule, best_eps(schedule), variance=variance, clip=False)
    terms = jit(lambda x_0, rngs: vlb_terms(schedule, predict, x_0, rngs))(x_0, keys(n))
    left, mismatch, weight = gaussian_terms(schedule.beta, variance)
    mse_x_0 = np.float64(terms.mse_x_0)
    expected = mismatch + weight * mse_x_0
    # Rounded means, as against the walk: below 1e-4 bits/dim by far.
    assert_allclose(terms.vlb[:, 1:], expected[:, 1:], rtol=2e-4, atol=1e-6)
    average = mismatch + weight * left
    error = np.sqrt(2 / (n * 64)) * weight * left  # Of a mean of Gaussian squares.
    found = np.float64(terms.vlb).mean(axis=0)
    assert np.all(abs(found - average)[1:] < 5 * error[1:] + 1e-6)
    assert abs(mse_x_0.mean(axis=0) / left - 1).max() < 5 * np.sqrt(2 / (n * 64))


def test_the_bound_lies_above_the_truth():
    """Gaussian pixels on the grid, T = 1000; spread wide, they suit the larger variance."""
    values = grid_pixels(32)
    x_0 = np.float32(values / 127.5 - 1)
    edges = (np.arange(257) - 0.5) / 127.5 - 1
    edges[[0, -1]] = -np.inf, np.inf
    p = np.diff(normal_cdf((edges - M) / S))
    truth = -np.log2(p[values.astype(int)]).mean()
    gaps, analytic = {}, {}
    for variance in ("fixed_large", "fixed_small"):
        predict = predict_fn(LINEAR, best_eps(LINEAR), variance=variance)
        terms = jit(lambda x_0, rngs: vlb_terms(LINEAR, predict, x_0, rngs))(x_0, keys(32))
        gaps[variance] = total_bits(terms).mean() - truth
        left, mismatch, weight = gaussian_terms(LINEAR.beta, variance)
        analytic[variance] = (mismatch + weight * left)[1:].sum()
    # About 0.11, the price of T steps and of a decoder of one scale; 0 if neither cost.
    assert 0 < gaps["fixed_large"] < 0.15, gaps
    # Both used the same noise, and L_0 and L_T are common to both. The clip at 1, 2.8
    # standard deviations from M, and the grid move the rest of 0.63 by less than a
    # twentieth.
    difference = gaps["fixed_small"] - gaps["fixed_large"]
    expected = analytic["fixed_small"] - analytic["fixed_large"]
    assert_allclose(difference, expected, rtol=0.05)


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
    actual = jax.jit(discretized_gaussian_log_likelihood)(x, mean, scale)
    # Pixels are rounded by 6e-8 and divided by scales down to 0.007; the slope there is 2.
    assert_allclose(actual.item(), nats, rtol=1e-5)


@pytest.mark.parametrize("log_scale", [-9.8167251353 / 2, -3.0, -1.0, 0.0, 1.0])
def test_decoder_is_a_distribution_over_the_256_values(log_scale):
    means = jnp.asarray([-1.2, -1.0, -0.7, 0.0, 0.5019, 1.0, 1.3], jnp.float32)
    x = jnp.asarray(np.arange(256) / 127.5 - 1, jnp.float32).reshape(1, 256, 1, 1)
    mean = means.reshape(-1, 1, 1, 1)
    scale = jnp.full((7, 1, 1, 1), log_scale, jnp.float32)
    log_p = jax.jit(discretized_gaussian_log_likelihood)(
        jnp.broadcast_to(x, (7, 256, 1, 1)), jnp.broadcast_to(mean, (7, 256, 1, 1)), scale
    )
    total = np.exp(np.float64(log_p)).sum(axis=1)
    # Neighbours' edges, rounded apart by 1e-7 and divided by 0.007, leave 1e-5 between
    # them; the floor adds 256e-12.
    assert_allclose(total, np.ones((7, 1, 1)), rtol=0, atol=1e-5)


# Rate and distortion.


def test_rate_and_distortion_by_hand():
    """T = 3: x_T costs the prior, x_t then the terms down to the one that gave it."""
    curve = rate_distortion(
        np.array([5.0, 0.5, 0.25]), 0.125, np.array([0.04, 0.25, 1.0])
    )
    assert_array_equal(curve.reverse_steps, [1, 2, 3])
    assert_array_equal(curve.rate, [0.125, 0.375, 0.875])
    assert_allclose(curve.distortion, 127.5 * np.array([1.0, 0.5, 0.2]), rtol=1e-15)
    assert curve.rate.dtype == curve.distortion.dtype == np.float64


def test_rate_and_distortion_of_a_gaussian():
    """At the paper's T - t + 1 steps: what x_t has cost, and how well it tells x_0."""
    schedule = schedule_lib.linear(20, 1e-3, 0.4)
    n = 256
    x_0 = np.random.default_rng(0).normal(M, S, (n, *SHAPE)).astype(np.float32)
    predict = predict_fn(schedule, best_eps(schedule), clip=False)
    terms = jit(lambda x_0, rngs: vlb_terms(schedule, predict, x_0, rngs))(x_0, keys(n))
    vlb, prior, mse_x_0 = (
        np.float64(a).mean(axis=0) for a in (terms.vlb, terms.prior, terms.mse_x_0)
    )
    curve = rate_distortion(vlb, prior, mse_x_0)
    left, mismatch, weight = gaussian_terms(schedule.beta, "fixed_large")
    for step in range(1, 21):
        i = list(curve.reverse_steps).index(20 - step + 1)
        # Of these, sending x_{s-1} to who has x_s costs L_{s-1}; x_t needs s = t + 1..T.
        rate = prior_bits(schedule.beta, x_0) + sum(
            mismatch[s - 1] + weight[s - 1] * left[s - 1] for s in range(step + 1, 21)
        )
        # Means of 16384 Gaussian squares, 5 standard errors.
        bound = 5 * np.sqrt(2 / (n * 64))
        assert_allclose(curve.rate[i], rate, rtol=bound)
        assert_allclose(curve.distortion[i], 127.5 * np.sqrt(left[step - 1]), rtol=bound)
    # With L_0 on top, the whole bound.
    assert_allclose(curve.rate[-1] + vlb[0], total_bits(terms).mean(), rtol=1e-12)


def test_rate_and_distortion_want_averages():
    with pytest.raises(ValueError, match=r"vlb has shape \(2, 3\).*vlb.mean\(axis=0\)"):
        rate_distortion(np.ones((2, 3)), 0.0, np.ones(3))
    with pytest.raises(ValueError, match=r"mse_x_0 \(4,\)"):
        rate_distortion(np.ones(3), 0.0, np.ones(4))


# How the bound is computed.


NET = nonzero.TinyNet()


def tiny_net(params, x_t, t):
    return NET.apply({"params": params}, x_t, t, train=False)


def test_one_scan_of_the_bound_that_calls_the_network_once():
    schedule = schedule_lib.linear(20, 1e-3, 0.4)
    params = nonzero.nonzero_params(NET)
    calls = []

    def bound(x_0, rngs):
        def denoise(x_t, t):
            calls.append(t)
            return tiny_net(params, x_t, t)

        return vlb_terms(schedule, predict_fn(schedule, denoise), x_0, rngs)

    jaxpr = jax.make_jaxpr(bound)(jnp.zeros((2, *SHAPE)), keys(2)).jaxpr
    assert len(calls) == 1 and calls[0].shape == (2,) and calls[0].dtype == jnp.int32
    names = [e.primitive.name for e in tracing.equations(jaxpr)]
    scan, = (e for e in tracing.equations(jaxpr) if e.primitive.name == "scan")
    assert scan.params["length"] == 20 and "while" not in names
    inside = [e.primitive.name for e in tracing.equations(scan.params["jaxpr"].jaxpr)]
    convolutions = "conv_general_dilated"
    assert inside.count(convolutions) == names.count(convolutions) == 2  # Of the TinyNet.


def test_an_image_depends_on_its_own_key_alone():
    schedule = schedule_lib.linear(20, 1e-3, 0.4)
    params = nonzero.nonzero_params(NET)
    predict = predict_fn(schedule, lambda x_t, t: tiny_net(params, x_t, t))
    x_0, rngs = np.float32(grid_pixels(1).repeat(5, axis=0) / 127.5 - 1), keys(5)
    bound = jit(lambda x_0, rngs: vlb_terms(schedule, predict, x_0, rngs))
    ode = jit(lambda x, rngs: ode_log_density(
        schedule, lambda x_t, t: tiny_net(params, x_t, t), x, rngs, num_steps=4
    ))
    every, density = bound(x_0, rngs), np.asarray(ode(x_0, rngs))
    for rows in (np.array([2]), np.array([4, 1, 0])):
        some = bound(x_0[rows], rngs[rows])
        for name in ("vlb", "prior", "mse_x_0", "mse_eps"):
            # XLA may tile another batch size otherwise, which moves last float32 bits.
            assert_allclose(
                getattr(some, name), getattr(every, name)[rows], rtol=1e-4, atol=1e-6
            )
        assert_allclose(ode(x_0[rows], rngs[rows]), density[rows], rtol=1e-5)
    assert np.ptp(total_bits(every)) > 0.01 and np.ptp(density) > 0.01


def test_on_step_hears_of_every_step():
    heard = []

    def hear(t):
        jax.debug.callback(lambda t: heard.append(int(t)), t, ordered=True)

    schedule = schedule_lib.linear(5, 1e-3, 0.4)
    x_0 = jnp.zeros((1, 1, 1, 1))
    vlb_terms(schedule, predict_fn(schedule, lambda x, t: x), x_0, keys(1), on_step=hear)
    jax.effects_barrier()
    assert heard == [4, 3, 2, 1, 0]
    heard.clear()
    ode_log_density(schedule, lambda x, t: x, x_0, keys(1), num_steps=3, on_step=hear)
    jax.effects_barrier()
    assert heard == [0, 1, 2]


def test_the_bound_wants_float32():
    predict = predict_fn(LINEAR, lambda x, t: x)
    for dtype in (jnp.bfloat16, jnp.float16):
        with pytest.raises(ValueError, match="x_0 is .*needs float32 pixels"):
            vlb_terms(LINEAR, predict, jnp.zeros((1, *SHAPE), dtype), keys(1))


def test_total_is_summed_in_float64():
    """In float32 the small terms of a thousand would be lost beside a large one."""
    vlb = np.full((1, 1000), 3e-8, np.float32)
    vlb[0, 0] = 1.0
    zero = np.zeros((1, 1000), np.float32)
    terms = Terms(vlb=vlb, prior=np.float32([2.5e-6]), mse_x_0=zero, mse_eps=zero)
    assert total_bits(terms).dtype == np.float64
    # float32 3e-8 itself is rounded by 6e-8 of it.
    assert_allclose(total_bits(terms), [1 + 999 * 3e-8 + 2.5e-6], rtol=1e-11)


# The probability-flow ODE.


def sigmas(schedule):
    """First and last sigma, sigma^2 = 1 / alpha_bar - 1."""
    ends = 1, len(schedule.beta)
    return [
        np.sqrt(spread) / scale
        for scale, spread in (oracle.compose(schedule.beta, t) for t in ends)
    ]


def gaussian_log_density(x, covariance):
    """Of N(M, covariance) in nats a dimension; x [n, d]."""
    deviation = x - M
    _, log_determinant = np.linalg.slogdet(2 * np.pi * covariance)
    squares = np.sum(deviation * np.linalg.solve(covariance, deviation.T).T, axis=1)
    return -0.5 * (squares + log_determinant) / x.shape[1]


def ode_limit(x, covariance, schedule=LINEAR):
    """The ODE's exact answer in this world: its paths are straight along the axes.

    Nats a dimension, x [n, d]; off the true density only in that x_T is taken for N(0, I).
    """
    first, last = sigmas(schedule)
    eigenvalues, axes = np.linalg.eigh(covariance)
    stretch = np.sqrt((eigenvalues + last**2) / (eigenvalues + first**2))
    signal = 1 / np.sqrt(1 + last**2)
    x_T = signal * (M + (x - M) @ (axes * stretch) @ axes.T)
    each = -0.5 * (x_T**2 + np.log(2 * np.pi)) + np.log(signal * stretch)
    return each.mean(axis=1)


def gaussian_images(n=16):
    return np.random.default_rng(0).normal(M, S, (n, *SHAPE)).astype(np.float32)


def ode_density(denoise, num_steps, x=None, seed=0, schedule=LINEAR, **settings):
    x = gaussian_images() if x is None else x
    run = jit(lambda x, rngs: ode_log_density(
        schedule, denoise, x, rngs, num_steps=num_steps, **settings
    ))
    return np.float64(run(x, keys(len(x), seed)))


def flat(x):
    return np.float64(x).reshape(len(x), -1)


def test_ode_of_a_gaussian_is_its_log_density():
    x, covariance = flat(gaussian_images()), S**2 * np.eye(64)
    density = ode_density(best_eps(LINEAR), 400)
    # The error of a step of 9.7 / 400 in log sigma: 7e-5 on average, more where x_T is
    # large.
    assert_allclose(density, ode_limit(x, covariance), rtol=0, atol=2e-4)
    # x_T is 0.006 x_0 away from the prior: 5e-4 for an image, less on average.
    truth = gaussian_log_density(x, covariance + sigmas(LINEAR)[0] ** 2 * np.eye(64))
    assert_allclose(density, truth, rtol=0, atol=8e-4)


def test_ode_converges_at_order_two():
    limit = ode_limit(flat(gaussian_images()), S**2 * np.eye(64))
    errors = [
        abs(ode_density(best_eps(LINEAR), num_steps) - limit).max()
        for num_steps in (20, 40, 80)
    ]
    order = -np.diff(np.log2(errors))
    # Float32 is 1e-5 beside errors down to 2e-3; 20 steps are not yet quite in the limit.
    assert np.all(abs(order - 2) < 0.15), (errors, order)


def test_hutchinson_is_exact_for_a_diagonal_jacobian():
    """Whatever the probes and their number."""
    first = ode_density(best_eps(LINEAR), 20)
    for settings in (dict(seed=1), dict(num_probes=3)):
        # Float32 sums in another order, of about 20 terms below 1.
        again = ode_density(best_eps(LINEAR), 20, **settings)
        assert_allclose(again, first, rtol=0, atol=5e-6)


def test_hutchinson_is_unbiased_for_correlated_pixels():
    """4 pixels that depend on one another: the mean over keys is the log-density."""
    mix = S * (np.eye(4) + 0.8 * np.random.default_rng(1).standard_normal((4, 4)))
    covariance = mix @ mix.T
    sigma_at = interpolated_sigma(LINEAR)
    eigenvalues, axes = (jnp.float32(a) for a in np.linalg.eigh(covariance))

    def eps(x_t, t):
        sigma = sigma_at(t)[:, None]
        y = (x_t.reshape(-1, 4) * jnp.sqrt(1 + sigma**2) - M) @ axes
        return (sigma * y / (eigenvalues[None] + sigma**2) @ axes.T).reshape(x_t.shape)

    n = 2048
    x = np.float32(M + mix @ np.random.default_rng(2).standard_normal(4))
    x = x.reshape(1, 2, 2, 1)
    limit = ode_limit(flat(x), covariance)
    spread = {}
    for num_probes in (1, 4):
        density = ode_density(eps, 200, x.repeat(n, axis=0), num_probes=num_probes)
        spread[num_probes] = density.std()
        # 200 steps err by 4e-4 in x_T's share.
        assert abs(density.mean() - limit) < 5 * density.std() / np.sqrt(n) + 4e-4
    assert spread[1] > 0.05
    # Four probes halve it; a standard deviation of 2048 draws is good to 2 percent.
    assert_allclose(spread[1] / spread[4], 2, rtol=0.1)


def test_ode_takes_every_kind_of_output():
    """x_0 and v restate the same noise, and the half that is a variance goes unread."""
    schedule = schedule_lib.linear(100, 1e-3, 0.2)
    eps_of, sigma_at = best_eps(schedule), interpolated_sigma(schedule)

    def output(mean, variance):
        def denoise(x_t, t):
            sigma = sigma_at(t)[:, None, None, None]
            eps, signal = eps_of(x_t, t), 1 / jnp.sqrt(1 + sigma**2)
            x_0 = x_t / signal - sigma * eps
            said = {"eps": eps, "x_0": x_0, "v": signal * (eps - sigma * x_0)}[mean]
            if variance in ("learned", "learned_range"):
                said = jnp.concatenate([said, jnp.sin(9 * x_t)], axis=-1)
            return said

        return denoise

    x = gaussian_images(4)
    expected = ode_density(output("eps", "fixed_small"), 30, x, schedule=schedule)
    for mean, variance in [("x_0", "fixed_large"), ("v", "fixed_large"), ("eps", "learned"),
                           ("v", "learned_range")]:
        actual = ode_density(
            output(mean, variance), 30, x, schedule=schedule, mean=mean, variance=variance
        )
        # eps from x_0 is a difference divided by sigma, 0.03 at first: a float32 ulp is
        # 4e-6.
        assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_ode_matches_a_walk_with_the_whole_jacobian():
    """A network that is not linear, in float64 from its outputs and its Jacobians."""
    timesteps = np.array([0, 9, 19])
    full = schedule_lib.linear(20, 1e-3, 0.4)
    shape = (4, 4, 1)
    params = nonzero.nonzero_params(NET, shape)

    def denoise(x_t, t):
        return tiny_net(params, 3 * x_t, t)

    def flat_output(x_t, t):
        return denoise(x_t.reshape(1, *shape), jnp.float32([t])).ravel()

    output, jacobian = jit(flat_output), jit(jax.jacfwd(flat_output))
    num_steps, num_probes = 5, 2
    x = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, *shape)))
    density = ode_density(
        denoise, num_steps, x, num_probes=num_probes,
        schedule=schedule_lib.respace(full, timesteps),
    )
    # Nodes: log sigma from first to last, told as the t of the full schedule, which lies
    # between the visited steps.
    scale, spread = np.transpose([oracle.compose(full.beta, t + 1) for t in timesteps])
    log_sigma = np.log(np.sqrt(spread) / scale)
    nodes = np.linspace(log_sigma[0], log_sigma[-1], num_steps + 1)

    def slope(y, node, probes):
        t = np.float32(np.interp(node, log_sigma, timesteps))
        signal = 1 / np.sqrt(1 + np.exp(2 * node))
        x_t = np.float32(signal * y)
        trace = np.mean([v @ np.float64(jacobian(x_t, t)) @ v for v in probes])
        return np.float64(output(x_t, t)), signal * trace

    for i in range(2):
        probes = [
            np.float64(jax.random.rademacher(rng, shape)).ravel()
            for rng in (jax.random.fold_in(keys(2)[i], k) for k in range(num_probes))
        ]
        y, integral = np.float64(x[i]).ravel(), 0.0
        for low, high in zip(nodes[:-1], nodes[1:]):
            width = np.exp(high) - np.exp(low)
            here, trace_here = slope(y, low, probes)
            there, trace_there = slope(y + width * here, high, probes)
            y = y + width * (here + there) / 2
            ends = np.exp(low) * trace_here + np.exp(high) * trace_there
            integral += (high - low) * ends / 2
        signal = 1 / np.sqrt(1 + np.exp(2 * nodes[-1]))
        normal = -0.5 * np.sum((signal * y) ** 2 + np.log(2 * np.pi)) + 16 * np.log(signal)
        # Ten float32 passes of a small network; the answer is near -1.
        assert_allclose(density[i], (normal + integral) / 16, rtol=2e-5)


def test_ode_bits_count_the_dequantisation():
    """8 bits a pixel where nothing is known, the bin's width, and the draws' addresses."""
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.uint8)
    rngs = keys(2)

    def run(images, rngs):
        return ode_bits_per_dim(LINEAR, best_eps(LINEAR), images, rngs, num_steps=60)

    bits = jit(run)(images, rngs)
    assert bits.shape == (2,) and bits.dtype == jnp.float32
    for i in range(2):
        u = np.float64(jax.random.uniform(jax.random.fold_in(rngs[i], 0), SHAPE))
        assert 0 <= u.min() < 0.1 and 0.9 < u.max() < 1
        z = (images[i] + u) / 256 * 2 - 1
        nats = ode_density(best_eps(LINEAR), 60, np.float32(z)[None])
        # Density a grey level: 256 of them are 2 wide. The probes, other ones, change
        # nothing.
        assert_allclose(bits[i], -np.log2(np.exp(nats) * 2 / 256)[0], rtol=2e-6)


def test_ode_bits_of_a_gaussian_are_those_of_its_pixels():
    """All of it against the truth: P(v) of N(M, S^2 + sigma_0^2), on average over u."""
    values = grid_pixels(16)
    rngs = keys(16)
    bits = jit(lambda images, rngs: ode_bits_per_dim(
        LINEAR, best_eps(LINEAR), images, rngs, num_steps=200
    ))(values.astype(np.uint8), rngs)
    edges = np.arange(257) / 128 - 1
    sd = np.sqrt(S**2 + sigmas(LINEAR)[0] ** 2)
    truth = -np.log2(np.diff(normal_cdf((edges - M) / sd)))[values.astype(int)]
    # The slope of log2 p over a bin, 2 / 256 * |z| / sd^2 / ln 2 / sqrt(12), about 0.03 a
    # pixel, averages out over 1024 pixels: 1e-3; 200 steps add 4e-4.
    assert abs(np.mean(np.float64(bits)) - truth.mean()) < 5e-3


def test_one_scan_of_the_ode():
    params = nonzero.nonzero_params(NET)
    calls = []

    def run(images, rngs):
        def denoise(x_t, t):
            calls.append(t)
            return tiny_net(params, x_t, t)

        return ode_bits_per_dim(LINEAR, denoise, images, rngs, num_steps=7)

    jaxpr = jax.make_jaxpr(run)(jnp.zeros((2, *SHAPE), jnp.uint8), keys(2)).jaxpr
    assert [(t.shape, t.dtype) for t in calls] == 2 * [((2,), jnp.float32)]
    names = [e.primitive.name for e in tracing.equations(jaxpr)]
    scan, = (e for e in tracing.equations(jaxpr) if e.primitive.name == "scan")
    assert scan.params["length"] == 7 and "while" not in names
    # Two calls a step, of two convolutions and their derivatives: forward ones as well.
    assert names.count("conv_general_dilated") == 8


def test_ode_tells_the_network_steps_from_the_first_to_the_last():
    heard = []

    def denoise(x_t, t):
        jax.debug.callback(lambda t: heard.append(t), t[0], ordered=True)
        return 0 * x_t

    ode_log_density(LINEAR, denoise, jnp.zeros((1, *SHAPE)), keys(1), num_steps=3)
    jax.effects_barrier()
    t = np.sort(np.unique(heard))
    # 4 nodes; half the log-SNR from 4.605 to -5.059 in thirds. 1.384 and -1.838 lie at
    # these.
    assert len(heard) == 6 and t[0] == 0 and t[-1] == 999
    half_log_snr = 0.5 * np.log(LINEAR.alpha_bar / (1 - LINEAR.alpha_bar))
    between = np.interp(t[1:3], np.arange(1000), half_log_snr)
    assert_allclose(between, [1.383801, -1.837517], rtol=1e-5)


def test_the_ode_runs_on_the_unet():
    """It takes fractional t, and its derivative along probes is finite."""
    model = nonzero.tiny_unet(channel_multipliers=(1,), attention_resolutions=())
    params = nonzero.nonzero_params(model)
    images = grid_pixels(2).astype(np.uint8)
    bits = jit(lambda params, images, rngs: ode_bits_per_dim(
        LINEAR, lambda x_t, t: model.apply({"params": params}, x_t, t, train=False),
        images, rngs, num_steps=4,
    ))(params, images, keys(2))
    assert np.all(np.isfinite(bits)) and bits[0] != bits[1]


@pytest.mark.parametrize(
    "schedule, settings, message",
    [
        (LINEAR, dict(mean="x_prev"), "mean='x_prev' cannot go with the ODE"),
        (LINEAR, dict(num_steps=0), "num_steps=0 is too few"),
        (LINEAR, dict(num_probes=0), "num_probes=0 is too few"),
        (schedule_lib.jsd(10), {}, "T=10 steps with a last beta of 1 has no ODE"),
        (schedule_lib.linear(1), {}, "T=1 steps .* has no ODE"),
    ],
)
def test_ode_refuses(schedule, settings, message):
    with pytest.raises(ValueError, match=message):
        ode_log_density(
            schedule, lambda x, t: x, jnp.zeros((1, *SHAPE)), keys(1), **settings
        )


def test_ode_bits_want_uint8():
    with pytest.raises(ValueError, match="images are float32.*pixels.to_uint8"):
        ode_bits_per_dim(LINEAR, lambda x, t: x, jnp.zeros((1, *SHAPE)), keys(1))
