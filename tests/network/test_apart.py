"""One array under several names, and for which devices they stay several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.network.apart import apart

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def function(x):
    return sum((i + 1) * jnp.sin(name) for i, name in enumerate(apart(x, 3)))


def test_they_are_all_x():
    assert len(apart(X, 3)) == 3 and all((x == X).all() for x in apart(X, 3))


def test_derivatives_go_through_each():
    gradient = jax.jit(jax.grad(lambda x: function(x).sum()))(X)
    np.testing.assert_allclose(gradient, 6 * np.cos(X), rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(lambda x: function(x).sum()))(X), gradient, rtol=1e-6
    )


@pytest.mark.parametrize("platform, barriers", [("cuda", 1), ("rocm", 1), ("tpu", 0), ("cpu", 0)])
def test_only_a_gpu_keeps_them_apart(platform, barriers):
    text = jax.jit(function).trace(X).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("optimization_barrier") == barriers
