"""`evaluate(config, workdir)`: measures checkpoints as papers do, each protocol once.

Results are rows of `evaluations.jsonl` and scalars in TensorBoard; pictures and tables are in
`evaluations/step_.../`; all of it in the workdir or `config.evaluate.folder`. A row holds its
protocol: everything that its value depends on, with digests of the weights and images. A value
whose protocol has a row is never computed again. Under several processes the first decides what to
measure and writes the results; every process computes its share.
"""

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax import errors, validation
from ddpm_jax.data import labels as labels_lib
from ddpm_jax.data import loading
from ddpm_jax.errors import UserError, located
from ddpm_jax.evaluation import (
    best_checkpoint, catalogue, image_sets, inception_features, lines,
)
from ddpm_jax.evaluation import job as job_lib
from ddpm_jax.evaluation.catalogue import METRICS
from ddpm_jax.evaluation.job import Job, Settings
from ddpm_jax.network import averages
from ddpm_jax.runtime import devices, files, parallel
from ddpm_jax.runtime.progress import format_duration
from ddpm_jax.workdir import checkpoints, data_record, metrics_file, run_folder, snapshots
from ddpm_jax.workdir.tensorboard_writer import EventFiles

POLL_SECONDS = 5.0  # Between two looks at a running job.
_CHECKPOINTS = ("newest", "all", "follow")


def evaluate(config: ml_collections.ConfigDict, workdir: Any) -> list[dict[str, Any]]:
    """Measures `config.evaluate.metrics` on checkpoints of a run.

    Args:
        config: as in `configs/cifar10.py`; `evaluate` is what to measure, `sample` how to sample.
        workdir: of the run, which may still be training.

    Returns:
        The rows of these metrics in `evaluations.jsonl`, including those computed before.

    Raises:
        ValueError: a setting is wrong, or there is nothing to measure.
    """
    devices.check()
    config = check_evaluation(config)
    parallel.check_same(config=run_folder.dump(config))
    settings, workdir = settings_of(config), files.path(workdir)
    results = files.path(config.evaluate.folder or workdir)
    stored = run_folder.stored_config(workdir)  # Without a run nothing is written.
    parallel.from_first(lambda: run_folder.check_writable(
        results, instead="--config.evaluate.folder=measured"
    ))
    kept = loading.kept_for(
        data_record.read(workdir), config_lib.same_data(config, stored), **settings.data
    )
    settings = dataclasses.replace(settings, data=settings.data | {"kept": kept})
    parallel.from_first(lambda: _check_weights(config, stored, workdir))
    measured = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision(settings.matmul_precision))
        folder = results / "evaluations"
        if not parallel.is_first():  # Its files equal those of the first process: not kept.
            folder = epath.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for job in _jobs(config, settings, workdir, folder):
            for metric, reference, protocol in _questions(job):
                with located(lines.name(metric, reference)):
                    row = _measure(job, results, metric, reference, protocol)
                measured.append(row)
                if lines.name(metric, reference) == config.evaluate.best and parallel.is_first():
                    _keep_best(workdir, row, results)
        parallel.barrier("evaluated")
    if len(_weights(config)) > 1:
        _print(lines.table(measured))
    return measured


def _weights(config) -> tuple[str, ...]:
    """The weights to measure of each checkpoint."""
    return config.evaluate.weights or (config.sample.weights,)


def _check_weights(config, stored, workdir):
    """Raises UserError for weights that the run has not, before anything is measured."""
    newest = checkpoints.steps(workdir)[-1:] if config.evaluate.checkpoints == "newest" else []
    with errors.named_as(weights=f"{'evaluate' if config.evaluate.weights else 'sample'}.weights"):
        for weights in _weights(config):
            run_folder.check_weights(weights, stored, workdir)
            width = averages.sigma_rel(weights)
            for step in newest if width is not None else ():
                snapshots.factors(workdir, step, width)


