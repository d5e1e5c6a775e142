"""Trains for a fixed time, then measures the result and draws samples, into a folder of files.

    python -m benchmarks.record.run --config=benchmarks/record/settings.py:fast \\
        --workdir=runs/record --minutes=25

WORKDIR/record then holds `metrics.json` (speed, losses, bits/dim, the settings), grids of
unselected samples, the samples themselves as uint8, images while they are generated, and the EMA
weights in bfloat16. No file is larger than --file_mib. --config.GROUP.NAME=V changes a setting.

You can interrupt it at any time: the same command resumes with what is missing. --minutes is the
training time over all starts, without compilation, checkpoints and held-out loss. --total_minutes
limits the wall-clock time of this command: training saves and stops before the limit, and a stage
that would take longer than the rest is skipped, with a line that says so.
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
from ddpm_jax.evaluation import identity
from ddpm_jax.runtime import compilation_cache
from ddpm_jax.runtime.interruption import Interrupted
from ddpm_jax.runtime.progress import format_duration
from ddpm_jax.training import loop
from ddpm_jax.workdir import checkpoints, run_folder
from ddpm_jax.workdir.metrics_file import read_metrics

TO_SAVE = 30.0  # Training is asked to stop this many seconds before the limit.
_LAST = 10  # The loss is averaged over this many rows.


def trained(workdir, record):
    """(step, seconds, seconds of each start, rows) until the newest checkpoint of a run."""
    steps = checkpoints.steps(workdir) if workdir.exists() else []
    rows = [row for row in read_metrics(workdir) if row["step"] <= steps[-1]] if steps else []
    if not rows:
        return max(steps, default=0), 0.0, np.zeros(0), []
    return steps[-1], *clock.seconds(rows, record.metrics["starts"]), rows


def train(config, workdir, record, *, seconds, deadline):
    """Trains until the run has trained for this many seconds, or the deadline is near.

    Returns:
        Whether training is done.
    """
    def is_done():
        step, spent, *_ = trained(workdir, record)
        return spent >= seconds or step >= config.train.num_steps

    def due():
        if time.monotonic() >= deadline - TO_SAVE:
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
    """The row of `metrics.json` about training."""
    step, seconds, starting, rows = trained(workdir, record)
    last = rows[-_LAST:]

    def mean(name):
        values = [row[name] for row in last if row.get(name) is not None]
        return float(np.mean(values)) if values else None

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


def training_line(row):
    """One line for the terminal about a `training_row`."""
    quartiles = ", ".join("none" if x is None else f"{x:.4f}" for x in row["loss_quartiles"])
    return (
        f"trained: {row['step']:,} steps in {row['minutes']:.1f} minutes, "
        f"{row['steps_per_second']:.2f} steps/s, {row['images_per_second']:,.0f} images/s; "
        f"starting took another {format_duration(sum(row['starting_seconds']))}; loss "
        f"{row['loss']:.4f}, by quartile of t {quartiles}"
    )


def main(argv=None):
    """Does everything that is missing."""
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
    """Trains, and runs every stage that is missing and fits into the time."""
    compilation_cache.enable()
    deadline = began + 60 * args.total_minutes
    record = stages.Record(args.workdir / "record", int(args.file_mib * 2**20))
    done = train(
        config, args.workdir, record, seconds=60 * args.minutes, deadline=deadline
    )
    if not trained(args.workdir, record)[-1]:
        print(f"no row is logged yet; continue with: {command}", flush=True)
        return
    config = run_folder.config_for(config, args.workdir)
    row = training_row(config, args.workdir, record)
    record.add("train", row)
    print(training_line(row), flush=True)
    if not done:
        print(f"{row['minutes']:.1f} of {args.minutes:g} minutes; continue with: {command}")
        return
    _, model = run_folder.load_step(args.workdir, weights=config.sample.weights)
    measured = {"step": row["step"], "checkpoint": identity.of_model(model)}
    for stage in stages.stages(
        config.diffusion.num_timesteps, bits_images=args.bits_images,
        ddim_images=args.ddim_images, chain_images=args.chain_images,
    ):
        request = measured | {"images": stage.num_images, "calls": stage.num_calls}
        if record.has(stage.name, request):
            print(f"{stage.name}: already done", flush=True)
            continue
        needed = stage.seconds(row["images_per_second"], max(row["starting_seconds"], default=0))
        left = deadline - time.monotonic()
        if needed > left:
            print(f"{stage.name}: skipped, would take about {format_duration(needed)} of the "
                  f"{format_duration(max(left, 0))} left; continue with: {command}", flush=True)
            continue
        start = time.monotonic()
        stage_config = stages.config_for(config, stage)
        result = stage.run(stage_config, stages.job_of(stage_config, args.workdir), record, stage)
        took = time.monotonic() - start
        record.add(stage.name, request | result | {"seconds": took})
        value = f" {result['value']:.4f}" if result.get("value") is not None else ""
        error = f" +- {result['standard_error']:.4f}" if result.get("standard_error") else ""
        files = f"; {', '.join(result['files'])}" if "files" in result else ""
        print(f"{stage.name}:{value}{error} in {format_duration(took)}{files}", flush=True)


if __name__ == "__main__":
    main()
