"""The best checkpoint of a run by a metric, kept as a workdir of its own."""

from typing import Any

from etils import epath

from ddpm_jax.evaluation import identity
from ddpm_jax.network import averages
from ddpm_jax.runtime import files
from ddpm_jax.workdir import data_record, run_folder, snapshots


def keep(
    workdir: epath.Path, row: dict[str, Any], rows: list[dict[str, Any]], target: epath.Path, *,
    higher_is_better: bool,
) -> int | None:
    """Copies the best checkpoint of those measured like `row` to `target`, a workdir of its own.

    Rows of checkpoints that are no longer there do not count, for example those of an earlier run.

    Args:
        workdir: of the run.
        row: of its metric and protocol.
        rows: all that there are.
        target: where the best one is kept.
        higher_is_better: which value is the best.

    Returns:
        The step of the one that was copied; None if `target` holds the best one, or none is left.
    """
    def but_for_step(row):
        protocol = row["protocol"].items()
        return row["metric"], {k: v for k, v in protocol if k not in ("step", "checkpoint")}

    sign = -1 if higher_is_better else 1
    alike = [other for other in rows if but_for_step(other) == but_for_step(row)]
    for best in sorted(alike, key=lambda other: sign * other["value"]):
        if _holds(target, best):
            return None
        if _holds(workdir, best):
            break
    else:
        return None
    step, temporary = best["step"], target.with_name(f"{target.name}.tmp")
    if temporary.exists():
        temporary.rmtree()
    _copy(workdir / "checkpoints" / str(step), temporary / "checkpoints" / str(step))
    if averages.sigma_rel(best["protocol"]["weights"]) is not None:
        _copy(workdir / snapshots.FOLDER, temporary / snapshots.FOLDER)
    config_json = run_folder.dump(run_folder.stored_config(workdir))
    data_record.copy(workdir, temporary)
    files.write(temporary / "config.json", (config_json + "\n").encode())
    if target.exists():
        target.rmtree()
    temporary.rename(target)
    return step


def _holds(workdir, row) -> bool:
    """Whether the checkpoint that a row is of is still there."""
    try:
        _, trained = run_folder.load_step(
            workdir, step=row["step"], weights=row["protocol"]["weights"]
        )
    except ValueError:
        return False
    return identity.of_model(trained) == row["protocol"]["checkpoint"]


def _copy(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            path.copy(target / path.name)
