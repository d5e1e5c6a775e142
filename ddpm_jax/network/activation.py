"""Swish and its slope."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def swish(x: jax.Array) -> jax.Array:
    """x sigmoid(x) of each number (Ramachandran, Zoph and Le 2017).

    Its derivative takes the sigmoid anew: XLA's CPU backend would otherwise keep it for the
    backward pass, beside the numbers themselves.
    """
    return x * jax.nn.sigmoid(x)


@swish.defjvp
def _swish_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return swish(x), slope(x) * dx


def slope(x: jax.Array) -> jax.Array:
    """The derivative of `swish` at x; its sigmoid is taken by tanh, which a CPU vectorizes."""
    sigmoid = 0.5 + 0.5 * jnp.tanh(0.5 * x)
    return sigmoid * (1 + x * (1 - sigmoid))
