"""Long work kept part by part in a folder, so that a second start takes it up again."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from ddpm_jax import files


def finished(folder: Any) -> Iterator[dict[str, np.ndarray]]:
    """The parts in order, from row 0 on, up to the first that is missing or damaged.

    Args:
        folder: str or path; may not exist.
    """
    done = 0
    while (path := _path(folder, done)).exists():
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                part = dict(arrays)
        except files.NPZ_DAMAGE:
            return
        done += num_rows(part)
        yield part


def keep(folder: Any, done: int, part: dict[str, np.ndarray]) -> None:
    """Writes the part that starts at row `done`; a reader never sees half of it.

    Args:
        folder: str or path; made where missing.
        done: rows of the parts before it.
        part: arrays with the same number of rows, at least one.
    """
    files.write_npz(_path(folder, done), part)


def num_rows(part: dict[str, np.ndarray]) -> int:
    """How many rows a part has."""
    return len(next(iter(part.values())))


def _path(folder: Any, done: int) -> epath.Path:
    return epath.Path(folder) / f"{done:09d}.npz"
