"""Self-conditioning: a network that is told its last x_0 (Chen, Zhang and Hinton 2022, Sec. 3.2).

Such a network, and each `predict_fn` around it, takes a third argument: the x_0 that it predicted
last, zeros at first. Whatever passes it on calls it `*last`, which is empty for other networks.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from ddpm_jax.diffusion.process import Images, Prediction

Last = tuple[()] | tuple[Images]


def nothing(x: Images, self_condition: bool) -> Last:
    """`last` at the start of a chain: zeros like x, or nothing for a network that is not told."""
    return (jnp.zeros(x.shape),) if self_condition else ()


def after(x_0: Images, last: Last) -> Last:
    """`last` after a call that was told `last` and predicted x_0."""
    return (x_0,) * len(last)


def guessing(predict_fn: Callable[..., Prediction]) -> Callable[[Array, Array], Prediction]:
    """(x_t, t) -> Prediction of a network that is told its own guess at x_t, made from zeros.

    It calls the network twice. Unlike in a chain, the reverse step depends on x_t alone, as the
    variational bound and a density need.
    """
    def predict(x_t, t):
        return predict_fn(x_t, t, predict_fn(x_t, t, *nothing(x_t, True)).x_0)

    return predict
