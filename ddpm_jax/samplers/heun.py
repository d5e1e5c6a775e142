"""Heun's method on the noise levels of Karras et al. 2022."""

import numpy as np

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError
from ddpm_jax.samplers.tableau import (
    Plan, Solver, call_row, half_log_snr_ends, half_log_snr_levels, plan_of_rows, signal_at,
    x_0_row,
)


def heun(schedule: Schedule, num_steps: int, *, rho: float = 7.0) -> Plan:
    """The plan of Heun's method as in Karras et al. 2022 (Algorithm 1, deterministic).

    In y = x / signal, whose noise is sigma-hat = sigma / signal, each step goes along eps, and
    then again along the mean of eps at both ends. n levels, evenly spaced in sigma-hat^(1 / rho),
    take 2 n - 1 calls, because the last step, to x_0, needs only one.

    Args:
        schedule: the one that the network was trained with, as host arrays.
        num_steps: network calls, 2 n - 1 for some n >= 1.
        rho: how strongly the levels crowd near the data; Karras et al. use 7.

    Raises:
        ValueError: num_steps is even or less than 1, or the schedule has no levels (see
            `karras`).
    """
    if num_steps < 1 or num_steps % 2 == 0:
        raise UserError(
            "must be odd and at least 1, because n levels take 2 n - 1 network calls",
            field="num_steps", value=num_steps, instead={"num_steps": max(num_steps - 1, 1)},
        )
    levels = half_log_snr_levels(schedule, karras(schedule, num_steps // 2 + 1, rho))
    calls = []
    for s, t in zip(levels[:-1], levels[1:]):
        keep, width = signal_at(t) / signal_at(s), np.exp(-t) - np.exp(-s)
        along = signal_at(t) * width
        calls += [
            call_row(s, keep, [along], commit=False), call_row(t, keep, [along / 2, along / 2]),
        ]
    return plan_of_rows(schedule, calls + [x_0_row(levels[-1])])


def karras(schedule: Schedule, num_levels: int, rho: float = 7.0) -> np.ndarray:
    """Levels evenly spaced in sigma^(1 / rho), sigma = noise / signal (Karras et al., Eq. 5).

    The ends, the result and the errors are those of `dpm_solver.log_snr`.
    """
    low, high = half_log_snr_ends(schedule, num_levels)
    roots = np.linspace(np.exp(-low / rho), np.exp(-high / rho), num_levels)
    return schedule_lib.t_at_half_log_snr(schedule, -rho * np.log(roots))[::-1]


HEUN = Solver(heun)
