"""Files of one JSON row per line, and the metrics of a run in them, each step once.

Local files are appended to. A store cannot append, so there each start has its own part, which is
written whole each time: `metrics.jsonl` begins at step 0, `metrics.from_00001000.jsonl` after step
1,000. A part ends where the next one begins.
"""

import json
import math
import re
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from ddpm_jax.errors import UserError
from ddpm_jax.runtime import files

_PERIOD = 10.0  # Seconds between two writes of a part.


class MetricsFile:
    """Writes the metrics of one start of a run.

    Args:
        workdir: gets `metrics.jsonl`.
        start_step: updates done; rows of later steps are dropped.
        clock: gives seconds from any origin.
    """

    def __init__(
        self, workdir: Any, start_step: int, clock: Callable[[], float] = time.monotonic
    ):
        workdir = files.path(workdir)
        self._clock, self._written, self._new = clock, clock(), []
        self._path = _part(workdir, start_step if files.in_store(workdir) else 0)
        parts = _parts(workdir)
        own = [] if files.in_store(workdir) else _merged(parts)
        self._lines = [_line(row) for row in own if row["step"] <= start_step]
        files.write(self._path, "".join(self._lines).encode())
        for start, path in parts:
            if path != self._path and (start >= start_step or not files.in_store(workdir)):
                path.unlink()
        self._file = None if files.in_store(workdir) else self._path.open("a")

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row, which has `step`; readers of a store see it some seconds later."""
        self._new.append(_line(row))
        if self._file is not None or self._clock() - self._written >= _PERIOD:
            self.flush()

    def flush(self) -> None:
        """Lets readers see every row."""
        if not self._new:
            return
        if self._file is None:
            self._lines += self._new
            files.write(self._path, "".join(self._lines).encode())
        else:
            self._file.write("".join(self._new))
            self._file.flush()
        self._new, self._written = [], self._clock()

    def close(self) -> None:
        """Lets readers see every row; none can be added afterwards."""
        self.flush()
        if self._file is not None:
            self._file.close()


def read_metrics(workdir: Any) -> list[dict[str, Any]]:
    """The rows that a run has logged, in order, each with `step`, the updates done by then.

    A number that was not finite is None.

    Args:
        workdir: of the run, gs:// too; it may still be training.

    Raises:
        UserError: there is no such folder.
    """
    workdir = files.path(workdir)
    if not workdir.exists():
        raise UserError(f"workdir={workdir} does not exist; name the folder of a run.")
    return _merged(_parts(workdir))


def read(path: Any) -> list[dict[str, Any]]:
    """The rows of a file, without lines cut off by a kill; none if there is no file."""
    path = files.path(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [row for row in map(_row, lines) if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _part(workdir: epath.Path, start: int) -> epath.Path:
    return workdir / (f"metrics.from_{start:08d}.jsonl" if start else "metrics.jsonl")


def _parts(workdir: epath.Path) -> list[tuple[int, epath.Path]]:
    """The parts in order, each with the step after which it begins."""
    names = [path.name for path in workdir.iterdir()] if workdir.exists() else []
    matches = [re.fullmatch(r"metrics(?:\.from_(\d+))?\.jsonl", name) for name in names]
    return sorted((int(match[1] or 0), workdir / match[0]) for match in matches if match)


def _merged(parts: list[tuple[int, epath.Path]]) -> list[dict[str, Any]]:
    ends = [start for start, _ in parts[1:]] + [math.inf]
    return [
        row for (_, path), end in zip(parts, ends) for row in read(path)
        if row.get("step", math.nan) <= end
    ]
