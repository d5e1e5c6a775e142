"""What a page shows of one workdir: read once, without a device, whatever is missing there."""

import dataclasses
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from ddpm_jax import config as config_lib
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import job as job_lib
from ddpm_jax.evaluation import lines
from ddpm_jax.reporting import commands, redaction
from ddpm_jax.runtime import files
from ddpm_jax.workdir import checkpoints, metrics_file, run_folder

_MOST = 12  # Pictures of samples, and of chains, of the newest.
_CHAINS = 3


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture of `--mode=sample`.

    Attributes:
        title: what it shows.
        command: that made it; "" if the workdir does not say.
        path: of the PNG.
    """

    title: str
    command: str
    path: epath.Path


@dataclasses.dataclass(frozen=True)
class Chain:
    """Images on their way from noise.

    Attributes:
        command: that made it.
        x_t, x_0: uint8 [frames, n, h, w, c], from noise to image.
        labels: one a frame.
    """

    command: str
    x_t: np.ndarray
    x_0: np.ndarray
    labels: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A row of `evaluations.jsonl`.

    Attributes:
        row: without folders in it.
        command: that measures it.
        folder: of its files; it may not exist.
    """

    row: Mapping[str, Any]
    command: str
    folder: epath.Path

    @property
    def name(self) -> str:
        """As "fid/train"."""
        return lines.name(self.row["metric"], self.row.get("reference"))

    @property
    def files(self) -> dict[str, epath.Path]:
        """The files of its folder by their names."""
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return {path.name: path for path in sorted(there)}


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a workdir holds.

    Attributes:
        name: the last name of its path, made unique among those of a page.
        settings: by their names as "train.num_steps", without folders in them.
        rows: of `metrics.jsonl`.
        checkpoints: their steps.
        versions: of libraries, in the newest checkpoint; {} without one.
        previews: (step, path) of the grids that training drew.
        samples: the newest pictures of `--mode=sample`.
        chains: the newest of `config.sample.task=strip`.
        evaluations: all rows, in order.
        notes: what could not be read, in sentences.
    """

    name: str
    settings: Mapping[str, Any]
    rows: list[dict[str, Any]]
    checkpoints: list[int]
    versions: Mapping[str, str]
    previews: list[tuple[int, epath.Path]]
    samples: list[Drawn]
    chains: list[Chain]
    evaluations: list[Evaluation]
    notes: list[str]

    @property
    def num_steps(self) -> int:
        """Updates done, as far as the workdir says."""
        logged = [row["step"] for row in self.rows]
        return max([0, *logged, *self.checkpoints])

    def values(self, metric: str) -> list[tuple[int, float | None]]:
        """(step, value) of the rows that have this metric."""
        return [(row["step"], row[metric]) for row in self.rows if metric in row]


def read(workdir: Any, name: str = "") -> Contents:
    """The contents of a workdir.

    Args:
        workdir: of the run, gs:// too; it may be training.
        name: in the page; the last name of its path by default.

    Raises:
        UserError: there is no run, or its config is damaged or of another version.
    """
    folder = files.path(workdir)
    name = name or redaction.last_name(folder) or "run"
    if not folder.is_dir():
        raise UserError(f"workdir={folder} is no folder; name that of a run.")
    try:
        stored = run_folder.stored_config(folder)
    except UserError as error:
        raise error if str(folder) in str(error) else error.located(folder) from None
    settings = {
        key: redaction.setting(key, value) for key, value in config_lib.leaves(stored)
    }
    notes: list[str] = []
    there = sorted((folder / "samples").iterdir()) if (folder / "samples").is_dir() else []
    previews, others = [], []
    for path in (path for path in there if path.name.endswith(".png")):
        match = re.fullmatch(r"step_(\d+)\.png", path.name)
        if match:
            previews.append((int(match[1]), path))
        elif path.name != "latest.png":
            others.append((_request(path, notes), path))
    others.sort(key=lambda item: item[0].get("step", 0))
    samples, chains = _drawn(others, settings, redaction.last_name(folder), notes)
    metadata = checkpoints.newest_metadata(folder) or {}
    return Contents(
        name=name, settings=settings, rows=_rows(folder, notes),
        checkpoints=checkpoints.steps(folder), versions=metadata.get("versions", {}),
        previews=sorted(previews), samples=samples, chains=chains, notes=notes,
        evaluations=_evaluations(folder, settings, notes),
    )


def _rows(folder, notes):
    rows = metrics_file.read_metrics(folder)
    known = [row for row in rows if isinstance(row.get("step"), int)]
    if len(known) < len(rows):
        notes.append(f"{len(rows) - len(known)} rows of metrics.jsonl have no step.")
    return [{
        key: value for key, value in row.items() if isinstance(value, (int, float, type(None)))
    } for row in known]


def _request(png, notes):
    path = png.with_name(f"{png.name.removesuffix('.png')}.json")
    if not path.exists():
        return {}
    try:
        asked = json.loads(path.read_text())
        return {"step": int(asked["step"]), "sample": dict(asked["sample"])}
    except (KeyError, RecursionError, TypeError, ValueError):
        notes.append(f"{path.name} cannot be read: damaged, or of another version.")
        return {}


def _drawn(others, settings, name, notes):
    samples, chains = [], []
    for asked, path in others:
        sample = asked.get("sample", {})
        command = commands.draw(sample, settings, name) if sample else ""
        if sample.get("task") == "strip":
            chains.append((path, command))
        else:
            samples.append(Drawn(_title(asked, path), command, path))
    if len(samples) > _MOST:
        notes.append(f"{len(samples) - _MOST} older pictures of samples are left out.")
    found = (_chain(path, command, notes) for path, command in chains[-_CHAINS:])
    return samples[-_MOST:], [chain for chain in found if chain is not None]


def _title(asked, path):
    sample = asked.get("sample", {})
    if not sample:
        return redaction.text(path.name.removesuffix(".png"))
    parts = [sample.get("task") or "samples", f"step {asked['step']:,}", str(sample.get("sampler"))]
    if sample.get("num_steps"):
        parts.append(f"{sample['num_steps']} steps")
    return ", ".join(parts)


def _chain(png, command, notes):
    path = png.with_name(f"{png.name.removesuffix('.png')}.npz")
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x_t, x_0 = arrays["x_t"], arrays["x_0"]
            left = arrays["calls_left"].tolist() if "calls_left" in arrays else None
    except (*files.NPZ_DAMAGE, zipfile.BadZipFile, zlib.error):
        notes.append(f"{path.name} cannot be read: damaged, or of another version.")
        return None
    if x_t.dtype != np.uint8 or x_t.ndim != 5 or x_t.shape != x_0.shape or not x_t.size:
        notes.append(f"{path.name} holds no pictures.")
        return None
    count = len(x_t)
    labels = [f"{n + 1} of {count}" for n in range(count)] if left is None else [
        f"{n:,} network call{'s' * (n != 1)} to go" for n in left
    ]
    return Chain(command, x_t, x_0, tuple(labels))


def _evaluations(folder, settings, notes):
    rows = metrics_file.read(folder / "evaluations.jsonl")
    found, name = [], redaction.last_name(folder)
    for row in rows:
        try:
            key, step = job_lib.key(row["protocol"]), int(row["step"])
            files_of = folder / "evaluations" / f"step_{step:08d}" / f"{row['metric']}-{key}"
            row = redaction.row(row)
            found.append(Evaluation(row, commands.measure(row, settings, name), files_of))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    if len(found) < len(rows):
        notes.append(
            f"{len(rows) - len(found)} rows of evaluations.jsonl cannot be read: damaged, or of "
            "another version."
        )
    return found
