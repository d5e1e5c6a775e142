"""Every chain tells a self-conditioned network the x_0 that it predicted last, zeros at first.

The network here adds one to what it is told, so that x_0 counts its calls.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Parameterization, Prediction, predict_fn
from ddpm_jax.samplers import inpainting, reverse_chain
from ddpm_jax.samplers import ddim as ddim_lib
from ddpm_jax.samplers.guidance import guided
from ddpm_jax.samplers.settings import SAMPLERS, Settings
from gaussian import M, S, best_eps, keys, levels_of

SCHEDULE = schedule_lib.linear(60, 1e-3, 0.2)
X_T = np.float32(np.random.default_rng(0).standard_normal((3, 2, 2, 1)))
EIGHT = schedule_lib.linear(8, 1e-2, 0.4)


def counting(x_t, t, last):
    return last + 1


def predict_count(x_t, t, last):
    """A step to x_0 itself, which adds no noise."""
    x_0 = last + 1
    return Prediction(eps=jnp.zeros_like(x_0), x_0=x_0, mean=x_0, log_variance=None)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_carries_it(name):
    num_steps = 7 if name == "heun" else 6
    chain = Settings(name, num_steps, clip=False).chain(SCHEDULE)
    run = jax.jit(lambda x, rngs: chain.run(
        counting, Parameterization("x_0"), x, rngs, self_condition=True,
        trajectory=range(num_steps),
    ))
    x_0, kept = run(X_T, keys(3))
    for left in range(num_steps):
        assert_array_equal(kept.x_0[left], np.full(X_T.shape, num_steps - left))
    assert_allclose(x_0, np.full(X_T.shape, num_steps), rtol=1e-6)


def test_images_that_start_later_are_told_zeros_there():
    starts = jnp.array([8, 3, 1])
    x_0 = reverse_chain.ancestral(
        EIGHT, reverse_chain.waiting(predict_count, starts), X_T, keys(3), self_condition=True
    )
    assert_array_equal(x_0[:, 0, 0, 0], starts)


def test_inpainting_carries_it_through_every_row():
    rows = inpainting.repaint(EIGHT, jump_length=2, resamplings=3)
    x_0 = inpainting.inpaint(
        rows, predict_count, X_T, keys(3), X_T, lambda known, x: x, self_condition=True
    )
    assert rows.num_calls > 8
    assert_array_equal(x_0, np.full(X_T.shape, rows.num_calls))


def test_guidance_tells_both_outputs_the_same():
    def apply_fn(x_t, t, last, *, labels):
        assert last.shape == x_t.shape == (6, 2, 2, 1)
        return last + 1 + labels.reshape(-1, 1, 1, 1)  # One more with the label, three without.

    denoise_fn = guided(
        apply_fn, {"labels": jnp.array([1, 1, 1])}, null_label=3, scale=2.0
    )
    last = jnp.float32(10 * np.arange(12).reshape(3, 2, 2, 1))
    assert_allclose(denoise_fn(X_T, jnp.zeros(3), last), last + 4 + 2.0 * (2 - 4), rtol=1e-6)


def test_an_inversion_leads_back_the_closer_the_more_steps_it_has():
    """A network close to the best one of a Gaussian world: Euler steps, so twice for half."""
    x_0 = np.float32(np.random.default_rng(1).normal(M, S, (3, 2, 2, 1)))

    def error(num_timesteps):
        schedule = schedule_lib.linear(num_timesteps, 1e-3 * 60 / num_timesteps,
                                       0.2 * 60 / num_timesteps)
        signal, sigma = (jnp.float32(level) for level in levels_of(schedule))

        def denoise_fn(x_t, t, last):
            a, b = (level[t].reshape(-1, 1, 1, 1) for level in (signal, sigma))
            return best_eps(a, b, x_t) + 0.2 * a * b * last

        predict = predict_fn(schedule, denoise_fn, clip=False)

        @jax.jit
        def there_and_back(x):
            x_T = ddim_lib.invert(schedule, predict, x, self_condition=True)
            return ddim_lib.ddim(schedule, predict, x_T, keys(3), self_condition=True)

        return np.abs(there_and_back(x_0) - x_0).max()

    coarse, fine = error(60), error(240)
    assert fine < coarse / 3 and coarse < 0.2
