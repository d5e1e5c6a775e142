"""Checkpoints of a run: written by Orbax in the background, restored from the newest on.

`workdir/checkpoints/<step>` holds `state`, a tree of arrays, and `metadata`, JSON; step is
the number of updates done. A damaged checkpoint costs the steps since the one before it.
"""

import contextlib
import json
import logging as python_logging
import sys
import threading
import time
from collections.abc import Collection, Iterator
from importlib import metadata as packages

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from ddpm_jax.errors import NotWrittenError, UserError, one_line
from ddpm_jax.network.trained import leaves
from ddpm_jax.runtime import files, parallel
from ddpm_jax.workdir.retention import Retention

DAMAGE = (ValueError, KeyError, OSError)  # What Orbax raises on files that it cannot read.
TEMPORARY = ".orbax-checkpoint-tmp"
_TIMED = "timed"  # In the metadata of a checkpoint that was saved because of the time.
_ABANDONED = 1.0  # Seconds in which the reads or writes that Orbax abandons on an error end.


class Checkpoints:
    """The checkpoints of a run that writes them; also a context manager.

    Opening it removes what a killed run left half written. In a run of several processes
    each opens it and calls every method. What Orbax would print is hidden until it is closed
    (see `quiet_orbax`).

    Args:
        workdir: str or path, gs:// too; the checkpoints are in its folder `checkpoints`.
        keep: how many of the newest stay, and of those saved as `timed` one more; None for all.
        keep_every: those at multiples of this many steps stay as well; 0 for none.
    """

    def __init__(self, workdir, *, keep: int | None = 2, keep_every: int = 0):
        self._folder = checkpoints_folder(workdir)
        self._saving = None  # (step, names and shapes of the arrays) of the save in progress.
        # If Orbax made the folder in the background and failed, it would leave threads behind
        # that keep the process from ending.
        background = ocp.AsyncOptions(
            create_directories_asynchronously=False, post_finalization_callback=self._check_written
        )
        self._kept = Retention(keep, keep_every)
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept, async_options=background
        )
        if parallel.is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in [path for path in self._folder.iterdir() if TEMPORARY in path.name]:
                leftover.rmtree()
        parallel.barrier("checkpoints.clean")
        self._kept.timed.update(parallel.from_first(lambda: _timed(self._folder)))
        with contextlib.ExitStack() as stack:
            stack.enter_context(quiet_orbax())
            self._plain = stack.enter_context(files.plain_path(self._folder))
            self._open()
            self._while_open = stack.pop_all()

    def _open(self) -> None:
        self._manager = ocp.CheckpointManager(self._plain, options=self._options)

    def _check_written(self) -> None:
        """Raises OSError unless the save in progress can be read back in its outline.

        Orbax calls it when all is written, before the checkpoint gets its name and before older
        ones are deleted.
        """
        if not parallel.is_first():
            return
        step, shapes = self._saving
        temporary = self._plain / f"{step}{TEMPORARY}"
        path = temporary if temporary.exists() else self._plain / str(step)  # As in stores.
        try:
            found = _shapes(_stored(path))
        except DAMAGE as error:
            raise OSError("what was written cannot be read back") from error
        if found != shapes:
            raise OSError("what was written has other arrays than those to save")

    def save(self, step: int, tree: dict, metadata: dict, *, timed: bool = False) -> None:
        """Starts writing `tree` as the checkpoint of `step`; does nothing if that exists.

        Copies the arrays to the host first, so the caller may donate them at once. Waits
        for the previous save.

        Args:
            step: updates done; later than every step saved before.
            tree: pytree of arrays, the same on every process.
            metadata: JSON, for example the configuration and `library_versions()`.
            timed: because of the time, and not of the step: of such only the newest stays, beside
                the others.

        Raises:
            NotWrittenError: this save or the previous one failed, for example on a full disk; older
                checkpoints stay.
        """
        if step in self._manager.all_steps():
            return
        arrays = jax.tree.map(np.asarray, jax.device_get(tree))
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays),
            metadata=ocp.args.JsonSave(metadata | ({_TIMED: True} if timed else {})),
        )
        with self._write_errors():
            self._manager.wait_until_finished()  # `_check_written` still needs the one before.
            if timed:
                self._kept.timed.add(step)
            self._saving = step, _shapes(arrays)
            self._manager.save(step, args=args, force=True)

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps."""
        for later in [other for other in self._manager.all_steps() if other > step]:
            self._manager.delete(later)

    def restore(self, abstract_tree: dict, *, added: Collection[str] = ()) -> tuple | None:
        """The newest checkpoint that can be read, as (step, tree); None if there is none.

        One that cannot be read is reported and renamed `<step>.corrupt`, and the previous one
        is tried; its step can be saved again.

        Args:
            abstract_tree: what was saved, with arrays or `jax.ShapeDtypeStruct` as leaves.
            added: keys that may be missing, because older versions saved without them; the tree
                returned lacks them too.

        Returns:
            The step, and NumPy arrays in the containers of `abstract_tree`.

        Raises:
            UserError: the checkpoint is sound, but its leaves or shapes are not those of
                `abstract_tree`.
        """
        self._manager.wait_until_finished()
        for step in parallel.from_first(lambda: _newest_first(self._folder)):
            path = self._folder / str(step)
            difference, tree, damage = "", None, None
            try:
                difference, tree = _read_like(self._plain / str(step), abstract_tree, added)
            except DAMAGE as error:
                damage = error
            if not parallel.everywhere(damage is None):
                self._set_aside(step, damage or OSError("another process could not read it"))
            elif difference:
                raise UserError(
                    f"{path} was made with {difference}. Go on with the settings in its "
                    "config.json, or use another --workdir."
                )
            else:
                return step, tree
        return None

    def _set_aside(self, step: int, error: Exception) -> None:
        path = self._folder / str(step)
        corrupt, number = self._folder / f"{step}.corrupt", 1
        while corrupt.exists():
            corrupt, number = self._folder / f"{step}.corrupt{number}", number + 1
        logging.warning(
            "%s is damaged (%s); it is renamed %s and the checkpoint before it is tried.",
            path, _described(error), corrupt.name,
        )
        parallel.barrier(f"checkpoints.read {step}")
        self._manager.close()
        self._kept.timed.discard(step)
        if parallel.is_first():
            path.rename(corrupt)
        parallel.barrier(f"checkpoints.rename {step}")
        self._open()  # The old one would refuse to save up to the step that is gone.

    def close(self) -> None:
        """Waits until everything is on disk; raises NotWrittenError if a save failed."""
        with self._while_open, self._write_errors():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turns what Orbax raises for a failed write into NotWrittenError, with what remains."""
        try:
            yield
        except DAMAGE as error:
            time.sleep(_ABANDONED)  # As for reads: `quiet_orbax` hides what they print.
            reason = getattr(error, "strerror", None) or str(error).split(": ")[-1]
            newest = next(iter(_newest_first(self._folder)), None)
            kept = f"that of step {newest} is whole" if newest is not None else "there is none yet"
            raise NotWrittenError(
                f"a checkpoint could not be written to {self._folder} ({reason}); {kept}. Make "
                "room there, or mend what is wrong with it, and start the same command again."
            ) from error

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is KeyboardInterrupt:  # Ctrl-C waits for no save: its leftovers are harmless.
            self._while_open.close()
        else:
            self.close()


