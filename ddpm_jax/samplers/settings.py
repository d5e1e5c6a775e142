"""How to sample: the samplers by name, `Settings`, and the chain that settings describe."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax

from ddpm_jax.diffusion import process
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError
from ddpm_jax.samplers import dpm_solver
from ddpm_jax.samplers import ddim as ddim_lib
from ddpm_jax.samplers import heun as heun_lib
from ddpm_jax.samplers import steps as steps_lib
from ddpm_jax.samplers.tableau import Plan

NAMED = {
    "dpm_solver": dpm_solver.dpm_solver,
    "dpm_solver_2": functools.partial(dpm_solver.dpm_solver, order=2),
    "dpm_solver_pp": dpm_solver.dpm_solver_pp,
    "dpm_solver_pp_3": functools.partial(dpm_solver.dpm_solver_pp, order=3),
    "dpm_solver_pp_sde": functools.partial(dpm_solver.dpm_solver_pp, sde=True),
    "heun": heun_lib.heun,
}
SAMPLERS = ("ancestral", "ddim", *NAMED)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample, hashable.

    Attributes:
        sampler: "ancestral" (Ho et al. 2020, Algorithm 2), "ddim" (Song, Meng and Ermon 2021)
            or one of `settings.NAMED`.
        num_steps: network calls an image; None is all steps of the schedule, which the
            solvers need to be told.
        eta: noise of "ddim", 0 (none) to 1 (as much as the ancestral chain).
        grid: which steps "ancestral" and "ddim" visit where they are fewer: "uniform",
            "quadratic", "trailing", section counts such as "10,10,20" or "ddim50", or the
            indices themselves; see `steps.named`.
        clip: keep the predicted x_0 in [-1, 1] at every step.
        guidance: scale of classifier-free guidance towards the label; 1 is none.
        guidance_interval: first and last step t at which to guide; () is every step.
        rederive_eps: let eps follow the x_0 that was clipped; False keeps the network's, as
            diffusers does. For "ddim", where x_0 is changed at all.
        dynamic_threshold: percentile of `process.dynamic_threshold` as a fraction, such as
            0.995, by which x_0 is divided before clipping; 0 is off.
    """

    sampler: str = "ancestral"
    num_steps: int | None = None
    eta: float = 0.0
    grid: str | tuple[int, ...] = "uniform"
    clip: bool = True
    guidance: float = 1.0
    guidance_interval: tuple[float, ...] = ()
    rederive_eps: bool = True
    dynamic_threshold: float = 0.0

    @property
    def by_grid(self) -> bool:
        """Whether the chain visits whole steps of the schedule."""
        return self.sampler in ("ancestral", "ddim")

    @property
    def denoised_fn(self) -> Callable[[jax.Array], jax.Array] | None:
        """The hook on x_0 that `dynamic_threshold` asks for."""
        if not self.dynamic_threshold:
            return None
        return functools.partial(process.dynamic_threshold, percentile=self.dynamic_threshold)

    def check(self, denoised_fn: Callable[[jax.Array], jax.Array] | None = None) -> None:
        """Raises ValueError where a choice, or the hook on x_0, is unknown or has no effect."""
        if self.sampler not in SAMPLERS:
            raise UserError(
                f"sampler={self.sampler!r} is not known; use one of {', '.join(SAMPLERS)}."
            )
        if not 0 <= self.eta <= 1 or (self.eta and self.sampler != "ddim"):
            raise UserError(
                f"eta={self.eta} must lie in 0..1, and is for sampler='ddim' alone; write eta=0."
            )
        if not self.by_grid and self.grid != "uniform":
            raise UserError(
                f"grid={self.grid!r} is for sampler='ancestral' and 'ddim'; {self.sampler!r} has "
                "levels of its own: write grid='uniform'."
            )
        if not self.by_grid and not self.num_steps:
            raise UserError(
                f"sampler={self.sampler!r} needs num_steps, the network calls an image; write "
                "such as num_steps=21."
            )
        if self.guidance < 0:
            raise UserError(
                f"guidance={self.guidance} must be at least 0; 1 is no guidance, write such as "
                "guidance=2.0."
            )
        interval = self.guidance_interval
        if interval and (len(interval) != 2 or interval[0] > interval[1] or self.guidance == 1):
            raise UserError(
                f"guidance_interval={interval} must be the first and the last step to guide at, "
                "with guidance other than 1; write such as guidance_interval=(100, 700)."
            )
        if not 0 <= self.dynamic_threshold <= 1:
            raise UserError(
                f"dynamic_threshold={self.dynamic_threshold} must lie in 0..1, a fraction; write "
                "such as dynamic_threshold=0.995, or 0 for none."
            )
        if denoised_fn is not None and self.dynamic_threshold:
            raise UserError(
                f"dynamic_threshold={self.dynamic_threshold} takes the place of denoised_fn; "
                "write one of them."
            )
        if not (denoised_fn is None or callable(denoised_fn) and isinstance(denoised_fn, Hashable)):
            raise UserError(
                f"denoised_fn={denoised_fn!r} must be a hashable function x_0 -> x_0; write such "
                "as denoised_fn=ddpm_jax.solvers.dynamic_threshold."
            )
        changed = self.clip or self.dynamic_threshold or denoised_fn is not None
        if not self.rederive_eps and not (self.sampler == "ddim" and changed):
            raise UserError(
                f"rederive_eps=False is for sampler='ddim' whose x_0 is clipped or thresholded; "
                f"with sampler={self.sampler!r} and clip={self.clip} it has no effect: write "
                "rederive_eps=True."
            )

    def num_calls(self, schedule: schedule_lib.Schedule) -> int:
        """Network calls an image, on this schedule."""
        return chain_of(self, schedule)[2]


def chain_of(settings: Settings, schedule: schedule_lib.Schedule) -> tuple[Any, Any, int]:
    """(the chain's schedule or the solver's plan, the full schedule if respaced, calls)."""
    if not settings.by_grid:
        plan = named(settings.sampler, schedule, settings.num_steps)
        return plan, None, plan.num_calls
    if not settings.num_steps and settings.grid == "uniform":
        return schedule, None, schedule.num_timesteps
    steps = steps_lib.named(settings.grid, schedule.num_timesteps, settings.num_steps or None)
    return schedule_lib.respace(schedule, steps), schedule, len(steps)


def reverse(
    settings: Settings, diffusion, schedule, full, denoise_fn, denoised_fn=None
) -> Callable[[jax.Array, jax.Array], process.Prediction]:
    """(x_t, t) -> Prediction, with the step that "ancestral" or "ddim" takes from x_t.

    Args:
        settings: one of these two.
        diffusion: `process.Parameterization`.
        schedule, full: as of `process.predict_fn`.
        denoise_fn: (x_t, t) -> the network's output.
        denoised_fn: as of `process.predict`.
    """
    predict_fn = process.predict_fn(
        schedule, denoise_fn, full=full, mean=diffusion.mean, variance=diffusion.variance,
        clip=settings.clip, denoised_fn=denoised_fn, rederive_eps=settings.rederive_eps,
    )
    if settings.sampler == "ddim":
        return ddim_lib.ddim_fn(schedule, predict_fn, settings.eta)
    return predict_fn


def named(name: str, schedule: Schedule, num_steps: int) -> Plan:
    """The plan of the solver called `name` (a key of `NAMED`) with `num_steps` calls.

    Raises:
        ValueError: the name is unknown, or as that solver does.
    """
    if name not in NAMED:
        raise UserError(f"solver={name!r} is not known; use one of {', '.join(NAMED)}.")
    return NAMED[name](schedule, num_steps)
