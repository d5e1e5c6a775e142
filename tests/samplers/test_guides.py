"""Guidance by a gradient, on a world whose posterior and whose recursions are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
import gaussian
from ddpm_jax.diffusion import rescaled
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.errors import UserError
from ddpm_jax.samplers import classifier_guide, guides, measurement_guide
from ddpm_jax.samplers.settings import Settings
from gaussian import M, S
from nonzero import SHAPE, TinyNet, nonzero_params

N, TAU, Y = 600, 0.1, 0.6  # Images; the measurement's noise, and what it measured everywhere.
SCHEDULE = schedule_lib.linear()
LEVELS = gaussian.levels_of(SCHEDULE)


def block_means(x):
    """The linear measurement: means of 2x2 pixels."""
    return x.reshape(len(x), 4, 2, 4, 2, -1).mean(axis=(2, 4))


def posterior():
    """Mean and variance, given Y, of a block's mean, and variance of what is orthogonal to it."""
    gain = (S**2 / 4) / (S**2 / 4 + TAU**2)
    return M + gain * (Y - M), S**2 / 4 * (1 - gain), S**2


def exact_log_prob(x_t, t):
    """log p(Y | x_t), by the variance of a block's mean given x_t."""
    ratio = gaussian.log_ratio_at(SCHEDULE)(t).reshape(-1, 1, 1, 1)
    signal, sigma = (jnp.sqrt(jax.nn.sigmoid(sign * 2 * ratio)) for sign in (-1, 1))
    x_0 = M + signal * S**2 * (x_t - signal * M) / (signal**2 * S**2 + sigma**2)
    variance = S**2 * sigma**2 / (signal**2 * S**2 + sigma**2) / 4 + TAU**2
    return -(jnp.square(Y - block_means(x_0)) / (2 * variance)).sum(axis=(1, 2, 3))


def drawn(guide, settings, mean="eps", n=N, variance="fixed_large"):
    """Samples of the Gaussian world that a guide led."""
    diffusion = Parameterization(mean, variance)
    guide = guides.prepared(guide, n, SHAPE)
    settings = dataclasses.replace(settings, clip=False)
    chain, levels = settings.chain(SCHEDULE), guides.Levels.of(SCHEDULE)

    @jax.jit
    def run(x_T, rngs):
        denoise_fn = guides.gradient_guided(
            gaussian.optimal(SCHEDULE, mean), guide, levels, diffusion, clip=False
        )
        return chain.run(denoise_fn, diffusion, x_T, rngs)

    x_T = jax.random.normal(jax.random.key(5), (n, *SHAPE))
    return np.float64(run(x_T, gaussian.keys(n)))


def parts(samples):
    """The means of the blocks, and what is left of the pixels, scaled to their variance."""
    means = block_means(samples)
    rest = samples - np.repeat(np.repeat(means, 2, axis=1), 2, axis=2)
    return means, rest * np.sqrt(4 / 3)


@pytest.mark.parametrize("settings", [
    Settings("ancestral"), Settings("ddim", num_steps=500),
    Settings("dpm_solver_pp_3", num_steps=60),
], ids=lambda settings: settings.sampler)
def test_the_exact_gradient_gives_the_posterior(settings):
    samples = drawn(classifier_guide(exact_log_prob), settings)
    mean, variance, rest = posterior()
    means, orthogonal = parts(samples)
    gaussian.assert_moments(means, mean, variance)
    assert abs(orthogonal.var() - rest) < 5 * rest * np.sqrt(2 / (0.75 * orthogonal.size))


@pytest.mark.parametrize("mean", ["x_0", "v"])
@pytest.mark.parametrize("sampler", ["ancestral", "dpm_solver_pp"])
def test_what_the_network_predicts_does_not_matter(mean, sampler):
    settings, guide = Settings(sampler, num_steps=20), classifier_guide(exact_log_prob)
    expected = drawn(guide, settings, n=4)
    # Float32 loses digits in x_0 where the noise is high, and 20 steps add them up.
    np.testing.assert_allclose(drawn(guide, settings, mean, n=4), expected, atol=2e-3)