def restore_part(workdir, name: str, step: int | None = None) -> tuple:
    """One part of a checkpoint, for example "ema_params"; no model need be known for it.

    Changes nothing in the workdir, and may run beside the run that writes it.

    Args:
        workdir: of the run, str or path.
        name: a key of the tree that was saved.
        step: of the checkpoint; None is the newest that can be read, with a warning for
            each newer one that cannot.

    Returns:
        (step, tree, metadata): the part as dicts and lists of NumPy arrays, and the JSON
        that was saved with it.

    Raises:
        UserError: no checkpoint that can be read, no such step, or no part of this name.
    """
    folder = checkpoints_folder(workdir)
    there = _newest_first(folder)
    if step is not None and step not in there:
        raise UserError(f"no checkpoint of step {step} in {folder}: there are {there}.")
    for candidate in there if step is None else [step]:
        path = folder / str(candidate)
        try:
            with quiet_orbax(), files.plain_path(path) as plain:
                stored = _stored(plain)
                if name in stored:
                    tree = _read(plain, {name: stored[name]})[name]
                    return candidate, tree, _metadata(path)
        except DAMAGE as error:
            logging.warning("%s is damaged (%s).", path, _described(error))
        else:
            raise UserError(f"{path} holds no {name!r}: there are {sorted(stored)}.")
    raise UserError(
        f"no checkpoint in {folder} that can be read: train first with --mode=train "
        f"--workdir={folder.parent}."
    )