def _jobs(config, settings, workdir, folder) -> Iterator[Job]:
    """One job for each of the weights of each checkpoint."""
    network, sets = None, image_sets.Sets()
    swept = config.evaluate.sweep_steps if "sweep" in config.evaluate.metrics else ()
    with errors.named_as(sweep_students="evaluate.sweep_students", steps="evaluate.sweep_steps"):
        students = parallel.from_first(lambda: run_folder.load_students(
            config.evaluate.sweep_students, swept
        ))
    if catalogue.needs_inception(settings):
        network = inception_features.Network(config.evaluate.inception or None)
    for step in _steps(workdir, config.evaluate.checkpoints):
        for weights in _weights(config):
            worse = parallel.from_first(lambda: run_folder.load_guide(
                config.sample.guide_weights, workdir, weights
            ))
            try:
                step, trained = parallel.from_first(lambda: run_folder.load_step(
                    workdir, step=step, weights=weights
                ))
            except ValueError as error:
                if config.evaluate.checkpoints != "follow":
                    raise
                _print(f"skipped: {error}")  # Training has deleted it.
                break
            catalogue.check_model(settings, trained)
            yield Job(
                dataclasses.replace(settings, weights=weights), step, trained,
                folder / f"step_{step:08d}", parallel.is_first(), network,
                sets, worse, students,
            )


def settings_of(config: ml_collections.ConfigDict) -> Settings:
    """What the metrics read of a config, collected once."""
    names = {field.name for field in dataclasses.fields(Settings)}
    named = {name: value for name, value in config.evaluate.items() if name in names}
    return Settings(**(named | dict(
        references=tuple(map(str, config.evaluate.references)), weights=config.sample.weights,
        sampler=config_lib.read_sampling(config), sample_labels=tuple(
            labels_lib.numbered(config.sample.labels, config.data.class_names)),
        sample_vectors=config.sample.vectors,
        sample_batch_size=config.sample.batch_size, objective=config_lib.objective(config),
        data=config_lib.data_settings(config),
    )))


