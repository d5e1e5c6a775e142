"""Running out of memory for real: what asks for 1 TiB."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nonzero import TinyNet


def a_tebibyte(x):
    """The least of so many numbers, which no compiler can tell without them."""
    rows = jnp.arange(2**18, dtype=jnp.float32)[:, None] * jnp.ones((1, 2**20))
    return jnp.sort(jnp.sin(rows + x), axis=None)[0]


def run_out():
    jax.block_until_ready(jax.jit(a_tebibyte)(1.0))


class Exhausting(nn.Module):
    """A tiny network whose calls need a tebibyte."""

    @nn.compact
    def __call__(self, x, t, *, train):
        return TinyNet(name="net")(x, t, train=train) + a_tebibyte(x[0, 0, 0, 0])