def dps_moments():
    """(mean, variance) of a block's mean under DPS on the ancestral chain, in closed form.

    x_{t-1} = mean(x_t) + sigma_t z + beta_t / sqrt(alpha_t) g, where g is the gradient of
    -|Y - A m(x_t)|^2 / (2 TAU^2), and A A^T = 1/4 on that direction.
    """
    mean, variance = 0.0, 1 / 4
    for t in reversed(range(SCHEDULE.num_timesteps)):
        signal, sigma, beta = LEVELS[0][t], LEVELS[1][t], SCHEDULE.beta[t]

        def step(x):
            eps = gaussian.best_eps(signal, sigma, x)
            x_0 = (x - sigma * eps) / signal
            by_x = signal * S**2 / (signal**2 * S**2 + sigma**2)  # The derivative of x_0.
            g = by_x * (Y - x_0) / (4 * TAU**2)  # Of x_t's pixels; a block's mean is of four.
            return (x - beta / sigma * eps + beta * g) / np.sqrt(1 - beta)

        slope = step(1.0) - step(0.0)
        mean, variance = step(mean), slope**2 * variance
        if t:
            variance += beta / 4
    return mean, variance


def test_dps_gives_its_own_recursion():
    """Not the posterior: both are as the page on sampling says."""
    guide = measurement_guide(block_means, np.full((4, 4, 1), Y), noise=TAU, data_std=0)
    means, _ = parts(drawn(guide, Settings("ancestral")))
    mean, variance = dps_moments()
    gaussian.assert_moments(means, mean, variance)
    assert (round(mean, 3), round(variance**0.5, 3)) == (0.538, 0.069)
    exact_mean, exact_variance, _ = posterior()
    assert (round(exact_mean, 3), round(exact_variance**0.5, 3)) == (0.483, 0.078)


@pytest.mark.parametrize("settings", [
    Settings("ancestral"), Settings("dpm_solver_pp_3", num_steps=60),
], ids=lambda settings: settings.sampler)
def test_a_measurement_of_normal_data_is_exact(settings):
    """Where data_std is that of the data, N(y; A(x_0), noise^2 + v A A^T) is p(y | x_t)."""
    guide = measurement_guide(block_means, np.full((4, 4, 1), Y), noise=TAU, data_std=S)
    means, orthogonal = parts(drawn(guide, settings))
    mean, variance, rest = posterior()
    gaussian.assert_moments(means, mean, variance)
    assert abs(orthogonal.var() - rest) < 5 * rest * np.sqrt(2 / (0.75 * orthogonal.size))


def tiny(diffusion=Parameterization(), schedule=None, **fields):
    model = TinyNet(out_channels=diffusion.out_channels(1), **fields)
    schedule = schedule or schedule_lib.linear(6, 1e-2, 0.6)
    return ddpm_jax.Trained(nonzero_params(model), model, schedule, diffusion, SHAPE)


def bright(x_t, t, x_0):
    """Towards brighter images."""
    return jnp.full(x_t.shape, 30.0)


@pytest.mark.parametrize("trained, settings", [
    (tiny(Parameterization("x_prev", "learned")), Settings("ancestral", num_steps=3)),
    (tiny(Parameterization("eps", "learned_range")), Settings("ancestral")),
    (tiny(Parameterization("v"), rescaled.zero_terminal_snr(schedule_lib.linear(6, 1e-2, 0.6))),
     Settings("ddim", num_steps=3, grid="trailing")),
    (tiny(self_condition=True), Settings("heun", num_steps=5)),
    (tiny(num_classes=3), Settings("unipc", num_steps=4, guidance=2.0)),
], ids=["x_prev", "learned_range", "v, zero terminal SNR", "self_condition", "labels"])
def test_every_network_and_sampler_takes_a_guide(trained, settings):
    plain = ddpm_jax.sample(trained, 0, 5, settings=settings)
    guided = ddpm_jax.sample(trained, 0, 5, settings=settings, guide=bright)
    assert np.all(guided.mean(axis=(1, 2, 3)) > plain.mean(axis=(1, 2, 3)) + 0.01)
    assert np.abs(guided).max() <= 1 + 1e-6


