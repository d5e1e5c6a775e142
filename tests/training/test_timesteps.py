"""Draws of t: antithetic pairs, and importance sampling against plain Python lists."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from ddpm_jax.training import timesteps


def filled(losses):
    """A history in which t has the ten losses of `losses[t]`."""
    losses = jnp.asarray(losses, jnp.float32)
    return {"loss": losses, "count": jnp.full(len(losses), 10, jnp.int32)}


def test_the_last_ten_losses_of_each_step_stay():
    """Batches larger than ten, with repeated steps, against queues."""
    random = np.random.default_rng(0)
    history, queues = timesteps.fresh(4), [collections.deque(maxlen=10) for _ in range(4)]
    record = jax.jit(timesteps.record)
    for size in (3, 64, 1, 7, 30):
        t = random.integers(0, 4, size)
        t[random.random(size) < 0.5] = 2  # more than ten of one step in a batch
        loss = random.uniform(0, 1, size).astype(np.float32)
        for step, value in zip(t, loss):
            queues[step].append(value)
        history = record(history, t, loss)
    for kept, queue in zip(history["loss"], queues):
        assert_array_equal(np.sort(kept), np.sort([*queue, *[0.0] * (10 - len(queue))]))
    assert history["count"].sum() == 3 + 64 + 1 + 7 + 30


def test_uniform_until_every_step_has_ten_losses():
    history = filled(np.arange(1.0, 41.0).reshape(4, 10))
    history["count"] = history["count"].at[3].set(9)
    assert_array_equal(timesteps.probabilities(history), np.full(4, 0.25))
    assert_array_equal(timesteps.probabilities(timesteps.fresh(4)), np.full(4, 0.25))
    t, weight = timesteps.draw(history, jnp.array([0.0, 0.26, 0.74, 0.9999999]))
    assert_array_equal(t, [0, 1, 2, 3])
    assert_array_equal(weight, np.ones(4))


def test_probability_is_the_root_mean_square_and_a_little_uniform():
    losses = np.random.default_rng(0).uniform(0, 3, (5, 10))
    rms = np.sqrt((losses**2).mean(axis=1))
    expected = 0.999 * rms / rms.sum() + 0.001 / 5
    p = timesteps.probabilities(filled(losses))
    assert_allclose(p, expected, rtol=1e-6)  # float32
    uniform = (np.arange(100_000) + 0.5) / 100_000
    t, weight = timesteps.draw(filled(losses), jnp.asarray(uniform, jnp.float32))
    assert_allclose(np.bincount(t, minlength=5) / 1e5, expected, atol=3e-5)
    assert_allclose(weight, 1 / (5 * expected[np.asarray(t)]), rtol=1e-5)
    # Divided by its probability a loss keeps its mean over uniform t.
    sizes = np.arange(5.0)
    assert_allclose(np.mean(weight * sizes[np.asarray(t)]), sizes.mean(), rtol=1e-4)


def test_losses_of_zero_do_not_divide_by_zero():
    assert_array_equal(timesteps.probabilities(filled(np.zeros((4, 10)))), np.full(4, 0.25))


def test_antithetic_partners_stand_side_by_side_on_any_device():
    rng, places = jax.random.key(0), jnp.arange(1000)
    settings = dict(num_timesteps=10, t_sampling="antithetic", loss_history={})
    t, weight = timesteps.draw_t(rng, places, **settings)
    np.testing.assert_array_equal(t[0::2] + t[1::2], 9)
    np.testing.assert_array_equal(weight, 1)
    counts = np.bincount(t, minlength=10)
    # Pairs are drawn: 500 of 10 pairs of steps, five standard errors.
    assert np.all(np.abs(counts - 100) < 5 * np.sqrt(500 * 0.2 * 0.8))
    share, _ = timesteps.draw_t(rng, places[501:504], **settings)
    np.testing.assert_array_equal(share, t[501:504])
