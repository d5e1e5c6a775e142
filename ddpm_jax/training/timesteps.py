"""Which t each image of a batch trains: uniform, antithetic, or by importance.

Importance sampling goes by the losses at each t (Nichol and Dhariwal 2021, Sec. 3.3). The terms of
the bound differ by orders of magnitude between steps. So a step is drawn with a probability
proportional to the root mean square of its last ten losses, and each loss is divided by that
probability, which keeps its mean equal to the bound.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion import randomness

_KEPT = 10  # Losses kept per step; t is uniform until every step has as many.
_UNIFORM = 0.001  # Share of the probability that is spread evenly.
History = dict[str, Array]


def fresh(num_timesteps: int) -> History:
    """An empty history: "loss", float32 [T, 10], and "count", int32 [T], of losses so far."""
    return {
        "loss": jnp.zeros((num_timesteps, _KEPT)),
        "count": jnp.zeros((num_timesteps,), jnp.int32),
    }


def probabilities(history: History) -> Float[Array, " T"]:
    """Probability of each t; uniform until every t has ten losses."""
    rms = jnp.sqrt(jnp.mean(jnp.square(history["loss"]), axis=1))
    total = jnp.sum(rms)
    num_timesteps = rms.shape[0]
    share = rms / jnp.where(total > 0, total, 1.0)
    ready = jnp.all(history["count"] >= _KEPT) & (total > 0)
    return jnp.where(
        ready, (1 - _UNIFORM) * share + _UNIFORM / num_timesteps, 1 / num_timesteps
    )


def draw(
    history: History, uniform: Float[Array, " b"]
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """t of each image, and the weight 1 / (T p_t) of its loss.

    Args:
        history: as `record` returns it.
        uniform: draws from [0, 1), one per image.
    """
    p = probabilities(history)
    num_timesteps = p.shape[0]
    t = jnp.searchsorted(jnp.cumsum(p), uniform, side="right").astype(jnp.int32)
    t = jnp.minimum(t, num_timesteps - 1)
    return t, 1 / (num_timesteps * p[t])


def record(history: History, t: Int[Array, " n"], loss: Float[Array, " n"]) -> History:
    """The history after n more losses, those of all devices in the order of the global batch.

    Each t keeps its last ten losses, in a ring.
    """
    same = t[:, None] == t[None, :]
    before = jnp.sum(jnp.tril(same, -1), axis=1)  # Earlier losses at the same t in this call.
    after = jnp.sum(jnp.triu(same, 1), axis=1)
    slot = (history["count"][t] + before) % _KEPT
    slot = jnp.where(after < _KEPT, slot, _KEPT)  # Overwritten within this call: dropped.
    return {
        "loss": history["loss"].at[t, slot].set(loss, mode="drop"),
        "count": history["count"].at[t].add(1),
    }


def draw_t(rng, places, *, num_timesteps, t_sampling, loss_history):
    """t of each image, int32 [b] in 0..T-1, and the weight of its loss, float32 [b].

    `t_sampling` is "uniform"; "antithetic", where the images at places 2k and 2k + 1 have t and
    T - 1 - t; or "importance", by the losses so far (see `draw`).
    """
    odd = places % 2
    rngs = randomness.image_keys(rng, places - odd if t_sampling == "antithetic" else places)
    rngs = jax.vmap(randomness.image_draws)(rngs)[:, randomness.T]
    if t_sampling == "importance":
        return draw(loss_history, jax.vmap(jax.random.uniform)(rngs))
    t = jax.vmap(lambda rng: jax.random.randint(rng, (), 0, num_timesteps))(rngs)
    if t_sampling == "antithetic":
        t = jnp.where(odd == 1, num_timesteps - 1 - t, t)
    return t, jnp.ones(t.shape)
