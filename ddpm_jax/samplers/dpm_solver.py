"""Solvers as tables: what each does at every network call, in float64 on the host.

The solvers work between noise levels of their own choice, at fractional t. In their terms
x_t = signal x_0 + sigma eps, lambda = log(signal / sigma) is half the log-SNR, and every one
of them only adds up what the network said, with weights known before the chain starts. So
each is a function from a schedule to a `Plan`, which `tableau.solve` runs.
"""

import functools
from typing import Any

import flax.struct
import numpy as np

from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.samplers import steps as steps_lib

_FEW = 15  # Calls below which a multistep chain ends with steps of lower order.


@flax.struct.dataclass
class Plan:
    """A solver on a schedule: what to do at each of its n network calls, in order.

    A call is made at x, of the level (t, signal, sigma). Then x becomes keep * (the x that
    the step started from) + the sum of `weights` * (what the last k calls said, latest
    first) + spread * z.

    Attributes:
        t: [n] fractional step that the network is told.
        signal: [n] scale of x_0 in x, sqrt(alpha_bar).
        sigma: [n] scale of the noise in x, sqrt(1 - alpha_bar).
        says_x_0: [n] bool; a call says x_0, or else eps.
        keep: [n] weight of the x that the step started from.
        weights: [n, k] of what the last k calls said.
        commit: [n] bool; the new x is where the next step starts from.
        spread: [n] standard deviation of fresh noise; None where no call has any.
    """

    t: Any
    signal: Any
    sigma: Any
    says_x_0: Any
    keep: Any
    weights: Any
    commit: Any
    spread: Any

    @property
    def num_calls(self) -> int:
        """How often the network is called, for each image."""
        return self.t.shape[0]


def dpm_solver(
    schedule: Schedule, num_steps: int, *, order: int = 3, denoise: bool = True
) -> Plan:
    """DPM-Solver, singlestep, in eps (Lu et al. 2022, Algorithms 1 and 2).

    Steps of 2 or 3 calls between levels even in lambda, and at the end one or two of lower
    order where the calls do not divide ("DPM-Solver-fast"): of order 3, K calls make
    K / 3 - 1 steps of order 3, one of 2 and one of 1 if 3 divides K; else K // 3 of order 3
    and one of what is left.

    Args:
        schedule: the one that the network was trained with, as host arrays.
        num_steps: network calls, at least 1.
        order: 2 or 3.
        denoise: spend the last of the calls on x_0 at the first noise level. Otherwise the
            result still has the noise of that level (1.3 grey levels in the paper's).

    Raises:
        ValueError: order is another, num_steps is too few, or the schedule has no levels
            (see `steps.log_snr`).
    """
    _check(num_steps, order)
    orders = _split(num_steps - denoise, order)
    levels = _half_log_snr(schedule, steps_lib.log_snr(schedule, len(orders) + 1))
    calls = []
    for s, t, order in zip(levels[:-1], levels[1:], orders, strict=True):
        calls += _SINGLESTEPS[order](s, t)
    return _plan(schedule, calls + [_to_x_0(levels[-1])] * denoise)


def dpm_solver_pp(
    schedule: Schedule, num_steps: int, *, order: int = 2, sde: bool = False
) -> Plan:
    """DPM-Solver++, multistep, in x_0: 2M, 3M and SDE 2M (Lu et al. 2022b, DPM-Solver++).

    One call a step, between levels even in lambda; the first steps have the order that the
    calls so far allow, and the last goes from the first noise level to x_0, without noise.
    With fewer than 15 calls the step before is of order 2 at most, as in the authors' code.
    2M is Algorithm 2. 3M, in the authors' code alone, has a term for the bend of x_0 through
    its last three values, weighted by half of what Taylor's series says; it is so here, as in
    diffusers, and both are therefore of order 2, 3M with about a third of the error of 2M.

    Args:
        schedule: the one that the network was trained with, as host arrays.
        num_steps: network calls, at least 1.
        order: 2 or 3.
        sde: draw fresh noise in every step but the last, so that the chain samples the SDE;
            with order 2 alone.

    Raises:
        ValueError: order is another, or 3 with `sde`; num_steps is too few, or the schedule
            has no levels (see `steps.log_snr`).
    """
    _check(num_steps, order)
    if sde and order != 2:
        raise ValueError(f"order={order} cannot go with sde=True; write order=2.")
    levels = _half_log_snr(schedule, steps_lib.log_snr(schedule, num_steps))
    calls = []
    for i in range(num_steps - 1):
        allowed = min(order, i + 1, num_steps - i if num_steps < _FEW else order)
        calls.append(_multistep(levels[i + 1 - allowed:i + 2], sde))
    return _plan(schedule, calls + [_to_x_0(levels[-1])])


