"""Which files below a folder are pictures that can be read, and how many others there are."""

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator

from PIL import Image

from ddpm_jax.data import decoding
from ddpm_jax.errors import UserError
from ddpm_jax.runtime import files

_KINDS = 6  # Extensions named in a message.
_HEIC = (".heic", ".heif", ".hif")


@dataclasses.dataclass(frozen=True)
class Found:
    """The files below a folder.

    Attributes:
        names: the relative paths, sorted, of the files with the extension of a picture.
        left_out: how many others there are, as `counts` words it; "" if there are none.
    """

    names: list[str]
    left_out: str


def find(folder: str, table: str = "") -> Found:
    """The pictures below a folder, and what else is there.

    Links are followed, unless they lead back to a folder on the way to them; hidden files and
    folders are left out, and not counted.

    Args:
        folder: with pictures, or folders of them.
        table: name of files that are read too, and so not left out.

    Raises:
        UserError: a folder cannot be listed.
    """
    names = sorted(_in_store(folder) if files.in_store(folder) else _on_disk(folder))
    no_heif = any(_extension(name) in _HEIC for name in names) and not decoding.reads_heif()
    Image.init()
    known = {e for e, form in Image.registered_extensions().items() if form in decoding.FORMATS}
    pictures = [name for name in names if _extension(name) in known]
    left_out = counts(
        name for name in names
        if _extension(name) not in known and name.rpartition("/")[2] != table
    )
    if no_heif:
        left_out += f" (for HEIC, {decoding.GET_HEIF})"
    return Found(pictures, left_out)


def counts(names: Iterable[str]) -> str:
    """How many files there are of each extension, for example "30 .heic, 2 .txt"."""
    by_kind = collections.Counter(map(_kind, names))
    words = [f"{n:,} {kind}" for kind, n in by_kind.most_common(_KINDS)]
    if (more := by_kind.total() - sum(n for _, n in by_kind.most_common(_KINDS))):
        words.append(f"{more:,} more")
    return ", ".join(words)


def _kind(name):
    extension = _extension(name)
    plain = extension.isprintable() and extension.isascii() and len(extension) < 12
    return extension if extension and plain else "without a known extension"


def _extension(name):
    return os.path.splitext(name)[1].lower()


def _in_store(folder) -> Iterator[str]:
    """The files below a folder of a store."""
    top = None
    for root, folders, names in files.path(folder).walk():
        top = top or root  # The folder as its file system spells it, perhaps without gs://.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield (root.relative_to(top) / name).as_posix()


def _on_disk(folder) -> Iterator[str]:
    """The files below a folder."""
    left = [(folder, "", {os.path.realpath(folder)})]
    try:
        while left:
            path, prefix, above = left.pop()
            for entry in os.scandir(path):
                linked = entry.is_symlink()
                if entry.name.startswith("."):
                    continue
                if os.path.isdir(entry.path) if linked else entry.is_dir():
                    if (real := os.path.realpath(entry.path)) not in above:
                        left.append((entry.path, f"{prefix}{entry.name}/", {real, *above}))
                elif linked or entry.is_file():  # Opening a pipe would block.
                    yield prefix + entry.name
    except OSError as error:
        raise UserError(
            f"{error.filename!r} cannot be listed ({error.strerror}); give yourself the right to "
            "read it, or name another folder."
        ) from None
