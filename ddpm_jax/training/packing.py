"""The short arrays of a state as one.

Two thirds of a network's arrays are biases and the scales of norms, with a thousandth of its
numbers. Host and GPU start on each array anew, four times in a step with its average and moments;
so between steps, and in the update, those of parameters, average and moments are one each.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.training.state import TrainState

PARTS = ("params", "ema_params", "extra_ema_params", "opt_state")


@flax.struct.dataclass
class Packed:
    """A tree of parameters, or of what there is of each parameter.

    Attributes:
        short: [n], the arrays of one axis, in a row.
        others: the tree, with None in place of those.
        sizes: of each of those (static).
    """

    short: jax.Array
    others: Any
    sizes: tuple[int, ...] = flax.struct.field(pytree_node=False)


def packed(tree: Any, concatenate: Callable[..., Any] = jnp.concatenate) -> Any:
    """A tree of parameters as `Packed`; as it is where no array has one axis."""
    short = [x for x in jax.tree.leaves(tree) if x.ndim == 1]
    if not short:
        return tree
    others = jax.tree.map(lambda x: None if x.ndim == 1 else x, tree)
    return Packed(concatenate(short), others, tuple(x.size for x in short))


def unpacked(tree: Any) -> Any:
    """`tree` with whole trees in place of each `Packed`."""
    def one(x):
        if not _is_packed(x):
            return x
        split = np.split if isinstance(x.short, np.ndarray) else jnp.split
        short = iter(split(x.short, np.cumsum(x.sizes)[:-1]))
        return jax.tree.map(
            lambda y: next(short) if y is None else y, x.others, is_leaf=lambda y: y is None
        )

    return jax.tree.map(one, tree, is_leaf=_is_packed)


def like(tree: Any, other: Any) -> Any:
    """`tree`, packed if `other` is."""
    return packed(tree) if _is_packed(other) else tree


def _on_host(arrays: list[jax.Array]) -> np.ndarray:
    return np.concatenate(jax.device_get(arrays))


def pack_state(
    state: TrainState, concatenate: Callable[..., Any] = _on_host
) -> TrainState:
    """`state` with its parameters, averages and moments packed, on the host by default."""
    structure = jax.tree.structure(state.params)

    def is_params(x):
        return jax.tree.structure(x) == structure

    def one(x):
        return packed(x, concatenate) if is_params(x) else x

    return state.replace(**{
        part: jax.tree.map(one, getattr(state, part), is_leaf=is_params) for part in PARTS
    })


def unpack_state(state: TrainState, parts: tuple[str, ...] = PARTS) -> TrainState:
    """The inverse of `pack_state` for some parts; their short arrays are on the host."""
    def on_host(x):
        return x.replace(short=jax.device_get(x.short)) if _is_packed(x) else x

    def one(part):
        return unpacked(jax.tree.map(on_host, getattr(state, part), is_leaf=_is_packed))

    return state.replace(**{part: one(part) for part in parts})


def _is_packed(x):
    return isinstance(x, Packed)
