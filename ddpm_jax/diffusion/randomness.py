"""Keys are addresses: of a use, a step and an image's place, never of a device or process.

Nothing is carried from step to step, so nothing is saved, a resumed run draws what the
uninterrupted one would have drawn, and eight devices draw what one would.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ddpm_jax.errors import UserError

IMPL = "threefry2x32"  # Others change an image's noise with its place in the batch.


def as_key(rng) -> jax.Array:
    """A typed threefry key from a typed key, a legacy `PRNGKey` or an int.

    Raises:
        ValueError: `rng` is none of these, or a key of another generator.
    """
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool):
        return jax.random.key(int(rng), impl=IMPL)
    if isinstance(rng, (jax.Array, np.ndarray)):
        if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
            if rng.shape == () and str(jax.random.key_impl(rng)) == IMPL:
                return rng
        elif rng.shape == (2,) and rng.dtype == np.uint32:
            return jax.random.wrap_key_data(jnp.asarray(rng), impl=IMPL)
    raise UserError(
        f"rng={rng!r} is not one {IMPL} key; write jax.random.key(0), "
        "jax.random.PRNGKey(0) or an int."
    )


def image_keys(rng: jax.Array, places: jax.Array | np.ndarray) -> jax.Array:
    """One key an image, [b], from its place in the global batch (int32 [b])."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, places)


def fold_each(rngs: jax.Array, use: int | jax.Array) -> jax.Array:
    """The key of one use or step of each image, [b], from the images' keys [b]."""
    return jax.vmap(jax.random.fold_in, (0, None))(rngs, use)


def standard_normal(rngs: Key[Array, " b"], shape: tuple[int, ...]) -> Array:
    """Independent N(0, 1) draws [b, *shape], draw i from rngs[i] alone."""
    return jax.vmap(lambda rng: jax.random.normal(rng, shape))(rngs)
