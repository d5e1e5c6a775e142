"""The noise schedule: beta_t and every coefficient derived from it.

Index convention of the whole package: arrays are 0-based and have length T. Code index t is
step t + 1 of the paper (Ho, Jain and Abbeel 2020), so t = 0 is the first noising step and
T - 1 the last, and the paper's x_t is our x after index t - 1.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from ddpm_jax import errors
from ddpm_jax.errors import UserError, check_known


@flax.struct.dataclass
class Schedule:
    """Coefficients of the diffusion process; every field is [T], float64 NumPy on the host.

    Attributes:
        beta: variance added at step t (Eq. 2).
        alpha_bar: product of 1 - beta up to and including t (Eq. 4).
        alpha_bar_prev: the same one step earlier; 1 at t = 0.
        sqrt_alpha_bar: scale of x_0 in q(x_t | x_0).
        sqrt_one_minus_alpha_bar: scale of the noise in q(x_t | x_0).
        posterior_coef_x_0: weight of x_0 in the posterior mean (Eq. 7).
        posterior_coef_x_t: weight of x_t in the posterior mean (Eq. 7).
        posterior_variance: beta-tilde, the variance of q(x_{t-1} | x_t, x_0) (Eq. 7);
            0 at t = 0.
        posterior_log_variance: its logarithm, with index 0 borrowed from index 1 (beta_0
            where T = 1), as in the authors' code.
        timesteps: the t that the network gets at each index: 0..T-1, or the indices into the
            full schedule after `respace`.
    """

    beta: Any
    alpha_bar: Any
    alpha_bar_prev: Any
    sqrt_alpha_bar: Any
    sqrt_one_minus_alpha_bar: Any
    posterior_coef_x_0: Any
    posterior_coef_x_t: Any
    posterior_variance: Any
    posterior_log_variance: Any
    timesteps: Any

    @property
    def num_timesteps(self) -> int:
        """T, the number of steps."""
        return self.beta.shape[0]


def at(
    coef: Float[Array | np.ndarray, " T"],
    t: Int[Array | np.ndarray, " b"],
    like: Float[Array | np.ndarray, "b ..."],
) -> Float[Array, "b ..."]:
    """Looks up `coef` at each t, in float32, shaped to broadcast over images like `like`.

    Raises:
        UserError: t is no array of integers.
    """
    if getattr(getattr(t, "dtype", None), "kind", "none") not in "iu":
        raise UserError(
            "must be an array of integers, one step per image, for example jax.numpy.array([0]).",
            field="t", value=t,
        )
    return jnp.asarray(coef, jnp.float32)[t].reshape(t.shape + (1,) * (like.ndim - t.ndim))


def from_betas(beta: np.ndarray | Sequence[float]) -> Schedule:
    """The schedule with these betas; every coefficient is derived in float64.

    Args:
        beta: [T] variances in (0, 1), T >= 1. Only the last may be 1: it erases x_0, which can
            then still be predicted, but the noise cannot.

    Raises:
        UserError: beta is empty, not one-dimensional, or leaves that range.
    """
    try:
        beta = np.asarray(beta, np.float64)
    except (TypeError, ValueError):  # No numbers, or lists of different lengths.
        raise UserError(
            "must be a list of numbers", field="beta", value=beta,
            instead={"beta": [0.1, 0.2, 0.5]},
        ) from None
    if beta.ndim != 1 or beta.size == 0:
        raise UserError(
            f"beta has shape {beta.shape}; write a one-dimensional array of T >= 1 variances, "
            "for example np.linspace(1e-4, 0.02, 1000)."
        )
    may_be_1 = np.arange(beta.size) == beta.size - 1
    bad = np.flatnonzero(~((0 < beta) & ((beta < 1) | (may_be_1 & (beta == 1)))))
    if bad.size:
        raise UserError(
            "must lie in (0, 1); only the last beta may be 1.", field=f"beta[{bad[0]}]",
            value=float(beta[bad[0]]),
        )
    alpha_bar = np.cumprod(1 - beta)
    alpha_bar_prev = np.append(1.0, alpha_bar[:-1])
    posterior_variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
    borrowed = posterior_variance[1] if beta.size > 1 else beta[0]
    return Schedule(
        beta=beta,
        alpha_bar=alpha_bar,
        alpha_bar_prev=alpha_bar_prev,
        sqrt_alpha_bar=np.sqrt(alpha_bar),
        sqrt_one_minus_alpha_bar=np.sqrt(1 - alpha_bar),
        posterior_coef_x_0=np.sqrt(alpha_bar_prev) * beta / (1 - alpha_bar),
        posterior_coef_x_t=np.sqrt(1 - beta) * (1 - alpha_bar_prev) / (1 - alpha_bar),
        posterior_variance=posterior_variance,
        posterior_log_variance=np.log(np.append(borrowed, posterior_variance[1:])),
        timesteps=np.arange(beta.size, dtype=np.int32),
    )


def linear(num_timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """The schedule of the paper: beta grows linearly from `start` to `end` (Sec. 4).

    `start` and `end` are the betas whatever T is. "linear" of improved-diffusion is
    `rescaled_linear`; with 1000 steps the two are the same.
    """
    num_timesteps = _check(num_timesteps, start=start, end=end, last="end")
    return from_betas(np.linspace(start, end, num_timesteps))


def rescaled_linear(num_timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """The betas of `linear` for 1000 steps times 1000 / T, so that x_T is as noisy for other T.

    It is "linear" of improved-diffusion (Nichol and Dhariwal 2021). It is not "scaled_linear" of
    diffusers, which is `quadratic`.

    Raises:
        UserError: T is so small that a beta would leave (0, 1).
    """
    num_timesteps = _check(num_timesteps, start=start, end=end, last="end")
    scale = 1000 / num_timesteps
    if scale * start >= 1 or scale * end > 1:
        raise UserError(
            f"is too few: the betas are {scale:g} times {start:g} to {end:g}, and must lie in "
            "(0, 1)", field="num_timesteps", value=num_timesteps,
            instead={"num_timesteps": int(1000 * max(start, end)) + 1},
        )
    return from_betas(np.linspace(scale * start, scale * end, num_timesteps))


def quadratic(num_timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """The square root of beta grows linearly: `quad` of the authors' code.

    diffusers calls it "scaled_linear".
    """
    num_timesteps = _check(num_timesteps, start=start, end=end, last="end")
    return from_betas(np.linspace(start**0.5, end**0.5, num_timesteps) ** 2)


def constant(num_timesteps: int = 1000, beta: float = 0.02) -> Schedule:
    """The same beta at every step (`const` in the authors' code)."""
    num_timesteps = _check(num_timesteps, beta=beta)
    return from_betas(np.full(num_timesteps, beta))


def jsd(num_timesteps: int = 1000) -> Schedule:
    """beta = 1/T, 1/(T-1), ..., 1 (Sohl-Dickstein et al. 2015); x_T keeps nothing of x_0."""
    num_timesteps = _check(num_timesteps)
    return from_betas(1.0 / np.arange(num_timesteps, 0, -1))


def warmup(
    num_timesteps: int = 1000, start: float = 1e-4, end: float = 0.02, fraction: float = 0.1
) -> Schedule:
    """`end` everywhere but in the first `fraction` of the steps, a linear ramp from `start`.

    `warmup10` and `warmup50` of the authors' code are fractions 0.1 and 0.5.
    """
    num_timesteps = _check(num_timesteps, start=start, end=end)
    beta = np.full(num_timesteps, end)
    fraction = errors.number("fraction", fraction)
    if not 0 <= fraction <= 1:
        raise UserError(
            "must lie in 0..1", field="fraction", value=fraction, instead={"fraction": 0.1}
        )
    ramp = int(num_timesteps * fraction)
    beta[:ramp] = np.linspace(start, end, ramp)
    return from_betas(beta)


def cosine(num_timesteps: int = 1000) -> Schedule:
    """alpha_bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), beta at most 0.999.

    Nichol and Dhariwal 2021 (improved-diffusion), Eq. 17.
    """
    return _from_alpha_bar(
        lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2, num_timesteps
    )


def sigmoid(
    num_timesteps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0
) -> Schedule:
    """alpha_bar(u) falls as a sigmoid from `start` to `end` of width `tau`, beta <= 0.999.

    Jabri, Fleet and Chen 2022 (Algorithm 1); for images larger than 64x64. "sigmoid" of DDIM's
    code and of diffusers is another: there the betas follow a sigmoid. Pass those to `from_betas`.
    """
    start, end = errors.number("start", start), errors.number("end", end)
    tau = errors.number("tau", tau)

    def logistic(x):
        return 1 / (1 + np.exp(-x / tau))

    def alpha_bar(u):
        return (logistic(end) - logistic(u * (end - start) + start)) / (
            logistic(end) - logistic(start)
        )

    return _from_alpha_bar(alpha_bar, num_timesteps)


def _from_alpha_bar(alpha_bar, num_timesteps: int) -> Schedule:
    num_timesteps = _check(num_timesteps)
    u = np.arange(num_timesteps + 1) / num_timesteps
    return from_betas(np.minimum(1 - alpha_bar(u[1:]) / alpha_bar(u[:-1]), 0.999))


def _check(num_timesteps: Any, *, last: str = "", **betas: Any) -> int:
    """T, checked; raises UserError where these make no schedule.

    Only the beta named `last` may be 1.
    """
    num_timesteps = errors.whole_number("num_timesteps", num_timesteps)
    if num_timesteps < 1:
        raise UserError(
            "must be at least 1", field="num_timesteps", value=num_timesteps,
            instead={"num_timesteps": 1000},
        )
    for field, beta in betas.items():
        beta = errors.number(field, beta)
        may_be_1 = field == last or num_timesteps == 1
        if not 0 < beta <= 1 or (beta == 1 and not may_be_1):
            raise UserError(
                f"must lie in (0, 1{']' if may_be_1 else ')'}", field=field, value=beta,
                instead={field: 1e-4 if field == "start" else 0.02},
            )
    return num_timesteps


NAMED = {
    "linear": linear,
    "rescaled_linear": rescaled_linear,
    "quadratic": quadratic,
    "constant": lambda num_timesteps, start, end: constant(num_timesteps, end),
    "jsd": lambda num_timesteps, start, end: jsd(num_timesteps),
    "warmup10": warmup,
    "warmup50": lambda num_timesteps, start, end: warmup(num_timesteps, start, end, 0.5),
    "cosine": lambda num_timesteps, start, end: cosine(num_timesteps),
    "sigmoid": lambda num_timesteps, start, end: sigmoid(num_timesteps),
}


def named(name: str, num_timesteps: int, start: float, end: float) -> Schedule:
    """The schedule of this name, a key of `NAMED`; not every one has a `start` and an `end`.

    Raises:
        UserError: the name is unknown, or a number makes no schedule.
    """
    check_known("schedule", name, NAMED)
    return NAMED[name](num_timesteps, start, end)


def respace(schedule: Schedule, timesteps: Sequence[int] | np.ndarray) -> Schedule:
    """The chain that visits only `timesteps`, its betas re-derived from alpha_bar in float64.

    The marginals q(x_t | x_0) at the visited steps stay what they were, and the network still
    gets the original t (Nichol and Dhariwal 2021, Sec. 4).

    Args:
        schedule: the full schedule, as host arrays.
        timesteps: increasing indices into it, at least one.

    Raises:
        UserError: `timesteps` is empty, leaves 0..T-1, or does not increase.
    """
    timesteps = np.asarray(timesteps)
    if timesteps.ndim != 1 or not np.issubdtype(timesteps.dtype, np.integer):
        timesteps = np.array(errors.whole_numbers(
            "timesteps", timesteps, low=0, high=schedule.num_timesteps - 1
        ), np.int64)
    inside = timesteps.size and 0 <= timesteps[0] and timesteps[-1] < schedule.num_timesteps
    if not inside or np.any(np.diff(timesteps) <= 0):
        num_timesteps = schedule.num_timesteps
        raise UserError(
            f"must increase within 0..{num_timesteps - 1}", field="timesteps",
            value=timesteps.tolist(),
            instead={"timesteps": evenly_spaced(num_timesteps, min(3, num_timesteps)).tolist()},
        )
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)[timesteps]
    respaced = from_betas(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
    return respaced.replace(timesteps=np.asarray(schedule.timesteps)[timesteps])


def evenly_spaced(num_timesteps: int, num_steps: int) -> np.ndarray:
    """`num_steps` different indices spread evenly over 0..T-1, both ends included.

    A single step is the last, T - 1, where the chain starts.

    Raises:
        UserError: num_steps leaves 1..T.
    """
    check_num_steps(num_timesteps, num_steps)
    if num_steps == 1:
        return np.array([num_timesteps - 1])
    return np.round(np.linspace(0, num_timesteps - 1, num_steps)).astype(np.int64)


def check_num_steps(num_timesteps: int, num_steps: int) -> None:
    """Raises UserError where T steps do not have so many."""
    if not 1 <= num_steps <= num_timesteps:
        raise UserError(
            f"must lie in 1..{num_timesteps}, the steps of the schedule", field="num_steps",
            value=num_steps, instead={"num_steps": min(50, num_timesteps)},
        )


def half_log_snr(schedule: Schedule, t: float | ArrayLike) -> float | np.ndarray:
    """lambda = log(signal / noise) = 0.5 log(alpha_bar / (1 - alpha_bar)) at fractional t.

    lambda falls with t. Between two steps it is linear in t.

    Args:
        schedule: as host arrays.
        t: in units of `schedule.timesteps`, between its first and last.

    Raises:
        UserError: the last beta is 1, so lambda has no end.
    """
    return np.interp(t, schedule.timesteps, half_log_snr_table(schedule))


def t_at_half_log_snr(schedule: Schedule, half_log_snr: float | ArrayLike) -> float | np.ndarray:
    """The fractional t with this lambda; the inverse of `half_log_snr`."""
    return np.interp(-np.asarray(half_log_snr), -half_log_snr_table(schedule), schedule.timesteps)


def half_log_snr_table(schedule: Schedule) -> Float[np.ndarray, " T"]:
    """lambda at every step of the schedule, falling, in float64.

    Raises:
        UserError: the last beta is 1, so lambda has no end.
    """
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)
    if alpha_bar[-1] == 0:
        raise UserError(
            f"a schedule whose last beta is {schedule.beta[-1]:g} keeps nothing of x_0 at its "
            "end, so the solvers have no level to start from; use another schedule, for example "
            "schedule.linear(), or the ancestral chain."
        )
    return 0.5 * (np.log(alpha_bar) - np.log1p(-alpha_bar))
