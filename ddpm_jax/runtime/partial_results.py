"""Long work kept part by part in a folder, so that a second start continues it.

Of several processes only the first reads and writes; each makes every call.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from ddpm_jax.runtime import files, parallel


def finished(folder: Any) -> Iterator[dict[str, np.ndarray]]:
    """The finished parts in order, from row 0 up to the first that is missing or damaged.

    Args:
        folder: str or path; may not exist.
    """
    done = 0
    while (part := parallel.from_first(lambda: _read(_path(folder, done)))) is not None:
        done += num_rows(part)
        yield part


def keep(folder: Any, done: int, part: dict[str, np.ndarray]) -> None:
    """Writes the part that starts at row `done`; readers never see half of it.

    Args:
        folder: str or path; made if missing.
        done: number of rows in the parts before it.
        part: arrays with the same number of rows, at least one.
    """
    if parallel.is_first():
        files.write_npz(_path(folder, done), part)


def remove(folder: Any) -> None:
    """Removes the parts, once all of the work is done."""
    if parallel.is_first():
        epath.Path(folder).rmtree()


def num_rows(part: dict[str, np.ndarray]) -> int:
    """How many rows a part has."""
    return len(next(iter(part.values())))


def _read(path: epath.Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return dict(arrays)
    except files.NPZ_DAMAGE:
        return None


def _path(folder: Any, done: int) -> epath.Path:
    return epath.Path(folder) / f"{done:09d}.npz"
