"""One array under several names, for passes over it that a GPU's compiler should not join."""

import jax


def apart(x: jax.Array, n: int) -> tuple[jax.Array, ...]:
    """x, n times.

    A GPU's compiler takes them for different arrays, though they are one in memory: what is
    computed of two of them is computed twice, in the passes that need it, and not written down
    in between. Elsewhere they are just x.
    """
    def barrier(x):
        return tuple(jax.lax.optimization_barrier((x,) * n))

    return jax.lax.platform_dependent(
        x, cuda=barrier, rocm=barrier, default=lambda x: (x,) * n
    )
