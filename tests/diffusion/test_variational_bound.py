"""Bits/dim, against a float64 walk, Gaussian worlds and published numbers."""

import itertools
import math

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
from ddpm_jax.diffusion.process import MEANS, VARIANCES, predict_fn
from ddpm_jax.diffusion.variational_bound import (
    Terms, prior_term, rate_distortion, total_bits, vlb_terms,
)
from ddpm_jax.network.unet import UNet
from data_sets import needs
from gaussian import M, S, SHAPE, grid_pixels, keys, normal_cdf, optimal

LINEAR = schedule_lib.linear()


def draws(rng, num_timesteps, shape):
    """The noise of an image at every t, [T, *shape], by its address."""
    def draw(t):
        return jax.random.normal(jax.random.fold_in(rng, t), shape)

    return jax.vmap(draw)(jnp.arange(num_timesteps))


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
    rows = []
    for step in range(1, len(beta) + 1):
        scale, spread = oracle.compose(beta, step)
        eps = np.float64(noise[step - 1])
        x_t = scale * x_0 + np.sqrt(spread) * eps
        output = np.float64(network(np.float32(x_t)[None], np.int32([step - 1]))[0])
        channels = x_0.shape[-1]
        predicted, learned = output[..., :channels], output[..., channels:]
        if mean == "eps":
            guess = (x_t - np.sqrt(spread) * predicted) / scale
        elif mean == "v":
            guess = scale * x_t - np.sqrt(spread) * predicted
        elif mean == "x_0":
            guess = predicted
        else:  # The posterior mean is affine in x_0.
            at_0 = oracle.posterior(beta, step, 0.0, x_t)[0]
            at_1 = oracle.posterior(beta, step, 1.0, x_t)[0]
            guess = (predicted - at_0) / (at_1 - at_0)
        guess = np.clip(guess, -1, 1) if clip else guess
        centre = oracle.posterior(beta, step, guess, x_t)[0] if mean != "x_prev" else predicted
        sigma2 = step_variance(beta, step, variance, learned)
        if step == 1:
            bits = decoder_bits(x_0, centre, np.sqrt(sigma2))
        else:
            truth, tau2 = oracle.posterior(beta, step, x_0, x_t)
            nats = np.log(sigma2 / tau2) + (tau2 + (truth - centre) ** 2) / sigma2 - 1
            bits = nats / 2 / np.log(2)
        eps_error = (x_t - scale * guess) / np.sqrt(spread) - eps
        rows.append([np.mean(bits), np.mean((guess - x_0) ** 2), np.mean(eps_error**2)])
    return np.transpose(rows)


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
    predicted, learned = raw[..., :1], raw[..., 1:]
    if mean in ("x_0", "x_prev"):
        predicted = x_t + 0.1 * predicted  # As is, it would hit the decoder's floor in every pixel.
    if variance == "learned":
        learned = learned - 5
    learns = variance in ("learned", "learned_range")
    return jnp.concatenate([predicted, learned], axis=-1) if learns else predicted


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
                output = as_kind(mean, variance, raw[i : i + 1], x)
                prediction = predict_fn(
                    schedule, lambda x_t, t: output, mean=mean, variance=variance, clip=clip
                )(x, t[i : i + 1])
                log_variance = jnp.broadcast_to(prediction.log_variance, x.shape)
                return prediction.replace(log_variance=log_variance)

            rows = [read(i) for i in range(len(KINDS))]
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)

        return vlb_terms(schedule, predict, x_0, rngs)

    terms = jax.jit(bound)(params, x_0, rngs)
    assert terms.vlb.shape == terms.mse_x_0.shape == terms.mse_eps.shape == (16, 50)
    network = jax.jit(lambda x_t, t: tiny_output(params, x_t, t))
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


