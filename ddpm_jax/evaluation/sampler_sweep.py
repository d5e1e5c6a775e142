"""Quality by network calls for several samplers, in the layout of DDIM's Table 1.

Rows are samplers, columns are numbers of calls (Song, Meng and Ermon 2021, Table 1).
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from ddpm_jax.runtime import files, parallel
from ddpm_jax.workdir import plots


def measure(
    folder: Any,
    samplers: Sequence[str],
    steps: Sequence[int],
    score: Callable[[str, int], dict[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
    """The score of every cell, by sampler in the order of `steps`.

    Finished cells are kept in the folder, and a second call reads them from there.

    Args:
        folder: str or path; made if missing.
        samplers: names of the rows.
        steps: network calls of the columns.
        score: (sampler, calls) -> JSON with `value`.
    """
    def cell(sampler, calls):
        path = epath.Path(folder) / f"{sampler}_{calls}.json"
        text = parallel.from_first(lambda: path.read_text() if path.exists() else None)
        if text is None:
            text = json.dumps(score(sampler, calls))
            if parallel.is_first():
                files.write(path, text.encode())
        return json.loads(text)

    return {sampler: [cell(sampler, calls) for calls in steps] for sampler in samplers}


def save(
    folder: Any, name: str, steps: Sequence[int], cells: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes `sweep.csv`, `sweep.md` and `sweep.png`.

    Args:
        folder: str or path.
        name: of the score, for example "fid/train".
        steps: network calls of the columns.
        cells: what `measure` returned.
    """
    folder = epath.Path(folder)
    values = {sampler: [cell["value"] for cell in row] for sampler, row in cells.items()}
    lines = [["sampler", *steps]] + [
        [sampler, *(f"{value:.6g}" for value in row)] for sampler, row in values.items()
    ]
    csv = "\n".join(",".join(map(str, line)) for line in lines)
    files.write(folder / "sweep.csv", f"{csv}\n".encode())
    lines = [[name, *steps], ["---"] * (1 + len(steps))] + [
        [sampler, *map(_shown, row)] for sampler, row in cells.items()
    ]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    files.write(folder / "sweep.md", f"{table}\n".encode())
    standard_errors = {
        sampler: [cell.get("standard_error") or 0.0 for cell in row]
        for sampler, row in cells.items()
    }
    plots.sweep(folder / "sweep.png", name, steps, values, standard_errors)


def _shown(cell) -> str:
    """The value of a cell with its standard error, if it has one above 0."""
    error = cell.get("standard_error")
    return f"{cell['value']:.4g}" + (f" ± {error:.2g}" if error else "")
