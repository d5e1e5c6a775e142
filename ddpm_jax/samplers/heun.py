"""Heun's method on the noise levels of Karras et al. 2022."""

import numpy as np

from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError
from ddpm_jax.samplers.tableau import (
    Plan, Solver, call_row, half_log_snr_ends, half_log_snr_levels, plan_of_rows, signal_at,
    x_0_row,
)


CHURN = ("s_churn", "s_min", "s_max", "s_noise")  # The settings of Algorithm 2.


def heun(
    schedule: Schedule, num_steps: int, *, rho: float = 7.0, s_churn: float = 0.0,
    s_min: float = 0.0, s_max: float = 0.0, s_noise: float = 1.0,
) -> Plan:
    """The plan of Heun's method as in Karras et al. 2022 (Algorithm 1; with churn Algorithm 2).

    In y = x / signal, whose noise is sigma-hat = sigma / signal, each step goes along eps, and
    then again along the mean of eps at both ends. n levels, evenly spaced in sigma-hat^(1 / rho),
    take 2 n - 1 calls, because the last step, to x_0, needs only one.

    With churn, fresh noise first takes y from sigma-hat to (1 + gamma) sigma-hat, where gamma =
    min(s_churn / n, sqrt(2) - 1). There is none at the first level, and never more noise than
    there, for the network may not know any more.

    Args:
        schedule: the one that the network was trained with, as host arrays.
        num_steps: network calls, 2 n - 1 for some n >= 1.
        rho: how strongly the levels crowd near the data; Karras et al. use 7.
        s_churn: S_churn; 0 is no churn.
        s_min, s_max: S_min and S_max, between which sigma-hat is churned; an `s_max` of 0 is no
            limit.
        s_noise: S_noise, the standard deviation of the fresh noise.

    Raises:
        ValueError: num_steps is even or less than 1, a number of the churn is negative, or the
            schedule has no levels (see `karras`).
    """
    check_churn(s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise)
    if num_steps < 1 or num_steps % 2 == 0:
        raise UserError(
            "must be odd and at least 1, because n levels take 2 n - 1 network calls",
            field="num_steps", value=num_steps, instead={"num_steps": max(num_steps - 1, 1)},
        )
    levels = half_log_snr_levels(schedule, karras(schedule, num_steps // 2 + 1, rho))
    noise = np.exp(-levels)
    churned = (s_min <= noise) & (noise <= (s_max or np.inf))
    gamma = np.where(churned, min(s_churn / len(levels), np.sqrt(2) - 1), 0.0)
    starts = np.maximum(levels - np.log1p(gamma), levels[0])  # Never before the first level.
    calls = []
    for s, t, after in zip(starts[:-1], levels[1:], starts[1:]):
        keep, width = signal_at(t) / signal_at(s), np.exp(-t) - np.exp(-s)
        along = signal_at(t) * width
        up = signal_at(after) / signal_at(t)  # To where the next step starts.
        fresh = signal_at(after) * np.sqrt(np.exp(-2 * after) - np.exp(-2 * t))
        calls += [
            call_row(s, keep, [along], commit=False),
            call_row(t, up * keep, [up * along / 2, up * along / 2], spread=s_noise * fresh),
        ]
    return plan_of_rows(schedule, calls + [x_0_row(starts[-1])])


def check_churn(**churn: float) -> None:
    """Raises UserError where one of `CHURN` is negative."""
    for name, value in churn.items():
        if value < 0:
            default = 1.0 if name == "s_noise" else 0.0
            raise UserError(
                "must be at least 0", field=name, value=value, instead={name: default}
            )


def karras(schedule: Schedule, num_levels: int, rho: float = 7.0) -> np.ndarray:
    """Levels evenly spaced in sigma^(1 / rho), sigma = noise / signal (Karras et al., Eq. 5).

    The ends, the result and the errors are those of `dpm_solver.log_snr`.
    """
    low, high = half_log_snr_ends(schedule, num_levels)
    roots = np.linspace(np.exp(-low / rho), np.exp(-high / rho), num_levels)
    return schedule_lib.t_at_half_log_snr(schedule, -rho * np.log(roots))[::-1]


HEUN = Solver(heun, uses=frozenset(CHURN))
