"""The state that training carries from step to step, and what of it is saved."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

# For programs that run once: by default XLA takes far longer to compile for a CPU than to run.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class TrainState(train_state.TrainState):
    """Parameters, their EMA and the optimizer state.

    Attributes:
        ema_params: EMA of `params` (float32 copies, never aliases).
        extra_ema_params: further averages, by their names (see `averages.share_at`).
        tally: float32 [2, 4], weighted sum of losses, and sum of weights, by quartile of t since
            the last logged row; part of the state so that a resumed run logs the same means.
        loss_history: the last losses at each t, for importance sampling; else empty.
        skipped: int32 [2], updates skipped since the start, and in a row until now, because
            the loss or the gradient was not finite.
    """

    ema_params: Any
    extra_ema_params: Mapping[str, Any]
    tally: jax.Array
    loss_history: Mapping[str, jax.Array]
    skipped: jax.Array


def create(
    model: nn.Module,
    tx: optax.GradientTransformation,
    rng: jax.Array,
    image_shape: tuple[int, int, int],
    *,
    extra_averages: tuple[str, ...] = (),
    loss_history: Mapping[str, jax.Array] | None = None,
) -> TrainState:
    """A fresh state: parameters drawn from `rng`, EMAs equal to them, step 0.

    One compiled program makes all of it. Call `fresh` under a trace, for example for shapes.

    Args:
        model: the network.
        tx: the optimizer.
        rng: typed key.
        image_shape: (h, w, c).
        extra_averages: names of the averages beside the EMA (see `averages.share_at`).
        loss_history: where t is drawn by importance.
    """
    made = functools.partial(
        fresh, model, tx, image_shape=image_shape, extra_averages=extra_averages,
        loss_history=loss_history,
    )
    options = _QUICK if jax.default_backend() == "cpu" else None
    return jax.jit(made, compiler_options=options)(rng)


def fresh(model, tx, rng, image_shape, *, extra_averages=(), loss_history=None) -> TrainState:
    """What `create` compiles; arguments as there."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
    params = model.init(rng, x, t, train=False)["params"]

    def copied():
        return jax.tree.map(jnp.copy, params)  # The state is donated: no aliases.

    return TrainState.create(
        apply_fn=model.apply,
        params=params,
        tx=tx,
        ema_params=copied(),
        extra_ema_params={name: copied() for name in extra_averages},
        tally=jnp.zeros((2, 4)),
        loss_history=loss_history or {},
        skipped=jnp.zeros(2, jnp.int32),
    )


def to_saved(state: TrainState) -> dict[str, Any]:
    """The arrays of a state that a checkpoint holds."""
    return {
        "step": state.step,
        "params": state.params,
        "ema_params": state.ema_params,
        "extra_ema_params": dict(state.extra_ema_params),
        "opt_state": state.opt_state,
        "tally": state.tally,
        "loss_history": dict(state.loss_history),
        "skipped": state.skipped,
    }


# Parts of a state that checkpoints of older versions lack; they stay as in a fresh state.
ADDED = ("skipped",)