@needs("cifar10")
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
    terms = jax.jit(lambda x_0, rngs: vlb_terms(schedule, predict, x_0, rngs))(x_0, rngs)
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
    terms = jax.jit(lambda rngs: vlb_terms(LINEAR, predict, x_0, rngs))(keys(2))
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
    rows = []
    for step in range(1, len(beta) + 1):
        scale, spread = oracle.compose(beta, step)
        left = 1 / (1 / S**2 + scale**2 / spread)
        tau2 = oracle.posterior(beta, max(step, 2), 0.0, 0.0)[1]
        sigma2 = oracle.reverse_variance(beta, step, variance)
        weight = oracle.posterior(beta, step, 1.0, 0.0)[0]  # Its mean is linear in both.
        mismatch = (np.log(sigma2 / tau2) + tau2 / sigma2 - 1) / 2
        rows.append([left, mismatch / np.log(2), weight**2 / sigma2 / 2 / np.log(2)])
    return np.transpose(rows)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_terms_of_a_gaussian_are_their_closed_form(variance):
    """Each term is its error times the oracle's weight, and the errors are the oracle's."""
    schedule = schedule_lib.linear(100, 1e-3, 0.2)
    n = 256
    x_0 = np.random.default_rng(0).normal(M, S, (n, *SHAPE)).astype(np.float32)
    predict = predict_fn(schedule, optimal(schedule), variance=variance, clip=False)
    terms = jax.jit(lambda x_0, rngs: vlb_terms(schedule, predict, x_0, rngs))(x_0, keys(n))
    left, mismatch, weight = gaussian_terms(schedule.beta, variance)
    mse_x_0 = np.float64(terms.mse_x_0)
    expected = mismatch + weight * mse_x_0
    # Rounded means, as against the walk: below 1e-4 bits/dim by far.
    assert_allclose(terms.vlb[:, 1:], expected[:, 1:], rtol=2e-4, atol=1e-6)
    average = mismatch + weight * left
    error = np.sqrt(2 / (n * 64)) * weight * left  # Of a mean of Gaussian squares.
    vlb = np.float64(terms.vlb).mean(axis=0)
    assert np.all(abs(vlb - average)[1:] < 5 * error[1:] + 1e-6)
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
        predict = predict_fn(LINEAR, optimal(LINEAR), variance=variance)
        terms = jax.jit(lambda x_0, rngs: vlb_terms(LINEAR, predict, x_0, rngs))(x_0, keys(32))
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
    """At the paper's T - t + 1 steps: what x_t has cost, and how well it predicts x_0."""
    schedule = schedule_lib.linear(20, 1e-3, 0.4)
    n = 256
    x_0 = np.random.default_rng(0).normal(M, S, (n, *SHAPE)).astype(np.float32)
    predict = predict_fn(schedule, optimal(schedule), clip=False)
    terms = jax.jit(lambda x_0, rngs: vlb_terms(schedule, predict, x_0, rngs))(x_0, keys(n))
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


def test_one_scan_of_the_bound_that_calls_the_network_once():
    schedule = schedule_lib.linear(20, 1e-3, 0.4)
    params = nonzero.nonzero_params(nonzero.TinyNet())
    calls = []

    def bound(x_0, rngs):
        def denoise(x_t, t):
            calls.append(t)
            return nonzero.tiny_net(params, x_t, t)

        return vlb_terms(schedule, predict_fn(schedule, denoise), x_0, rngs)

    jaxpr = jax.make_jaxpr(bound)(jnp.zeros((2, *SHAPE)), keys(2)).jaxpr
    assert len(calls) == 1 and calls[0].shape == (2,) and calls[0].dtype == jnp.int32
    names = [e.primitive.name for e in tracing.equations(jaxpr)]
    scan, = (e for e in tracing.equations(jaxpr) if e.primitive.name == "scan")
    assert scan.params["length"] == 20 and "while" not in names
    inside = [e.primitive.name for e in tracing.equations(scan.params["jaxpr"].jaxpr)]
    convolutions = "conv_general_dilated"
    assert inside.count(convolutions) == names.count(convolutions) == 2  # Of the TinyNet.


def test_the_bound_of_an_image_depends_on_its_own_key_alone():
    schedule = schedule_lib.linear(20, 1e-3, 0.4)
    params = nonzero.nonzero_params(nonzero.TinyNet())
    predict = predict_fn(schedule, lambda x_t, t: nonzero.tiny_net(params, x_t, t))
    x_0, rngs = np.float32(grid_pixels(1).repeat(5, axis=0) / 127.5 - 1), keys(5)
    bound = jax.jit(lambda x_0, rngs: vlb_terms(schedule, predict, x_0, rngs))
    every = bound(x_0, rngs)
    for rows in (np.array([2]), np.array([4, 1, 0])):
        some = bound(x_0[rows], rngs[rows])
        for name in ("vlb", "prior", "mse_x_0", "mse_eps"):
            # XLA may tile another batch size otherwise, which moves last float32 bits.
            assert_allclose(
                getattr(some, name), getattr(every, name)[rows], rtol=1e-4, atol=1e-6
            )
    assert np.ptp(total_bits(every)) > 0.01


def test_on_step_is_called_at_every_step_of_the_bound():
    calls = []

    def on_step(t):
        jax.debug.callback(lambda t: calls.append(int(t)), t, ordered=True)

    schedule = schedule_lib.linear(5, 1e-3, 0.4)
    x_0 = jnp.zeros((1, 1, 1, 1))
    vlb_terms(schedule, predict_fn(schedule, lambda x, t: x), x_0, keys(1), on_step=on_step)
    jax.effects_barrier()
    assert calls == [4, 3, 2, 1, 0]


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
