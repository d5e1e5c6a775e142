"""Parameters together with what they need, and the shapes that fit a network."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.network.unet import UNet


@flax.struct.dataclass
class Trained:
    """Parameters with the static configuration that they need; a pytree.

    Attributes:
        params: the network's parameters, as a rule their running average.
        model: the Linen module (static).
        schedule: the noise schedule, host arrays.
        diffusion: `process.Parameterization` (static).
        image_shape: (h, w, c) of one image (static).
    """

    params: Any
    model: nn.Module = flax.struct.field(pytree_node=False)
    schedule: Any
    diffusion: Any = flax.struct.field(pytree_node=False)
    image_shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)


def num_params(params: Any) -> int:
    """How many numbers a parameter tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def denoise_fn(trained: Trained) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(x_t [b, h, w, c], t [b]) -> the network's raw output, for work of your own; jit-able."""
    return functools.partial(trained.model.apply, {"params": trained.params}, train=False)


def check_params(trained: Trained) -> None:
    """Raises ValueError naming the first leaf that does not fit the model."""
    wanted = _shapes_of(trained.model, tuple(trained.image_shape))
    found = _shapes(trained.params)
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"params do not fit the model at {name}: the model has "
                f"{wanted.get(name, 'nothing')}, params {found.get(name, 'nothing')}; pass the "
                "model that they were trained with, such as model=UNet(channels=...)."
            )


@functools.lru_cache(maxsize=8)  # To trace a network takes as long as many a chain of a small one.
def _shapes_of(model, image_shape):
    def init():
        x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        return model.init(jax.random.key(0), x, t, train=False).get("params", {})

    return _shapes(jax.eval_shape(init))


def _shapes(tree):
    """Of each leaf by its path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
            for path, leaf in leaves}


def shapes(model: UNet, image_shape: tuple[int, int, int]) -> dict[tuple[str, ...], tuple]:
    """The shape of every leaf of the network's parameters, by its path; compiles nothing."""
    def init():
        x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        return model.init(jax.random.key(0), x, t, train=False)["params"]

    return {path: leaf.shape for path, leaf in leaves(jax.eval_shape(init))}


def leaves(params: Any) -> list[tuple[tuple[str, ...], Any]]:
    """(path, leaf) of a tree of parameters, such as (("conv_in", "kernel"), ...)."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return [(tuple(key.key for key in path), leaf) for path, leaf in flat]
