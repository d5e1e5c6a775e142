"""What a run leaves in its workdir: rows, event files, checkpoints."""

import json
import pathlib

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Last lines of metrics.jsonl that a crash may leave.
TORN_LINES = ['{"step": 2, "lo', '{"step": 2, "loss": 0.5}', '{"step": 2, \n', "\n", "\0\0\n"]


def rows(workdir):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def lasting(row):
    """A row without its times."""
    times = ("eta", "time", "seconds", "goodput")
    return {k: v for k, v in row.items() if not k.endswith("_per_second") and k not in times}


def saved(workdir, step):
    """Every array of a checkpoint."""
    import jax

    from ddpm_jax.workdir.checkpoints import restore_part

    names = ("params", "ema_params", "opt_state", "tally", "loss_history", "step")
    return jax.tree.leaves([restore_part(workdir, name, step)[1] for name in names])


def events(workdir):
    sizes = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(workdir / "tensorboard"), size_guidance=sizes).Reload()
