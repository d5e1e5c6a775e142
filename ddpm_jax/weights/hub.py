"""Folders of diffusers: on disk, or fetched from the Hugging Face hub."""

import re

from etils import epath

from ddpm_jax.errors import UserError, one_line
from ddpm_jax.runtime import files

CONFIGS = ("unet/config.json", "config.json")
PROCESSES = ("scheduler/scheduler_config.json", "scheduler_config.json")
WEIGHTS = tuple(
    f"{folder}diffusion_pytorch_model.{kind}"
    for folder in ("unet/", "") for kind in ("safetensors", "bin")
)


def folder_of(source) -> epath.Path:
    """The folder itself, or that in the hub's cache."""
    folder = files.path(source)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise UserError(
            f"{source} is no folder, and no repository of the hub; write such as "
            "\"google/ddpm-ema-cifar10-32\"."
        )
    try:
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            f"{source} is no folder, and fetching it from the hub needs huggingface_hub; install "
            "it with: pip install \"ddpm_jax[hub]\"."
        ) from None
    try:  # What is there already is not looked for again, so that no network is needed.
        cached = epath.Path(huggingface_hub.snapshot_download(source, local_files_only=True))
        if all(any((cached / name).exists() for name in names)
               for names in (CONFIGS, PROCESSES, WEIGHTS)):
            return cached
    except huggingface_hub.errors.LocalEntryNotFoundError:
        pass
    try:
        info = huggingface_hub.HfApi().model_info(source, files_metadata=True)
        there = {file.rfilename: file.lfs for file in info.siblings}
        wanted = [name for names in (CONFIGS, PROCESSES, WEIGHTS)
                  for name in [n for n in names if n in there][:1]]
        folder = epath.Path(huggingface_hub.snapshot_download(source, allow_patterns=wanted))
        for name in wanted:
            if there[name]:  # The large files, whose SHA-256 the hub tells.
                _check_sum(folder / name, there[name].sha256)
        return folder
    except Exception as error:  # Its client's, its own and the system's have nothing in common.
        reason = one_line(error)[:200]
        raise UserError(
            f"{source} is no folder, not in the hub's cache, and could not be fetched "
            f"({type(error).__name__}: {reason}); go online, or write the path of a folder."
        ) from None


def _check_sum(path, sha256):
    """Removes what came over the network as something else, so that it is not used later."""
    if files.sha256(path) != sha256:
        path.resolve().unlink()  # The cache links to it.
        raise OSError(f"{path.name} arrived with another SHA-256 than {sha256}")


def first_of(folder, names) -> epath.Path:
    """The first of these files that there is."""
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        raise UserError(f"{folder} has no {' and no '.join(names)}; write a folder of diffusers.")
    return found[0]
