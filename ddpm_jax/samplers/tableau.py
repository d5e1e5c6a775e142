"""Solvers as tables: what each does at every network call, and the one scan that runs them.

A solver works between noise levels of its own choice, at fractional t. In its terms
x_t = signal x_0 + sigma eps, and lambda = log(signal / sigma) is half the log-SNR. It only takes
weighted sums of the network's predictions, and the weights are known before the chain starts. So a
solver is a function from a schedule to a `Plan`, computed in float64 on the host, and `solve` runs
any plan. `Solver` describes one in the table of samplers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ddpm_jax.diffusion import randomness, self_conditioning
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import (
    Images, Parameterization, check_mean_of_levels, split_output, thresholded,
)
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError, check_floats
from ddpm_jax.samplers.reverse_chain import Trajectory, checked_trajectory


@flax.struct.dataclass
class Plan:
    """A solver on a schedule: what to do at each of its n network calls, in order.

    The network is called at x, which is at the level (t, signal, sigma). Then x becomes
    keep * (the x at the start of the step) + the sum of `weights` * (the predictions of the last
    k calls, latest first) + spread * z.

    Attributes:
        t: [n] fractional step that the network gets.
        signal: [n] scale of x_0 in x, sqrt(alpha_bar).
        sigma: [n] scale of the noise in x, sqrt(1 - alpha_bar).
        uses_x_0: [n] bool; the prediction used is x_0, else eps.
        keep: [n] weight of the x at the start of the step.
        weights: [n, k] of the predictions of the last k calls.
        commit: [n] bool; the next step starts from the new x.
        spread: [n] standard deviation of fresh noise; None if no call adds any.
    """

    t: Any
    signal: Any
    sigma: Any
    uses_x_0: Any
    keep: Any
    weights: Any
    commit: Any
    spread: Any

    @property
    def num_calls(self) -> int:
        """Network calls per image."""
        return self.t.shape[0]


LOWEST_HALF_LOG_SNR = -5.1  # Chains start here, or at the last step if that is less noisy.


def solve(
    plan: Plan,
    denoise_fn: Callable[..., Array],
    x_T: Images,
    rngs: Key[Array, " b"],
    *,
    mean: str = "eps",
    variance: str = "fixed_large",
    self_condition: bool = False,
    clip: bool = True,
    denoised_fn: Callable[[Array], Array] | None = None,
    trajectory: Sequence[int] = (),
    on_step: Callable[[Array], None] | None = None,
) -> Images | tuple[Images, Trajectory]:
    """Runs a plan: one scan that calls the network `plan.num_calls` times.

    Args:
        plan: for example `dpm_solver.dpm_solver_pp(schedule, 20)`.
        denoise_fn: (x_t, t [b] float32) -> the network's output; t is fractional.
        x_T: [b, h, w, c] standard normal.
        rngs: [b] keys; image j draws the noise of call i from `fold_in(rngs[j], i)`. Plans without
            noise do not use them: all but `dpm_solver.dpm_solver_pp(..., sde=True)` and
            `heun.heun(..., s_churn=...)`.
        mean: what the output is: "eps", "x_0" or "v".
        variance: as of `process.predict`; if learned, the second half of the output's
            channels is dropped.
        self_condition: `denoise_fn` also takes the x_0 of the last call, zeros at the start.
        clip: keep x_0 in [-1, 1] at every call; eps is recomputed from it.
        denoised_fn: applied to x_0 before clipping, for example `process.dynamic_threshold`.
        trajectory: calls at which to keep x and the predicted x_0, by the number of calls
            left after them: 0 is the last. Calls within a step count too.
        on_step: called inside the scan with the number of calls left after this one; for
            progress reports.

    Returns:
        x_0: [b, h, w, c] float32, in [-1, 1] if clipped; x at the first noise level if the
        plan does not end with x_0. With `trajectory` also the `Trajectory`, in the order
        requested.

    Raises:
        ValueError: `mean` is not one of these, or trajectory leaves the plan.
    """
    check_floats(x_T=x_T)
    check_mean_of_levels(mean, "a solver", "the ancestral chain")
    trajectory = checked_trajectory(trajectory, 0, plan.num_calls)

    def predict(x, call, last):
        output, _ = split_output(denoise_fn(x, jnp.full(x.shape[:1], call.t), *last), variance)
        return thresholded(
            output, x, call.signal, call.sigma, mean, clip=clip, denoised_fn=denoised_fn
        )

    def step(carry, row):
        x, start, predictions, last, kept = carry
        i, call = row
        left = plan.num_calls - 1 - i
        if on_step is not None:
            on_step(left)
        x_0, eps = predict(x, call, last)
        last = self_conditioning.after(x_0, last)
        if kept is not None:
            kept = kept.keep(trajectory == left, x, x_0)
        predictions = (jnp.where(call.uses_x_0, x_0, eps), *predictions)
        x = _after_call(i, call, start, predictions, rngs)
        return (x, jnp.where(call.commit, x, start), predictions[:-1], last, kept), None

    calls = jax.tree.map(
        lambda a: jnp.asarray(a, None if a.dtype == bool else jnp.float32), plan
    )
    nothing = (jnp.zeros(x_T.shape),) * (plan.weights.shape[1] - 1)
    numbers = jnp.arange(plan.num_calls, dtype=jnp.int32)
    kept = Trajectory.empty(trajectory.size, x_T) if trajectory.size else None
    last = self_conditioning.nothing(x_T, self_condition)
    carry = (x_T, x_T, nothing, last, kept)
    (x, *_, kept), _ = jax.lax.scan(step, carry, (numbers, calls))
    return x if kept is None else (x, kept)


def _after_call(i, call, start, predictions, rngs):
    """x after row i of a plan: from where its step started, along the latest predictions."""
    x = call.keep * start + sum(
        weight * prediction
        for weight, prediction in zip(call.weights, predictions, strict=True)
    )
    if call.spread is None:
        return x
    rngs_z = randomness.fold_each(rngs, i)
    return x + call.spread * randomness.standard_normal(rngs_z, x.shape[1:])


@flax.struct.dataclass
class PlanChain:
    """The chain of a solver's plan; a pytree whose settings are static.

    Attributes:
        plan: the `Plan`.
        settings: the `settings.Settings`.
    """

    plan: Any
    settings: Any = flax.struct.field(pytree_node=False)

    @property
    def num_calls(self) -> int:
        """Network calls per image."""
        return self.plan.num_calls

    @property
    def timesteps(self) -> np.ndarray:
        """[n] the step t of each network call, in no order."""
        return np.asarray(self.plan.t)

    def run(
        self,
        denoise_fn: Callable[..., Array],
        diffusion: Parameterization,
        x_T: Images,
        rngs: Key[Array, " b"],
        *,
        self_condition: bool = False,
        denoised_fn: Callable[[Array], Array] | None = None,
        trajectory: Sequence[int] = (),
        on_step: Callable[[Array], None] | None = None,
    ) -> Images | tuple[Images, Trajectory]:
        """Draws images from noise by `solve`; arguments as of that."""
        return solve(
            self.plan, denoise_fn, x_T, rngs, mean=diffusion.mean, variance=diffusion.variance,
            self_condition=self_condition, clip=self.settings.clip,
            denoised_fn=denoised_fn or self.settings.denoised_fn, trajectory=trajectory,
            on_step=on_step,
        )


@dataclasses.dataclass(frozen=True)
class Solver:
    """A sampler that chooses its own noise levels and runs a `Plan`.

    Attributes:
        plan: (schedule, num_steps, **those that it reads) -> its plan with this many calls.
        uses: which of `settings.SPECIAL` it reads.
    """

    plan: Callable[..., Plan]
    uses: frozenset[str] = frozenset()

    def chain(self, schedule: Schedule, settings: Any) -> PlanChain:
        """The chain on this schedule.

        Raises:
            ValueError: the solver cannot make this many calls, or the schedule has no levels.
        """
        read = {name: getattr(settings, name) for name in self.uses}
        return PlanChain(self.plan(schedule, settings.num_steps, **read), settings)


def half_log_snr_ends(schedule: Schedule, num_levels: int) -> tuple[float, float]:
    """lambda at the noisiest level that a solver starts from, and at the first step.

    Raises:
        ValueError: the schedule does not have so many levels.
    """
    table = schedule_lib.half_log_snr_table(schedule)
    if num_levels < 1 or (num_levels > 1 and table.size == 1):
        raise UserError(
            f"is not possible: a schedule of T={table.size} has "
            f"{'one level' if table.size == 1 else 'at least one'}",
            field="num_levels", value=num_levels, instead={"num_levels": 1},
        )
    return min(max(table[-1], LOWEST_HALF_LOG_SNR), table[0]), table[0]


def half_log_snr_levels(schedule: Schedule, t: np.ndarray) -> np.ndarray:
    """lambda at increasing fractional t, in the order of sampling: from the noise to the data."""
    return schedule_lib.half_log_snr(schedule, t)[::-1]


def signal_at(half_log_snr: float | np.ndarray) -> float | np.ndarray:
    """sqrt(alpha_bar) at lambda."""
    return 1 / np.sqrt(1 + np.exp(-2 * half_log_snr))


def sigma_at(half_log_snr: float | np.ndarray) -> float | np.ndarray:
    """sqrt(1 - alpha_bar) at lambda."""
    return 1 / np.sqrt(1 + np.exp(2 * half_log_snr))


def call_row(half_log_snr, keep, weights, *, commit=True, uses_x_0=False, spread=0.0) -> dict:
    """One row of a plan: a call at this lambda, and the update of x after it."""
    return dict(
        half_log_snr=half_log_snr, keep=keep, weights=weights, commit=commit,
        uses_x_0=uses_x_0, spread=spread,
    )


def x_0_row(half_log_snr: float) -> dict:
    """The first-order step to lambda = infinity: x becomes x_0."""
    return call_row(half_log_snr, 0.0, [1.0], uses_x_0=True)


def plan_of_rows(schedule: Schedule, calls: list[dict]) -> Plan:
    """The plan of these rows (`call_row`), in order."""
    width = max(len(call["weights"]) for call in calls)
    columns = {
        name: np.array([call[name] for call in calls])
        for name in calls[0] if name != "weights"
    }
    half_log_snr, spread = columns.pop("half_log_snr"), columns.pop("spread")
    return Plan(
        t=schedule_lib.t_at_half_log_snr(schedule, half_log_snr),
        signal=signal_at(half_log_snr),
        sigma=sigma_at(half_log_snr),
        weights=np.array([
            call["weights"] + [0.0] * (width - len(call["weights"])) for call in calls
        ]),
        spread=spread if spread.any() else None,
        **columns,
    )
