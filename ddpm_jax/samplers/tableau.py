"""Solvers as tables: what each does at every network call, and the one scan that runs them.

A solver works between noise levels of its own choice, at fractional t. In its terms
x_t = signal x_0 + sigma eps, lambda = log(signal / sigma) is half the log-SNR, and it only
adds up the network's outputs, with weights known before the chain starts. So a solver is a
function from a schedule to a `Plan`, in float64 on the host, and `solve` runs any plan.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ddpm_jax.diffusion import randomness
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import (
    MEANS_OF_LEVELS, Images, Parameterization, split_output, thresholded,
)
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError
from ddpm_jax.samplers.reverse_chain import Trajectory, asked_for


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


LOWEST_HALF_LOG_SNR = -5.1


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
        plan: such as `dpm_solver.dpm_solver_pp(schedule, 20)`.
        denoise_fn: (x_t, t [b] float32) -> the network's output; t is not whole.
        x_T: [b, h, w, c] standard normal.
        rngs: [b] keys; the noise of call i is drawn from `fold_in(rngs[j], i)`. Not used by
            plans without noise, all but that of
            `dpm_solver.dpm_solver_pp(..., sde=True)`.
        mean: what the output is: "eps", "x_0" or "v".
        variance: as of `process.predict`; if learned, the second half of the output's
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
    if mean not in MEANS_OF_LEVELS:
        raise UserError(
            f"mean={mean!r} cannot go with a solver, which needs the noise between whole "
            "steps; use a network of mean 'eps', 'x_0' or 'v', or the ancestral chain."
        )

    trajectory = asked_for(trajectory, 0, plan.num_calls)

    def predict(x, call):
        output, _ = split_output(denoise_fn(x, jnp.full(x.shape[:1], call.t)), variance)
        return thresholded(
            output, x, call.signal, call.sigma, mean, clip=clip, denoised_fn=denoised_fn
        )

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
            rngs_z = randomness.fold_each(rngs, i)
            x = x + call.spread * randomness.standard_normal(rngs_z, x.shape[1:])
        return (x, jnp.where(call.commit, x, start), said[:-1], kept), None

    calls = jax.tree.map(
        lambda a: jnp.asarray(a, None if a.dtype == bool else jnp.float32), plan
    )
    nothing = (jnp.zeros(x_T.shape),) * (plan.weights.shape[1] - 1)
    numbers = jnp.arange(plan.num_calls, dtype=jnp.int32)
    kept = Trajectory.empty(trajectory.size, x_T) if trajectory.size else None
    (x, _, _, kept), _ = jax.lax.scan(step, (x_T, x_T, nothing, kept), (numbers, calls))
    return x if kept is None else (x, kept)


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

    def run(
        self,
        denoise_fn: Callable[[Array, Array], Array],
        diffusion: Parameterization,
        x_T: Images,
        rngs: Key[Array, " b"],
        *,
        denoised_fn: Callable[[Array], Array] | None = None,
        trajectory: Sequence[int] = (),
        on_step: Callable[[Array], None] | None = None,
    ) -> Images | tuple[Images, Trajectory]:
        """Images from noise, by `solve`; arguments as of `reverse_chain.StepChain.run`."""
        return solve(
            self.plan, denoise_fn, x_T, rngs, mean=diffusion.mean, variance=diffusion.variance,
            clip=self.settings.clip, denoised_fn=denoised_fn or self.settings.denoised_fn,
            trajectory=trajectory, on_step=on_step,
        )


@dataclasses.dataclass(frozen=True)
class Solver:
    """A sampler that goes between noise levels of its own, by a `Plan`.

    Attributes:
        plan: (schedule, num_steps) -> its plan with so many network calls.
        uses: the settings among `settings.SPECIAL` that it reads.
    """

    plan: Callable[[Schedule, int], Plan]
    uses: frozenset[str] = frozenset()

    def chain(self, schedule: Schedule, settings: Any) -> PlanChain:
        """The chain on this schedule.

        Raises:
            ValueError: the solver cannot make so many calls, or the schedule has no levels.
        """
        return PlanChain(self.plan(schedule, settings.num_steps), settings)


def half_log_snr_ends(schedule: Schedule, num_levels: int) -> tuple[float, float]:
    """(lambda of most noise, of least)."""
    table = schedule_lib.half_log_snr_table(schedule)
    if num_levels < 1 or (num_levels > 1 and table.size == 1):
        raise UserError(
            f"num_levels={num_levels} is not possible: a schedule of T={table.size} has "
            f"{'one level' if table.size == 1 else 'at least one'}; write num_levels=1."
        )
    return min(max(table[-1], LOWEST_HALF_LOG_SNR), table[0]), table[0]


def half_log_snr_levels(schedule: Schedule, t: np.ndarray) -> np.ndarray:
    """lambda of levels given by t, from the noise to the data."""
    return schedule_lib.half_log_snr(schedule, t)[::-1]


def signal_at(half_log_snr: float | np.ndarray) -> float | np.ndarray:
    return 1 / np.sqrt(1 + np.exp(-2 * half_log_snr))


def sigma_at(half_log_snr: float | np.ndarray) -> float | np.ndarray:
    return 1 / np.sqrt(1 + np.exp(2 * half_log_snr))


def call_row(half_log_snr, keep, weights, *, commit=True, says_x_0=False, spread=0.0) -> dict:
    """One row of a plan: a call at this lambda, and the x after it."""
    return dict(
        half_log_snr=half_log_snr, keep=keep, weights=weights, commit=commit,
        says_x_0=says_x_0, spread=spread,
    )


def x_0_row(half_log_snr: float) -> dict:
    """The step to lambda = infinity, of order 1: x becomes x_0."""
    return call_row(half_log_snr, 0.0, [1.0], says_x_0=True)


def plan_of_rows(schedule: Schedule, calls: list[dict]) -> Plan:
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
