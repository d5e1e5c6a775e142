"""Snapshots of two averages of a run, from which an average of any other length is rebuilt.

`workdir/ema/checkpoints/<step>` holds the averages of `averages.TRACKED` in float16, which rounds
each number by 2^-11 of it. They are written like checkpoints, and all are kept. The newest that
a checkpoint of the run needs are its own, in float32.
"""

from typing import Any

import jax
import numpy as np
from etils import epath

from ddpm_jax.errors import UserError
from ddpm_jax.network import averages
from ddpm_jax.workdir import checkpoints
from ddpm_jax.workdir.checkpoints import Checkpoints

FOLDER = "ema"  # In the workdir.
PRECISION = np.float16
WORST = 0.05  # The largest error of `averages.coefficients` that is taken.
_NOTHING = 1e-6  # A snapshot with a smaller coefficient is not read.


def open_snapshots(workdir: epath.Path, start: int) -> Checkpoints:
    """The snapshots of a run that goes on after `start` updates; those of later steps are removed.

    They are of steps that a killed run made after its last checkpoint.
    """
    snapshots = Checkpoints(_folder(workdir), keep=None)
    snapshots.remove_after(start)
    return snapshots


def save(snapshots: Checkpoints, step: int, extra_ema_params: Any, metadata: dict) -> None:
    """Starts writing the snapshot of `step`.

    Args:
        snapshots: of `open_snapshots`.
        extra_ema_params: of the state, whole.
        metadata: as of a checkpoint.

    Raises:
        NotWrittenError: as `Checkpoints.save` does.
    """
    tree = {name: extra_ema_params[name] for name in averages.TRACKED}
    halved = jax.tree.map(lambda x: np.asarray(jax.device_get(x), PRECISION), tree)
    snapshots.save(step, halved, metadata)


def num_bytes(num_params: int) -> int:
    """Bytes of one snapshot of a network with so many parameters, but for its outline."""
    return len(averages.TRACKED) * np.dtype(PRECISION).itemsize * num_params


def rebuilt(workdir: epath.Path, step: int | None, width: float) -> tuple[int, Any, dict]:
    """The average whose sigma_rel is `width`, as of a checkpoint, from the snapshots before it.

    Args:
        workdir: of the run.
        step: of the checkpoint; None is the newest.
        width: above 0, at most `averages.LONGEST`.

    Returns:
        (step, params, metadata), as `checkpoints.restore_part` does.

    Raises:
        UserError: the snapshots are too few for this width, or there is no such checkpoint.
    """
    step, newest, metadata = checkpoints.restore_part(workdir, "extra_ema_params", step)
    total = jax.tree.map(np.zeros_like, newest[averages.TRACKED[0]])
    for at, name, factor in factors(workdir, step, width):
        if at == step:
            params = newest[name]
        elif abs(factor) > _NOTHING:
            _, params, _ = checkpoints.restore_part(_folder(workdir), name, at)
        else:
            continue
        total = jax.tree.map(
            lambda x, y, f=np.float32(factor): x + f * np.float32(y), total, params
        )
    return step, total, metadata


def factors(workdir: epath.Path, step: int, width: float) -> list[tuple[int, str, float]]:
    """What to multiply the averages by: (step, name, factor) of each, the checkpoint's own last.

    Args:
        workdir, step, width: as of `rebuilt`.

    Raises:
        UserError: the snapshots are too few for this width.
    """
    earlier = [at for at in checkpoints.steps(_folder(workdir)) if at < step]
    kept = [(at, name) for at in (*earlier, step) for name in averages.TRACKED]
    found, error = averages.coefficients(
        [at for at, _ in kept], [averages.sigma_rel(name) for _, name in kept], step, width
    )
    if error > WORST:
        raise UserError(
            f"cannot be rebuilt at step {step:,} from {len(earlier)} snapshots: its weights would "
            f"be {error:.0%} off, at most {WORST:.0%} are taken; use a width nearer to those of "
            f"{' and '.join(averages.TRACKED)}, or a smaller --config.train.ema_snapshot_every "
            "when training.", field="weights", value=f"{averages.PREFIX}{width:g}",
        )
    return [(at, name, factor) for (at, name), factor in zip(kept, found)]


def _folder(workdir):
    return workdir / FOLDER
