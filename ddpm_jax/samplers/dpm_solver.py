"""DPM-Solver and DPM-Solver++ (Lu et al. 2022, 2022b) as tables for `tableau.solve`."""

import functools
from collections.abc import Sequence

import numpy as np

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError
from ddpm_jax.samplers.tableau import (
    Plan, Solver, call_row, half_log_snr_ends, half_log_snr_levels, plan_of_rows, sigma_at,
    signal_at, x_0_row,
)

_FEW = 15  # With fewer calls the last two steps of a multistep chain are of orders 2 and 1.


def dpm_solver(
    schedule: Schedule, num_steps: int, *, order: int = 3, denoise: bool = True
) -> Plan:
    """The plan of DPM-Solver, singlestep, in eps (Lu et al. 2022, Algorithms 1 and 2).

    Steps of 2 or 3 calls go between levels evenly spaced in lambda. Where the calls do not
    divide, one or two steps of lower order come at the end ("DPM-Solver-fast"). With order 3, K
    calls make K / 3 - 1 steps of order 3, one of order 2 and one of order 1 if 3 divides K; else
    K // 3 steps of order 3 and one of the remaining calls.

    Args:
        schedule: the one that the network was trained with, as host arrays.
        num_steps: network calls, at least 1.
        order: 2 or 3.
        denoise: use the last call for x_0 at the first noise level. Otherwise the result keeps
            the noise of that level (1.3 grey levels with the paper's schedule).

    Raises:
        ValueError: order is neither, num_steps is too small, or the schedule has no levels (see
            `log_snr`).
    """
    check_request(num_steps, order)
    orders = _split(num_steps - denoise, order)
    levels = half_log_snr_levels(schedule, log_snr(schedule, len(orders) + 1))
    calls = []
    for s, t, order in zip(levels[:-1], levels[1:], orders, strict=True):
        calls += _SINGLESTEPS[order](s, t)
    return plan_of_rows(schedule, calls + [x_0_row(levels[-1])] * denoise)


def dpm_solver_pp(
    schedule: Schedule, num_steps: int, *, order: int = 2, sde: bool = False
) -> Plan:
    """The plan of DPM-Solver++, multistep, in x_0: 2M, 3M and SDE 2M (Lu et al. 2022b).

    Each step makes one call, between levels evenly spaced in lambda. The first steps have the
    order that the calls so far allow, and the last one, of order 1, goes from the first noise
    level to x_0, without noise. With fewer than 15 calls the step before that is of order 2 at
    most, as in diffusers. The authors' code differs: by default its last step ends at the first
    noise level, and with fewer than 10 steps that one is of order 1 and the one before of order 2.

    2M is Algorithm 2 of DPM-Solver++, with the first and last steps of k-diffusion's 2M. 3M exists
    only in the authors' code: it adds a term for the curvature of x_0 through its last three
    values, with half of the weight that Taylor's series gives. We do the same, as diffusers does.
    So both are of order 2, and 3M has about a third of the error of 2M.

    Args:
        schedule: the one that the network was trained with, as host arrays.
        num_steps: network calls, at least 1.
        order: 2 or 3.
        sde: draw fresh noise in every step but the last, so that the chain samples the SDE; for
            order 2.

    Raises:
        ValueError: order is neither, or 3 with `sde`; num_steps is too small, or the schedule has
            no levels (see `log_snr`).
    """
    check_request(num_steps, order)
    if sde and order != 2:
        raise UserError(
            "cannot go with sde=True", field="order", value=order, instead={"order": 2}
        )
    levels = half_log_snr_levels(schedule, log_snr(schedule, num_steps))
    calls = []
    for i in range(num_steps - 1):
        allowed = min(order, i + 1, num_steps - i if num_steps < _FEW else order)
        calls.append(_multistep(levels[i + 1 - allowed:i + 2], sde))
    return plan_of_rows(schedule, calls + [x_0_row(levels[-1])])


def check_request(num_steps: int, order: int) -> None:
    """Raises ValueError where no plan has this order, or this many calls."""
    if order not in (2, 3):
        raise UserError("is not known; write order=2 or order=3.", field="order", value=order)
    if num_steps < 1:
        raise UserError(
            "is too few network calls", field="num_steps", value=num_steps,
            instead={"num_steps": 20},
        )


def _split(calls: int, order: int) -> list[int]:
    """The orders of singlesteps that make this many calls together, high ones first."""
    full, rest = divmod(calls, order)
    if order == 3 and rest == 0 and full:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + ([rest] if rest else [])


def _singlestep_1(s: float, t: float) -> list[dict]:
    """From lambda s to t by DPM-Solver-1, which is DDIM (Lu et al. 2022, Eq. 3.7)."""
    return [call_row(s, signal_at(t) / signal_at(s), [-sigma_at(t) * np.expm1(t - s)])]


