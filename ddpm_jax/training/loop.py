"""`train(config, workdir)`: the recipe around the step."""

import collections
import contextlib
import functools
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from ddpm_jax.data import batching
from ddpm_jax.diffusion import randomness
from ddpm_jax.errors import NotFiniteError
from ddpm_jax.network.trained import Trained
from ddpm_jax.runtime import compilation, interruption, memory, parallel, profiling
from ddpm_jax.training import callback as callback_lib
from ddpm_jax.training import memory_check, monitoring, nan_search, sharding
from ddpm_jax.training import run as run_lib
from ddpm_jax.training.callback import Callback
from ddpm_jax.training.records import (
    Records, attempt, keep_grid, note_failure, open_records, save, say_opening,
)
from ddpm_jax.training.run import Run
from ddpm_jax.training.sharding import Held
from ddpm_jax.training.step import pmap_train_step
from ddpm_jax.workdir import snapshots
from ddpm_jax.workdir.checkpoints import steps
from ddpm_jax.workdir.logs import Logs, Rate, Silence

IN_FLIGHT = 2  # Steps queued ahead; more can hang where CPU devices wait for one another.


def train(
    config: ml_collections.ConfigDict | str, workdir: Any, data: Any = None,
    callback: Callback | None = None,
) -> Trained:
    """Trains a network, or continues from the workdir's newest checkpoint.

    In a job of several processes (`parallel.initialize`) each makes the call, on a workdir that
    all of them see.

    Args:
        config: as in `configs/cifar10.py`; or the name of one of the package, for example "digits".
        workdir: folder for `config.json`, `metrics.jsonl`, `checkpoints/`, `samples/` and
            `tensorboard/`.
        data: uint8 [n, h, w, c] to train on, with `config.data.range` of any real dtype; or a
            `ddpm_jax.data.from_array` of images with labels or conditions. None for what
            `config.data` names.
        callback: called with (step, trained, metrics) after each logged row, in every process.
            While it runs, `trained()` gives a copy of the EMA, as `train` returns it at the end.
            If it raises `ddpm_jax.StopTraining`, the state is saved and the run ends there.

    Returns:
        The EMA of the parameters, on the host, with what they need.

    Raises:
        ValueError: a setting is wrong, the workdir was made with another model, another trainer
            is at work there, or memory ran out.
        FloatingPointError: `config.train.max_skipped` steps in a row had no finite loss and
            gradient.
        Interrupted: SIGINT, SIGTERM or a notice of preemption came; the step in progress was
            finished and saved.
    """
    callback_lib.check(callback)
    return complete(run_lib.prepare(config, workdir, data), callback)[0]


