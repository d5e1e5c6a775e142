"""Softmax attention (Vaswani et al. 2017), with a derivative of its own.

Of the arrays of places by places, only the exponentials are kept for the backward pass, in the
type of the values. They are divided by their sums after the product with the values, where there
are fewer numbers (but on a GPU before it), and the gradient needs these sums and the output alone
(Dao et al. 2022, Appendix B.2).
"""

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_jvp
def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v of each image and head; softmax in float32.

    With one leading axis XLA's CPU backend needs half the time that it needs with two.

    Args:
        q, k, v: [n, p, d].

    Returns:
        [n, p, d], of the type of v.
    """
    return _attention(q, k, v)[0].astype(v.dtype)


@attention.defjvp
def _attention_jvp(primals, tangents):
    q, k, v = primals
    dq, dk, dv = tangents
    y, exps, sums = _attention(q, k, v)
    dexps = exps * (_logits(dq, k) + _logits(q, dk))
    dsums = dexps.sum(-1, keepdims=True)
    dy = (_weighted(dexps, v) + _weighted(exps, dv) - dsums * y) / sums
    return y.astype(v.dtype), dy.astype(v.dtype)


def _attention(q, k, v):
    """The output [n, p, d] and the sums [n, p, 1] float32, and the exponentials [n, p, p]."""
    logits = _logits(q, k)
    exps = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))

    def divided(exps):  # In the pass that takes the sums: a GPU then writes the output once.
        weights = (exps / exps.sum(-1, keepdims=True)).astype(v.dtype)
        return jax.lax.optimization_barrier(weights), jnp.ones_like(exps[..., :1])

    def summed(exps):
        exps = exps.astype(v.dtype)
        return exps, jnp.float32(exps).sum(-1, keepdims=True)

    exps, sums = jax.lax.platform_dependent(exps, cuda=divided, rocm=divided, default=summed)
    return _weighted(exps, v) / sums, exps, sums


def _logits(q, k):
    """q k^T / sqrt(d), [n, p, p] float32."""
    logits = jnp.einsum("nqd,nkd->nqk", q, k, preferred_element_type=jnp.float32)
    return logits / np.float32(np.sqrt(q.shape[-1]))


def _weighted(weights, v):
    """weights v, [n, p, d] float32."""
    return jnp.einsum(
        "nqk,nkd->nqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
