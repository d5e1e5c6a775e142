"""Folders of diffusers: on disk, or fetched from the Hugging Face hub."""

import re
from typing import Any

from etils import epath

from ddpm_jax.errors import UserError, located, one_line
from ddpm_jax.runtime import files
from ddpm_jax.weights import layout, state_files
from ddpm_jax.weights.layout import Layout


def model(
    source: Any, variant: str | None = None, needs_scheduler: bool = True
) -> tuple[epath.Path, Layout]:
    """The folder of a model, and its files: `source` itself, or the hub's repository of that name.

    A repository in the hub's cache is not looked up again, so it needs no network.

    Args:
        source: a folder, or the name of a repository.
        variant: as in `layout.find`.
        needs_scheduler: whether the cached files must include a scheduler's.

    Raises:
        UserError: it is neither, cannot be fetched, or has no such files.
    """
    folder = files.path(source)
    if folder.is_dir():
        return folder, _local(folder, variant)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise UserError(
            f"{source} is no folder, and no repository of the hub; write for example "
            "\"google/ddpm-ema-cifar10-32\"."
        )
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise UserError(
            f"{source} is no folder, and fetching it from the hub needs huggingface_hub; install "
            "it with: pip install \"ddpm_jax[hub]\"."
        ) from None
    folder = _cached(source, variant, needs_scheduler) or _fetched(source, variant)
    return folder, _local(folder, variant)


def _local(folder: epath.Path, variant: str | None) -> Layout:
    """The files of a folder on disk."""
    names = {
        f"{inner}/{path.name}" if inner else path.name
        for inner in layout.FOLDERS if (folder / inner).is_dir()
        for path in (folder / inner).iterdir()
    }
    checkpoints = [name for name in names if re.fullmatch(r"checkpoint-\d+", name)]
    if "checkpoints" in names:
        raise UserError(
            f"{folder} is the workdir of a run, and no model of diffusers: ddpm_jax.load opens it."
        )
    if checkpoints and not any(name.endswith(layout.CONFIG) for name in names):
        newest = max(checkpoints, key=lambda name: int(name.partition("-")[2]))
        raise UserError(f"{folder} is a trainer's folder of checkpoints; write {folder / newest}.")
    with located(folder):
        return layout.find(names, variant)


def _cached(repository: str, variant: str | None, needs_scheduler: bool) -> epath.Path | None:
    """The repository in the hub's cache; None unless all files are there."""
    import huggingface_hub.errors

    try:
        folder = epath.Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
        found = _local(folder, variant)
        complete = all((folder / name).exists() for name in _shards(folder, found.weights))
    except (huggingface_hub.errors.LocalEntryNotFoundError, UserError):
        return None
    return folder if complete and (found.scheduler or not needs_scheduler) else None


def _shards(folder: epath.Path, weights: str) -> list[str]:
    """The files that an index of shards lists, by their names below the folder."""
    if not weights.endswith(".json"):
        return []
    inner = weights.rpartition("/")[0]
    names = state_files.shards(folder / weights)
    return [f"{inner}/{name}" if inner else name for name in names]


def _fetched(repository: str, variant: str | None) -> epath.Path:
    """The repository's files, fetched into the hub's cache and checked."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repository, files_metadata=True)
        large_files = {file.rfilename: file.lfs for file in info.siblings}
        found = layout.find(large_files, variant)
        wanted = [name for name in (found.config, found.scheduler, found.weights) if name]
        folder = epath.Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
        shards = _shards(folder, found.weights)
        if shards:
            huggingface_hub.snapshot_download(repository, allow_patterns=[*wanted, *shards])
        for name in (*wanted, *shards):
            if large_files[name]:  # The hub tells the SHA-256 of large files alone.
                _check_sum(folder / name, large_files[name].sha256)
        return folder
    except Exception as error:  # Errors of the hub's client have no common class.
        raise UserError(
            f"{repository} is no folder, not in the hub's cache, and could not be fetched "
            f"({type(error).__name__}: {one_line(error)[:200]}); go online, or write the path of "
            "a folder."
        ) from None


def _check_sum(path: epath.Path, sha256: str) -> None:
    """Removes a file that arrived damaged, so that it is not used later, and raises OSError."""
    if files.sha256(path) != sha256:
        path.resolve().unlink()  # The cache links to it.
        raise OSError(f"{path.name} arrived with another SHA-256 than {sha256}")
