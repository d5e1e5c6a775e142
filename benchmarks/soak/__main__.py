"""Do memory, open files, threads and speed of a run stay the same over 20,000 steps?

    python -m benchmarks.soak --workdir=runs/soak

Trains `configs/digits.py` in its own process and observes it from outside after every logged row.
After the first quarter, which is warm-up, resident memory should grow by less than 1 MB per 1,000
steps, and open files and threads not at all. The speed of the last quarter should be within 10 % of
the first. On a machine with other load the CPU time of a step says more than its seconds. Takes
about 40 minutes on two CPU cores; needs `pip install -e ".[test]"` for psutil.
"""

import argparse
import json
import pathlib
import platform
import subprocess
import sys
import time

import numpy as np
import psutil

from ddpm_jax.workdir.checkpoints import library_versions
from ddpm_jax.workdir.metrics_file import read_metrics

RESULTS = pathlib.Path(__file__).parents[1] / "results"


def watched(workdir, num_steps):
    """Trains, and yields the resources of the process after each logged row."""
    command = [sys.executable, "main.py", "--config=configs/digits.py", f"--workdir={workdir}",
               f"--config.train.num_steps={num_steps}"]
    rows = workdir / "metrics.jsonl"
    trainer, seen = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0
    process = psutil.Process(trainer.pid)
    while trainer.poll() is None:
        time.sleep(0.5)
        lines = rows.read_text().splitlines() if rows.exists() else []
        if len(lines) == seen or trainer.poll() is not None:
            continue
        seen = len(lines)
        with process.oneshot():
            times = process.cpu_times()
            yield {
                "step": json.loads(lines[-1])["step"],
                "megabytes": process.memory_info().rss / 1e6,
                "files": process.num_fds(),
                "threads": process.num_threads(),
                "cpu_seconds": times.user + times.system,
            }
    if trainer.returncode:
        raise SystemExit(f"training ended with status {trainer.returncode}")


def judged(seen, rows):
    """(quantity, value, bound, whether it holds) for each quantity of a run.

    Args:
        seen: the observations of `watched`.
        rows: the rows of metrics.jsonl.
    """
    last = rows[-1]["step"]
    later = [row for row in seen if row["step"] > last / 4]
    steps = np.array([row["step"] for row in later])
    slope = np.polyfit(steps / 1000, [row["megabytes"] for row in later], 1)[0]

    def grown(name):
        half = len(later) // 2
        first, second = (max(row[name] for row in part) for part in (later[:half], later[half:]))
        return second - first

    def quarter(n):
        return last * n / 4, last * (n + 1) / 4

    def speed(n):
        low, high = quarter(n)
        return np.median([r["steps_per_second"] for r in rows if low < r["step"] <= high])

    def cpu(n):
        low, high = quarter(n)
        part = [row for row in seen if low <= row["step"] <= high]
        spent = part[-1]["cpu_seconds"] - part[0]["cpu_seconds"]
        return spent / (part[-1]["step"] - part[0]["step"])

    fourth = speed(3) / speed(0)
    return [
        ("resident memory, MB per 1,000 steps", slope, "below 1", slope < 1),
        ("maximum of open files, second half minus first", grown("files"), "0 or less",
         grown("files") <= 0),
        ("maximum of threads, second half minus first", grown("threads"), "0 or less",
         grown("threads") <= 0),
        ("steps/s, last quarter over first", fourth, "0.9 to 1.1", 0.9 <= fourth <= 1.1),
        ("CPU seconds per step, last quarter over second", cpu(3) / cpu(1), "none", True),
    ]


def main():
    parser = argparse.ArgumentParser(
        "python -m benchmarks.soak", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--num_steps", type=int, default=20_000)
    arguments = parser.parse_args()
    if arguments.workdir.exists():
        parser.error(f"--workdir={arguments.workdir} exists; name a new folder.")
    seen = list(watched(arguments.workdir, arguments.num_steps))
    rows = read_metrics(arguments.workdir)
    verdicts = judged(seen, rows)
    table = ["| of " + f"{rows[-1]['step']:,} steps | value | bound | |", "|---|---|---|---|"]
    table += [f"| {name} | {value:.3g} | {bound} | {'holds' if holds else 'BROKEN'} |"
              for name, value, bound, holds in verdicts]
    ends = "; ".join(
        f"step {row['step']:,}: {row['megabytes']:.0f} MB, {row['files']} files, "
        f"{row['threads']} threads" for row in (seen[0], seen[len(seen) // 2], seen[-1])
    )
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    text = "\n".join([
        "# A long run", "", f"`python -m benchmarks.soak --workdir={arguments.workdir}"
        + (f" --num_steps={arguments.num_steps}" if arguments.num_steps != 20_000 else "") + "`",
        "", *table, "", f"{ends}.", "",
        f"{psutil.cpu_count()} CPU cores, {platform.machine()}, Python "
        f"{platform.python_version()}, {versions}.", "",
    ])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "soak.md").write_text(text)
    (RESULTS / "soak.json").write_text(json.dumps({"seen": seen, "rows": rows}))
    sys.exit(not all(holds for *_, holds in verdicts))


if __name__ == "__main__":
    main()
