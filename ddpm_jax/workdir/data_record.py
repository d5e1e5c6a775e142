"""`data.json`: what a run keeps of its data, see `data.kept.Kept`."""

import dataclasses
import json
from typing import Any

from etils import epath

from ddpm_jax.data.kept import Kept
from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import files, parallel
from ddpm_jax.workdir import checkpoints, run_folder

_NAME = "data.json"
_STORED = ("classes", "class_counts", "split_folders", "held_out")


def read(workdir: Any) -> Kept | None:
    """What the run in `workdir` keeps of its data; None where there is no run.

    A run of an older version has no `data.json`, and keeps only the number of its classes. Every
    process makes the call.

    Raises:
        UserError: the file is damaged.
    """
    return parallel.from_first(lambda: _read(files.path(workdir)))


def to_resume(workdir: Any) -> Kept | None:
    """As `read`, but None also where nothing was trained since `data.json` was written."""
    def begun():
        path = files.path(workdir)
        untrained = (path / _NAME).exists() and not checkpoints.steps(path)
        return None if untrained else _read(path)

    return parallel.from_first(begun)


def write(kept: Kept, workdir: epath.Path) -> None:
    """Writes `data.json`, in the first process."""
    if not parallel.is_first():
        return
    content = dataclasses.asdict(kept)
    lines = ",\n".join(f'"{name}": {json.dumps(content[name])}' for name in _STORED)
    files.write(workdir / _NAME, f"{{\n{lines}\n}}\n".encode())


def copy(workdir: epath.Path, target: epath.Path) -> None:
    """Copies `data.json` into another workdir, if there is one."""
    if (workdir / _NAME).exists():
        files.write(target / _NAME, (workdir / _NAME).read_bytes())


def _read(workdir):
    path = workdir / _NAME
    if path.exists():
        return _parsed(path)
    stored = run_folder.find_config(workdir)
    if stored is None:
        return None
    return Kept(num_classes=stored.data.num_classes if stored.data.labels else 0)


def _parsed(path):
    try:
        content = json.loads(path.read_text())
        return Kept(
            classes=tuple(content["classes"]), class_counts=tuple(content["class_counts"]),
            split_folders=content["split_folders"],
            held_out=None if content["held_out"] is None else dict(content["held_out"]),
        )
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)[:200]}); put back the file, or name another "
            "--workdir."
        ) from None
