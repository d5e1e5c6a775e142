"""Weight-update sharding (Xu et al. 2020): each device keeps and updates a share of the state.

The large arrays of parameters, averages and optimizer are cut along their input channels, the
last axis but one, and each of n devices keeps an n-th. In a step all devices gather the
parameters; each gets the sum of all gradients for its share alone, and updates it. On disk, and
wherever else a state is needed, its arrays are whole.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.runtime import parallel
from ddpm_jax.training import packing
from ddpm_jax.training.state import TrainState

SMALLEST = 2**14  # Numbers in an array that is cut; sending fewer takes longer than updating them.

# What devices hold between steps: (state,), packed, whole on each; or the two that `split` makes.
Held = tuple[TrainState] | tuple[TrainState, TrainState]


@flax.struct.dataclass
class Shard:
    """Each device's share of an array [..., i, o].

    Attributes:
        rows: [m, o], of [..., i/n, o]; outside of `pmap` [d, m, o], of d devices.
        shape: of the whole array (static).
    """

    rows: jax.Array
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)


def cut(state: TrainState, num_devices: int) -> TrainState:
    """`state` with `Shard` in place of large arrays, if their input channels can be shared evenly.

    Args:
        state: of whole arrays.
        num_devices: how many share it, in all processes.
    """
    def one(x):
        if x.ndim < 2 or x.size < SMALLEST or x.shape[-2] % num_devices:
            return x
        *kernel, _, outputs = x.shape
        axes = len(kernel), *range(len(kernel)), -2, -1  # The devices first.
        by_device = x.reshape(*kernel, num_devices, -1, outputs).transpose(axes)
        return Shard(by_device.reshape(num_devices, -1, outputs), x.shape)

    return state.replace(**{
        part: jax.tree.map(one, getattr(state, part)) for part in packing.PARTS
    })


def split(tree: Any) -> tuple[Any, Any]:
    """(the whole arrays of a tree, its shards), each with None in place of the other."""
    def only(kind):
        return jax.tree.map(lambda x: x if _is_shard(x) == kind else None, tree, is_leaf=_is_shard)

    return only(False), only(True)


def merged(whole: Any, shards: Any = None) -> Any:
    """The tree that `split` took apart; `whole` itself where that is all."""
    if shards is None:
        return whole
    return jax.tree.map(
        lambda x, shard: shard if x is None else x, whole, shards, is_leaf=lambda x: x is None
    )


def _is_shard(x):
    return isinstance(x, Shard)


def gathered(tree: Any) -> Any:
    """`tree` with whole arrays in place of its shards; under `pmap`."""
    def whole(x):
        if not _is_shard(x):
            return x
        *kernel, _, outputs = x.shape
        share = x.rows.reshape(*kernel, -1, outputs)
        return jax.lax.all_gather(share, parallel.AXIS, axis=len(kernel), tiled=True)

    return jax.tree.map(whole, tree, is_leaf=_is_shard)


def added(grads: Any, params: Any) -> Any:
    """The sum of all devices' gradients, a `Shard` where `params` has one; under `pmap`."""
    def like(x, g):
        return Shard(g, x.shape) if _is_shard(x) else g

    def scattered(g):
        axis = g.ndim - 2
        share = jax.lax.psum_scatter(g, parallel.AXIS, scatter_dimension=axis, tiled=True)
        return share.reshape(-1, g.shape[-1])

    whole, shards = split(jax.tree.map(like, params, grads, is_leaf=_is_shard))
    return merged(jax.lax.psum(whole, parallel.AXIS), jax.tree.map(scattered, shards))


def pmap(
    step: Callable[..., tuple[TrainState, Any]], devices: Sequence[Any] | None = None,
    others: int = 0,
) -> Callable[..., tuple]:
    """(state, shards, batch, rng, ...) -> (state, shards, metrics) on all devices.

    Args:
        step: (state, batch, rng, ...) -> (state, metrics) of one device, for a state with shards.
        devices: as of `parallel.pmap`.
        others: how many arguments follow, the same on all devices.
    """
    def train_step(state, shards, *args):
        state, metrics = step(merged(state, shards), *args)
        return *split(state), metrics

    return parallel.pmap(
        train_step, in_axes=(None, 0, 0, *(None,) * (1 + others)), out_axes=(None, 0, None),
        donate_argnums=(0, 1), devices=devices,
    )


def hold(state: TrainState, shard_update: bool) -> Held:
    """Places a state on the devices, as `pmap_train_step` takes it.

    Args:
        state: of whole arrays, the same in all processes.
        shard_update: share it (`config.train.shard_update`).
    """
    state = packing.pack_state(state)
    if not shard_update:
        return (parallel.replicate(state),)
    state, shards = split(cut(jax.device_get(state), jax.device_count()))
    return parallel.replicate(state), parallel.spread(shards)


def held_shapes(state: TrainState, shard_update: bool, num_devices: int) -> Held:
    """The shapes of what `hold` places on so many devices, from those of a state."""
    def held(state):
        state = packing.pack_state(state, jnp.concatenate)
        return split(cut(state, num_devices)) if shard_update else (state,)

    return jax.eval_shape(held, state)


def whole(held: Held, *parts: str) -> TrainState:
    """The state that the devices hold; a collective where they share it.

    Args:
        held: of `hold`, or of a step.
        *parts: the fields that are needed, for example "ema_params"; others may lack arrays. All
            where none is named.

    Returns:
        On the host what the devices share, and on each of them what each has.
    """
    parts = parts or packing.PARTS

    def one(x):
        if not _is_shard(x):
            return x
        *kernel, _, outputs = x.shape
        rows = parallel.gather(np.asarray(x.rows))
        by_device = rows.reshape(len(rows), *kernel, -1, outputs)
        return np.moveaxis(by_device, 0, -3).reshape(x.shape)

    def joined(part):
        tree = merged(*(getattr(state, part) for state in held))
        return jax.tree.map(one, tree, is_leaf=_is_shard)

    state = held[0] if len(held) == 1 else held[0].replace(
        **{part: joined(part) for part in parts}
    )
    return packing.unpack_state(state, parts)


def shapes(tree: Any) -> Any:
    """The shapes of a tree's arrays, of shards those of the whole."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, (x.rows if _is_shard(x) else x).dtype),
        tree, is_leaf=_is_shard,
    )


def num_bytes(tree: Any) -> int:
    """Bytes on each device of a tree of arrays, or of their shapes."""
    def one(x):
        array, num_devices = (x.rows, len(x.rows)) if _is_shard(x) else (x, 1)
        return array.size // num_devices * array.dtype.itemsize

    return sum(one(x) for x in jax.tree.leaves(tree, is_leaf=_is_shard))
