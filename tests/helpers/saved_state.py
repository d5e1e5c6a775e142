"""A state to save, and what stands beside it in a checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

METADATA = {"config": {"seed": 7}, "versions": {"jax": "x"}}
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lambda count: 1e-3))


def tree_of(step: int, width: int = 4) -> dict:
    values = np.random.default_rng(step).normal(size=(3, width)).astype(np.float32)
    params = {"conv": {"kernel": jnp.asarray(values), "bias": jnp.full(width, float(step))}}
    return {
        "params": params,
        "ema_params": jax.tree.map(lambda x: 2 * x, params),
        "opt_state": TX.init(params),
        "step": jnp.int32(step),
    }
