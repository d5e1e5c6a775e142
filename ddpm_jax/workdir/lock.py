"""One trainer per workdir: the first owns it, and the next is refused.

On a file system the owner locks `owner.json`, and the kernel frees the lock however the process
ends. A store has no locks: there the owner writes the time into the file once a minute, and another
trainer may take over after five minutes of silence; an owner that was only slow notices and stops.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from ddpm_jax.errors import UserError
from ddpm_jax.runtime import files, parallel
from ddpm_jax.workdir import metrics_file

HEARTBEAT, STALE = 60.0, 300.0  # Seconds.
SETTLE = 2.0  # Seconds after which two trainers that start at once have seen each other.


@contextlib.contextmanager
def hold(workdir: Any) -> Iterator[Callable[[], None]]:
    """Owns the workdir inside the context, for all processes of a run.

    Gives a function, to be called now and then, that raises UserError once another trainer has
    taken the workdir over.

    Args:
        workdir: a folder that exists, or one of a store, gs:// too.

    Raises:
        UserError: another trainer owns it.
    """
    path = files.path(workdir) / "owner.json"
    held = []  # Filled in the first process; a refusal is raised in all.
    parallel.from_first(lambda: held.append(_acquire(path)))
    lock, heart = held[0] if held else (None, None)
    try:
        yield heart.check if heart else lambda: None
    finally:
        if lock:
            lock.close()
        if heart:
            heart.stop()


def _acquire(path: epath.Path) -> tuple[Any, Any]:
    """(a lock, None), or, if nothing can be locked there, (None, a heart)."""
    lock = None if files.in_store(path) else _locked(path)
    return lock, None if lock else _Heart(path)


def _locked(path: epath.Path) -> Any:
    """The file, locked until it is closed; None if the file system has no locks."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(_refusal(path, "stop it")) from None
        return None
    file.truncate(0)
    file.write(_entry())
    file.flush()
    return file


class _Heart:
    """Ownership by a file that says when its owner was last alive."""

    def __init__(self, path: epath.Path):
        self._path, self._token, self._taken_over = path, uuid.uuid4().hex, ""
        silent = time.time() - _owner(path).get("time", 0)
        if silent < STALE:
            raise UserError(_refusal(path, (
                f"it was alive {silent:.0f} s ago: stop it, or try again in "
                f"{STALE - silent:.0f} s if it is dead"
            )))
        self._write()
        time.sleep(SETTLE)
        if _owner(path).get("token") != self._token:
            raise UserError(_refusal(path, "it started at the same time: stop it"))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _write(self):
        files.write(self._path, _entry(token=self._token).encode())

    def _beat(self):
        while not self._stopping.wait(HEARTBEAT):
            # Errors of stores have no common class. The next beat tries again.
            with contextlib.suppress(Exception):
                if _owner(self._path).get("token", self._token) != self._token:
                    self._taken_over = _refusal(
                        self._path, "it took over from this one, which stops")
                    return
                self._write()

    def check(self) -> None:
        """Raises UserError if another trainer has taken over."""
        if self._taken_over:
            raise UserError(self._taken_over)

    def stop(self) -> None:
        """Gives the workdir up."""
        self._stopping.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # A file that stays is stale in five minutes.
            if _owner(self._path).get("token") == self._token:
                self._path.unlink()


def _entry(**more: Any) -> str:
    """The content of the file."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    return json.dumps(owner | more) + "\n"


def _owner(path: epath.Path) -> dict[str, Any]:
    return next(iter(metrics_file.read(path)), {})


def _refusal(path: epath.Path, advice: str) -> str:
    owner = _owner(path)
    return (
        f"workdir={path.parent} is being trained by process {owner.get('pid', 'unknown')} on "
        f"{owner.get('host', 'unknown')}; {advice}, or name another --workdir."
    )
