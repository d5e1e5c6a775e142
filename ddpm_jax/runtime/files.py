"""Paths that users name, and files that appear whole or not at all.

A path is local, mounted drives included, or an object of a store, for example gs://bucket/name.
Local files are written beside their place and renamed; an object appears once all of it is there.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import pathlib
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fsspec
import numpy as np
from etils import epath

from ddpm_jax.errors import UserError, shown

_PLAIN = re.compile(r"[\w /.,:;=+@~()#%-]*")
_LONG = 80  # Bytes; most file systems allow 255 in a name.
# What zipfile and NumPy raise on an `.npz` that cannot be read.
NPZ_DAMAGE = (
    OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)


def path(name: Any) -> epath.Path:
    """The path that a user named; `~` is the home folder.

    Args:
        name: str or path, gs:// too.

    Raises:
        UserError: it is no path, in a store of an unknown kind, or of one whose package is not
            installed.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise UserError(f"{shown(name)} is no path; write one, for example 'runs/digits'.")
    scheme, separator, _ = os.fspath(name).partition("://")
    if separator and not (scheme == "gs" and importlib.util.find_spec("tensorflow")):
        # Disable listing caches, so that other processes' files appear.
        fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
        try:
            epath.Path(f"{scheme}://")
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            advice = 'pip install "ddpm_jax[gcs]"' if scheme == "gs" else str(error)
            raise UserError(f"{name} needs a package for {scheme}://; {advice}.") from None
        except KeyError:
            raise UserError(
                f"{name} is in no known store; write a local path, or gs://BUCKET/NAME."
            ) from None
    return epath.Path(name).expanduser()


def in_store(path: Any) -> bool:
    """Whether the path is in an object store, which has no append, rename or lock."""
    return "://" in os.fspath(path)


def folders(path: Any) -> list[epath.Path]:
    """The folders in a folder, which may not exist; a pattern would read `[1]` in its own way."""
    path = epath.Path(path)
    return [inner for inner in path.iterdir() if inner.is_dir()] if path.is_dir() else []


@contextlib.contextmanager
def plain_path(path: Any) -> Iterator[epath.Path]:
    """Gives a path to the same folder without characters that libraries read in their own way.

    Orbax takes `runs/exp[1]` for a pattern, TensorStore a backslash for a slash. Where a local
    path has other characters than letters, digits and a few signs, this is a link to it, removed
    at the end. A path in a store is given as it is; `run_folder.create` refuses what would be lost.

    Args:
        path: absolute.
    """
    if in_store(path) or _PLAIN.fullmatch(os.fspath(path)):
        yield epath.Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="ddpm_jax-") as folder:
        link = pathlib.Path(folder) / pathlib.Path(path).name
        link.symlink_to(path, target_is_directory=True)
        yield epath.Path(link)


def write(path: Any, fill: bytes | Callable[[Any], None]) -> None:
    """Writes a file whole, makes its folder, and replaces what was there.

    Args:
        path: str or path, gs:// too.
        fill: its content, or a function that writes it to a binary file.
    """
    path = epath.Path(path)
    if in_store(path):
        path.write_bytes(_content(fill))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(fill):
                fill(file)
            else:
                file.write(fill)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _content(fill) -> bytes:
    if not callable(fill):
        return fill
    file = io.BytesIO()
    fill(file)
    return file.getvalue()


def write_folder(path: Any, contents: Mapping[str, bytes]) -> None:
    """Writes a folder of files; there may be an empty folder of that name, but nothing else.

    In a store the last file completes the folder.

    Args:
        path: str or path.
        contents: the content of each file by its path below the folder.
    """
    path = epath.Path(path)
    temporary = path if in_store(path) else path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        for name, content in contents.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        if temporary != path:
            if path.exists():
                path.rmdir()
            temporary.rename(path)
    except BaseException:
        if temporary.exists():
            temporary.rmtree()
        raise


def sha256(path: Any) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(content: bytes, digits: int) -> str:
    """The first hexadecimal digits of the SHA-256 of `content`, as a name for it."""
    return hashlib.sha256(content).hexdigest()[:digits]


def short_name(name: str) -> str:
    """`name`, where it is long its first 60 bytes and a hash: as a part of a file's name."""
    raw = os.fsencode(name)
    if len(raw) <= _LONG:
        return name
    return f"{raw[:60].decode(errors='ignore')}-{short_hash(raw, 8)}"


def cache_folder() -> pathlib.Path:
    """The folder for downloads and costly results: $DDPM_JAX_CACHE or ~/.cache/ddpm_jax."""
    return pathlib.Path(os.environ.get("DDPM_JAX_CACHE") or "~/.cache/ddpm_jax").expanduser()


def write_npz(path: Any, arrays: dict[str, np.ndarray]) -> None:
    """Writes an `.npz`, compressed."""
    write(path, lambda file: np.savez_compressed(file, **arrays))
