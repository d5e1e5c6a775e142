"""`report(workdirs)`: one or several workdirs as one self-contained page."""

import collections
import html
import os
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from etils import epath

from ddpm_jax.errors import UserError
from ddpm_jax.reporting import comparison, contents, page, redaction, sections
from ddpm_jax.runtime import files

NAME = "report.html"
LARGEST = 10_000_000  # Bytes of a page.
_PICTURES = 6_500_000  # Of these for pictures.


def report(workdirs: Any, path: Any = None) -> str:
    """Writes what workdirs hold as one HTML file, which loads nothing from elsewhere.

    It has the curves, previews, denoising chains, samples and evaluations that are there, the
    config, and the commands that made them; for what is not there, the command that would. Several
    workdirs are compared first. It reads files alone: nothing is drawn or measured, no device is
    used, and runs may be training. Paths are reduced to their last names.

    Args:
        workdirs: a workdir, or several; gs:// too.
        path: of the page; `report.html` in the first workdir by default.

    Returns:
        The path of the page.

    Raises:
        UserError: one is no run, or is of another version; or the page would be larger than 10 MB
            or cannot be written.
    """
    one = isinstance(workdirs, (str, os.PathLike))
    folders = [files.path(workdir) for workdir in ([workdirs] if one else workdirs)]
    if not folders:
        raise UserError("has no workdir; name one, for example 'runs/digits'.",
                        field="workdirs", value=workdirs)
    target = folders[0] / NAME if path is None else files.path(path)
    if target.is_dir():
        raise UserError(f"report={target} is a folder; name a file, for example {target / NAME}.")
    runs = [contents.read(folder, name) for folder, name in zip(folders, _names(folders))]
    content = _page(runs).encode()
    if len(content) > LARGEST:
        raise UserError(
            f"a report of these {len(runs)} workdirs has {len(content) / 1e6:.0f} MB, more than "
            f"{LARGEST / 1e6:.0f}; name fewer workdirs."
        )
    try:
        files.write(target, content)
    except OSError as error:
        raise UserError(
            f"report={target} cannot be written ({error.strerror or error}); name another file, "
            "for example --report=report.html."
        ) from None
    return str(target)


def _names(folders: Sequence[epath.Path]) -> list[str]:
    """The last name of each, numbered where it is not the first of that name."""
    counts: collections.Counter[str] = collections.Counter()
    names = []
    for folder in folders:
        name = redaction.last_name(folder) or "run"
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return names


def _page(runs) -> str:
    note = f"ddpm_jax {metadata.version('ddpm_jax')}; everything is in this file."
    if len(runs) == 1:
        return page.page(runs[0].name, note, sections.all_of(runs[0], _PICTURES))
    parts = comparison.all_of(runs)
    for number, run in enumerate(runs, 1):
        prefix = f"run-{number}-"
        heading = f'<h2 class="run" id="{prefix[:-1]}">{html.escape(run.name)}</h2>\n'
        parts.append((prefix[:-1], run.name, heading))
        own = sections.all_of(run, _PICTURES // len(runs), prefix)
        parts += [(anchor, "", body) for anchor, _, body in own]
    return page.page(" and ".join(run.name for run in runs), note, parts)
