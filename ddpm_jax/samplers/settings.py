"""The table of samplers, and `Settings`: how to sample."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax

from ddpm_jax import errors
from ddpm_jax.diffusion import process
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError, check_known
from ddpm_jax.samplers import ddim, dpm_solver, heun, reverse_chain, unipc
from ddpm_jax.samplers.reverse_chain import StepChain
from ddpm_jax.samplers.tableau import PlanChain, Solver

# Every sampler by its name. A new one is a file and a line here.
SAMPLERS = {
    "ancestral": reverse_chain.ANCESTRAL,
    "ddim": ddim.DDIM,
    "dpm_solver": dpm_solver.DPM_SOLVER,
    "dpm_solver_2": dpm_solver.DPM_SOLVER_2,
    "dpm_solver_pp": dpm_solver.DPM_SOLVER_PP,
    "dpm_solver_pp_3": dpm_solver.DPM_SOLVER_PP_3,
    "dpm_solver_pp_sde": dpm_solver.DPM_SOLVER_PP_SDE,
    "unipc": unipc.UNIPC,
    "unipc_bh1": unipc.UNIPC_BH1,
    "unipc_3": unipc.UNIPC_3,
    "unipc_3_bh1": unipc.UNIPC_3_BH1,
    "heun": heun.HEUN,
}
SOLVERS = tuple(name for name, sampler in SAMPLERS.items() if isinstance(sampler, Solver))
# Settings that some samplers read and others have no use for.
SPECIAL = frozenset().union(*(sampler.uses for sampler in SAMPLERS.values()))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample: the sampler, its number of steps, what is done to x_0. Hashable.

    Attributes:
        sampler: a key of `SAMPLERS`: "ancestral" (Ho et al. 2020, Algorithm 2), "ddim" (Song,
            Meng and Ermon 2021), or one of `SOLVERS`.
        num_steps: network calls per image. None or 0 is all steps of the schedule; solvers need
            a number.
        eta: noise of "ddim", 0 (none) to 1 (as much as the ancestral chain).
        grid: which steps "ancestral" and "ddim" visit if they visit fewer than all: "uniform",
            "quadratic", "trailing", section counts, for example "10,10,20" or "ddim50", or the
            indices themselves; see `steps.named`.
        clip: keep the predicted x_0 in [-1, 1] at every step.
        guidance: scale of guidance, towards the label or away from a worse model; 1 is none.
        guidance_interval: first and last step t at which to guide; () is every step.
        rederive_eps: recompute eps from the clipped x_0; False keeps the network's, as diffusers
            does. For "ddim", and only where x_0 is clipped or thresholded.
        dynamic_threshold: percentile of `process.dynamic_threshold` as a fraction, for example
            0.995, by which x_0 is divided before clipping; 0 is off.
        guidance_rescale: 0..1, how far a guided output gets back its standard deviation, as of
            `guidance.moved`.
        s_churn: noise that "heun" adds before its steps, `heun.heun`; 0 is none.
        s_min: the lowest sigma, noise over signal, at which it does.
        s_max: the highest; 0 is no limit.
        s_noise: factor of that noise.
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
    guidance_rescale: float = 0.0
    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = 0.0
    s_noise: float = 1.0

    def __post_init__(self):
        """Gives each field its type; 0 steps become None.

        Raises:
            UserError: a field cannot have the type.
        """
        for field in ("eta", "guidance", "guidance_rescale", "dynamic_threshold", *heun.CHURN):
            object.__setattr__(self, field, errors.number(field, getattr(self, field)))
        for field in ("clip", "rederive_eps"):
            object.__setattr__(self, field, errors.flag(field, getattr(self, field)))
        if self.num_steps is not None:
            num_steps = errors.whole_number("num_steps", self.num_steps)
            object.__setattr__(self, "num_steps", num_steps or None)
        interval = errors.numbers("guidance_interval", self.guidance_interval)
        object.__setattr__(self, "guidance_interval", interval)
        if not isinstance(self.grid, str):
            object.__setattr__(self, "grid", errors.whole_numbers("grid", self.grid))

    @property
    def by_grid(self) -> bool:
        """Whether the chain visits whole steps of the schedule."""
        return not isinstance(SAMPLERS.get(self.sampler), Solver)

    @property
    def denoised_fn(self) -> Callable[[jax.Array], jax.Array] | None:
        """The function applied to x_0 for `dynamic_threshold`, or None."""
        if not self.dynamic_threshold:
            return None
        return functools.partial(process.dynamic_threshold, percentile=self.dynamic_threshold)

    def with_sampler(self, name: str, num_steps: int | None) -> "Settings":
        """These settings with another sampler; those that it does not read become the defaults.

        Raises:
            ValueError: no sampler has this name.
        """
        check_known("sampler", name, SAMPLERS)
        unread = {field: getattr(Settings, field) for field in SPECIAL - SAMPLERS[name].uses}
        return dataclasses.replace(self, sampler=name, num_steps=num_steps, **unread)

    def check(self, denoised_fn: Callable[[jax.Array], jax.Array] | None = None) -> None:
        """Raises ValueError where a setting is out of range or has no effect.

        Args:
            denoised_fn: a function of the user's own on x_0, or None.
        """
        check_known("sampler", self.sampler, SAMPLERS)
        self._check_read()
        self._check_guidance()
        self._check_x_0(denoised_fn)

    def _check_read(self):
        """That the sampler reads the special settings that are not at their defaults."""
        ddim.check_eta(self.eta)
        uses = SAMPLERS[self.sampler].uses
        for field in sorted(SPECIAL - uses):
            if getattr(self, field) != getattr(Settings, field):
                readers = (name for name, sampler in SAMPLERS.items() if field in sampler.uses)
                raise UserError(
                    f"is for {' and '.join(map(repr, readers))} alone, and has no effect with "
                    "{sampler}", field=field, value=getattr(self, field),
                    given={"sampler": self.sampler}, instead={field: getattr(Settings, field)},
                )
        if not self.s_churn and any(
            getattr(self, field) != getattr(Settings, field) for field in heun.CHURN
        ):
            raise UserError(
                "is 0, so {s_min}, {s_max} and {s_noise} have no effect", field="s_churn",
                value=self.s_churn, given={name: getattr(self, name) for name in heun.CHURN},
                instead={"s_churn": 10.0},
            )
        if not self.by_grid and not self.num_steps:
            raise UserError(
                "needs num_steps, the network calls per image",
                field="sampler", value=self.sampler, instead={"num_steps": 21},
            )

    def _check_guidance(self):
        if self.guidance < 0:
            raise UserError(
                "must be at least 0, where 1 is no guidance",
                field="guidance", value=self.guidance, instead={"guidance": 2.0},
            )
        interval = self.guidance_interval
        if interval and (len(interval) != 2 or interval[0] > interval[1] or self.guidance == 1):
            raise UserError(
                "must be the first and the last step to guide at, with guidance other than 1",
                field="guidance_interval", value=interval,
                instead={"guidance_interval": (100, 700)},
            )
        rescale = self.guidance_rescale
        if not 0 <= rescale <= 1 or rescale and self.guidance == 1:
            raise UserError(
                "must lie in 0..1, and be 0 without guidance", field="guidance_rescale",
                value=rescale, instead={"guidance_rescale": 0.0, "guidance": 3.0},
            )

    def _check_x_0(self, denoised_fn):
        """What is done to the predicted x_0."""
        threshold = self.dynamic_threshold
        if not 0 <= threshold <= 1:
            raise UserError(
                "must lie in 0..1, a fraction, where 0 is none",
                field="dynamic_threshold", value=threshold, instead={"dynamic_threshold": 0.995},
            )
        if denoised_fn is not None and threshold:
            raise UserError(
                "takes the place of denoised_fn; write one of them.",
                field="dynamic_threshold", value=threshold,
            )
        if not (denoised_fn is None or callable(denoised_fn) and isinstance(denoised_fn, Hashable)):
            raise UserError(
                "must be a hashable function x_0 -> x_0, for example jax.numpy.tanh.",
                field="denoised_fn", value=denoised_fn,
            )
        untouched = not self.clip and not threshold and denoised_fn is None
        if untouched and not self.rederive_eps:
            raise UserError(
                "has no effect where x_0 is neither clipped nor thresholded",
                field="rederive_eps", value=self.rederive_eps, instead={"rederive_eps": True},
            )

    def chain(self, schedule: Schedule) -> StepChain | PlanChain:
        """The chain that these settings describe, on the schedule that the network knows.

        Raises:
            ValueError: the steps asked for do not fit the schedule.
        """
        return SAMPLERS[self.sampler].chain(schedule, self)

    def num_calls(self, schedule: Schedule) -> int:
        """Network calls per image on this schedule."""
        return self.chain(schedule).num_calls


def check_is_settings(settings: Any) -> None:
    """Raises UserError where something else stands in the place of a `Settings`."""
    if not isinstance(settings, Settings):
        raise UserError(
            "must be a ddpm_jax.samplers.Settings; write Settings('ddim', num_steps=50).",
            field="settings", value=settings,
        )
