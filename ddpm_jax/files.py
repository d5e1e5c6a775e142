"""Files that a reader never sees half of: written aside, then renamed into place."""

import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

# What zipfile and NumPy raise on an `.npz` that they cannot read.
NPZ_DAMAGE = (
    OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)


def one_line(error: Exception) -> str:
    """What an error says, for use within a line."""
    return " ".join(str(error).split()) or type(error).__name__


def write(path: Any, fill: bytes | Callable[[Any], None]) -> None:
    """Writes a file, making its folder and replacing what is there.

    Args:
        path: str or path, gs:// too.
        fill: its content, or a function that writes it to a binary file.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            fill(file) if callable(fill) else file.write(fill)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_folder(path: Any, contents: Mapping[str, bytes]) -> None:
    """Writes a folder of files, under a name that does not exist yet or is an empty folder.

    Args:
        path: str or path.
        contents: each file's content by its path below the folder.
    """
    path = epath.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        for name, content in contents.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except BaseException:
        if temporary.exists():
            temporary.rmtree()
        raise


def cache_folder() -> pathlib.Path:
    """What is fetched or costly to compute is kept in $DDPM_JAX_CACHE or ~/.cache/ddpm_jax."""
    return pathlib.Path(os.environ.get("DDPM_JAX_CACHE") or "~/.cache/ddpm_jax").expanduser()


def write_npz(path: Any, arrays: dict[str, np.ndarray]) -> None:
    """Writes an `.npz`, compressed."""
    write(path, lambda file: np.savez_compressed(file, **arrays))
