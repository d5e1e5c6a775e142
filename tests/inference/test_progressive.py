"""Frames and completions are those of the ancestral chain, at the documented steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.inference import progressive
from ddpm_jax.samplers import reverse_chain
from nonzero import SHAPE, tiny_trained

# Batches of another size are summed in another order: float32 roundings of 12 steps.
SAME = dict(rtol=0, atol=2e-5)
T, KEY = 12, 5
X_T, SHARED, OWN = range(3)  # Addresses of the draws below the key.


def trained_as(mean="eps", variance="fixed_large"):
    return tiny_trained(schedule_lib.linear(T, 1e-3, 0.6), mean, variance)


@pytest.fixture(scope="module")
def trained():
    return trained_as()


def keys(use, n):
    rng = jax.random.fold_in(jax.random.key(KEY), use)
    return jnp.stack([jax.random.fold_in(rng, i) for i in range(n)])


def prior(n):
    return jnp.stack([jax.random.normal(rng, SHAPE) for rng in keys(X_T, n)])


def predict_fn(trained, clip):
    return process.predict_fn(
        trained.schedule, ddpm_jax.denoise_fn(trained), mean=trained.diffusion.mean,
        variance=trained.diffusion.variance, clip=clip,
    )


def direct(trained, x, rngs, clip=True, **steps):
    """The chain itself."""
    predict = predict_fn(trained, clip)
    chain = jax.jit(lambda x, rngs: reverse_chain.ancestral(
        trained.schedule, predict, x, rngs, **steps))
    return chain(x, rngs)


# Generation.


@pytest.mark.parametrize("clip, steps", [(True, (11, 7, 4, 0)), (False, (11, 0))])
def test_frames_are_those_of_the_chain(trained, clip, steps):
    """From 11 to 0 in equal strides, rounded."""
    x_t, x_0 = progressive.generate(trained, KEY, 3, num_frames=len(steps), clip=clip)
    assert x_t.shape == x_0.shape == (len(steps), 3, *SHAPE)
    assert x_t.dtype == x_0.dtype == np.float32 and isinstance(x_t, np.ndarray)
    np.testing.assert_allclose(x_t[0], prior(3), **SAME)
    for frame, t in enumerate(steps):
        if t < 11:
            before = direct(trained, prior(3), keys(OWN, 3), clip, stop=t + 1)
            np.testing.assert_allclose(x_t[frame], before, **SAME)
        predict = jax.jit(predict_fn(trained, clip))
        expected = predict(jnp.asarray(x_t[frame]), jnp.full(3, t)).x_0
        np.testing.assert_allclose(x_0[frame], expected, **SAME)
    assert np.abs(x_0).max() <= 1 if clip else np.abs(x_0).max() > 1


@pytest.mark.parametrize("mean, variance", [
    ("eps", "fixed_large"), ("v", "learned_range"), ("x_0", "fixed_small"),
])
def test_the_last_x_0_is_the_sample(mean, variance):
    trained = trained_as(mean, variance)
    _, x_0 = progressive.generate(trained, jax.random.key(KEY), 2)
    sample = direct(trained, prior(2), keys(OWN, 2))
    np.testing.assert_allclose(x_0[-1], sample, **SAME)
    assert np.abs(x_0[-1] - x_0[0]).max() > 0.1


@pytest.mark.parametrize("num_frames, frames", [(5, 5), (T, T), (99, T)])
def test_as_many_frames_as_asked_for_and_there_are(trained, num_frames, frames):
    x_t, x_0 = progressive.generate(trained, KEY, 1, num_frames=num_frames)
    assert len(x_t) == len(x_0) == frames
    np.testing.assert_allclose(x_t[0], prior(1), **SAME)
    if frames == T:  # Every step, in order: first far from the sample, then near it.
        assert np.all(np.abs(np.diff(x_t, axis=0)).max(axis=(1, 2, 3, 4)) > 0.01)
        np.testing.assert_allclose(
            x_0[-1], direct(trained, prior(1), keys(OWN, 1)), **SAME)


def test_chains_start_from_standard_noise(trained):
    noise = progressive.generate(trained, KEY, 64, num_frames=2)[0][0]
    # 4,096 draws: standard errors of 1/64 for the mean, sqrt(2)/64 for the square; five of each.
    assert abs(noise.mean()) < 5 / 64 and abs(np.mean(noise**2) - 1) < 5 * 2**0.5 / 64
    assert len(np.unique(noise)) > 4000  # Images differ.


# Completion.


def test_completions_are_those_of_the_chain(trained):
    shared = (T, T - 1, 1)
    x_t, completions = progressive.complete(trained, KEY, 3, shared=shared)
    assert x_t.shape == (3, *SHAPE) and completions.shape == (3, 3, *SHAPE)
    assert x_t.dtype == completions.dtype == np.float32
    for row, start in enumerate(shared):
        expected = prior(1)
        if start < T:
            expected = direct(trained, expected, keys(SHARED, 1), stop=start)
        np.testing.assert_allclose(x_t[row], expected[0], **SAME)
        each = jnp.broadcast_to(expected, (3, *SHAPE))
        ends = direct(trained, each, keys(OWN, 3), start=start)
        np.testing.assert_allclose(completions[row], ends, **SAME)


def test_ways_part_where_they_are_told_to(trained):
    """The last step adds no noise, so images that separate there are equal."""
    x_t, completions = progressive.complete(
        trained, jax.random.PRNGKey(KEY), 4, shared=(1, T))
    together, apart = completions
    np.testing.assert_allclose(together, together[:1].repeat(4, axis=0), rtol=0, atol=1e-6)
    distances = np.abs(apart[:, None] - apart[None]).max(axis=(2, 3, 4))
    assert np.all(distances + np.eye(4) > 0.1)
    first = progressive.generate(trained, KEY, 1, num_frames=2)[0][0, 0]
    np.testing.assert_allclose(x_t[1], first, **SAME)


GAUSSIAN = schedule_lib.linear(T, 1e-3, 0.6)
SPREAD = 0.5  # Pixels are N(0, SPREAD^2), independent.


class Gaussian(nn.Module):
    """The expected noise in x_t in a Gaussian world, which is linear in x_t."""

    @nn.compact
    def __call__(self, x, t, *, train):
        noise = GAUSSIAN.sqrt_one_minus_alpha_bar
        slope = noise / (GAUSSIAN.alpha_bar * SPREAD**2 + noise**2)
        return jnp.float32(slope)[t][:, None, None, None] * x


def test_the_longer_the_way_the_more_variety():
    """In closed form: each step of a linear chain scales the variance and adds its own."""
    noise = GAUSSIAN.sqrt_one_minus_alpha_bar
    slope = noise / (GAUSSIAN.alpha_bar * SPREAD**2 + noise**2)
    x_0 = (1 - noise * slope) / GAUSSIAN.sqrt_alpha_bar
    factor = GAUSSIAN.posterior_coef_x_0 * x_0 + GAUSSIAN.posterior_coef_x_t

    def variance(start):
        total = 0.0
        for t in reversed(range(start)):
            total = factor[t] ** 2 * total + (GAUSSIAN.beta[t] if t else 0.0)
        return total

    kind = process.Parameterization()
    trained = ddpm_jax.Trained({}, Gaussian(), GAUSSIAN, kind, SHAPE)
    shared = (3, T)
    x_t, completions = progressive.complete(trained, KEY, 128, shared=shared, clip=False)
    actual = completions.var(axis=1, ddof=1).mean(axis=(1, 2, 3))
    expected = [variance(start) for start in shared]
    assert expected[0] < expected[1] / 2
    # 127 * 64 free draws: five times the relative error sqrt(2 / 8128) = 1.6%.
    np.testing.assert_allclose(actual, expected, rtol=0.08)
    for row, start in enumerate(shared):  # Around the end of the chain without noise.
        middle = np.prod(factor[:start]) * x_t[row]
        error = (expected[row] / 128) ** 0.5
        assert np.abs(completions[row].mean(axis=0) - middle).max() < 5 * error


@pytest.mark.parametrize("start", [0, T + 1])
def test_steps_outside_the_chain_are_refused(trained, start):
    with pytest.raises(ValueError, match=f"={start} .*{T}, the steps of the schedule"):
        progressive.complete(trained, KEY, 2, shared=(start,))
