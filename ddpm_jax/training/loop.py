"""`train(config, workdir)`: the recipe around the step."""

import collections
import contextlib
import functools
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from ddpm_jax import config as config_lib
from ddpm_jax.data import batching
from ddpm_jax.diffusion import randomness
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import interruption, memory, parallel, profiling
from ddpm_jax.training import monitoring, nan_search
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import state as state_lib
from ddpm_jax.training.run import Run, step_settings
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import pmap_train_step
from ddpm_jax.workdir import lock, run_folder
from ddpm_jax.workdir.checkpoints import Checkpoints, library_versions, steps
from ddpm_jax.workdir.logs import Logs, Rate, Silence
from ddpm_jax.workdir.pictures import save_png
from ddpm_jax.workdir.wandb_writer import WandbWriter

IN_FLIGHT = 2  # Steps queued ahead; more can hang where CPU devices wait for one another.


def train(config: ml_collections.ConfigDict, workdir: Any, data: Any = None) -> Trained:
    """Trains a network, or continues where the workdir's newest checkpoint stopped.

    Under several processes (`parallel.initialize`) each makes the call, on a workdir that all of
    them see.

    Args:
        config: as in `configs/cifar10.py`.
        workdir: folder for `config.json`, `metrics.jsonl`, `checkpoints/`, `samples/` and
            `tensorboard/`.
        data: uint8 [n, h, w, c] to train on, or a `source.from_array` of images with labels
            or conditions; None for what `config.data` names.

    Returns:
        The running average of the parameters, on the host, with its configuration.

    Raises:
        ValueError: a setting is wrong, the workdir was made with another model, or another
            trainer is at work there.
        FloatingPointError: `config.train.max_skipped` steps in a row had no finite loss and
            gradient.
        Interrupted: SIGINT, SIGTERM or a notice of preemption came; the step under way was
            finished and saved.
    """
    run = run_lib.prepare(config, workdir, data)
    config, num_steps = run.config, run.config.train.num_steps
    with contextlib.ExitStack() as stack:
        check_owner = stack.enter_context(lock.hold(run.workdir))
        run_folder.store_config(config, run.workdir)
        checkpoints = stack.enter_context(Checkpoints(
            run.workdir, keep=config.train.keep, keep_every=config.train.keep_every
        ))
        state = parallel.replicate(run_lib.first_state(run, checkpoints))
        start = int(state.step)
        project = config.train.wandb
        logs = stack.enter_context(Logs(
            run.workdir, start_step=start, num_steps=num_steps,
            also=WandbWriter(project, run.workdir, config.to_dict()) if project else None,
        )) if parallel.is_first() else Silence()
        for line in monitoring.opening_lines(
            config, state, run.source, run.held_out, run.workdir
        ):
            logs.say(line)
        logs.text("config", f"```json\n{run_folder.dump(config)}\n```")
        settings = step_settings(config)
        step_fn = pmap_train_step(
            schedule=run.schedule, learning_rate=config_lib.learning_rate(config),
            settings=settings,
        )
        observe = observer(run, logs, checkpoints, start)
        batches = stack.enter_context(contextlib.closing(batching.device_batches(
            run.source, seed=config.seed, batch_size=config.train.batch_size,
            on_device=config.data.on_device, start=start,
        )))
        stack.enter_context(jax.default_matmul_precision(config.train.matmul_precision))
        rng, in_flight = run.rng(randomness.STEP), collections.deque()
        ahead = 0 if config.train.debug_nans else IN_FLIGHT
        steps = stack.enter_context(contextlib.closing(profiling.traced(
            range(start + 1, num_steps + 1), config.train.profile if parallel.is_first() else (),
            logs.folder / "profile", in_flight,
        )))
        asked_to_stop = stack.enter_context(interruption.watched())
        began = time.perf_counter()

        for step in steps:
            batch = next(batches)
            state, metrics = step_fn(state, batch, rng)
            if config.train.debug_nans and metrics["skipped_in_a_row"]:
                logs.say(f"step {step} is skipped: " + nan_search.not_finite(
                    state.replace(step=step - 1), batch, rng,
                    schedule=run.schedule, settings=settings,
                ))
            in_flight.append(metrics)
            while len(in_flight) > (ahead if step < num_steps else 0):
                behind = step + 1 - len(in_flight)
                stop_if_stuck(run, checkpoints, behind, in_flight.popleft())
            check_owner()
            observe(step, state, metrics)
            if step == start + 1:
                jax.block_until_ready(state)
                logs.say(f"memory after the first step: {memory.peak()}")
            signal = asked_to_stop(step)
            if signal and step < num_steps:
                save(run, logs, checkpoints, step, state)
                checkpoints.close()
                logs.say(f"{signal.name}: step {step:,} is saved; the same command continues there")
                raise interruption.Interrupted(signal)
        checkpoints.close()
        logs.say(monitoring.closing_line(
            start, num_steps, time.perf_counter() - began, run.workdir
        ))
    parallel.barrier("trained")
    return Trained(
        jax.device_get(state.ema_params), run.model, run.schedule,
        config_lib.parameterization(config), run.source.image_shape,
    )


