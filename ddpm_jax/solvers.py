"""Fast samplers: good images in 10 to 50 network calls.

`ddim` runs on the steps of a respaced schedule. The others solve the probability-flow ODE
(or its SDE) between noise levels of their own choice, and tell the network fractional t. In
their terms x_t = signal x_0 + sigma eps, lambda = log(signal / sigma) is half the log-SNR,
and every one of them only adds up what the network said, with weights known before the
chain starts. So each is a function from a schedule to a `Plan`, a table of these weights
made in float64 on the host, and `solve` runs any plan: one `jax.lax.scan`, one network call
in each step of it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ddpm_jax import grids
from ddpm_jax.diffusion import Images, Prediction, split_output
from ddpm_jax.samplers import Trajectory, ancestral, asked_for, standard_normal
from ddpm_jax.schedule import Schedule, at

_FEW = 15  # Calls below which a multistep chain ends with steps of lower order.


def ddim(
    schedule: Schedule,
    predict_fn: Callable[[Array, Array], Prediction],
    x_T: Images,
    rngs: Key[Array, " b"],
    *,
    eta: float = 0.0,
    start: int | None = None,
    stop: int = 0,
    trajectory: Sequence[int] = (),
    on_step: Callable[[Array], None] | None = None,
) -> Images | tuple[Images, Trajectory]:
    """Draws x_0 by DDIM (Song, Meng and Ermon 2021, Eqs. 12 and 16), one call a step.

    With ' for the step before,

        x' = sqrt(alpha_bar') x_0 + sqrt(1 - alpha_bar' - sigma^2) eps + sigma z,

    where sigma^2 is eta^2 times the posterior variance. At t = 0 alpha_bar' is 1 and the
    result x_0. eta = 0 adds no noise: x_T alone decides. eta = 1 is the ancestral chain
    with the smaller variance, draw for draw. (The sigma-hat of that paper is the ancestral
    chain with "fixed_large".)

    eps is that of the `Prediction`, which follows x_0 when that is clipped, as in
    improved-diffusion. Code that clips x_0 but keeps the network's eps gives other images:
    that of `diffusion.predict(..., rederive_eps=False)`.

    Args:
        schedule: of the chain, such as `schedule.respace(full, grids.uniform(1000, 50))`.
        predict_fn: (x_t, t [b] int32) -> Prediction.
        x_T: [b, h, w, c] standard normal; with `start` the images noised start times.
        rngs: [b] keys; without effect if eta = 0.
        eta: in 0..1.
        start, stop, trajectory, on_step: as of `samplers.ancestral`.

    Returns:
        As `samplers.ancestral` does.

    Raises:
        ValueError: eta leaves 0..1, or as `samplers.ancestral` does.
    """
    return ancestral(
        schedule, ddim_fn(schedule, predict_fn, eta), x_T, rngs, start=start, stop=stop,
        trajectory=trajectory, on_step=on_step,
    )


def ddim_fn(
    schedule: Schedule, predict_fn: Callable[[Array, Array], Prediction], eta: float = 0.0
) -> Callable[[Array, Array], Prediction]:
    """`predict_fn` with the mean and variance of DDIM's step, as `ddim` describes it.

    Raises:
        ValueError: eta leaves 0..1.
    """
    if not 0 <= eta <= 1:
        raise ValueError(
            f"eta={eta} must lie in 0..1; write eta=0 for no noise or eta=1 for that of "
            "the ancestral chain."
        )

    def predict(x_t, t):
        prediction = predict_fn(x_t, t)
        noise = at(schedule.sqrt_one_minus_alpha_bar, t, x_t)
        before = at(schedule.sqrt_one_minus_alpha_bar, jnp.maximum(t - 1, 0), x_t)
        before = jnp.where((t > 0).reshape(noise.shape), before, 0.0)
        # 1 - alpha_bar' - sigma^2, without the difference of two nearly equal numbers.
        kept = jnp.square(at(schedule.posterior_coef_x_t, t, x_t) * noise)
        along = jnp.sqrt((1 - eta**2) * jnp.square(before) + eta**2 * kept)
        signal = jnp.sqrt(at(schedule.alpha_bar_prev, t, x_t))
        return prediction.replace(
            mean=signal * prediction.x_0 + along * prediction.eps,
            log_variance=jnp.log(eta**2 * at(schedule.posterior_variance, t, x_t)),
        )

    return predict


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
            (see `grids.log_snr`).
    """
    _check(num_steps, order)
    orders = _split(num_steps - denoise, order)
    levels = _half_log_snr(schedule, grids.log_snr(schedule, len(orders) + 1))
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
            has no levels (see `grids.log_snr`).
    """
    _check(num_steps, order)
    if sde and order != 2:
        raise ValueError(f"order={order} cannot go with sde=True; write order=2.")
    levels = _half_log_snr(schedule, grids.log_snr(schedule, num_steps))
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
            `grids.karras`).
    """
    if num_steps < 1 or num_steps % 2 == 0:
        raise ValueError(
            f"num_steps={num_steps} must be odd and at least 1: n levels take 2 n - 1 "
            f"network calls; write num_steps={max(num_steps - 1, 1)}."
        )
    levels = _half_log_snr(schedule, grids.karras(schedule, num_steps // 2 + 1, rho))
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


def solve(
    plan: Plan,
    denoise_fn: Callable[[Array, Array], Array],
    x_T: Images,
    rngs: Key[Array, " b"],
    *,
    mean: str = "eps",
    variance: str = "fixed_large",
    clip: bool = True,
    denoised_fn: Callable[[Array], Array] | None = None,
    trajectory: Sequence[int] = (),
    on_step: Callable[[Array], None] | None = None,
) -> Images | tuple[Images, Trajectory]:
    """Runs a plan: one scan that calls the network `plan.num_calls` times.

    Args:
        plan: such as `dpm_solver_pp(schedule, 20)`.
        denoise_fn: (x_t, t [b] float32) -> the network's output; t is not whole.
        x_T: [b, h, w, c] standard normal.
        rngs: [b] keys; the noise of call i is drawn from `fold_in(rngs[j], i)`. Not used by
            plans without noise, all but that of `dpm_solver_pp(..., sde=True)`.
        mean: what the output is: "eps", "x_0" or "v".
        variance: as of `diffusion.predict`; if learned, the second half of the output's
            channels is dropped.
        clip: keep x_0 in [-1, 1] at every call; eps follows it.
        denoised_fn: applied to x_0 before clipping, such as `dynamic_threshold`.
        trajectory: calls at which to keep x and the predicted x_0, by the number of calls
            left after them: 0 is the last. Calls within a step count too.
        on_step: called inside the scan with the number of calls left after this one; for
            progress reports.

    Returns:
        x_0: [b, h, w, c] float32, in [-1, 1] if clipped; x at the first noise level if the
        plan does not end with x_0. With `trajectory` also the `Trajectory`, in the order
        asked for.

    Raises:
        ValueError: `mean` is another, or trajectory leaves the plan.
    """
    if mean not in ("eps", "x_0", "v"):
        raise ValueError(
            f"mean={mean!r} cannot go with a solver, which needs the noise between whole "
            "steps; use a network of mean 'eps', 'x_0' or 'v', or the ancestral chain."
        )

    trajectory = asked_for(trajectory, 0, plan.num_calls)

    def predict(x, call):
        output, _ = split_output(denoise_fn(x, jnp.full(x.shape[:1], call.t)), variance)
        if mean == "eps":
            x_0 = (x - call.sigma * output) / call.signal
        else:
            x_0 = call.signal * x - call.sigma * output if mean == "v" else output
        if denoised_fn is not None:
            x_0 = denoised_fn(x_0)
        if clip:
            x_0 = jnp.clip(x_0, -1.0, 1.0)
        untouched = mean == "eps" and not clip and denoised_fn is None
        return x_0, output if untouched else (x - call.signal * x_0) / call.sigma

    def step(carry, row):
        x, start, said, kept = carry
        i, call = row
        left = plan.num_calls - 1 - i
        if on_step is not None:
            on_step(left)
        x_0, eps = predict(x, call)
        if kept is not None:
            kept = kept.keep(trajectory == left, x, x_0)
        said = (jnp.where(call.says_x_0, x_0, eps), *said)
        x = call.keep * start + sum(w * s for w, s in zip(call.weights, said, strict=True))
        if call.spread is not None:
            each = jax.vmap(jax.random.fold_in, (0, None))(rngs, i)
            x = x + call.spread * standard_normal(each, x.shape[1:])
        return (x, jnp.where(call.commit, x, start), said[:-1], kept), None

    calls = jax.tree.map(
        lambda a: jnp.asarray(a, None if a.dtype == bool else jnp.float32), plan
    )
    nothing = (jnp.zeros(x_T.shape),) * (plan.weights.shape[1] - 1)
    numbers = jnp.arange(plan.num_calls, dtype=jnp.int32)
    kept = Trajectory.empty(trajectory.size, x_T) if trajectory.size else None
    (x, _, _, kept), _ = jax.lax.scan(step, (x_T, x_T, nothing, kept), (numbers, calls))
    return x if kept is None else (x, kept)


def dynamic_threshold(x_0: Images, percentile: float = 0.995) -> Float[Array, "b h w c"]:
    """Divides each image by its largest pixels instead of clipping them all to 1.

    s is the `percentile` of |x_0| over the image, at least 1; x_0 is clipped to [-s, s] and
    divided by s (Saharia et al. 2022, Imagen, Sec. 2.3). For `denoised_fn`.

    Args:
        x_0: predicted images.
        percentile: in (0, 1], as a fraction.

    Raises:
        ValueError: percentile leaves (0, 1].
    """
    if not 0 < percentile <= 1:
        raise ValueError(
            f"percentile={percentile} must lie in (0, 1]; write such as percentile=0.995."
        )
    s = jnp.quantile(jnp.abs(x_0), percentile, axis=(1, 2, 3), keepdims=True)
    s = jnp.maximum(s, 1.0)
    return jnp.clip(x_0, -s, s) / s


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
    return grids.half_log_snr(schedule, t)[::-1]


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
        t=grids.at_half_log_snr(schedule, half_log_snr),
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
