"""Likelihoods by the probability-flow ODE, in Gaussian worlds and against a float64 walk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import nonzero
import oracle
import tracing
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.ode_likelihood import ode_bits_per_dim, ode_log_density
from gaussian import (
    M, S, SHAPE, grid_pixels, keys, log_ratio_at, normal_cdf, optimal,
)

LINEAR = schedule_lib.linear()


def test_the_ode_of_an_image_depends_on_its_own_key_alone():
    schedule = schedule_lib.linear(20, 1e-3, 0.4)
    params = nonzero.nonzero_params(nonzero.TinyNet())
    x, rngs = np.float32(grid_pixels(1).repeat(5, axis=0) / 127.5 - 1), keys(5)
    ode = jax.jit(lambda x, rngs: ode_log_density(
        schedule, lambda x_t, t: nonzero.tiny_net(params, x_t, t), x, rngs, num_steps=4
    ))
    density = np.asarray(ode(x, rngs))
    for rows in (np.array([2]), np.array([4, 1, 0])):
        assert_allclose(ode(x[rows], rngs[rows]), density[rows], rtol=1e-5)
    assert np.ptp(density) > 0.01


def test_more_bins_cost_the_bits_that_they_are_more():
    """A smooth density gives a pixel in 256 times as many bins 8 bits more, whatever it is."""
    eight = np.uint8(grid_pixels(8))
    sixteen = np.float32(2 * (eight * 256.0 + 127.5) / 65535 - 1)  # In the middle of its bin.
    run = jax.jit(lambda x, bins: ode_bits_per_dim(
        LINEAR, optimal(LINEAR), x, keys(8), num_steps=20, bins=bins
    ), static_argnums=1)
    same = run(np.float32(eight / 127.5 - 1), 256)
    assert_allclose(same, run(eight, 0), rtol=0, atol=1e-6)
    # Both are of the density at the pixel, averaged over one grey level by the first alone: z is
    # up to half of 1/128 off, and the log-density moves by 8 a unit: 0.03 a pixel, less by 64.
    assert_allclose(run(sixteen, 65536) - same, 8, rtol=0, atol=0.03)


def test_on_step_is_called_at_every_step_of_the_ode():
    calls = []

    def on_step(t):
        jax.debug.callback(lambda t: calls.append(int(t)), t, ordered=True)

    x = jnp.zeros((1, 1, 1, 1))
    schedule = schedule_lib.linear(5, 1e-3, 0.4)
    ode_log_density(schedule, lambda x, t: x, x, keys(1), num_steps=3, on_step=on_step)
    jax.effects_barrier()
    assert calls == [0, 1, 2]


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
    run = jax.jit(lambda x, rngs: ode_log_density(
        schedule, denoise, x, rngs, num_steps=num_steps, **settings
    ))
    return np.float64(run(x, keys(len(x), seed)))


def flat(x):
    return np.float64(x).reshape(len(x), -1)


def test_ode_of_a_gaussian_is_its_log_density():
    x, covariance = flat(gaussian_images()), S**2 * np.eye(64)
    density = ode_density(optimal(LINEAR), 400)
    # The error of a step of 9.7 / 400 in log sigma: 7e-5 on average, more where x_T is
    # large.
    assert_allclose(density, ode_limit(x, covariance), rtol=0, atol=2e-4)
    # x_T is 0.006 x_0 away from the prior: 5e-4 per image, less on average.
    truth = gaussian_log_density(x, covariance + sigmas(LINEAR)[0] ** 2 * np.eye(64))
    assert_allclose(density, truth, rtol=0, atol=8e-4)


def test_ode_converges_at_order_two():
    limit = ode_limit(flat(gaussian_images()), S**2 * np.eye(64))
    errors = [
        abs(ode_density(optimal(LINEAR), num_steps) - limit).max()
        for num_steps in (20, 40, 80)
    ]
    order = -np.diff(np.log2(errors))
    # Float32 is 1e-5 beside errors down to 2e-3; 20 steps are not yet quite in the limit.
    assert np.all(abs(order - 2) < 0.15), (errors, order)


def test_hutchinson_is_exact_for_a_diagonal_jacobian():
    """Whatever the probes and their number."""
    first = ode_density(optimal(LINEAR), 20)
    for settings in (dict(seed=1), dict(num_probes=3)):
        # Float32 sums in another order, of about 20 terms below 1.
        again = ode_density(optimal(LINEAR), 20, **settings)
        assert_allclose(again, first, rtol=0, atol=5e-6)


def test_hutchinson_is_unbiased_for_correlated_pixels():
    """4 pixels that depend on one another: the mean over keys is the log-density."""
    mix = S * (np.eye(4) + 0.8 * np.random.default_rng(1).standard_normal((4, 4)))
    covariance = mix @ mix.T
    log_ratio = log_ratio_at(LINEAR)
    eigenvalues, axes = (jnp.float32(a) for a in np.linalg.eigh(covariance))

    def eps(x_t, t):
        sigma = jnp.exp(log_ratio(t))[:, None]
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

    def output(mean, variance):
        def denoise(x_t, t):
            out = optimal(schedule, mean)(x_t, t)
            if variance in ("learned", "learned_range"):
                return jnp.concatenate([out, jnp.sin(9 * x_t)], axis=-1)
            return out

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
    params = nonzero.nonzero_params(nonzero.TinyNet(), shape)

    def denoise(x_t, t):
        return nonzero.tiny_net(params, 3 * x_t, t)

    def flat_output(x_t, t):
        return denoise(x_t.reshape(1, *shape), jnp.float32([t])).ravel()

    output, jacobian = jax.jit(flat_output), jax.jit(jax.jacfwd(flat_output))
    num_steps, num_probes = 5, 2
    x = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, *shape)))
    density = ode_density(
        denoise, num_steps, x, num_probes=num_probes,
        schedule=schedule_lib.respace(full, timesteps),
    )
    # Nodes: log sigma from first to last, given as the t of the full schedule, which lies
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
        return ode_bits_per_dim(LINEAR, optimal(LINEAR), images, rngs, num_steps=60)

    bits = jax.jit(run)(images, rngs)
    assert bits.shape == (2,) and bits.dtype == jnp.float32
    for i in range(2):
        u = np.float64(jax.random.uniform(jax.random.fold_in(rngs[i], 0), SHAPE))
        assert 0 <= u.min() < 0.1 and 0.9 < u.max() < 1
        z = (images[i] + u) / 256 * 2 - 1
        nats = ode_density(optimal(LINEAR), 60, np.float32(z)[None])
        # Density a grey level: 256 of them are 2 wide. The probes, other ones, change
        # nothing.
        assert_allclose(bits[i], -np.log2(np.exp(nats) * 2 / 256)[0], rtol=2e-6)


def test_ode_bits_of_a_gaussian_are_those_of_its_pixels():
    """All of it against the truth: P(v) of N(M, S^2 + sigma_0^2), on average over u."""
    values = grid_pixels(16)
    rngs = keys(16)
    bits = jax.jit(lambda images, rngs: ode_bits_per_dim(
        LINEAR, optimal(LINEAR), images, rngs, num_steps=200
    ))(values.astype(np.uint8), rngs)
    edges = np.arange(257) / 128 - 1
    sd = np.sqrt(S**2 + sigmas(LINEAR)[0] ** 2)
    truth = -np.log2(np.diff(normal_cdf((edges - M) / sd)))[values.astype(int)]
    # The slope of log2 p over a bin, 2 / 256 * |z| / sd^2 / ln 2 / sqrt(12), about 0.03 a
    # pixel, averages out over 1024 pixels: 1e-3; 200 steps add 4e-4.
    assert abs(np.mean(np.float64(bits)) - truth.mean()) < 5e-3


def test_one_scan_of_the_ode():
    params = nonzero.nonzero_params(nonzero.TinyNet())
    calls = []

    def run(images, rngs):
        def denoise(x_t, t):
            calls.append(t)
            return nonzero.tiny_net(params, x_t, t)

        return ode_bits_per_dim(LINEAR, denoise, images, rngs, num_steps=7)

    jaxpr = jax.make_jaxpr(run)(jnp.zeros((2, *SHAPE), jnp.uint8), keys(2)).jaxpr
    assert [(t.shape, t.dtype) for t in calls] == 2 * [((2,), jnp.float32)]
    names = [e.primitive.name for e in tracing.equations(jaxpr)]
    scan, = (e for e in tracing.equations(jaxpr) if e.primitive.name == "scan")
    assert scan.params["length"] == 7 and "while" not in names
    # Two calls per step, of two convolutions and their derivatives: forward ones as well.
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
    bits = jax.jit(lambda params, images, rngs: ode_bits_per_dim(
        LINEAR, lambda x_t, t: model.apply({"params": params}, x_t, t, train=False),
        images, rngs, num_steps=4,
    ))(params, images, keys(2))
    assert np.all(np.isfinite(bits)) and bits[0] != bits[1]


@pytest.mark.parametrize(
    "schedule, settings, message",
    [
        (LINEAR, dict(mean="x_prev"), "mean='x_prev' cannot go with the ODE"),
        (LINEAR, dict(num_steps=0), "num_steps=0 must be at least 1"),
        (LINEAR, dict(num_probes=0), "num_probes=0 must be at least 1"),
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
    with pytest.raises(ValueError, match="images are float32.*ddpm_jax.data.to_uint8"):
        ode_bits_per_dim(LINEAR, lambda x, t: x, jnp.zeros((1, *SHAPE)), keys(1))