def test_an_ancestral_step_moves_by_beta_times_the_gradient():
    """Algorithm 1 of Dhariwal and Nichol, over sqrt(alpha); x_0 is not clipped."""
    trained, gradient = tiny(), np.float32(np.random.default_rng(0).standard_normal(SHAPE))
    settings = Settings("ancestral", clip=False)
    chain, levels = settings.chain(trained.schedule), guides.Levels.of(trained.schedule)
    denoise_fn = ddpm_jax.denoise_fn(trained)
    guide = guides.prepared(lambda x, t, x_0: jnp.stack([gradient] * len(x)), 2, SHAPE)
    x, t = np.float32(np.random.default_rng(1).standard_normal((2, *SHAPE))), jnp.array([1, 4])
    plain = chain.predict_fn(denoise_fn, trained.diffusion)(x, t)
    led = chain.predict_fn(
        guides.gradient_guided(denoise_fn, guide, levels, trained.diffusion, clip=False),
        trained.diffusion,
    )(x, t)
    beta = trained.schedule.beta[[1, 4]].reshape(2, 1, 1, 1)
    np.testing.assert_allclose(  # Float32, of numbers up to 10.
        led.mean - plain.mean, beta / np.sqrt(1 - beta) * gradient, atol=1e-5
    )
    signal, sigma = (x[[1, 4]].reshape(2, 1, 1, 1) for x in gaussian.levels_of(trained.schedule))
    np.testing.assert_allclose(led.eps - plain.eps, np.broadcast_to(-sigma * gradient, x.shape),
                               atol=1e-5)
    np.testing.assert_allclose(signal * led.x_0 + sigma * led.eps, x, atol=1e-5)


def test_a_measurement_goes_back_through_the_network():
    """Its gradient against differences of log N(y; A(x_0), v) along one direction."""
    trained, random = tiny(), np.random.default_rng(0)
    denoise_fn, levels = ddpm_jax.denoise_fn(trained), guides.Levels.of(trained.schedule)
    x, along = (np.float32(random.standard_normal((1, *SHAPE))) for _ in range(2))
    y, t = np.float32(random.standard_normal((4, 4, 1))), jnp.array([2])
    guide = guides.prepared(measurement_guide(block_means, y, 0.7, noise=0.4), 1, SHAPE)
    signal, sigma = (float(x[2]) for x in gaussian.levels_of(trained.schedule))

    def log_prob(x):
        x_0 = (np.float64(x) - sigma * np.float64(denoise_fn(jnp.float32(x), t))) / signal
        v = 0.4**2 + (0.5 * sigma) ** 2 / ((0.5 * signal) ** 2 + sigma**2) / 4
        return -0.7 * np.square(y - np.asarray(block_means(x_0))).sum() / (2 * v)

    led = guides.gradient_guided(denoise_fn, guide, levels, trained.diffusion, clip=False)
    gradient = -(led(x, t) - denoise_fn(x, t)) / sigma
    slope = (log_prob(x + 1e-2 * along) - log_prob(x - 1e-2 * along)) / 2e-2
    # The differences are good to the square of their step, and to float32 over it.
    np.testing.assert_allclose(np.sum(gradient * along), slope, rtol=2e-3)


def test_y_goes_with_its_image_whatever_the_batches():
    trained = tiny()
    y = np.float32(np.random.default_rng(0).uniform(-1, 1, (11, 4, 4, 1)))
    guide = measurement_guide(block_means, y)
    images = ddpm_jax.sample(trained, 0, 11, guide=guide)
    for batch_size in (8, 16):
        again = ddpm_jax.sample(trained, 0, 11, guide=guide, batch_size=batch_size)
        np.testing.assert_allclose(again, images, atol=1e-5)
    alone = ddpm_jax.sample(trained, 0, 1, guide=measurement_guide(block_means, y[0]))
    np.testing.assert_allclose(alone[0], images[0], atol=1e-5)
    other = ddpm_jax.sample(trained, 0, 1, guide=measurement_guide(block_means, y[1]))
    assert np.abs(other - alone).max() > 0.01