def heun(schedule: Schedule, num_steps: int, *, rho: float = 7.0) -> Plan:
    """The second-order solver of Karras et al. 2022 (Algorithm 1, deterministic).

    In y = x / signal, whose noise is sigma-hat = sigma / signal, a step is Heun's: along
    eps, then again along the mean of eps at both ends. n levels even in sigma-hat^(1 / rho)
    take 2 n - 1 calls, for the last step, to x_0, needs but one.

    Args:
        schedule: the one that the network was trained with, as host arrays.
        num_steps: network calls, 2 n - 1 for some n >= 1.
        rho: how strongly the levels crowd near the data; Karras et al. use 7.

    Raises:
        ValueError: num_steps is not odd or too few, or the schedule has no levels (see
            `steps.karras`).
    """
    if num_steps < 1 or num_steps % 2 == 0:
        raise ValueError(
            f"num_steps={num_steps} must be odd and at least 1: n levels take 2 n - 1 "
            f"network calls; write num_steps={max(num_steps - 1, 1)}."
        )
    levels = _half_log_snr(schedule, steps_lib.karras(schedule, num_steps // 2 + 1, rho))
    calls = []
    for s, t in zip(levels[:-1], levels[1:]):
        keep, width = _signal(t) / _signal(s), np.exp(-t) - np.exp(-s)
        along = _signal(t) * width
        calls += [
            _call(s, keep, [along], commit=False), _call(t, keep, [along / 2, along / 2]),
        ]
    return _plan(schedule, calls + [_to_x_0(levels[-1])])


NAMED = {
    "dpm_solver": dpm_solver,
    "dpm_solver_2": functools.partial(dpm_solver, order=2),
    "dpm_solver_pp": dpm_solver_pp,
    "dpm_solver_pp_3": functools.partial(dpm_solver_pp, order=3),
    "dpm_solver_pp_sde": functools.partial(dpm_solver_pp, sde=True),
    "heun": heun,
}


def named(name: str, schedule: Schedule, num_steps: int) -> Plan:
    """The plan of the solver called `name` (a key of `NAMED`) with `num_steps` calls.

    Raises:
        ValueError: the name is unknown, or as that solver does.
    """
    if name not in NAMED:
        raise ValueError(f"solver={name!r} is not known; use one of {', '.join(NAMED)}.")
    return NAMED[name](schedule, num_steps)


def _check(num_steps: int, order: int) -> None:
    if order not in (2, 3):
        raise ValueError(f"order={order} is not known; write order=2 or order=3.")
    if num_steps < 1:
        raise ValueError(
            f"num_steps={num_steps} is too few network calls; write such as num_steps=20."
        )


def _split(calls: int, order: int) -> list[int]:
    """The orders of singlesteps that make so many calls together, high ones first."""
    full, rest = divmod(calls, order)
    if order == 3 and rest == 0 and full:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + [rest] * (rest > 0)


def _half_log_snr(schedule: Schedule, t: np.ndarray) -> np.ndarray:
    """lambda of levels given by t, from the noise to the data."""
    return steps_lib.half_log_snr(schedule, t)[::-1]


def _signal(half_log_snr: float | np.ndarray) -> float | np.ndarray:
    return 1 / np.sqrt(1 + np.exp(-2 * half_log_snr))


def _sigma(half_log_snr: float | np.ndarray) -> float | np.ndarray:
    return 1 / np.sqrt(1 + np.exp(2 * half_log_snr))


def _call(half_log_snr, keep, weights, *, commit=True, says_x_0=False, spread=0.0) -> dict:
    """One row of a plan: a call at this lambda, and the x after it."""
    return dict(
        half_log_snr=half_log_snr, keep=keep, weights=weights, commit=commit,
        says_x_0=says_x_0, spread=spread,
    )


def _to_x_0(half_log_snr: float) -> dict:
    """The step to lambda = infinity, of order 1: x becomes x_0."""
    return _call(half_log_snr, 0.0, [1.0], says_x_0=True)


def _plan(schedule: Schedule, calls: list[dict]) -> Plan:
    width = max(len(call["weights"]) for call in calls)
    columns = {
        name: np.array([call[name] for call in calls])
        for name in calls[0] if name != "weights"
    }
    half_log_snr, spread = columns.pop("half_log_snr"), columns.pop("spread")
    return Plan(
        t=steps_lib.at_half_log_snr(schedule, half_log_snr),
        signal=_signal(half_log_snr),
        sigma=_sigma(half_log_snr),
        weights=np.array([
            call["weights"] + [0.0] * (width - len(call["weights"])) for call in calls
        ]),
        spread=spread if spread.any() else None,
        **columns,
    )


def _singlestep_1(s: float, t: float) -> list[dict]:
    """From lambda s to t by DPM-Solver-1, which is DDIM (Lu et al. 2022, Eq. 3.7)."""
    return [_call(s, _signal(t) / _signal(s), [-_sigma(t) * np.expm1(t - s)])]


def _singlestep_2(s: float, t: float) -> list[dict]:
    """DPM-Solver-2 (Algorithm 1): the step along eps of its middle."""
    middle, h = (s + t) / 2, t - s
    return [
        _call(
            s, _signal(middle) / _signal(s), [-_sigma(middle) * np.expm1(h / 2)],
            commit=False,
        ),
        _call(middle, _signal(t) / _signal(s), [-_sigma(t) * np.expm1(h)]),
    ]


def _singlestep_3(s: float, t: float) -> list[dict]:
    """DPM-Solver-3 (Algorithm 2), with r1 = 1/3 and r2 = 2/3."""
    h = t - s
    first, second = s + h / 3, s + 2 * h / 3
    bend_second = 2 * _sigma(second) * (np.expm1(2 * h / 3) / (2 * h / 3) - 1)
    bend = 1.5 * _sigma(t) * (np.expm1(h) / h - 1)
    return [
        _call(
            s, _signal(first) / _signal(s), [-_sigma(first) * np.expm1(h / 3)], commit=False
        ),
        _call(
            first, _signal(second) / _signal(s),
            [-bend_second, bend_second - _sigma(second) * np.expm1(2 * h / 3)],
            commit=False,
        ),
        _call(
            second, _signal(t) / _signal(s), [-bend, 0.0, bend - _sigma(t) * np.expm1(h)]
        ),
    ]


_SINGLESTEPS = {1: _singlestep_1, 2: _singlestep_2, 3: _singlestep_3}


def _multistep(levels: np.ndarray, sde: bool) -> dict:
    """From levels[-2] to levels[-1], given the x_0 said at each but the last."""
    *before, s, t = levels
    h = t - s
    shrink = np.exp(-h) if sde else 1.0
    # What x_0 weighs: 1 - e^-h, or 1 - e^-2h where the SDE forgets x twice as fast.
    gain = -_signal(t) * np.expm1(-2 * h if sde else -h)
    weights = [gain]
    if len(before) == 1:
        slope = gain * h / (2 * (s - before[0]))
        weights = [gain + slope, -slope]
    elif len(before) == 2:
        weights = _third(before, s, t)
    return _call(
        s, _sigma(t) / _sigma(s) * shrink, weights, says_x_0=True,
        spread=_sigma(t) * np.sqrt(-np.expm1(-2 * h)) if sde else 0.0,
    )


def _third(before: list[float], s: float, t: float) -> list[float]:
    """Weights of the last three x_0 in 3M; `bend` is half of x_0's second derivative."""
    h, near, far = t - s, s - before[1], before[1] - before[0]
    phi_1 = np.expm1(-h)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 0.5
    now = np.array([1.0, 0.0, 0.0])
    slope_near = np.array([1.0, -1.0, 0.0]) * h / near
    slope_far = np.array([0.0, 1.0, -1.0]) * h / far
    bend = h / (near + far) * (slope_near - slope_far)
    slope = slope_near + near / (near + far) * (slope_near - slope_far)
    return list(_signal(t) * (phi_2 * slope - phi_1 * now - phi_3 * bend))
