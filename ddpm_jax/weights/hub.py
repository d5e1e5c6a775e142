"""Folders of diffusers: on disk, or fetched from the Hugging Face hub."""

import re
from typing import Any

from etils import epath

from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import files

# The names that each file may have, the first that exists counts.
CONFIGS = ("unet/config.json", "config.json")
PROCESSES = ("scheduler/scheduler_config.json", "scheduler_config.json")
WEIGHTS = tuple(
    f"{folder}diffusion_pytorch_model.{kind}"
    for folder in ("unet/", "") for kind in ("safetensors", "bin")
)
_FILES = (CONFIGS, PROCESSES, WEIGHTS)


def model_folder(source: Any) -> epath.Path:
    """The folder of a model: `source` itself, or where the hub's repository of that name is.

    A repository in the hub's cache is not looked up again, so it needs no network.

    Raises:
        UserError: it is neither, or cannot be fetched.
    """
    folder = files.path(source)
    if folder.is_dir():
        return folder
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
    return _cached(source) or _fetched(source)


def existing_file(folder: epath.Path, names: tuple[str, ...]) -> epath.Path:
    """The first of the named files that exists in the folder.

    Raises:
        UserError: none exists.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} has no {' and no '.join(names)}; write a folder of diffusers.")


def _cached(repository: str) -> epath.Path | None:
    """The repository in the hub's cache; None unless all files are there."""
    import huggingface_hub.errors

    try:
        folder = epath.Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
    except huggingface_hub.errors.LocalEntryNotFoundError:
        return None
    complete = all(any((folder / name).exists() for name in names) for names in _FILES)
    return folder if complete else None


def _fetched(repository: str) -> epath.Path:
    """The repository's files, fetched into the hub's cache and checked."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repository, files_metadata=True)
        large_files = {file.rfilename: file.lfs for file in info.siblings}
        wanted = [
            next(name for name in names if name in large_files)
            for names in _FILES if large_files.keys() & set(names)
        ]
        folder = epath.Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
        for name in wanted:
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