def test_a_classifier_is_asked_for_the_class_of_each_image():
    def log_prob_fn(x_t, t, label):
        return jnp.where(label == 1, 1.0, -1.0) * 30 * x_t.sum(axis=(1, 2, 3))

    trained, y = tiny(), np.arange(6) % 2
    images = ddpm_jax.sample(trained, 0, 6, guide=classifier_guide(log_prob_fn, y=y))
    plain = ddpm_jax.sample(trained, 0, 6)
    moved = (images - plain).mean(axis=(1, 2, 3))
    assert np.all(np.sign(moved) == np.where(y == 1, 1, -1))
    twice = ddpm_jax.sample(trained, 0, 6, guide=classifier_guide(log_prob_fn, 2.0, y=y))
    assert np.all(np.abs((twice - plain).mean(axis=(1, 2, 3))) > np.abs(moved))


@dataclasses.dataclass(frozen=True)
class Towards:
    """A rule of a user's own, without more: each image towards its own grey."""

    scale: float

    def __call__(self, x_t, t, x_0, y, signal, sigma):
        return self.scale * signal / sigma**2 * (y.reshape(-1, 1, 1, 1) - x_0)


def test_a_rule_of_ones_own_gets_the_y_of_each_image():
    y = np.float32([-0.5, 0.0, 0.5])
    images = ddpm_jax.sample(tiny(), 0, 3, guide=guides.Guide(Towards(1.0), y), clip=False)
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), y, atol=1e-3)
    for_all = ddpm_jax.sample(tiny(), 0, 3, guide=guides.Guide(Towards(1.0), 0.25), clip=False)
    np.testing.assert_allclose(for_all, 0.25, atol=1e-3)


def logs_a_zero(x_t, t, x_0):
    return jnp.log(x_t * 0) * 0


@pytest.mark.parametrize("guide, says", [
    (lambda x_t, t, x_0: x_t.mean(axis=(1, 2, 3)), r"returned \[2\] for images \[2, 8, 8, 1\]"),
    (lambda x_t, t, x_0: None, "returned NoneType"),
    (logs_a_zero, "NaN or infinity in 3 of 3 images, first in number 0"),
    ("bright", "must be a hashable function"),
    (classifier_guide(lambda x_t, t: x_t), r"log_prob_fn returned \[2, 8, 8, 1\] for 2 images"),
    (measurement_guide(block_means, np.zeros((8, 8, 1))), r"y is \[8, 8, 1\], and must be \[3, 4"),
    (measurement_guide(block_means, np.zeros((2, 4, 4, 1))), r"y is \[2, 4, 4, 1\]"),
    (measurement_guide(block_means, np.full((4, 4, 1), np.nan)), "y has NaN"),
    (classifier_guide(lambda x_t, t, y: y, y=[0, 1]), r"y is \[2\], and must be \[3\]"),
])
def test_a_wrong_guide_is_one_line(guide, says):
    with pytest.raises(UserError, match=says):
        ddpm_jax.sample(tiny(), 0, 3, guide=guide)


@pytest.mark.parametrize("make, says", [
    (lambda: measurement_guide(block_means, 0, noise=0), "noise=0 must be more than 0"),
    (lambda: measurement_guide(block_means, 0, data_std=-1), "data_std=-1 must"),
    (lambda: measurement_guide("blur", 0), "operator='blur' must be a hashable function"),
    (lambda: classifier_guide(None), "log_prob_fn=None must be"),
    (lambda: classifier_guide(bright, "much"), "scale='much'"),
])
def test_a_wrong_maker_is_one_line(make, says):
    with pytest.raises(UserError, match=says):
        make()
