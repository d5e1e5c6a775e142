"""UniPC (Zhao et al. 2023) as a table for `tableau.solve`: multistep, in x_0.

Each call gives the predictor (UniP) its next step, and before that the corrector (UniC) mends the
step behind it. Both are weighted sums, so one row does both: it goes from the predicted x, less
what the predictor had added to the step's start, by the corrected x to the next predicted x.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import check_known
from ddpm_jax.samplers.dpm_solver import check_request, log_snr
from ddpm_jax.samplers.tableau import (
    Plan, Solver, call_row, half_log_snr_levels, plan_of_rows, sigma_at, signal_at, x_0_row,
)

VARIANTS = ("bh1", "bh2")


def unipc(
    schedule: Schedule, num_steps: int, *, order: int = 2, variant: str = "bh2"
) -> Plan:
    """The plan of UniPC with its corrector, in x_0 (Zhao et al. 2023, Sec. 3).

    Each step makes one call, between levels evenly spaced in lambda. Steps have the order that the
    calls so far, and the steps that are left, allow. The last one, of order 1, goes from the first
    noise level to x_0. So it is in diffusers; the authors' code ends at the first noise level.

    The predictor of order p and the corrector after it are of order p and p + 1. At order 2 the
    predictor has the paper's closed form, a half.

    Args:
        schedule: the one that the network was trained with, as host arrays.
        num_steps: network calls, at least 1.
        order: 2 or 3, of the predictor.
        variant: B(h) of the paper, "bh1" for h, "bh2" for e^h - 1.

    Raises:
        ValueError: order or variant is not known, num_steps is too small, or the schedule has no
            levels (see `dpm_solver.log_snr`).
    """
    check_request(num_steps, order)
    check_known("variant", variant, VARIANTS)
    levels = half_log_snr_levels(schedule, log_snr(schedule, num_steps))
    calls, behind = [], None
    for i in range(num_steps - 1):
        allowed = min(order, i + 1, num_steps - i)
        before = levels[i + 1 - allowed:i + 2]
        keep, weights = sigma_at(before[-1]) / sigma_at(before[-2]), _weights(before, variant)
        calls.append(call_row(levels[i], keep, _mended(behind, keep, weights), uses_x_0=True))
        behind = weights, _weights(before, variant, corrects=True)
    return plan_of_rows(schedule, calls + [x_0_row(levels[-1])])


def _weights(
    levels: Sequence[float], variant: str, *, corrects: bool = False
) -> np.ndarray:
    """From levels[-2] to levels[-1]: the weights of x_0 at the calls, latest first.

    Args:
        levels: lambda of the last p calls and of the step's end, increasing.
        variant: of `VARIANTS`.
        corrects: x_0 at the step's end is known too, and the first of the weights is its own.
    """
    *before, s, t = levels
    h = t - s
    # Where x_0 is known, in steps from s, beside s itself.
    places = (np.array(before[::-1]) - s) / h
    if corrects:
        places = np.append(places, 1.0)
    growth = -h if variant == "bh1" else np.expm1(-h)
    slopes = _slopes(places, h, growth, closed=not corrects or len(levels) == 2)
    # Of the differences from x_0 at s, [x_0 at a place - x_0 at s] / place.
    others = -signal_at(t) * growth * slopes / places
    now = -signal_at(t) * np.expm1(-h) - others.sum()
    ordered = [now, *others[:len(before)]]
    if corrects:
        ordered = [others[-1], *ordered]
    return np.array(ordered)


def _slopes(places: np.ndarray, h: float, growth: float, closed: bool) -> np.ndarray:
    """The weights of the differences, which integrate polynomials of their number exactly.

    For one of them, `closed` takes a half, as the authors do.
    """
    n = len(places)
    if n == 1 and closed:
        return np.array([0.5])
    phi, moments = np.expm1(-h) / -h - 1, []
    for k in range(1, n + 1):  # phi is phi_{k + 1} of the paper times h^k, up to its sign.
        moments.append(phi * math.factorial(k) / growth)
        phi = phi / -h - 1 / math.factorial(k + 1)
    return np.linalg.solve(np.vander(places, n, increasing=True).T, moments)


def _mended(behind, keep, weights) -> list[float]:
    """Weights of x_0 by which the predicted x, mended, goes to the next predicted x.

    Args:
        behind: of the step behind, None before the first: weights of its predictor, and of its
            corrector. Both start from the same x, so what mends x is their difference.
        keep: weight of the mended x.
        weights: of the next predictor.
    """
    if behind is None:
        return list(weights)
    predicted, corrected = behind
    size = max(len(weights), len(corrected), len(predicted) + 1)

    def padded(values, first=0):
        return np.pad(values, (first, size - first - len(values)))

    return (keep * (padded(corrected) - padded(predicted, 1)) + padded(weights)).tolist()


UNIPC = Solver(unipc)
UNIPC_BH1 = Solver(functools.partial(unipc, variant="bh1"))
UNIPC_3 = Solver(functools.partial(unipc, order=3))
UNIPC_3_BH1 = Solver(functools.partial(unipc, order=3, variant="bh1"))