def save(
    run: Run, logs: Logs | Silence, checkpoints: Checkpoints, step: int, state: TrainState
) -> None:
    """Starts a checkpoint, behind the rows of its steps: no reader finds it without them."""
    logs.flush()
    checkpoints.save(step, state_lib.to_saved(state), metadata(run.config))


def observer(run: Run, logs: Logs | Silence, checkpoints: Checkpoints, start: int):
    """(step, state, metrics) -> None: logs, draws and saves what is due after a step."""
    config, train = run.config, run.config.train
    evaluate = monitoring.held_out_loss(
        config, run.model, run.schedule, run.held_out, run.rng(randomness.HELD_OUT)
    )
    draw_grid = monitoring.grid(
        config, run.model, run.schedule, run.held_out or run.source, run.rng(randomness.GRID)
    )
    rate = Rate(start_step=start, num_steps=train.num_steps, batch_size=train.batch_size)

    def observe(step, state, metrics):
        due = functools.partial(every, step, last=train.num_steps)
        logs.advance(step)
        evaluates = evaluate is not None and due(train.eval_every)
        if evaluates or due(train.log_every):
            row = finite_row(metrics)
            if evaluates:
                with rate.paused():
                    row["heldout_loss"] = evaluate(state.ema_params)
            logs.write(step, row | rate.read(step))
        if due(train.sample_every):
            with rate.paused():
                picture = draw_grid(state, step)
                if parallel.is_first():
                    save_png(run.workdir / "samples" / f"step_{step:08d}.png", picture)
                logs.images("samples", picture, step)
        if due(train.checkpoint_every):
            with rate.paused():
                save(run, logs, checkpoints, step, state)

    return observe


def every(step: int, period: int, last: int) -> bool:
    """Whether something of this period is due after `step`; at the last step always."""
    return step % period == 0 or step == last


def stop_if_stuck(run: Run, checkpoints: Checkpoints, step: int, metrics: Any) -> None:
    """Waits for the step of these metrics, and stops the run where too many were skipped.

    Raises:
        FloatingPointError: it is the `config.train.max_skipped`-th in a row.
    """
    in_a_row = int(metrics["skipped_in_a_row"])
    if in_a_row < run.config.train.max_skipped:
        return
    checkpoints.close()
    good = [s for s in steps(run.workdir) if s <= step - in_a_row]
    raise FloatingPointError(
        f"config.train.max_skipped={run.config.train.max_skipped}: loss or gradient was not finite "
        f"in {in_a_row} steps in a row, up to step {step} with learning rate "
        f"{metrics['learning_rate']:g}; the last good checkpoint is "
        f"{run.workdir / 'checkpoints' / str(good[-1]) if good else 'none'}; lower "
        "--config.train.learning_rate, or let --config.train.debug_nans=True name the layer."
    )


def finite_row(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """The metrics on the host, without what is not finite: the gradient of a skipped step, the
    loss of a row that has no other, quartiles of t that no image fell into."""
    row = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return {name: value for name, value in row.items() if np.isfinite(value)}


def metadata(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return {"config": run_folder.dump(config), "versions": library_versions()}
