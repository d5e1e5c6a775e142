"""Progressive generation and shared-latent completions (Ho et al. 2020, Sec. 4.3, Figs. 6, 7)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import errors
from ddpm_jax.data.source import spread
from ddpm_jax.diffusion import process, randomness
from ddpm_jax.errors import UserError
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained, denoise_fn
from ddpm_jax.samplers import reverse_chain


def generate(
    trained: Trained, rng: Any, n: int, *, num_frames: int = 10, clip: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """x_t and the predicted x_0 of n images at evenly spaced steps of their chains.

    Args:
        trained: what `load` and `train` return.
        rng: a typed key, a legacy `PRNGKey` or an int.
        n: number of images.
        num_frames: number of steps, the first and the last of the chain among them; at most T.
        clip: keep the predicted x_0 in [-1, 1].

    Returns:
        x_t and x_0, float32 [frames, n, h, w, c], from T - 1 to 0. The last x_0 is the sample,
        where the network predicts eps, x_0 or v.
    """
    trained_lib.check(trained)
    n, num_frames = (
        errors.whole_number(field, value, low=1)
        for field, value in (("n", n), ("num_frames", num_frames))
    )
    at = spread(trained.schedule.num_timesteps - 1, 0, num_frames)
    rng = randomness.as_key(rng)

    @jax.jit
    def chain(params):
        x_T = _noise(rng, n, trained.image_shape)
        rngs = randomness.image_keys(randomness.below(rng, randomness.OWN), jnp.arange(n))
        return reverse_chain.ancestral(
            trained.schedule, _predict_fn(trained, params, clip), x_T, rngs,
            self_condition=trained_lib.is_self_conditioned(trained.model), trajectory=at.tolist(),
        )[1]

    trajectory = jax.device_get(chain(trained.params))
    return trajectory.x_t, trajectory.x_0


def complete(
    trained: Trained, rng: Any, n: int, *, shared: Sequence[int], clip: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """n images that share one x_t and are then drawn independently, for each t of `shared`.

    The x_t of all rows come from the same chain, with the same x_T. A self-conditioned network is
    told nothing at the start of a completion.

    Args:
        trained: what `load` and `train` return.
        rng: a typed key, a legacy `PRNGKey` or an int.
        n: completions of each x_t.
        shared: number of steps left to undo where the chains separate, 1..T (the paper has 1000,
            750, 500 and 250).
        clip: keep the predicted x_0 in [-1, 1].

    Returns:
        The shared x_t, float32 [len(shared), h, w, c], and the completions,
        [len(shared), n, h, w, c].
    """
    trained_lib.check(trained)
    num_timesteps = trained.schedule.num_timesteps
    n = errors.whole_number("n", n, low=1)
    shared = errors.whole_numbers("shared", shared)
    if not shared:
        raise UserError(
            "names no step to part at", field="shared", value=shared,
            instead={"shared": [num_timesteps // 2]},
        )
    rng = randomness.as_key(rng)
    rngs_shared = randomness.image_keys(randomness.below(rng, randomness.SHARED), jnp.arange(1))
    rngs_own = randomness.image_keys(randomness.below(rng, randomness.OWN), jnp.arange(n))

    def chains(params, start):
        run = functools.partial(
            reverse_chain.ancestral, trained.schedule, _predict_fn(trained, params, clip),
            self_condition=trained_lib.is_self_conditioned(trained.model),
        )
        x_t = _noise(rng, 1, trained.image_shape)
        if start < num_timesteps:
            x_t = run(x_t, rngs_shared, stop=start)
        return x_t[0], run(jnp.repeat(x_t, n, axis=0), rngs_own, start=start)

    run = jax.jit(chains, static_argnums=1)
    rows = [jax.device_get(run(trained.params, start)) for start in shared]
    x_t, completions = zip(*rows)
    return np.stack(x_t), np.stack(completions)


def _noise(rng, n, shape):
    keys = randomness.image_keys(randomness.below(rng, randomness.PRIOR), jnp.arange(n))
    return randomness.standard_normal(keys, shape)


def _predict_fn(trained, params, clip):
    return process.predict_fn(
        trained.schedule, denoise_fn(trained.replace(params=params)),
        mean=trained.diffusion.mean, variance=trained.diffusion.variance, clip=clip,
    )