def newest_metadata(workdir) -> dict | None:
    """The JSON that was saved with the newest checkpoint that has it; None if there is none."""
    folder = checkpoints_folder(workdir)
    for step in _newest_first(folder):
        with contextlib.suppress(*DAMAGE):
            return _metadata(folder / str(step))
    return None


def steps(workdir) -> list[int]:
    """The steps of which a run has checkpoints, in order."""
    return _newest_first(checkpoints_folder(workdir))[::-1]


def checkpoints_folder(workdir) -> epath.Path:
    """The folder of a run's checkpoints, as the absolute path that Orbax asks for."""
    folder = files.path(workdir) / "checkpoints"
    return folder if files.in_store(folder) else folder.resolve()


def library_versions() -> dict[str, str]:
    """The version of each library that a run depends on, by its name on PyPI."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ddpm_jax")
    return {name: packages.version(name) for name in names}


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Hides what Orbax prints beside the errors that it raises; undone at the end.

    It logs each file that it touches, and a run's own lines would drown. Errors in its threads
    are printed, and then raised by the next save or by closing. Where one array cannot be
    read or written, it closes its event loop under the others, which print a traceback each.
    """
    def is_news(record):
        orbax = "orbax" in record.pathname
        return not orbax or record.levelno > python_logging.INFO and not record.exc_info

    def report_unraisable(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            unraisable_hook(unraisable)

    def report_in_thread(failure):
        if not type(failure.thread).__module__.startswith("orbax."):
            thread_hook(failure)

    unraisable_hook, thread_hook = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = report_unraisable, report_in_thread
    logging.get_absl_logger().addFilter(is_news)
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = unraisable_hook, thread_hook
        logging.get_absl_logger().removeFilter(is_news)


def _newest_first(folder) -> list[int]:
    if not folder.exists():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True)


def _timed(folder) -> set[int]:
    """The steps of the checkpoints that were saved because of the time."""
    timed = set()
    for step in _newest_first(folder):
        with contextlib.suppress(*DAMAGE):  # It is found out, and said, when it is read.
            if _metadata(folder / str(step)).get(_TIMED):
                timed.add(step)
    return timed


def _read_like(path, abstract_tree, added) -> tuple[str, dict | None]:
    """("", the arrays of `abstract_tree` at `path`), or (in what the two differ, None)."""
    stored = _stored(path)
    wanted = {
        key: part for key, part in abstract_tree.items() if key in stored or key not in added
    }
    difference = _difference(stored, wanted)
    metadata = _metadata(path)  # Without it, nobody could sample from the checkpoint.
    if difference:
        return f"another model or optimizer{_other_version(metadata)}: {difference}", None
    return "", _read(path, wanted)


def _stored(path) -> dict:
    """The tree in the checkpoint at `path`, with a shape and a dtype for each array."""
    return ocp.PyTreeCheckpointHandler().metadata(path / "state").tree


def _metadata(path) -> dict:
    return json.loads((path / "metadata" / "metadata").read_text())


def _read(path, tree):
    """The arrays of the checkpoint at `path` that have a leaf in `tree`, as NumPy."""
    numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    args = ocp.args.PyTreeRestore(
        item=jax.tree.map(lambda _: 0, tree), restore_args=numpy, partial_restore=True
    )
    try:
        return ocp.PyTreeCheckpointHandler().restore(path / "state", args=args)
    except DAMAGE:
        time.sleep(_ABANDONED)  # What they print is hidden as long as we are in `quiet_orbax`.
        raise


def _difference(stored, wanted) -> str:
    """The first leaf in which two trees differ, in words; "" if there is none."""
    stored, wanted = _shapes(stored), _shapes(wanted)
    for name in sorted({**stored, **wanted}):
        if name not in wanted:
            return f"it has {name} {stored[name]}, which is not in this one"
        if name not in stored:
            return f"it has no {name}, which is {wanted[name]} in this one"
        if stored[name] != wanted[name]:
            return f"{name} is {stored[name]} there and {wanted[name]} in this one"
    return ""


def _shapes(tree) -> dict[str, list[int]]:
    return {"/".join(path): list(np.shape(leaf)) for path, leaf in leaves(tree).items()}


def _other_version(metadata: dict) -> str:
    """Says which version of this package wrote a checkpoint, if it was another than this."""
    theirs, ours = (
        versions.get("ddpm_jax", "?")
        for versions in (metadata.get("versions", {}), library_versions())
    )
    return "" if theirs == ours else f", or by version {theirs} of this program (this is {ours})"


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)[:200]}"
