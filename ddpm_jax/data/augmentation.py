"""Geometric transforms of training images whose parameters the network is told.

They are those of Karras et al. 2022 (Appendix F.2). A network that is told what was done to an
image need not draw such images itself: sampling tells it zeros, which is an image as it was. Each
transform is left out of an image, its parameters zero, unless its own draw says otherwise.

One difference: the direction of a stretch is told by twice its angle, because half a turn changes
nothing. So the parameters say all of it, and `transform` needs nothing else.
"""

import math

import jax
import jax.numpy as jnp

# What the network is told of an image, in order.
PARAMETERS = (
    "mirrored left to right", "mirrored top to bottom", "scale", "cos rotation - 1",
    "sin rotation", "stretch across", "stretch along the diagonal", "shift right", "shift down",
)
_SCALE = 0.2 * math.log(2)  # Standard deviation of the log of a scale, and of a stretch.
_SHIFT = 1 / 8  # That of a shift, of the image's width or height.


def draw(rngs: jax.Array, probability: float) -> jax.Array:
    """The parameters of one image, float32 [9]; a transform is done with this probability.

    Args:
        rngs: the image's keys [6] of what is done, and of mirrors, scale, angles, stretch, shift.
        probability: of each of mirroring either way, scaling, rotation, stretch and shift.
    """
    of_done, of_mirrors, of_scale, of_angles, of_stretch, of_shift = rngs
    done = jax.random.bernoulli(of_done, probability, (6,))
    mirrored = jax.random.bernoulli(of_mirrors, shape=(2,))
    scale, stretch = jax.random.normal(of_scale), jax.random.normal(of_stretch)
    rotation, direction = jax.random.uniform(of_angles, (2,), minval=-math.pi, maxval=math.pi)
    shift = jax.random.normal(of_shift, (2,))
    told = jnp.stack([
        *mirrored.astype(jnp.float32), scale, jnp.cos(rotation) - 1, jnp.sin(rotation),
        stretch * jnp.cos(direction), stretch * jnp.sin(direction), *shift,
    ])
    return jnp.where(done[jnp.array([0, 1, 2, 3, 3, 4, 4, 5, 5])], told, 0.0)


def transform(image: jax.Array, told: jax.Array) -> jax.Array:
    """The image [h, w, c] after the transforms of `draw`; zeros leave it as it is, to the bit.

    It is mirrored, scaled and rotated about its centre, stretched and shifted, in this order.
    Pixels are interpolated linearly, and the image goes on beyond its edges as its mirror image.
    """
    height, width, _ = image.shape
    mirror_x, mirror_y, scale, cos_minus_1, sin, across, diagonal, right, down = told
    # Where each pixel comes from: the inverse of each transform, the last one first.
    x = jnp.arange(width) - (width - 1) / 2 - _SHIFT * width * right
    y = jnp.arange(height) - (height - 1) / 2 - _SHIFT * height * down
    x, y = jnp.broadcast_arrays(x[None], y[:, None])
    # A stretch is the matrix exp(_SCALE [[across, diagonal], [diagonal, -across]]).
    amount = _SCALE * jnp.sqrt(across**2 + diagonal**2)
    some = amount > 0
    odd = jnp.where(some, jnp.sinh(amount) / jnp.where(some, amount, 1.0), 1.0) * _SCALE
    even, across, diagonal = jnp.cosh(amount), odd * across, odd * diagonal
    x, y = (even - across) * x - diagonal * y, (even + across) * y - diagonal * x
    cos = 1 + cos_minus_1
    x, y = cos * x + sin * y, cos * y - sin * x
    shrink = jnp.exp(-_SCALE * scale)
    x, y = shrink * (1 - 2 * mirror_x) * x, shrink * (1 - 2 * mirror_y) * y
    places = [y + (height - 1) / 2, x + (width - 1) / 2]
    return jax.vmap(
        lambda channel: jax.scipy.ndimage.map_coordinates(channel, places, 1, mode="mirror"),
        in_axes=-1, out_axes=-1,
    )(image)
