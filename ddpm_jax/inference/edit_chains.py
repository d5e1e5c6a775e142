"""What editing does to each picture, and the `pmap` that does it to many.

An edit is a function (reverse, rngs, *arrays) -> images of one device's share; `run` does it in
batches on every local device.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import errors
from ddpm_jax.diffusion import process, randomness
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.errors import UserError
from ddpm_jax.inference import batched_map, conditions, guided
from ddpm_jax.network import torso
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import parallel
from ddpm_jax.samplers import inpainting, reverse_chain
from ddpm_jax.samplers import ddim as ddim_lib
from ddpm_jax.samplers import settings as settings_lib
from ddpm_jax.samplers.settings import SAMPLERS, Settings


@dataclasses.dataclass(frozen=True)
class Reverse:
    """The reverse process that an edit runs.

    Attributes:
        schedule: of the chain, respaced or not.
        predict_fn: (x_t, t) -> Prediction, with the mean and variance of the sampler's step.
        self_condition: it also takes the last x_0.
        rows: of `inpainting.repaint`, for `hold` alone.
        num_calls: steps to run, or rows.
        on_step: as of `reverse_chain.ancestral`.
    """

    schedule: Schedule
    predict_fn: Callable[..., process.Prediction]
    self_condition: bool
    rows: inpainting.Rows | None
    num_calls: int
    on_step: Callable[[jax.Array], None] | None


def noised(schedule: Schedule, images: Any, rngs: jax.Array, start: Any) -> jax.Array:
    """Images after start[i] noising steps; the noise of image i does not depend on start."""
    rngs = randomness.fold_each(rngs, randomness.FORWARD)
    eps = randomness.standard_normal(rngs, images.shape[1:])
    x_t = process.q_sample(schedule, images, jnp.maximum(start - 1, 0), eps)
    return jnp.where((start > 0).reshape(-1, 1, 1, 1), x_t, images)


def mixture(reverse: Reverse, rngs, a, b, start, lam) -> jax.Array:
    """x_0 of the mixtures (1 - lam) x_t + lam x'_t of a and b noised start[i] times."""
    a, b = (noised(reverse.schedule, x, rngs, start) for x in (a, b))
    lam = lam.reshape(-1, 1, 1, 1)
    return reverse_chain.ancestral(
        reverse.schedule, reverse_chain.waiting(reverse.predict_fn, start), (1 - lam) * a + lam * b,
        randomness.fold_each(rngs, randomness.Z), self_condition=reverse.self_condition,
        start=reverse.num_calls, on_step=reverse.on_step,
    )


def encode(reverse: Reverse, rngs, x_0) -> jax.Array:
    """The x_T of x_0; without noise, so the keys are not used."""
    return ddim_lib.invert(
        reverse.schedule, reverse.predict_fn, x_0, self_condition=reverse.self_condition,
        on_step=reverse.on_step,
    )


def decode(reverse: Reverse, rngs, x_T) -> jax.Array:
    """The x_0 of x_T."""
    return reverse_chain.ancestral(
        reverse.schedule, reverse.predict_fn, x_T, rngs, self_condition=reverse.self_condition,
        on_step=reverse.on_step,
    )


def hold(reverse: Reverse, rngs, images, mask=None) -> jax.Array:
    """x_0 that keeps the images where the mask is True; without a mask, their grey."""
    rngs_x_T = randomness.fold_each(rngs, randomness.X_T)
    return inpainting.inpaint(
        reverse.rows, reverse.predict_fn, randomness.standard_normal(rngs_x_T, images.shape[1:]),
        randomness.fold_each(rngs, randomness.Z), images,
        inpainting.grey if mask is None else inpainting.masked(mask),
        self_condition=reverse.self_condition, on_step=reverse.on_step,
    )


def run(
    edit: Callable[..., jax.Array],
    trained: Trained,
    rngs: jax.Array,
    arrays: Sequence[np.ndarray],
    steps: reverse_chain.StepChain,
    *,
    rows: inpainting.Rows | None = None,
    num_calls: int | None = None,
    row_of: np.ndarray | None = None,
    labels: Any = None,
    vectors: Any = None,
    condition: Any = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """What `edit` makes of each image, float32 [n, h, w, c].

    Args:
        edit: one of this module.
        trained: parameters and what they need.
        rngs: [n], one key per image.
        arrays: [n, ...] each, what the edit takes.
        steps: of `step_chain`.
        rows: for `hold`.
        num_calls: the last steps of the chain to run; None is all of them, or all rows.
        row_of: [n], of several edits of one picture, which picture's labels, vectors and condition
            each takes; None is its own.
        labels, vectors, condition: as of `sample.sample`, for all or one for each picture; without
            labels there is no class.
        batch_size, progress: as of `sample.sample`.

    Raises:
        ValueError: the model does not take these labels, vectors or this condition, guidance has no
            effect, or its parameters do not fit.
    """
    trained_lib.check(trained)
    progress = errors.flag("progress", progress)
    model = trained.model
    row_of = np.arange(len(rngs)) if row_of is None else row_of
    model_kwargs = conditions.for_pictures(trained, row_of.max() + 1, labels, vectors, condition)
    guided.check(steps.settings, trained, model_kwargs, steps.timesteps)
    trained.diffusion.check(trained.schedule)
    trained_lib.check_params(trained)
    if num_calls is None:
        num_calls = rows.num_calls if rows else steps.num_calls
    chain = _pmap_chain(edit, model, trained.diffusion, num_calls, progress)
    return np.concatenate(list(batched_map.run(
        chain, (parallel.replicate(trained.params), steps, rows),
        lambda places: (
            rngs[places], tuple(array[places] for array in arrays),
            {name: x[row_of[places]] for name, x in model_kwargs.items()},
        ), len(rngs),
        batched_map.batch_size(trained, len(rngs), batch_size), num_steps=num_calls,
        progress=progress,
    )))


@functools.lru_cache(maxsize=64)
def _pmap_chain(edit, model, diffusion, num_calls, progress):
    """(params, StepChain, rows or None, keys, arrays, model_kwargs) -> images.

    The last three are [d, b, ...].
    """

    def chain(params, steps, rows, rngs, arrays, model_kwargs):
        denoise_fn = guided.denoise_fn(
            [model], [torso.cast(model, params)], model_kwargs, steps.settings,
            [diffusion.variance],
        )
        predict_fn = steps.predict_fn(denoise_fn, diffusion)
        report = batched_map.on_step(num_calls, progress)
        told = trained_lib.is_self_conditioned(model)
        reverse = Reverse(steps.schedule, predict_fn, told, rows, num_calls, report)
        return edit(reverse, rngs, *arrays)

    return parallel.pmap(chain, in_axes=(None, None, None, 0, 0, 0))


def step_chain(
    settings: Settings, schedule: Schedule, t: int | None = None
) -> reverse_chain.StepChain:
    """The chain of the settings, on whole steps of the schedule.

    Args:
        settings: the sampler and what goes with it.
        schedule: the one that the network was trained with.
        t: from images noised t times, 1..T; None is from x_T.

    Raises:
        ValueError: the settings are wrong, or those of a solver.
    """
    settings_lib.check_is_settings(settings)
    settings.check()
    if not settings.by_grid:
        raise UserError(
            "cannot edit pictures, because its levels are not steps of the schedule; write "
            "sampler='ancestral' or 'ddim'.", field="sampler", value=settings.sampler,
        )
    if t is None:
        return settings.chain(schedule)
    return SAMPLERS[settings.sampler].chain_from(t, schedule, settings)
