"""Keys are addresses: of a use, a step and an image's place, never of a device or process.

No key is carried from step to step and none is saved. So a resumed run draws what the
uninterrupted one would have drawn, and eight devices draw what one would.

Every address of the package, from the seed down. `a / b` is `fold_in(a, b)`; words in capitals
are the constants below; an image's place is its index in the global batch or among the samples.

    config.seed
      / INIT                       the network's first parameters
      / STEP / step                one training step; `split` into two (`step_keys`):
          [0] / place              one image; `split` into three (`image_draws`):
              [T]                  its timestep
              [EPS]                its noise
              [MIRROR]             whether it is mirrored
              / LABEL              whether its label is dropped
              / AUGMENT            its geometric transforms; `split` into six (`transform_draws`)
              / GUESS              whether a self-conditioned network is told its first guess
          [1]                      dropout (its own addresses are in network/blocks.py)
      / HELD_OUT / place           noise of the held-out loss
      / GRID                       the rng of `sample` for the grids of samples
    config.evaluate.seed
      / BITS                       the rng of `bits_per_dim`
      / ODE                        the rng of `ode_bits_per_dim`
      / SAMPLES / place            one sample
      / PICTURES                   the rng of `progressive`
      / HELD_OUT_LOSS / place      noise of the metric "loss", and of benchmarks/record
    the rng of `sample` and of editing
      / place                      one image (or its own seed, of `seeds=`):
          / X_T                    the prior draw
          / Z / t, call or row     noise of one reverse step; of a row of inpainting:
              / REVERSE            noise of its reverse step
              / KNOWN              noise put on the known part
              / UP                 noise of going up again
          / FORWARD                noise put on a picture that is edited
    the rng of `progressive`
      / PRIOR / place              the prior draw
      / SHARED / 0 / t             noise of the reverse steps that the images share
      / OWN / place / t            noise of the reverse steps of each image
    the rng of `bits_per_dim`
      / place / t                  noise of one term of the bound
    the rng of `ode_bits_per_dim`
      / place / DEQUANTISATION     the uniform noise on the pixels
      / place / PROBES / k         one probe of the divergence

What NumPy and Grain draw (the order of the data, the images held out, pairs, subsets of KID) goes
by a seed of its own and has no address here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ddpm_jax import errors
from ddpm_jax.errors import UserError

IMPL = "threefry2x32"  # Others change an image's noise with its place in the batch.

# Below the seed of a run, and of an evaluation.
INIT, STEP, HELD_OUT, GRID = range(4)
BITS, ODE, SAMPLES, PICTURES, HELD_OUT_LOSS = range(5)
# Below the key of an image: of a training step, and of a sample.
T, EPS, MIRROR, LABEL, GUESS, AUGMENT = range(6)
X_T, Z, FORWARD = range(3)
# Below the key of a row of inpainting, the rng of `progressive`, an image's key of the ODE.
REVERSE, KNOWN, UP = range(3)
PRIOR, SHARED, OWN = range(3)
DEQUANTISATION, PROBES = range(2)


def as_key(rng) -> jax.Array:
    """A typed threefry key from a typed key, a legacy `PRNGKey` or an int, as of `seed_keys`.

    Raises:
        UserError: `rng` is none of these, or a key of another generator.
    """
    if isinstance(rng, (jax.Array, np.ndarray)):
        if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
            if rng.shape == () and str(jax.random.key_impl(rng)) == IMPL:
                return rng
        elif rng.shape == (2,) and rng.dtype == np.uint32:
            return jax.random.wrap_key_data(jnp.asarray(rng), impl=IMPL)
    try:
        seed = errors.whole_number("rng", rng)
    except UserError:
        raise UserError(
            f"is not one {IMPL} key; write jax.random.key(0), jax.random.PRNGKey(0) or an int.",
            field="rng", value=rng,
        ) from None
    return jax.random.wrap_key_data(_words("rng", seed), impl=IMPL)


def seed_keys(seeds: Any) -> jax.Array:
    """One key per seed of a list, [n], another one for each int of 64 bits.

    The keys of 0..2**32 - 1 are those of `jax.random.key`, which drops the upper 32 bits of a seed
    unless JAX runs with 64-bit numbers.

    Raises:
        UserError: a seed is not whole, or does not fit into 64 bits.
    """
    words = [
        _words(f"seeds[{i}]", seed) for i, seed in enumerate(errors.whole_numbers("seeds", seeds))
    ]
    return jax.random.wrap_key_data(np.reshape(np.uint32(words), (-1, 2)), impl=IMPL)


def _words(field, seed: int) -> np.ndarray:
    """The upper and the lower 32 bits of a seed."""
    if not -2**63 <= seed < 2**63:
        raise UserError(
            "does not fit into 64 bits; write a seed in -2**63..2**63 - 1.", field=field,
            value=seed,
        )
    return np.uint32(divmod(seed % 2**64, 2**32))


def below(rng, use: int) -> jax.Array:
    """The key of one use of randomness below `rng`, which is whatever `as_key` takes."""
    return jax.random.fold_in(as_key(rng), use)


def image_keys(rng: jax.Array, places: jax.Array | np.ndarray) -> jax.Array:
    """One key per image, [b], from its place in the global batch (int32 [b])."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, places)


def fold_each(rngs: jax.Array, use: int | jax.Array) -> jax.Array:
    """The key of one use or step of each image, [b], from the images' keys [b]."""
    return jax.vmap(jax.random.fold_in, (0, None))(rngs, use)


def step_keys(rng: jax.Array, step: int | jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
    """(key of the images, key of dropout) of one training step, from the run's key `STEP`."""
    rng_images, rng_dropout = jax.random.split(jax.random.fold_in(rng, step))
    return rng_images, rng_dropout


def image_draws(rng: Key[Array, ""]) -> Key[Array, "3"]:
    """The keys `T`, `EPS` and `MIRROR` of one image of a training step."""
    return jax.random.split(rng, 3)


def transform_draws(rng: Key[Array, ""]) -> Key[Array, "6"]:
    """The keys that `data.augmentation.draw` takes, of one image of a training step."""
    return jax.random.split(below(rng, AUGMENT), 6)


def standard_normal(rngs: Key[Array, " b"], shape: tuple[int, ...]) -> Array:
    """Independent N(0, 1) draws [b, *shape], draw i from rngs[i] alone."""
    return jax.vmap(lambda rng: jax.random.normal(rng, shape))(rngs)
