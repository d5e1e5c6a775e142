"""`evaluate(config, workdir)`: measures checkpoints as papers do, each protocol once.

Results are rows of `evaluations.jsonl` and scalars of TensorBoard; pictures and tables stand
in `evaluations/step_.../`. A row says the protocol by which its value was measured, and a
row that has the same protocol is never computed again. Of several processes the first decides what
there is to do, and leaves the results; every one works on its share.
"""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from etils import epath

from ddpm_jax.evaluation import catalogue, inception_features
from ddpm_jax.evaluation import job as job_lib
from ddpm_jax.evaluation import metrics as metrics_lib
from ddpm_jax.runtime import files, parallel
from ddpm_jax.workdir import checkpoints, metrics_file, run_folder
from ddpm_jax.workdir.logs import format_duration
from ddpm_jax.workdir.tensorboard_writer import EventFiles

_POLL = 5.0  # Seconds between two looks at a running job.


def evaluate(config: ml_collections.ConfigDict, workdir: Any) -> list[dict[str, Any]]:
    """Measures `config.evaluate.metrics` on checkpoints of a run.

    Args:
        config: as in `configs/cifar10.py`; `evaluate` says what, `sample` how to sample.
        workdir: of the run; it may still be training.

    Returns:
        The rows of these metrics, of `evaluations.jsonl`, those known before among them.

    Raises:
        ValueError: a setting is wrong, or there is nothing to measure.
    """
    catalogue.check_evaluation(config)
    parallel.check_same(config=run_folder.dump(config))
    workdir = files.path(workdir)
    settings = config.evaluate
    network = None
    if job_lib.needs_inception(config):
        network = inception_features.Network(settings.inception or None)
    found = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision(settings.matmul_precision))
        folder = workdir / "evaluations"
        if not parallel.is_first():  # What the others draw is the same, and nobody looks at it.
            folder = epath.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for step in _steps(workdir, settings.checkpoints):
            try:
                step, trained = parallel.from_first(lambda: run_folder.load_step(
                    workdir, step=step, weights=config.sample.weights
                ))
            except ValueError as error:
                if settings.checkpoints != "follow":
                    raise
                _print(f"skipped: {error}")  # It was deleted meanwhile.
                continue
            job = job_lib.Job(
                config, step, trained, folder / f"step_{step:08d}",
                sys.stderr.isatty() and parallel.is_first(), network,
            )
            for item in catalogue.measured(config):
                row = _measured(job, workdir, *item)
                found.append(row)
                if _name(row) == settings.best and parallel.is_first():
                    _keep_best(workdir, row)
        parallel.barrier("evaluated")
    return found


def rows(workdir: Any) -> list[dict[str, Any]]:
    """What is known of a run: the rows of `evaluations.jsonl`, less what a kill has torn."""
    return metrics_file.read(files.path(workdir) / "evaluations.jsonl")


def _measured(job, workdir, metric, reference) -> dict[str, Any]:
    """The row of one metric, computed where it is not known."""
    protocol = job_lib.protocol(job, metric, reference)
    known = parallel.from_first(lambda: [
        row for row in rows(workdir) if (row["metric"], row["protocol"]) == (metric, protocol)
    ])
    if known:
        _say(known[0], "known already")
        return known[0]
    began = time.perf_counter()
    folder = job.folder / f"{metric}-{job_lib.key(protocol)}"
    arguments = (job, folder) if reference is None else (job, folder, reference)
    values = metrics_lib.METRICS[metric](*arguments)
    row = {
        "step": job.step, "metric": metric, "reference": reference, **values,
        "protocol": protocol,
    }
    if parallel.is_first():
        _record(workdir, row)
    where = f"; files in {folder}" if folder.exists() else ""
    _say(row, f"in {format_duration(time.perf_counter() - began)}{where}")
    return row


def _record(workdir, row) -> None:
    """Adds a row to `evaluations.jsonl`, and its value to TensorBoard."""
    known = rows(workdir) + [row]
    files.write(
        workdir / "evaluations.jsonl", "".join(json.dumps(r) + "\n" for r in known).encode()
    )
    if row["value"] is not None:
        with EventFiles(workdir / "tensorboard" / "evaluation") as events:
            events.scalar(_name(row), row["value"], row["step"])


def _name(row) -> str:
    return "/".join(filter(None, (row["metric"], row["reference"])))


def _say(row, how) -> None:
    """One line: the value, and the protocol by which it was measured."""
    error = row.get("standard_error")
    value = "drawn" if row["value"] is None else f"= {row['value']:.4f}"
    error = f" +- {error:.4f}" if error is not None else ""
    more = {k: v for k, v in row.items() if k not in (
        "step", "metric", "reference", "value", "standard_error", "protocol", "remarks")}
    said = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                     for k, v in (more | row["protocol"]).items() if k != "step")
    _print(f"step {row['step']:,}  {_name(row)} {value}{error}  ({said}) {how}")
    for remark in row.get("remarks", ()):
        _print(f"warning: {remark}")


def _print(line) -> None:
    if parallel.is_first():
        print(line, flush=True)


def _steps(workdir: epath.Path, which: str) -> Iterator[int | None]:
    """Checkpoints to measure: one, all of them, or as a running job writes them."""
    if which == "newest":
        yield None
    elif which.isdigit():
        yield int(which)
    elif which == "all":
        steps = parallel.from_first(lambda: checkpoints.steps(workdir))
        yield from steps if steps else [None]
    else:
        seen = -1
        while True:
            steps, last = parallel.from_first(lambda: (
                checkpoints.steps(workdir), run_folder.stored_config(workdir).train.num_steps
            ))
            new = [step for step in steps if step > seen]
            yield from new
            seen = max([seen, *new])
            if seen >= last:
                return
            time.sleep(_POLL)


def _keep_best(workdir: epath.Path, row: dict[str, Any]) -> None:
    """Leaves the best checkpoint, among those measured like `row`, as a workdir of its own."""
    def way(row):
        return row["metric"], {k: v for k, v in row["protocol"].items() if k != "step"}

    sign = -1 if row["metric"] in catalogue.HIGHER_IS_BETTER else 1
    alike = [other for other in rows(workdir) if way(other) == way(row)]
    step = min(alike, key=lambda other: sign * other["value"])["step"]
    source, target = workdir / "checkpoints" / str(step), workdir / "best"
    if (target / "checkpoints" / str(step)).exists() or not source.exists():
        return
    temporary = workdir / "best.tmp"
    if temporary.exists():
        temporary.rmtree()
    _copy(source, temporary / "checkpoints" / str(step))
    (workdir / "config.json").copy(temporary / "config.json")
    if target.exists():
        target.rmtree()
    temporary.rename(target)
    _print(f"best by {_name(row)}: step {step:,}, kept in {target}")


def _copy(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        _copy(path, target / path.name) if path.is_dir() else path.copy(target / path.name)
