"""`evaluate(config, workdir)`: measures checkpoints as papers do, each protocol once.

Results are rows of `evaluations.jsonl` and scalars of TensorBoard; pictures and tables stand
in `evaluations/step_.../`. A row says the protocol by which its value was measured, and a
row that has the same protocol is never computed again.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from etils import epath

from ddpm_jax import checkpoints, files, measures, pretrained, quality, validation
from ddpm_jax import rows as rows_lib
from ddpm_jax import workdir as workdir_lib
from ddpm_jax.event_files import EventFiles
from ddpm_jax.logs import format_duration

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
    validation.check_evaluation(config)
    workdir = files.path(workdir)
    settings = config.evaluate
    network = None
    if measures.needs_inception(config):
        network = quality.Network(settings.inception or None)
    found = []
    with jax.default_matmul_precision(settings.matmul_precision):
        for step in _steps(workdir, settings.checkpoints):
            try:
                step, trained = pretrained.load_step(
                    workdir, step=step, weights=config.sample.weights
                )
            except ValueError as error:
                if settings.checkpoints != "follow":
                    raise
                print(f"skipped: {error}", flush=True)  # It was deleted meanwhile.
                continue
            job = measures.Job(
                config, step, trained, workdir / "evaluations" / f"step_{step:08d}",
                sys.stderr.isatty(), network,
            )
            for item in validation.measured(config):
                row = _measured(job, workdir, *item)
                found.append(row)
                if _name(row) == settings.best:
                    _keep_best(workdir, row)
    return found


def rows(workdir: Any) -> list[dict[str, Any]]:
    """What is known of a run: the rows of `evaluations.jsonl`, less what a kill has torn."""
    return rows_lib.read(files.path(workdir) / "evaluations.jsonl")


def _measured(job, workdir, metric, reference) -> dict[str, Any]:
    """The row of one metric, computed where it is not known."""
    protocol = measures.protocol(job, metric, reference)
    for row in rows(workdir):
        if row["metric"] == metric and row["protocol"] == protocol:
            _say(row, "known already")
            return row
    began = time.perf_counter()
    folder = job.folder / f"{metric}-{measures.key(protocol)}"
    arguments = (job, folder) if reference is None else (job, folder, reference)
    values = measures.METRICS[metric](*arguments)
    row = {
        "step": job.step, "metric": metric, "reference": reference, **values,
        "protocol": protocol,
    }
    known = rows(workdir) + [row]
    files.write(
        workdir / "evaluations.jsonl", "".join(json.dumps(r) + "\n" for r in known).encode()
    )
    if row["value"] is not None:
        with EventFiles(workdir / "tensorboard" / "evaluation") as events:
            events.scalar(_name(row), row["value"], job.step)
    where = f"; files in {folder}" if folder.exists() else ""
    _say(row, f"in {format_duration(time.perf_counter() - began)}{where}")
    return row


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
    print(f"step {row['step']:,}  {_name(row)} {value}{error}  ({said}) {how}", flush=True)
    for remark in row.get("remarks", ()):
        print(f"warning: {remark}", flush=True)


def _steps(workdir: epath.Path, which: str) -> Iterator[int | None]:
    """Checkpoints to measure: one, all of them, or as a running job writes them."""
    if which == "newest":
        yield None
    elif which.isdigit():
        yield int(which)
    elif which == "all":
        steps = checkpoints.steps(workdir)
        yield from steps if steps else [None]
    else:
        seen = -1
        while True:
            new = [step for step in checkpoints.steps(workdir) if step > seen]
            yield from new
            seen = max([seen, *new])
            if seen >= workdir_lib.stored_config(workdir).train.num_steps:
                return
            time.sleep(_POLL)


def _keep_best(workdir: epath.Path, row: dict[str, Any]) -> None:
    """Leaves the best checkpoint, among those measured like `row`, as a workdir of its own."""
    def way(row):
        return row["metric"], {k: v for k, v in row["protocol"].items() if k != "step"}

    sign = -1 if row["metric"] in measures.HIGHER_IS_BETTER else 1
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
    print(f"best by {_name(row)}: step {step:,}, kept in {target}", flush=True)


def _copy(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        _copy(path, target / path.name) if path.is_dir() else path.copy(target / path.name)
