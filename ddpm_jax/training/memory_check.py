"""The memory that a training step needs, estimated from shapes alone, against what there is."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.diffusion import randomness
from ddpm_jax.errors import UserError
from ddpm_jax.network.unet import UNet
from ddpm_jax.runtime import memory
from ddpm_jax.training import sharding
from ddpm_jax.training import state as state_lib

# The share of what `jax.vjp` keeps for the backward pass that a compiled step really holds, at
# least and at most, by `remat`. A compiler recomputes most of it where that is cheaper than to
# read it; the inputs of the convolutions always stay, about 0.5. With 0.4 the paper's 256x256
# network passes on the 16 GB of its TPUs. A CPU held 1.13 for the paper's network, with what it
# works on, and 1.26 for that of the tests. With `remat` all that is kept stays, but for a quarter
# behind the last block; the inside of one block comes on top, about as much again in the paper's
# networks, more in shallow ones.
SHARES = {False: (0.4, 1.4), True: (0.75, 3.0)}
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Need:
    """The memory that a training step needs on each device, and what it follows from.

    Attributes:
        state: bytes of parameters, averages, optimizer and gradients.
        kept: bytes that `jax.vjp` of the network keeps of the images for its backward pass.
        images: how many of them a device has at a time.
        model, image_shape, batch_size, accumulate, remat: as given to `estimate`.
    """

    state: int
    kept: int
    images: int
    model: UNet
    image_shape: tuple[int, int, int]
    batch_size: int
    accumulate: int
    remat: bool

    @property
    def at_least(self) -> int:
        """Bytes for the images that no compiler can do without."""
        return int(SHARES[self.remat][0] * self.kept)

    @property
    def at_most(self) -> int:
        """Bytes for the images where the compiler keeps everything."""
        return int(SHARES[self.remat][1] * self.kept)


def estimate(
    model: UNet,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    batch_size: int,
    accumulate: int,
    remat: bool,
    extra_averages: tuple[str, ...],
    shard_update: bool = False,
) -> Need:
    """The memory that a training step needs on each device; compiles and allocates nothing.

    Args:
        model: the network.
        optimizer: its state counts.
        image_shape: (h, w, c).
        batch_size: images per step, over all devices.
        accumulate, remat, extra_averages, shard_update: as in `StepSettings`.
    """
    images = batch_size // jax.device_count() // accumulate
    return Need(
        of_fresh_state(
            model, optimizer, image_shape, extra_averages,
            jax.device_count() if shard_update else None,
        ),
        of_images(model, image_shape, images, remat), images,
        model, image_shape, batch_size, accumulate, remat,
    )


def of_fresh_state(
    model: UNet, optimizer: optax.GradientTransformation, image_shape: tuple[int, int, int],
    extra_averages: tuple[str, ...], num_shards: int | None = None,
) -> int:
    """Bytes of the state of each device, as in `estimate`; does not start JAX's devices.

    Args:
        model, optimizer, image_shape, extra_averages: as in `estimate`.
        num_shards: how many devices share it; None where each has it whole.
    """
    def fresh():
        state = state_lib.fresh(
            model, optimizer, jax.random.key(0), image_shape, extra_averages=extra_averages
        )
        return state if num_shards is None else sharding.cut(state, num_shards)

    return sum(of_state(jax.eval_shape(fresh)).values())


def check(need: Need, available: int | None = None) -> None:
    """Refuses a training step that needs more memory than there is, whatever the compiler does.

    What passes may still be too large (see `warnings`).

    Args:
        need: of `estimate`.
        available: bytes on each device; by default `memory.device_total()`.

    Raises:
        ValueError: naming what the estimate is made of, and the setting to change.
    """
    available = memory.device_total() if available is None else available
    if need.state + need.at_least <= available:
        return
    field, value, instead = _remedy(need, available)
    raise UserError(
        "is too much: a training step needs at least "
        f"{_gib(need.state + need.at_least)} on each device ({_gib(need.state)} for parameters, "
        f"averages, optimizer and gradients, {_gib(need.at_least)} for {need.images:,} images at "
        f"a time), which has {_gib(available)}",
        field=field, value=value, instead=instead,
    )


def _remedy(need, available):
    """The setting to blame, its value, and what to write instead."""
    height, channels = need.image_shape[0], need.model.channels
    fitting = max(0, available - need.state) * need.images // need.at_least
    if fitting:
        fewest = -(-need.images // fitting)
        parts = next((k for k in range(fewest, fewest + 1000) if need.images % k == 0), None)
        instead = (
            {"config.train.accumulate": need.accumulate * parts} if parts else
            {"config.train.batch_size": need.batch_size // need.images * fitting}
        )
        return "config.train.batch_size", need.batch_size, instead
    if need.state > available or height <= 32:
        return "config.model.channels", channels, {"config.model.channels": max(2, channels // 2)}
    return "config.data.image_size", height, {"config.data.image_size": height // 2}


def explained(batch_size: int, accumulate: int) -> contextlib.AbstractContextManager[None]:
    """Makes one line of running out of memory inside, which names what to lower.

    Args:
        batch_size, accumulate: of `config.train`.
    """
    num_devices = jax.device_count()
    share, fewer = batch_size // num_devices, batch_size // 2 // num_devices * num_devices
    parts = next((k for k in range(accumulate + 1, share + 1) if share % k == 0), None)
    instead = {"config.train.accumulate": parts, "config.train.batch_size": fewer}
    return memory.explained(
        "config.train.batch_size", batch_size,
        {setting: value for setting, value in instead.items() if value},
    )


def warnings(need: Need) -> list[str]:
    """A line where memory may not suffice, depending on how much the compiler recomputes."""
    available = memory.device_total()
    most = need.state + need.at_most
    if most <= available:
        return []
    return [
        f"a training step may need {_gib(most)} on each device, which has {_gib(available)}; if "
        f"memory runs out, write --config.train.accumulate={2 * need.accumulate}"
    ]


def _gib(num_bytes):
    return f"{num_bytes / _GIB:,.2f} GiB"


def of_state(state: state_lib.TrainState) -> dict[str, int]:
    """Bytes of a training state, of arrays or their shapes, and of what a step makes of its size.

    That is the gradients, and where devices share the state the parameters that a step gathers.
    """
    held, whole = map(sharding.num_bytes, (state.params, sharding.shapes(state.params)))
    return {
        "parameters": held,
        **({"gathered parameters": whole} if whole > held else {}),
        "averages": sharding.num_bytes((state.ema_params, state.extra_ema_params)),
        "optimizer": sharding.num_bytes(state.opt_state),
        "gradients": whole,
    }


@functools.lru_cache  # A run asks before and after it has opened its data.
def of_images(
    model: UNet, image_shape: tuple[int, int, int], batch_size: int, remat: bool = False
) -> int:
    """Bytes that `jax.vjp` of the network keeps of a batch for its backward pass."""
    def kept(rng, x, t):
        rng_init = randomness.below(rng, randomness.INIT)
        shape = (*x.shape[:-1], model.condition_channels)
        model_kwargs = {"condition": jnp.zeros(shape)} if model.condition_channels else {}
        params = model.init(rng_init, x[:1], t[:1], train=False)["params"]

        def network(params):
            rngs = {"dropout": randomness.below(rng, randomness.STEP)}
            return model.apply(
                {"params": params}, x, t, train=True, remat=remat, rngs=rngs, **model_kwargs
            )

        return jax.tree.leaves(jax.vjp(network, params)[1])

    x = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    leaves = jax.eval_shape(kept, jax.random.key(0), x, t)
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.shape[:1] == (batch_size,)
    )
