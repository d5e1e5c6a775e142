"""The reverse chain on whole steps of a schedule: one `jax.lax.scan`.

It takes the schedule of the chain (respaced or not), a function `predict_fn(x_t, t) ->
Prediction`, the prior draw and one key per image, so that image i depends on its own key alone.
`StepSampler` describes a sampler that runs it, and `ANCESTRAL` is the first of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from ddpm_jax import errors
from ddpm_jax.diffusion import process, randomness, self_conditioning
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Images, Prediction
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError, check_floats
from ddpm_jax.samplers import steps


def reverse_step(prediction: Prediction, t: Array, rngs: Key[Array, " b"]) -> Array:
    """Draws x_{t-1} = mean + sigma_t z, with z of image i from rngs[i], and no noise at t = 0.

    If the prediction has no variance, x_{t-1} is its mean and nothing is drawn.
    """
    if prediction.log_variance is None:
        return prediction.mean
    z = randomness.standard_normal(rngs, prediction.mean.shape[1:])
    return prediction.mean + jnp.where(t > 0, jnp.exp(0.5 * prediction.log_variance), 0.0) * z


def waiting(
    predict_fn: Callable[..., Prediction], starts: Int[Array, " b"]
) -> Callable[..., Prediction]:
    """`predict_fn`, except that image i stays as it is until starts[i] steps are left.

    With it, images that were noised 0..T times go through one chain. A self-conditioned network
    is told zeros where an image starts.
    """
    def predict(x_t, t, *last):
        prediction = predict_fn(x_t, t, *last)
        waits = (t >= starts).reshape(-1, *(1,) * (x_t.ndim - 1))
        if last:
            prediction = prediction.replace(x_0=jnp.where(waits, 0.0, prediction.x_0))
        return prediction.replace(
            mean=jnp.where(waits, x_t, prediction.mean),
            log_variance=jax.tree.map(  # None stays None.
                lambda x: jnp.where(waits, -jnp.inf, x), prediction.log_variance
            ),
        )

    return predict


@flax.struct.dataclass
class Trajectory:
    """x_t and the predicted x_0 at chosen steps of a chain.

    Attributes:
        x_t: [k, b, h, w, c], the images before each of these steps.
        x_0: [k, b, h, w, c], the finished images that the network predicted there.
    """

    x_t: Any
    x_0: Any

    @classmethod
    def empty(cls, k: int, x: Images) -> "Trajectory":
        """Room for k steps of images like `x`."""
        return cls(*(jnp.zeros((k, *x.shape)) for _ in range(2)))

    def keep(self, here: Bool[Array, " k"], x_t: Images, x_0: Images) -> "Trajectory":
        """The trajectory with the images of this step in the places where `here`."""
        here = here.reshape(-1, *(1,) * x_t.ndim)
        return Trajectory(
            jnp.where(here, x_t, self.x_t), jnp.where(here, x_0, self.x_0)
        )


def checked_trajectory(trajectory: Sequence[int], stop: int, start: int) -> np.ndarray:
    """The steps of a trajectory as int32 [k], checked.

    Raises:
        ValueError: one is not in stop..start - 1.
    """
    trajectory = errors.whole_numbers("trajectory", trajectory)
    if trajectory and not (stop <= min(trajectory) and max(trajectory) < start):
        raise UserError(
            f"must lie in {stop}..{start - 1}, the steps of this chain.", field="trajectory",
            value=list(trajectory),
        )
    return np.array(trajectory, np.int32)


def ancestral(
    schedule: Schedule,
    predict_fn: Callable[..., Prediction],
    x_T: Images,
    rngs: Key[Array, " b"],
    *,
    self_condition: bool = False,
    start: int | None = None,
    stop: int = 0,
    trajectory: Sequence[int] = (),
    on_step: Callable[[Array], None] | None = None,
) -> Images | tuple[Images, Trajectory]:
    """Draws x_0 by the ancestral chain (Algorithm 2 of Ho, Jain and Abbeel 2020).

    x_{t-1} = mean + sigma_t z with z ~ N(0, I), and no noise at t = 0. Image i draws the noise of
    step t from `fold_in(rngs[i], t)`.

    Args:
        schedule: T steps; the scan calls the network once per step.
        predict_fn: (x_t, t [b] int32) -> Prediction.
        x_T: [b, h, w, c] standard normal; with `start` the images noised start times.
        rngs: [b] keys.
        self_condition: `predict_fn` also takes the last x_0, zeros at the start.
        start: number of noising steps to undo, 1..T; None is all T.
        stop: number of these to leave undone, 0..start - 1; the result is then noised stop times.
        trajectory: indices t, stop <= t < start, at which to keep x_t and the predicted x_0.
        on_step: called inside the scan with t, before the step; for progress reports.

    Returns:
        x_0: [b, h, w, c] float32, in [-1, 1] if the prediction clips; with `trajectory` also the
        `Trajectory`, in the order requested.

    Raises:
        ValueError: start, stop or trajectory leave the chain.
    """
    check_floats(x_T=x_T)
    start = schedule.num_timesteps if start is None else start
    if not 0 <= stop < start <= schedule.num_timesteps:
        raise UserError(
            f"start={start} and stop={stop} must be 0 <= stop < start <= "
            f"{schedule.num_timesteps}, the steps of the schedule."
        )
    trajectory = checked_trajectory(trajectory, stop, start)

    def step(carry, t):
        x_t, last, kept = carry
        if on_step is not None:
            on_step(t)
        prediction = predict_fn(x_t, jnp.full(x_t.shape[:1], t), *last)
        if kept is not None:
            kept = kept.keep(trajectory == t, x_t, prediction.x_0)
        rngs_z = randomness.fold_each(rngs, t)
        last = self_conditioning.after(prediction.x_0, last)
        return (reverse_step(prediction, t, rngs_z), last, kept), None

    kept = Trajectory.empty(trajectory.size, x_T) if trajectory.size else None
    t = jnp.arange(stop, start, dtype=jnp.int32)
    last = self_conditioning.nothing(x_T, self_condition)
    (x_0, _, kept), _ = jax.lax.scan(step, (x_T, last, kept), t, reverse=True)
    return x_0 if kept is None else (x_0, kept)


@flax.struct.dataclass
class StepChain:
    """A reverse chain on whole steps of a schedule; a pytree whose settings are static.

    Attributes:
        schedule: of the chain.
        full: the schedule that the network was trained with if `schedule` is a respacing of it,
            else None.
        sampler: the `StepSampler`.
        settings: the `settings.Settings`.
    """

    schedule: Any
    full: Any
    sampler: Any = flax.struct.field(pytree_node=False)
    settings: Any = flax.struct.field(pytree_node=False)

    @property
    def num_calls(self) -> int:
        """Network calls per image."""
        return self.schedule.num_timesteps

    @property
    def timesteps(self) -> np.ndarray:
        """[n] the step t of each network call, in no order."""
        return np.asarray(self.schedule.timesteps)

    def predict_fn(
        self,
        denoise_fn: Callable[..., Array],
        diffusion: process.Parameterization,
        denoised_fn: Callable[[Array], Array] | None = None,
    ) -> Callable[..., Prediction]:
        """(x_t, t) -> Prediction with the mean and variance of the sampler's step from x_t.

        Args:
            denoise_fn: (x_t, t) -> the network's output.
            diffusion: what the output means.
            denoised_fn: applied to x_0 before clipping; by default that of the settings.
        """
        predict_fn = process.predict_fn(
            self.schedule, denoise_fn, full=self.full, mean=diffusion.mean,
            variance=diffusion.variance, clip=self.settings.clip,
            denoised_fn=denoised_fn or self.settings.denoised_fn,
            rederive_eps=self.settings.rederive_eps,
        )
        return self.sampler.step(self.schedule, predict_fn, self.settings)

    def run(
        self,
        denoise_fn: Callable[..., Array],
        diffusion: process.Parameterization,
        x_T: Images,
        rngs: Key[Array, " b"],
        *,
        self_condition: bool = False,
        denoised_fn: Callable[[Array], Array] | None = None,
        trajectory: Sequence[int] = (),
        on_step: Callable[[Array], None] | None = None,
    ) -> Images | tuple[Images, Trajectory]:
        """Draws images from noise by `ancestral`; arguments as of that and of `predict_fn`."""
        return ancestral(
            self.schedule, self.predict_fn(denoise_fn, diffusion, denoised_fn), x_T, rngs,
            self_condition=self_condition, trajectory=trajectory, on_step=on_step,
        )


@dataclasses.dataclass(frozen=True)
class StepSampler:
    """A sampler that visits whole steps of the schedule: all of them, or those of a grid.

    Attributes:
        step: (schedule, predict_fn, settings) -> predict_fn whose mean and log-variance are those
            that this sampler draws x_{t-1} from.
        uses: which of `settings.SPECIAL` it reads.
    """

    step: Callable[..., Callable[..., Prediction]]
    uses: frozenset[str] = frozenset({"grid"})

    def chain(self, schedule: Schedule, settings: Any) -> StepChain:
        """The chain on this schedule.

        Raises:
            ValueError: the grid does not fit the schedule, as `steps.named` says.
        """
        if settings.grid == "uniform" and not settings.num_steps:
            return StepChain(schedule, None, self, settings)
        visited = steps.named(settings.grid, schedule.num_timesteps, settings.num_steps or None)
        return StepChain(schedule_lib.respace(schedule, visited), schedule, self, settings)

    def chain_from(self, t: int, schedule: Schedule, settings: Any) -> StepChain:
        """The chain from images noised t times, 1..T; on all steps it is `chain`.

        Raises:
            ValueError: the grid does not fit, as `steps.below` says.
        """
        chain = self.chain(schedule, settings)
        if chain.full is None:
            return chain
        visited = steps.below(settings.grid, schedule.num_timesteps, t, settings.num_steps)
        return StepChain(schedule_lib.respace(schedule, visited), schedule, self, settings)


# Its step is the one that `process.predict` gives.
ANCESTRAL = StepSampler(step=lambda schedule, predict_fn, settings: predict_fn)
