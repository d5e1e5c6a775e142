"""What is watched while training: held-out loss, grids of samples, traces, memory, time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.data import pixels
from ddpm_jax.data.source import spread
from ddpm_jax.diffusion import losses, randomness
from ddpm_jax.inference import conditions
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network import trained as trained_lib
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import parallel
from ddpm_jax.training import memory_check
from ddpm_jax.training import state as state_lib
from ddpm_jax.training.state import TrainState
from ddpm_jax.workdir import pictures
from ddpm_jax.workdir.logs import format_duration

_FRESH = 0.05  # Weight of the initial parameters above which an average is not yet one.


def pmap_held_out_loss(model, *, schedule, parameterization, objective, num_images):
    """(params, batch [d, b, ...], places [d, b], rng) -> summed loss of places < num_images.

    The image at place i has always t = i * T // num_images and the same noise, so the figure
    moves with the parameters alone.
    """

    def summed_loss(params, batch, places, rng):
        uint8, model_kwargs = conditions.split(batch)
        t = jnp.minimum(places, num_images - 1) * schedule.num_timesteps // num_images
        rngs = randomness.image_keys(rng, places)
        eps = jax.vmap(lambda rng: jax.random.normal(rng, uint8.shape[1:]))(rngs)
        denoise_fn = functools.partial(
            model.apply, {"params": params}, train=False, **model_kwargs
        )
        x_0 = pixels.to_float(uint8)
        loss = losses.training_loss(
            schedule, denoise_fn, x_0, t, eps,
            parameterization=parameterization, objective=objective,
        )
        return jax.lax.psum(jnp.sum(loss * (places < num_images)), parallel.AXIS)

    return parallel.pmap(
        summed_loss, in_axes=(None, 0, 0, None), out_axes=None
    )


def held_out_loss(
    config: ml_collections.ConfigDict, model, schedule, source, rng: jax.Array
) -> Callable[[Any], float] | None:
    """params -> mean training loss of held-out images, or None where there are none.

    `config.train.eval_images` of them, spread evenly over `source`; every process reads its
    share.
    """
    if source is None or not config.train.eval_images:
        return None
    num_images = min(config.train.eval_images, len(source))
    chosen = spread(0, len(source) - 1, num_images)
    batch_size = config.train.batch_size
    share = batch_size // jax.process_count()
    loss_fn = pmap_held_out_loss(
        model, schedule=schedule, parameterization=config_lib.parameterization(config),
        objective=config_lib.objective(config), num_images=num_images,
    )

    def evaluate(params):
        total = 0.0
        for start in range(0, num_images, batch_size):
            first = start + jax.process_index() * share
            places = first + np.arange(share, dtype=np.int32)
            batch = source.examples(chosen[np.minimum(places, num_images - 1)])
            total += float(loss_fn(params, *parallel.shard((batch, places)), rng))
        return total / num_images

    return evaluate


def grid_cost(config: ml_collections.ConfigDict, *, sets: int) -> tuple[int, int]:
    """(images, steps) of a grid that costs at most a tenth of the training between two.

    A training step costs about three network calls an image. First the chain is shortened,
    to no less than ten steps, then the images become fewer.

    Args:
        config: the run's.
        sets: 1, or 2 with the raw parameters beside the average.
    """
    train = config.train
    period = min(train.sample_every, train.num_steps)
    calls = 3 * period * train.batch_size // (10 * sets)
    num_timesteps = config.diffusion.num_timesteps
    num_images = max(1, min(train.sample_images, calls // min(10, num_timesteps)))
    wanted = train.sample_num_steps or num_timesteps
    return num_images, max(1, min(wanted, calls // num_images))


def grid(
    config: ml_collections.ConfigDict, model, schedule, source, rng: jax.Array
) -> Callable[[TrainState, int], np.ndarray]:
    """(state, step) -> a picture, uint8 [h, w, c]: samples from the running average.

    While the average is still largely the initial parameters, samples from the raw ones stand
    at its right. The same prior draws every time. A shortened chain takes the smaller of the
    fixed variances, which suits few steps. A class-conditional network draws every class in
    turn; an image-conditional one the images of `source`, whose conditions stand at the left.
    """

    def draw(state, step):
        early = not config.train.ema_warmup and config.train.ema_decay**step > _FRESH
        sets = [state.ema_params, state.params] if early else [state.ema_params]
        num_images, num_steps = grid_cost(config, sets=len(sets))
        diffusion = config_lib.parameterization(config)
        if num_steps < schedule.num_timesteps and diffusion.variance == "fixed_large":
            diffusion = dataclasses.replace(diffusion, variance="fixed_small")
        told = conditions.in_turn(source, num_images)
        columns = conditions.columns(model)
        blocks = []
        if "condition" in told:
            blocks.append(pictures.grid(told["condition"], columns=columns))
        blocks += [
            pictures.grid(sample_lib.sample(
                Trained(params, model, schedule, diffusion, source.image_shape), rng,
                num_images, num_steps=num_steps, clip=config.sample.clip, output="uint8", **told,
            ), columns=columns)
            for params in sets
        ]
        return functools.reduce(pictures.beside, blocks)

    return draw


def opening_lines(
    config: ml_collections.ConfigDict, state: TrainState, source, held_out, workdir: Any
) -> list[str]:
    """What a run is, before it starts."""
    height, width, channels = source.image_shape
    step, num_steps = int(state.step), config.train.num_steps
    held = f", {len(held_out):,} held out" if held_out is not None else ", none held out"
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state_lib.to_saved(state)))
    device = jax.local_devices()[0]
    return [
        *(f"warning: {line}" for line in (
            *validation.warnings(config), *memory_check.warnings(config, source.image_shape)
        )),
        f"data: {len(source):,} images of {height}x{width}x{channels}{held}",
        f"parameters: {trained_lib.num_params(state.params):,}; state on each device "
        f"{size / 2**20:,.1f} MiB",
        f"devices: {jax.device_count()} {device.device_kind} ({device.platform}), batch "
        f"{config.train.batch_size}",
        f"{'resuming at' if step else 'starting at'} step {step:,} of {num_steps:,} in {workdir}",
    ]


def closing_line(start: int, num_steps: int, seconds: float, workdir: Any) -> str:
    """The last line of a run."""
    if start >= num_steps:
        return (
            f"nothing to do: {workdir} has {start:,} steps and config.train.num_steps="
            f"{num_steps}; ask for more with --config.train.num_steps={start + num_steps}"
        )
    return (
        f"done: {num_steps:,} steps, {num_steps - start:,} of them now in "
        f"{format_duration(seconds)}; samples and checkpoints in {workdir}"
    )