def _singlestep_2(s: float, t: float) -> list[dict]:
    """DPM-Solver-2 (Algorithm 1): the whole step along eps at its midpoint."""
    middle, h = (s + t) / 2, t - s
    return [
        call_row(
            s, signal_at(middle) / signal_at(s), [-sigma_at(middle) * np.expm1(h / 2)],
            commit=False,
        ),
        call_row(middle, signal_at(t) / signal_at(s), [-sigma_at(t) * np.expm1(h)]),
    ]


def _singlestep_3(s: float, t: float) -> list[dict]:
    """DPM-Solver-3 (Algorithm 2), with r1 = 1/3 and r2 = 2/3."""
    h = t - s
    first, second = s + h / 3, s + 2 * h / 3
    bend_second = 2 * sigma_at(second) * (np.expm1(2 * h / 3) / (2 * h / 3) - 1)
    bend = 1.5 * sigma_at(t) * (np.expm1(h) / h - 1)
    return [
        call_row(
            s, signal_at(first) / signal_at(s), [-sigma_at(first) * np.expm1(h / 3)], commit=False
        ),
        call_row(
            first, signal_at(second) / signal_at(s),
            [-bend_second, bend_second - sigma_at(second) * np.expm1(2 * h / 3)],
            commit=False,
        ),
        call_row(
            second, signal_at(t) / signal_at(s), [-bend, 0.0, bend - sigma_at(t) * np.expm1(h)]
        ),
    ]


_SINGLESTEPS = {1: _singlestep_1, 2: _singlestep_2, 3: _singlestep_3}


def _multistep(levels: np.ndarray, sde: bool) -> dict:
    """From levels[-2] to levels[-1], given the x_0 predicted at each but the last."""
    *before, s, t = levels
    h = t - s
    shrink = np.exp(-h) if sde else 1.0
    # The weight of x_0: 1 - e^-h, or 1 - e^-2h for the SDE, which forgets x twice as fast.
    gain = -signal_at(t) * np.expm1(-2 * h if sde else -h)
    weights = [gain]
    if len(before) == 1:
        slope = gain * h / (2 * (s - before[0]))
        weights = [gain + slope, -slope]
    elif len(before) == 2:
        weights = third_order_weights(before, s, t)
    return call_row(
        s, sigma_at(t) / sigma_at(s) * shrink, weights, uses_x_0=True,
        spread=sigma_at(t) * np.sqrt(-np.expm1(-2 * h)) if sde else 0.0,
    )


def third_order_weights(before: Sequence[float], s: float, t: float) -> list[float]:
    """Weights in 3M of the last three x_0, latest first, in a step from lambda s to t.

    Args:
        before: lambda of the two calls before s, the earlier one first.
        s: lambda of the latest call.
        t: lambda at the end of the step.
    """
    h, near, far = t - s, s - before[1], before[1] - before[0]
    phi_1 = np.expm1(-h)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 0.5
    now = np.array([1.0, 0.0, 0.0])
    slope_near = np.array([1.0, -1.0, 0.0]) * h / near
    slope_far = np.array([0.0, 1.0, -1.0]) * h / far
    bend = h / (near + far) * (slope_near - slope_far)
    slope = slope_near + near / (near + far) * (slope_near - slope_far)
    return list(signal_at(t) * (phi_2 * slope - phi_1 * now - phi_3 * bend))


def log_snr(schedule: Schedule, num_levels: int) -> np.ndarray:
    """Levels evenly spaced in lambda, half the log-SNR (Lu et al. 2022, DPM-Solver).

    They run from the first step to the last, but not beyond lambda = -5.1, where 0.6 percent of
    the image is left. The paper's schedule ends before that, at -5.06. The cosine schedule goes
    on to -9.92, where an error in the noise is 20,000 times as large in x_0; its levels stop at
    t = 995.1 of 999. A single level is the noisiest one, where the chain starts.

    Args:
        schedule: as host arrays.
        num_levels: at least 1.

    Returns:
        [num_levels] fractional t, increasing, in units of `schedule.timesteps`.

    Raises:
        ValueError: num_levels is less than 1, or more than 1 where T = 1; or the last beta
            is 1.
    """
    low, high = half_log_snr_ends(schedule, num_levels)
    return schedule_lib.t_at_half_log_snr(schedule, np.linspace(low, high, num_levels))[::-1]


DPM_SOLVER = Solver(dpm_solver)
DPM_SOLVER_2 = Solver(functools.partial(dpm_solver, order=2))
DPM_SOLVER_PP = Solver(dpm_solver_pp)
DPM_SOLVER_PP_3 = Solver(functools.partial(dpm_solver_pp, order=3))
DPM_SOLVER_PP_SDE = Solver(functools.partial(dpm_solver_pp, sde=True))
