"""The arguments of the command line, before absl reads them: which config they start from."""

import importlib.util
import os
from collections.abc import Sequence

from ddpm_jax.errors import UserError

_FIXED = ("config.train.", "config.distill.")  # What sampling and evaluation take from the run.


def with_bundled(argv: list[str]) -> list[str]:
    """The arguments with the path of a bundled config in place of its name.

    A file of the user's with that name comes first.
    """
    path = last(argv, "config")
    file, _, argument = (path or "").partition(":")
    if not file or os.path.isfile(file):
        return argv
    name = os.path.basename(file).removesuffix(".py") + ".py"
    spec = importlib.util.find_spec("ddpm_jax.configs")
    bundled = os.path.join(spec.submodule_search_locations[0], name)
    if not os.path.exists(bundled):
        return argv
    bundled += f":{argument}" if argument else ""
    return [
        f"--config={bundled}" if a in (f"--config={path}", f"-config={path}") else
        bundled if a == path else a for a in argv
    ]


def with_stored(argv: list[str], modes: Sequence[str]) -> list[str]:
    """The arguments with the config of the run that they change, where they give no other.

    That is the run in --workdir, or for `--mode=distill` the teacher.

    Raises:
        UserError: there is no run, or a change has no effect there.
    """
    mode, folder, changes = last(argv, "mode") or "train", last(argv, "workdir"), overrides(argv)
    if mode == "report":
        for change in changes:
            raise UserError(f"{change} is not read by --mode=report; leave it out.")
        return argv
    if mode == "distill":
        folder = last(argv, "config.distill.teacher")
    if last(argv, "config") is not None or not folder or mode not in modes:
        return argv
    if mode in ("sample", "evaluate", "plan", "config") and not changes:
        return argv  # These take the run's own as it is.
    for change in changes if mode in ("sample", "evaluate") else ():
        if change.lstrip("-").startswith(_FIXED):
            raise UserError(f"{change} is not read by --mode={mode}; leave it out.")
    from ddpm_jax.workdir import run_folder, stored

    if mode == "train" and run_folder.find_config(run_folder.files.path(folder)) is None:
        return argv
    run_folder.stored_config(folder)
    return [argv[0], f"--config={stored.__file__}:{folder}", *argv[1:]]


def last(argv: list[str], name: str) -> str | None:
    """The value of the last --name=VALUE or --name VALUE."""
    found = None
    for argument, following in zip(argv, [*argv[1:], None]):
        flag, equals, value = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            found = value if equals else following
    return found


def overrides(argv: list[str]) -> list[str]:
    """Those that change one setting, --config.GROUP.NAME=VALUE."""
    return [a for a in argv[1:] if a.lstrip("-").startswith("config.")]