def complete(run: Run, callback: Callback | None = None) -> tuple[Trained, list[str]]:
    """Makes the steps that a run still lacks.

    A grid, a held-out loss or a trace that fails, in any process, costs nothing else.

    Args:
        run: of `run.prepare`.
        callback: as of `train`.

    Returns:
        What `train` returns, and what failed, for example ["the grid of step 500"].

    Raises:
        ValueError, FloatingPointError, Interrupted: as `train` does.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            memory_check.explained(run.settings.batch_size, run.step_settings.accumulate)
        )
        run, records, held = open_records(run, stack)
        say_opening(run, records, held)
        began = time.perf_counter()
        held = make_steps(run, records, held, callback)
        for written in filter(None, (records.snapshots, records.checkpoints)):
            written.close()
        records.logs.say(monitoring.closing_line(
            run, records.start, int(held[0].step), time.perf_counter() - began,
            records.failures, records.logs.goodput.share,
        ))
    failures = parallel.from_first(lambda: records.failures)  # It alone writes traces.
    return callback_lib.as_trained(run, held), failures


def make_steps(
    run: Run, records: Records, held: Held, callback: Callback | None = None
) -> Held:
    """Makes all steps that are left, each followed by what is due after it.

    Args:
        run: of `run.prepare`.
        records: of `open_records`.
        held: the state on the devices; donated.
        callback: as of `train`; it may end the steps early.

    Raises:
        FloatingPointError, Interrupted: as `train` does.
    """
    settings, logs = run.settings, records.logs
    step_fn = pmap_train_step(
        schedule=run.step_schedule, learning_rate=run.learning_rate, settings=run.step_settings,
        teacher=run.teacher,
    )
    taught_by = () if run.teacher is None else (parallel.replicate(run.teacher.trained.params),)
    program = None
    observe = observer(run, records, callback, skipped=int(held[0].skipped[0]))
    rng, in_flight = run.rng(randomness.STEP), collections.deque()
    ahead = 0 if settings.debug_nans else IN_FLIGHT
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(contextlib.closing(batching.device_batches(
            run.source, seed=run.seed, batch_size=settings.batch_size,
            on_device=settings.on_device, start=records.start,
        )))
        stack.enter_context(jax.default_matmul_precision(settings.matmul_precision))
        numbers = stack.enter_context(contextlib.closing(profiling.traced(
            range(records.start + 1, settings.num_steps + 1),
            settings.profile if parallel.is_first() else (), logs.folder / "profile", in_flight,
            failed=functools.partial(note_failure, records, "the trace"),
        )))
        asked_to_stop = stack.enter_context(interruption.watched())
        for step in numbers:
            batch = next(batches)
            program = program or compilation.ahead(step_fn, *held, batch, rng, *taught_by)
            *held, metrics = program(*held, batch, rng, *taught_by)
            if settings.debug_nans and metrics["skipped_in_a_row"]:
                say_layer(run, logs, step, held, batch)
            in_flight.append(metrics)
            while len(in_flight) > (ahead if step < settings.num_steps else 0):
                behind = step + 1 - len(in_flight)
                stop_if_stuck(run, records, behind, in_flight.popleft())
            records.check_owner()
            if observe(step, held, metrics):
                save(run, records, step, held)
                break
            stop_signal = asked_to_stop(step)
            if stop_signal and step < settings.num_steps:
                interrupt(run, records, step, held, stop_signal)
    return held


def observer(
    run: Run, records: Records, callback: Callback | None = None, *, skipped: int = 0
) -> Callable[[int, Held, dict[str, jax.Array]], bool]:
    """(step, held, metrics) -> whether the callback ends the run.

    It logs, draws and saves what is due after a step.

    Args:
        run: of `run.prepare`.
        records: of `open_records`.
        callback: as of `train`.
        skipped: updates skipped before.
    """
    settings, step_settings, logs = run.settings, run.step_settings, records.logs
    evaluate = monitoring.held_out_loss(
        run.held_out, run.rng(randomness.HELD_OUT), model=run.model, schedule=run.schedule,
        parameterization=step_settings.parameterization, objective=step_settings.objective,
        num_images=settings.eval_images, batch_size=settings.batch_size,
    )
    draw_grid = monitoring.grid(run)
    skipped_line = monitoring.skipped_lines(skipped)
    clock = monitoring.CheckpointClock(settings.checkpoint_minutes)
    rate = Rate(
        start_step=records.start, num_steps=settings.num_steps, batch_size=settings.batch_size
    )

    def observe(step, held, metrics):
        due = functools.partial(every, step, last=settings.num_steps)
        if step == records.start + 1:
            jax.block_until_ready(held)
            rate.compiled(step)
            logs.say(f"memory after the first step: {memory.peak()}")
        logs.advance(step)
        evaluates = evaluate is not None and due(settings.eval_every)
        logs_row = evaluates or due(step_settings.log_every)
        if logs_row:
            row = finite_row(metrics)
            if evaluates:
                with rate.paused():
                    state = sharding.whole(held, "ema_params")
                    loss = attempt(records, "the held-out loss", step, lambda: evaluate(
                        parallel.replicate(state.ema_params)
                    ))
                row |= {} if loss is None else {"heldout_loss": loss}
            row |= finite_row(rate.read(step))
            logs.write(step, row)
            if line := skipped_line(step, int(row["skipped"])):
                logs.say(line)
        if records.snapshots and step % settings.ema_snapshot_every == 0:
            with rate.paused():
                state = sharding.whole(held, "extra_ema_params")
                snapshots.save(records.snapshots, step, state.extra_ema_params, run.metadata())
        by_step = due(settings.checkpoint_every) or step == settings.num_steps
        if by_step or logs_row and clock.due():
            with rate.paused():
                save(run, records, step, held, timed=not by_step)
            clock.saved()
        if due(settings.sample_every):
            with rate.paused():
                state = sharding.whole(held, "params", "ema_params")
                attempt(records, "the grid", step, lambda: keep_grid(
                    run, logs, step, draw_grid(state, step)
                ))
        if callback is None or not logs_row:
            return False
        with rate.paused():
            trained = functools.partial(callback_lib.as_trained, run, held)
            return callback_lib.asks_to_stop(callback, step, trained, row)

    return observe


def every(step: int, period: int, last: int) -> bool:
    """Whether something of this period is due after `step`: at the last step too; 0 is never."""
    return period > 0 and (step % period == 0 or step == last)


def say_layer(
    run: Run, logs: Logs | Silence, step: int, held: Held, batch: dict[str, Any]
) -> None:
    """Logs which layer made this step one that is skipped.

    Args:
        run: of `run.prepare`.
        logs: of the run.
        step: its number.
        held: the state as it left it.
        batch: of the step.
    """
    culprit = nan_search.not_finite(
        sharding.whole(held).replace(step=step - 1), batch, run.rng(randomness.STEP),
        schedule=run.step_schedule, settings=run.step_settings, teacher=run.teacher,
    )
    logs.say(f"step {step} is skipped: {culprit}")


def stop_if_stuck(run: Run, records: Records, step: int, metrics: Any) -> None:
    """Waits for the step of these metrics, and stops the run where too many were skipped.

    Raises:
        FloatingPointError: it is the `config.train.max_skipped`-th in a row.
    """
    in_a_row, allowed = int(metrics["skipped_in_a_row"]), run.settings.max_skipped
    if in_a_row < allowed:
        return
    records.checkpoints.close()
    good = [s for s in steps(run.workdir) if s <= step - in_a_row]
    raise NotFiniteError(
        f"config.train.max_skipped={allowed}: loss or gradient was not finite "
        f"in {in_a_row} steps in a row, up to step {step} with learning rate "
        f"{metrics['learning_rate']:g}; the last good checkpoint is "
        f"{run.workdir / 'checkpoints' / str(good[-1]) if good else 'none'}; lower "
        "--config.train.learning_rate, or let --config.train.debug_nans=True name the layer."
    )


def interrupt(
    run: Run, records: Records, step: int, held: Held, stop_signal: signal.Signals
) -> None:
    """Saves the state after `step` and raises Interrupted."""
    save(run, records, step, held)
    records.checkpoints.close()
    records.logs.say(
        f"{stop_signal.name}: step {step:,} is saved; the same command continues there"
    )
    raise interruption.Interrupted(stop_signal)


def finite_row(metrics: dict[str, Any]) -> dict[str, float]:
    """The finite metrics, on the host.

    Not finite are the gradient of a skipped step, the loss of a row of skipped steps only,
    quartiles of t that no image fell into, and the remaining time after one step.
    """
    row = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return {name: value for name, value in row.items() if np.isfinite(value)}
