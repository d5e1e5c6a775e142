"""What is watched while training: the held-out loss, grids of samples, the lines of a run."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data import labels, pixels, vectors
from ddpm_jax.data.source import Source, spread
from ddpm_jax.diffusion import losses, randomness
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.inference import conditions
from ddpm_jax.inference import held_out_loss as held_out_loss_lib
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.network.unet import UNet
from ddpm_jax.runtime import parallel
from ddpm_jax.runtime.progress import format_duration
from ddpm_jax.samplers.settings import Settings
from ddpm_jax.training import sharding
from ddpm_jax.training import state as state_lib
from ddpm_jax.training.run import Run
from ddpm_jax.training.settings import LoopSettings
from ddpm_jax.training.state import TrainState
from ddpm_jax.workdir import pictures

_INITIAL = 0.05  # Share of the initial parameters above which the EMA is still mostly those.


def pmap_held_out_loss(model, *, schedule, parameterization, objective, num_images):
    """(params, batch [d, b, ...], places [d, b], rng) -> summed loss of places < num_images.

    The image at place i always has t = i * T // num_images and the same noise, so the sum
    changes with the parameters only. A self-conditioned network is told its guess for all images.
    """

    def summed_loss(params, batch, places, rng):
        images, model_kwargs = conditions.split(batch)
        denoise_fn = functools.partial(
            model.apply, {"params": params}, train=False, **model_kwargs
        )
        loss = held_out_loss_lib.each(
            denoise_fn, images, places, randomness.image_keys(rng, places), schedule=schedule,
            parameterization=parameterization, objective=objective, num_images=num_images,
            self_condition=trained_lib.is_self_conditioned(model),
        )
        return jax.lax.psum(jnp.sum(loss * (places < num_images)), parallel.AXIS)

    return parallel.pmap(
        summed_loss, in_axes=(None, 0, 0, None), out_axes=None
    )


def held_out_loss(
    source: Source | None,
    rng: jax.Array,
    *,
    model: UNet,
    schedule: Schedule,
    parameterization: Parameterization,
    objective: losses.Objective,
    num_images: int,
    batch_size: int,
) -> Callable[[Any], float] | None:
    """params -> mean training loss of held-out images; None where there are none.

    Args:
        source: the held-out images; each process reads its share.
        rng: the noise of every image follows from it.
        model, schedule, parameterization, objective: what is trained.
        num_images: how many of the images, spread evenly over `source`.
        batch_size: images at a time, over all devices.
    """
    if source is None or not num_images:
        return None
    num_images = min(num_images, len(source))
    chosen = spread(0, len(source) - 1, num_images)
    share = batch_size // jax.process_count()
    loss_fn = pmap_held_out_loss(
        model, schedule=schedule, parameterization=parameterization, objective=objective,
        num_images=num_images,
    )

    def evaluate(params):
        total = 0.0
        for start in range(0, num_images, batch_size):
            first = start + jax.process_index() * share
            places = first + np.arange(share, dtype=np.int32)
            batch = source.examples(chosen[np.minimum(places, num_images - 1)])
            parallel.check_all_well()
            total += float(loss_fn(params, *parallel.shard((batch, places)), rng))
        return total / num_images

    return evaluate


def grid_cost(settings: LoopSettings, num_timesteps: int, *, sets: int) -> tuple[int, int]:
    """(images, steps) of a grid that costs at most a tenth of the training between two grids.

    A training step costs about three network calls per image. The chain is shortened first, to
    ten steps at least; then there are fewer images.

    Args:
        settings: of the run.
        num_timesteps: T.
        sets: 1, or 2 with the raw parameters beside the EMA.
    """
    period = min(settings.sample_every, settings.num_steps)
    calls = 3 * period * settings.batch_size // (10 * sets)
    num_images = max(1, min(settings.sample_images, calls // min(10, num_timesteps)))
    wanted = settings.sample_num_steps or num_timesteps
    return num_images, max(1, min(wanted, calls // num_images))


def grid(run: Run) -> Callable[[TrainState, int], np.ndarray]:
    """(state, step) -> a picture, uint8 [h, w, c]: samples from the EMA.

    While the EMA is still mostly the initial parameters, samples from the raw parameters stand
    on its right. The prior draws are the same every time. A shortened chain takes the smaller
    of the fixed variances, which suits few steps; a student has its own chain. A class-conditional
    network draws all classes in turn; one of images or vectors draws for those of held-out images
    (of training images where none are held out); the images stand on the left.
    """
    source, schedule = run.held_out or run.source, run.schedule
    step_settings, rng = run.step_settings, run.rng(randomness.GRID)

    def draw(state, step):
        early = not step_settings.ema_warmup and step_settings.ema_decay**step > _INITIAL
        sets = [state.ema_params, state.params] if early else [state.ema_params]
        num_images, num_steps = grid_cost(run.settings, schedule.num_timesteps, sets=len(sets))
        diffusion = step_settings.parameterization
        if num_steps < schedule.num_timesteps and diffusion.variance == "fixed_large":
            diffusion = dataclasses.replace(diffusion, variance="fixed_small")
        how = Settings(num_steps=num_steps, clip=run.settings.sample_clip)
        if run.teacher is not None:
            how = run.teacher.settings
        sample_kwargs = conditions.in_turn(source, num_images)
        columns = conditions.columns(run.model)
        blocks = []
        if "condition" in sample_kwargs:
            shown = pixels.as_uint8(sample_kwargs["condition"])
            blocks.append(pictures.grid(shown, columns=columns))
        for params in sets:
            trained = Trained(
                params, run.model, schedule, diffusion, source.image_shape,
                vector_scale=source.vector_scale,
            )
            samples = sample_lib.sample(
                trained, rng, num_images, settings=how, output="uint8", **sample_kwargs
            )
            blocks.append(pictures.grid(samples, columns=columns))
        return functools.reduce(pictures.beside, blocks)

    return draw


def opening_lines(run: Run, state: TrainState) -> list[str]:
    """What a run is, before it starts; the state may have shards."""
    height, width, channels = run.source.image_shape
    step, held_out = int(state.step), run.held_out
    classes = (run.source.classes, run.source.class_counts, run.source.class_names)
    in_train, in_test, *_ = (*(f" in {name}" for name in run.source.split_folders[:2]), "", "")
    size = sharding.num_bytes(state_lib.to_saved(state))
    num_params = trained_lib.num_params(sharding.shapes(state.params))
    device = jax.local_devices()[0]
    return [
        *(f"warning: {line}" for line in run.warnings),
        f"data: {len(run.source):,} images of {height}x{width}x{channels}{in_train}, "
        f"{'none' if held_out is None else format(len(held_out), ',')} held out{in_test}",
        *([labels.line(*classes)] if run.source.classes else []),
        *([vectors.line(run.source.vector_scale)] if run.source.vector_scale else []),
        f"parameters: {num_params:,}; state on each device "
        f"{size / 2**20:,.1f} MiB",
        f"devices: {jax.device_count()} {device.device_kind} ({device.platform}), batch "
        f"{run.settings.batch_size}",
        f"{'resuming at' if step else 'starting at'} step {step:,} of "
        f"{run.settings.num_steps:,} in {run.workdir}",
        *run.changes,
    ]


def skipped_lines(skipped: int) -> Callable[[int, int], str | None]:
    """(step, updates skipped so far) -> a line, if there are more than at the call before.

    Args:
        skipped: updates skipped before the first call.
    """
    def line(step, total):
        nonlocal skipped
        new, skipped = total - skipped, total
        if not new:
            return None
        return (
            f"step {step:,}: {new:,} update{'s' * (new > 1)} skipped since the last row, "
            f"{total:,} in all, because loss or gradient was not finite; "
            "--config.train.debug_nans=True names the layer"
        )

    return line


class CheckpointClock:
    """Says when the last checkpoint is too old, by the first process's clock.

    Args:
        minutes: age at which it is; 0 for never.
    """

    def __init__(self, minutes: float):
        self._seconds, self._saved = 60 * minutes, time.monotonic()

    def saved(self) -> None:
        """There is a new one."""
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether another is due, the same in all processes, which all have to ask."""
        if not self._seconds:
            return False
        return parallel.from_first(lambda: time.monotonic() - self._saved >= self._seconds)


