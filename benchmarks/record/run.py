"""Trains for so many minutes, then measures and draws what came of it, into a folder of files.

    python -m benchmarks.record.run --config=benchmarks/record/settings.py:fast \\
        --workdir=runs/record --minutes=25

WORKDIR/record then holds `metrics.json` (speed, losses, bits/dim, the settings), grids of samples
as they came, the samples themselves as uint8, images on their way from noise, and the running
average of the weights in bfloat16, every file of at most --file_mib. --config.GROUP.NAME=V
changes a setting.

It may be cut at any moment: the same command goes on with what is not there yet. --minutes is
training's own clock, over all starts: compiling, checkpoints and held-out loss are not counted.
--total_minutes is the wall clock of this command: training stops, saved, before it ends, and a
stage that would take longer than what is left is left out, with a line that says so.
"""

import argparse
import json
import math
import pathlib
import shlex
import sys
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from benchmarks.record import clock, stages
from ddpm_jax.runtime import compilation_cache
from ddpm_jax.runtime.interruption import Interrupted
from ddpm_jax.training import loop
from ddpm_jax.workdir import checkpoints, run_folder
from ddpm_jax.workdir.logs import format_duration
from ddpm_jax.workdir.metrics_file import read_metrics

_TO_SAVE = 30.0  # Seconds before the end at which training is asked to stop.
_LAST = 10  # Rows over which the loss is averaged.


def trained(workdir, record):
    """(step, seconds, seconds of each start, rows) of the newest checkpoint of a run."""
    steps = checkpoints.steps(workdir) if workdir.exists() else []
    rows = [row for row in read_metrics(workdir) if row["step"] <= steps[-1]] if steps else []
    if not rows:
        return max(steps, default=0), 0.0, np.zeros(0), []
    return steps[-1], *clock.seconds(rows, record.metrics["starts"]), rows


def train(config, workdir, record, *, seconds, deadline):
    """Trains until the run has so many seconds behind it, or the deadline is near.

    Returns:
        Whether it is done.
    """
    def is_done():
        step, spent, *_ = trained(workdir, record)
        return spent >= seconds or step >= config.train.num_steps

    def due():
        if time.monotonic() >= deadline - _TO_SAVE:
            return True
        rows = read_metrics(workdir)
        return bool(rows) and clock.seconds(rows, record.metrics["starts"])[0] >= seconds

    if is_done():
        return True
    newest = trained(workdir, record)[0]
    record.add("starts", sorted({*record.metrics.get("starts", ()), newest}))
    with clock.ended_when(due) as asked:
        try:
            loop.train(config, workdir)
        except Interrupted:
            if not asked.is_set():
                raise
    return is_done()


def training_row(config, workdir, record):
    """What `metrics.json` says of training."""
    step, seconds, starting, rows = trained(workdir, record)
    last = rows[-_LAST:]

    def mean(name):
        found = [row[name] for row in last if row.get(name) is not None]
        return float(np.mean(found)) if found else None

    speed = float(np.median([row["steps_per_second"] for row in rows]))
    device = jax.devices()[0]
    return {
        "step": step, "minutes": seconds / 60, "starting_seconds": starting.tolist(),
        "steps_per_second": speed, "images_per_second": speed * config.train.batch_size,
        "loss": mean("loss"),
        "loss_quartiles": [mean(f"loss_quartile_{i + 1}") for i in range(4)],
        "device": f"{jax.device_count()} {device.device_kind} ({device.platform})",
        "versions": checkpoints.library_versions(), "config": json.loads(run_folder.dump(config)),
        "rows": rows,
    }


def said(row):
    """A line of `training_row`."""
    quartiles = ", ".join("none" if x is None else f"{x:.4f}" for x in row["loss_quartiles"])
    return (
        f"trained: {row['step']:,} steps in {row['minutes']:.1f} minutes, "
        f"{row['steps_per_second']:.2f} steps/s, {row['images_per_second']:,.0f} images/s; "
        f"starting took {format_duration(sum(row['starting_seconds']))} beside; loss "
        f"{row['loss']:.4f}, by quartile of t {quartiles}"
    )


def main(argv=None):
    """Does what is not there yet."""
    began, argv = time.monotonic(), sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="file, or file:argument")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0, help="of training")
    parser.add_argument("--total_minutes", type=float, default=math.inf, help="of this command")
    parser.add_argument("--bits_images", type=int, default=1000)
    parser.add_argument("--ddim_images", type=int, default=10_000)
    parser.add_argument("--chain_images", type=int, default=1000)
    parser.add_argument("--file_mib", type=float, default=16.0)
    args, overrides = parser.parse_known_args(argv)
    for name in ("minutes", "total_minutes", "file_mib"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name}={getattr(args, name):g} must be above 0; leave it out for "
                         f"{parser.get_default(name):g}.")
    try:
        config = config_of([f"--config={args.config}", *overrides])
        work(config, args, began, shlex.join(["python", "-m", "benchmarks.record.run", *argv]))
    except ValueError as error:
        parser.error(str(error))
    except Interrupted as interrupted:
        sys.exit(interrupted.status)


def config_of(arguments):
    """The config of --config=FILE with its overrides."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", sys_argv=["", *arguments], flag_values=values)
    try:
        rest = values(["", *arguments])[1:]
    except (AttributeError, KeyError, OSError, TypeError, flags.Error) as error:
        raise ValueError(" ".join(str(error).split())) from None
    if rest:
        raise ValueError(f"{rest[0]!r} is not a flag; settings are --config.GROUP.NAME=VALUE.")
    return values["config"].value.lock()


def work(config, args, began, command):
    """Training and every stage that is not there yet and fits."""
    compilation_cache.enable()
    deadline = began + 60 * args.total_minutes
    record = stages.Record(args.workdir / "record", int(args.file_mib * 2**20))
    done = train(
        config, args.workdir, record, seconds=60 * args.minutes, deadline=deadline
    )
    if not trained(args.workdir, record)[-1]:
        print(f"no row is logged yet; go on with: {command}", flush=True)
        return
    config = run_folder.config_for(config, args.workdir)
    row = training_row(config, args.workdir, record)
    record.add("train", row)
    print(said(row), flush=True)
    if not done:
        print(f"{row['minutes']:.1f} of {args.minutes:g} minutes; go on with: {command}")
        return
    for stage in stages.stages(
        config.diffusion.num_timesteps, bits_images=args.bits_images,
        ddim_images=args.ddim_images, chain_images=args.chain_images,
    ):
        asked = {"step": row["step"], "images": stage.num_images, "calls": stage.num_calls}
        if record.has(stage.name, asked):
            print(f"{stage.name}: there already", flush=True)
            continue
        needed = stage.seconds(row["images_per_second"], max(row["starting_seconds"], default=0))
        left = deadline - time.monotonic()
        if needed > left:
            print(f"{stage.name}: left out, would take some {format_duration(needed)} of the "
                  f"{format_duration(max(left, 0))} left; go on with: {command}", flush=True)
            continue
        start = time.monotonic()
        found = stage.run(
            stages.job_of(config, args.workdir, stage.num_images), record, stage
        )
        took = time.monotonic() - start
        record.add(stage.name, asked | found | {"seconds": took})
        value = f" {found['value']:.4f}" if found.get("value") is not None else ""
        error = f" +- {found['standard_error']:.4f}" if found.get("standard_error") else ""
        files = f"; {', '.join(found['files'])}" if "files" in found else ""
        print(f"{stage.name}:{value}{error} in {format_duration(took)}{files}", flush=True)


if __name__ == "__main__":
    main()
