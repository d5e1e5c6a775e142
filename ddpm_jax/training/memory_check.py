"""What a training step must hold, estimated from shapes alone, against what there is."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from ddpm_jax import config as config_lib
from ddpm_jax.diffusion import randomness
from ddpm_jax.errors import UserError
from ddpm_jax.runtime import memory
from ddpm_jax.training import state as state_lib

# Shares of what `jax.vjp` keeps for the backward pass. A compiler makes most of it again where
# that is cheaper than to read it: at the least the inputs of the convolutions stay, some 0.3. With
# 0.25 the paper's 256x256 network passes on the 16 GB of its TPUs. A CPU came to 0.90,
# seen of the network of the tests alone.
# With `remat` what is kept stays, but for a quarter behind the last block; on top comes the inside
# of one block, about as much again in the paper's networks and more in shallow ones.
_SHARES = {False: (0.25, 1.0), True: (0.75, 3.0)}  # at least, at most
_GIB = 2**30


def check(
    config: ml_collections.ConfigDict,
    image_shape: tuple[int, int, int],
    available: int | None = None,
) -> None:
    """Refuses a config whose training step needs more memory than there is, whatever is done.

    Nothing is compiled or allocated. What passes may still be too large (see `warnings`).

    Args:
        config: valid in all else.
        image_shape: (h, w, c).
        available: bytes for each device; by default `memory.device_total()`.

    Raises:
        ValueError: naming what the estimate is made of, and the setting to change.
    """
    available = memory.device_total() if available is None else available
    state, images, share = _needed(config, image_shape)
    images = int(_SHARES[config.train.remat][0] * images)
    if state + images <= available:
        return
    train, channels = config.train, config.model.channels
    fitting = max(0, available - state) * share // images
    if fitting:
        setting = f"train.batch_size={train.batch_size}"
        fewest = -(-share // fitting)
        parts = next((k for k in range(fewest, fewest + 1000) if share % k == 0), None)
        works = (
            f"train.accumulate={train.accumulate * parts}" if parts else
            f"train.batch_size={train.batch_size // share * fitting}"
        )
    elif state > available or image_shape[0] <= 32:
        setting, works = f"model.channels={channels}", f"model.channels={max(2, channels // 2)}"
    else:
        setting = f"data.image_size={image_shape[0]}"
        works = f"data.image_size={image_shape[0] // 2}"
    raise UserError(
        f"config.{setting}: a training step needs at least {_gib(state + images)} on each device "
        f"({_gib(state)} for parameters, averages, optimizer and gradients, {_gib(images)} for "
        f"{share:,} images at a time), which has {_gib(available)}; try --config.{works}."
    )


def warnings(config: ml_collections.ConfigDict, image_shape: tuple[int, int, int]) -> list[str]:
    """A line where memory may not suffice, by how much the compiler makes again."""
    available = memory.device_total()
    state, images, share = _needed(config, image_shape)
    most = state + int(_SHARES[config.train.remat][1] * images)
    return [] if most <= available else [
        f"a training step may need {_gib(most)} on each device, which has {_gib(available)}; if "
        f"memory runs out, write --config.train.accumulate={2 * config.train.accumulate}"
    ]


def _needed(config, image_shape):
    """Bytes of the state, bytes that `jax.vjp` keeps, and the images a device has at a time."""
    train, model = config.train, config_lib.model(config, image_shape[-1])
    share = train.batch_size // jax.device_count() // train.accumulate
    fresh = functools.partial(
        state_lib.fresh, model, config_lib.optimizer(config), image_shape=image_shape,
        extra_ema_decays=tuple(train.extra_ema_decays),
    )
    state = jax.eval_shape(fresh, jax.random.key(0))
    images = of_images(model, image_shape, share, train.remat)
    return sum(of_state(state).values()), images, share


def _gib(num_bytes):
    return f"{num_bytes / _GIB:,.2f} GiB"


def of_state(state: state_lib.TrainState) -> dict[str, int]:
    """Bytes of a training state, of arrays or their shapes, and of the gradients of a step."""
    def num_bytes(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    return {
        "parameters": num_bytes(state.params),
        "averages": num_bytes((state.ema_params, state.extra_ema_params)),
        "optimizer": num_bytes(state.opt_state),
        "gradients": num_bytes(state.params),
    }


@functools.lru_cache  # A run asks before and after it has opened its data.
def of_images(
    model: Any, image_shape: tuple[int, int, int], batch_size: int, remat: bool = False
) -> int:
    """Bytes that `jax.vjp` of the network keeps of a batch for its backward pass."""
    def kept(rng, x, t):
        rng_init = randomness.below(rng, randomness.INIT)
        shape = (*x.shape[:-1], model.condition_channels)
        told = {"condition": jnp.zeros(shape)} if model.condition_channels else {}
        params = model.init(rng_init, x[:1], t[:1], train=False)["params"]

        def network(params):
            rngs = {"dropout": randomness.below(rng, randomness.STEP)}
            return model.apply({"params": params}, x, t, train=True, remat=remat, rngs=rngs, **told)

        return jax.tree.leaves(jax.vjp(network, params)[1])

    x = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    leaves = jax.eval_shape(kept, jax.random.key(0), x, t)
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.shape[:1] == (batch_size,)
    )
