"""What a run writes while it trains: checkpoints, rows and pictures, and what of that failed."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from ddpm_jax.errors import one_line
from ddpm_jax.runtime import parallel
from ddpm_jax.training import monitoring, sharding
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import state as state_lib
from ddpm_jax.training.run import Run
from ddpm_jax.training.sharding import Held
from ddpm_jax.workdir import lock, snapshots
from ddpm_jax.workdir.checkpoints import Checkpoints
from ddpm_jax.workdir.logs import Logs, Silence
from ddpm_jax.workdir.pictures import save_png
from ddpm_jax.workdir.wandb_writer import WandbWriter


@dataclasses.dataclass(frozen=True)
class Records:
    """What a run writes to while it is open.

    Attributes:
        checkpoints: of the workdir.
        snapshots: of averages, where they are kept.
        logs: `Silence` in all processes but the first.
        check_owner: raises a ValueError once another trainer has the workdir.
        start: updates done when this start began.
        failures: what failed beside the steps.
    """

    checkpoints: Checkpoints
    snapshots: Checkpoints | None
    logs: Logs | Silence
    check_owner: Callable[[], None]
    start: int
    failures: list[str] = dataclasses.field(default_factory=list)


def open_records(run: Run, stack: contextlib.ExitStack) -> tuple[Run, Records, Held]:
    """Takes hold of the workdir; returns the run, its records and the state to go on from.

    Args:
        run: of `run.prepare`.
        stack: closes the records in reverse order.

    Raises:
        ValueError: as `train` does.
    """
    settings = run.settings
    check_owner = stack.enter_context(lock.hold(run.workdir))
    run_lib.store_config(run)
    checkpoints = stack.enter_context(Checkpoints(
        run.workdir, keep=settings.keep, keep_every=settings.keep_every
    ))
    run, state = run_lib.first_state(run, checkpoints)
    held = sharding.hold(state, run.step_settings.shard_update)
    start = int(held[0].step)
    logs = stack.enter_context(open_logs(run, start)) if parallel.is_first() else Silence()
    kept = None
    if settings.ema_snapshot_every:
        kept = stack.enter_context(snapshots.open_snapshots(run.workdir, start))
    return run, Records(checkpoints, kept, logs, check_owner, start), held


def open_logs(run: Run, start: int) -> Logs:
    """The logs of a run that continues after `start` updates."""
    project = run.settings.wandb
    also = WandbWriter(project, run.workdir, json.loads(run.config_json)) if project else None
    return Logs(run.workdir, start_step=start, num_steps=run.settings.num_steps, also=also)


def say_opening(run: Run, records: Records, held: Held) -> None:
    """Logs what the run is."""
    for line in monitoring.opening_lines(run, sharding.merged(*held)):
        records.logs.say(line)
    records.logs.text("config", f"```json\n{run.config_json}\n```")


def save(run: Run, records: Records, step: int, held: Held, *, timed: bool = False) -> None:
    """Starts a checkpoint, after the rows of its steps: no reader finds it without them."""
    records.logs.flush()
    state = sharding.whole(held)
    records.checkpoints.save(step, state_lib.to_saved(state), run.metadata(), timed=timed)


def keep_grid(run: Run, logs: Logs | Silence, step: int, picture: np.ndarray) -> None:
    """Writes a grid to `samples/` and the logs, and says where; only the first process does."""
    if parallel.is_first():
        path = run.workdir / "samples" / f"step_{step:08d}.png"
        save_png(path, picture)
        logs.say(f"step {step:,}: samples in {path}")
    logs.images("samples", picture, step)


def attempt(records: Records, what: str, step: int, work: Callable[[], Any]) -> Any:
    """What `work` returns, or None where it fails in any process; then all note the failure."""
    result, error = parallel.attempt(work)
    if error is not None:
        note_failure(records, f"{what} of step {step:,}", error)
    return result


def note_failure(records: Records, what: str, error: Exception) -> None:
    """Says that something beside the steps has failed, and remembers it for the end of the run."""
    records.failures.append(what)
    line = f"{what} failed ({one_line(error)[:300]}); training goes on"
    if parallel.is_first():
        records.logs.say(line)
    elif not isinstance(error, parallel.FailedElsewhereError):
        logging.error(line)