def check_evaluation(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config, as `validation.checked` returns it, if something can be measured with it.

    Raises:
        ValueError: names the first setting with which nothing can be measured.
    """
    config = validation.checked(config)
    settings = config.evaluate
    for metric in settings.metrics:
        if str(metric) not in METRICS:  # The tuple may hold anything.
            raise UserError(
                f"config.evaluate.metrics has {metric!r}, which is not known; use some of "
                f"{', '.join(METRICS)}, written as --config.evaluate.metrics=\"('bpd',)\"."
            )
    if not settings.metrics:
        raise UserError(
            "asks for nothing", field="config.evaluate.metrics", value=(),
            instead={"config.evaluate.metrics": ("bpd",)},
        )
    if settings.checkpoints not in _CHECKPOINTS and not settings.checkpoints.isdigit():
        raise UserError(
            "must be newest, all, follow or a step", field="config.evaluate.checkpoints",
            value=settings.checkpoints, instead={"config.evaluate.checkpoints": "newest"},
        )
    if "sweep" in settings.metrics:
        _check_sweep(config)
    _check_references(config)
    if any(METRICS[metric].needs_samples for metric in settings.metrics):
        config_lib.sampling_settings(config)
    _check_best(config)
    validation.check_precision("evaluate", settings.matmul_precision)
    return config


def _check_references(config):
    settings = settings_of(config)
    compared = [
        name for name in settings.metrics if catalogue.metric(name, settings).needs_references
    ]
    if compared and not settings.references:
        raise UserError(
            f"leaves {compared[0]!r} of config.evaluate.metrics nothing to compare samples with",
            field="config.evaluate.references", value=(),
            instead={"config.evaluate.references": ("train",)},
        )


def _check_best(config):
    names = [
        lines.name(metric, reference)
        for metric, reference in catalogue.measurements(settings_of(config))
        if METRICS[metric].has_value
    ]
    best = config.evaluate.best
    if best and not names:
        raise UserError(
            "needs a metric with a value; add one, for example 'bpd', to config.evaluate.metrics.",
            field="config.evaluate.best", value=best,
        )
    if best and best not in names:
        raise UserError(
            f"is not measured; use one of {', '.join(names)}, for example "
            f"--config.evaluate.best={names[0]}.", field="config.evaluate.best", value=best,
        )


def _check_sweep(config):
    settings = config.evaluate
    if settings.sweep_metric not in METRICS or not METRICS[settings.sweep_metric].in_sweeps:
        scores = ", ".join(name for name, metric in METRICS.items() if metric.in_sweeps)
        raise UserError(
            f"is no score of samples; use one of {scores}.",
            field="config.evaluate.sweep_metric", value=settings.sweep_metric,
        )
    if not settings.sweep_samplers:
        raise UserError(
            "leaves no rows", field="config.evaluate.sweep_samplers", value=(),
            instead={"config.evaluate.sweep_samplers": ("ddim", "dpm_solver_pp")},
        )
    for name in settings.sweep_samplers:
        for steps in settings.sweep_steps:
            _check_cell(config, str(name), steps)  # The tuple may hold anything.


def _check_cell(config, name, steps):
    """Raises ValueError if a sampler of a sweep cannot make so many network calls."""
    try:
        sampler = config_lib.read_sampling(config).with_sampler(name, steps)
        sampler.check()
        calls = sampler.num_calls(config_lib.schedule(config))
    except ValueError as error:
        raise UserError(
            f"config.evaluate.sweep_steps has {steps}, and {name!r} of "
            f"config.evaluate.sweep_samplers cannot: {error}"
        ) from None
    if calls != steps:
        raise UserError(
            f"config.evaluate.sweep_steps has {steps}, and {name!r} makes {calls} calls on "
            f"config.sample.grid={config.sample.grid!r}; write --config.sample.grid=uniform."
        )
    if config.diffusion.mean == "x_prev" and not sampler.by_grid:
        raise UserError(
            f"config.evaluate.sweep_samplers has {name!r}, which cannot go with "
            "config.diffusion.mean='x_prev'; use 'ancestral' and 'ddim' alone."
        )


def rows(workdir: Any) -> list[dict[str, Any]]:
    """The rows of a workdir's `evaluations.jsonl`, without a last one that a kill has cut."""
    return metrics_file.read(files.path(workdir) / "evaluations.jsonl")


def _questions(job) -> list[tuple[str, str | None, dict[str, Any]]]:
    """(metric, reference, protocol) of each row; refuses wrong references before any work."""
    questions = []
    for metric, reference in catalogue.measurements(job.settings):
        with located(lines.name(metric, reference)):
            questions.append((metric, reference, catalogue.protocol(job, metric, reference)))
    return questions


def _measure(job, results, metric, reference, protocol) -> dict[str, Any]:
    """The row of one metric, computed only if it is not known."""
    alike = parallel.from_first(lambda: [
        row for row in rows(results)
        if row["metric"] == metric and row["protocol"].items() <= protocol.items()
    ])
    known = [row for row in alike if row["protocol"] == protocol]
    if known:
        _print_row(known[0], "known already")
        return known[0]
    for row in alike[-1:]:  # The others are older still.
        _print_row(row, "by a version that did not record of which data; measured again")
    began = time.perf_counter()
    folder = job.folder / f"{metric}-{job_lib.key(protocol)}"
    arguments = (job, folder) if reference is None else (job, folder, reference)
    with errors.named_as(batch_size="evaluate.batch_size"):
        values = catalogue.metric(metric, job.settings).measure(*arguments)
    if catalogue.protocol(job, metric, reference) != protocol:
        raise UserError("the data have changed while they were measured; start again.")
    row = {
        "step": job.step, "metric": metric, "reference": reference, **values,
        "protocol": protocol,
    }
    if parallel.is_first():
        _write(results, row)
    where = f"; files in {folder}" if folder.exists() else ""
    _print_row(row, f"in {format_duration(time.perf_counter() - began)}{where}")
    return row


def _write(results, row) -> None:
    """Adds a row to `evaluations.jsonl`, and its value to TensorBoard."""
    text = "".join(json.dumps(each) + "\n" for each in (*rows(results), row))
    files.write(results / "evaluations.jsonl", text.encode())
    if row["value"] is not None:
        with EventFiles(results / "tensorboard" / "evaluation") as events:
            weights = row["protocol"]["weights"]
            name = lines.name(row["metric"], row["reference"])
            tag = name if weights == "ema" else f"{name} of {weights}"
            events.scalar(tag, row["value"], row["step"])


def _keep_best(workdir, row, results):
    target = results / "best"
    step = best_checkpoint.keep(
        workdir, row, rows(results), target,
        higher_is_better=METRICS[row["metric"]].higher_is_better,
    )
    if step is not None:
        name = lines.name(row["metric"], row["reference"])
        _print(f"best by {name}: step {step:,}, kept in {target}")


def _print_row(row, note) -> None:
    """Prints one line: the value with its protocol, and a note."""
    value = "drawn" if row["value"] is None else f"= {lines.value(row)}"
    name, details = lines.name(row["metric"], row["reference"]), lines.details(row)
    _print(f"step {row['step']:,}  {name} {value}  ({details}) {note}")
    for remark in row.get("remarks", ()):
        _print(f"warning: {remark}")


def _print(line) -> None:
    if parallel.is_first():
        print(line, flush=True)


def _steps(workdir: epath.Path, which: str) -> Iterator[int | None]:
    """Steps of the checkpoints to measure: one, all, or each that a running job writes."""
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
            time.sleep(POLL_SECONDS)