def closing_line(
    run: Run, start: int, end: int, seconds: float, failures: list[str], goodput: float | None
) -> str:
    """The last line of a run.

    Args:
        run: of `run.prepare`.
        start: updates done when this start began.
        end: updates done now; fewer than the run has where the callback ended it.
        seconds: that it took.
        failures: what failed beside the steps, for example "the grid of step 500".
        goodput: of the run; None or 0 if it is not known yet.
    """
    num_steps = run.settings.num_steps
    if start >= num_steps:
        return (
            f"nothing to do: {run.workdir} has {start:,} steps and config.train.num_steps="
            f"{num_steps}; ask for more with --config.train.num_steps={start + num_steps}"
        )
    share = "" if not goodput else (
        f"; steps took {goodput:.0%} of the time since the first start (goodput)"
    )
    failed = f"; {len(failures)} failed beside it: {', '.join(failures[:3])}" if failures else ""
    done = f"done: {end:,} steps" if end == num_steps else (
        f"stopped by the callback at step {end:,} of {num_steps:,}, which is saved"
    )
    return (
        f"{done}, {end - start:,} of them now in "
        f"{format_duration(seconds)}{share}; samples and checkpoints in {run.workdir}{failed}"
        f"{', ...' if len(failures) > 3 else ''}"
    )
