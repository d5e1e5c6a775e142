"""Averages of the parameters over training: exponential ones, and power functions of the step.

An average by a power function weighs the parameters after step tau by tau^gamma. Its width is
sigma_rel, the standard deviation of that weight relative to the length of training, and stays so
while training goes on. Snapshots of two such averages are enough to rebuild another one by least
squares, long after training (Karras et al. 2024, arXiv:2312.02696, Section 3 and Appendix C).
"""

import jax
import jax.numpy as jnp
import numpy as np

PREFIX = "sigma_rel="
TRACKED = ("sigma_rel=0.05", "sigma_rel=0.1")  # As in the paper.
LONGEST = 0.28  # Of a constant weight it would be 12^-1/2 = 0.289.


def sigma_rel(name: str) -> float | None:
    """The width of the average "sigma_rel=0.08", or None for another name, as "ema" or "0.999"."""
    if not name.startswith(PREFIX):
        return None
    try:
        return float(name.removeprefix(PREFIX))
    except ValueError:
        return float("nan")


def power(sigma_rel: float) -> float:
    """gamma, the power of the step: the root of (gamma + 1) / (gamma + 2)^2 (gamma + 3) = width^2.

    Args:
        sigma_rel: above 0 and below 12^-1/2.
    """
    squared = sigma_rel**-2
    return float(np.roots([1, 7, 16 - squared, 12 - squared]).real.max())


def share_at(name: str, *, step: jax.Array, warmup: bool) -> jax.Array | float:
    """What update `step` (1, 2, ...) contributes to an average: 1 less its decay.

    Args:
        name: the decay of an EMA as text, or "sigma_rel=..." (equation 127 there).
        step: int32.
        warmup: whether EMAs decay faster early on.
    """
    width = sigma_rel(name)
    if width is None:
        return 1 - ema_decay_at(float(name), step=step, warmup=warmup)
    # 1 - (1 - 1 / step)^(gamma + 1), which in float32 would lose most of its digits.
    return -jnp.expm1((power(width) + 1) * jnp.log1p(-1 / step.astype(jnp.float32)))


def ema_decay_at(decay: float, *, step: jax.Array, warmup: bool) -> jax.Array | float:
    """The decay of the EMA at update `step` (1, 2, ...); lower early on with `warmup`."""
    return jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else decay


def coefficients(
    steps: np.ndarray, widths: np.ndarray, step: int, width: float
) -> tuple[np.ndarray, float]:
    """What to multiply snapshots by, so that their sum is another average (Appendix C there).

    It comes nearest to the weights wanted among the sums whose weights add to 1, so that what does
    not change in training stays as it is; there it is without this condition.

    Args:
        steps: [n], updates done at each snapshot.
        widths: [n], its sigma_rel.
        step: at which the other average is wanted; not before the last snapshot.
        width: its sigma_rel.

    Returns:
        Float64 [n], and by how much the weights of the sum differ from those wanted: the norm of
        the difference, relative to that of the weights wanted.
    """
    steps, powers = np.float64(steps), np.array([power(w) for w in widths])
    gram = _inner(steps[:, None], powers[:, None], steps[None], powers[None])
    wanted = _inner(steps, powers, float(step), power(width))
    length = _inner(float(step), power(width), float(step), power(width))
    scale = gram.diagonal() ** -0.5  # To norm 1 each, or late ones would not count.
    sides = np.stack([wanted * scale, scale], axis=1)
    solved = np.linalg.lstsq(gram * scale * scale[:, None], sides, rcond=1e-14)[0]
    nearest, ones = (scale[:, None] * solved).T
    factors = nearest + ones * (1 - nearest.sum()) / ones.sum()  # A Lagrange multiplier.
    squared = length - 2 * factors @ wanted + factors @ gram @ factors
    return factors, float(np.sqrt(max(0.0, squared / length)))


def _inner(step_a, power_a, step_b, power_b):
    """The inner product of two weights over the time of training, in closed form."""
    exponent = np.where(step_a < step_b, power_b, -power_a)
    return (
        (power_a + 1) * (power_b + 1) * (step_a / step_b) ** exponent
        / ((power_a + power_b + 1) * np.maximum(step_a, step_b))
    )
