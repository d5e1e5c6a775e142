"""TensorBoard's event files; since a store cannot append, it gets copies of local ones."""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ddpm_jax.runtime import files

FULL = 2**24  # Bytes of a file that is copied to a store; then a new one begins.


class EventFiles:
    """The event files of one start; also a context manager.

    Readers see what was written after `flush` or `close`, or else within seconds on a disk and
    within a minute in a store. (tensorboardX's own writer has a queue that no flush waits for.)

    Args:
        folder: for the files, gs:// too.
        purge_step: TensorBoard drops what was written earlier for this step and later ones.
        clock: gives seconds from any origin.

    Attributes:
        folder: local, for anything else that TensorBoard should show.
    """

    def __init__(
        self, folder: Any, *, purge_step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._target = files.path(folder)
        self._scratch = tempfile.TemporaryDirectory() if files.in_store(folder) else None
        self.folder = epath.Path(self._scratch.name) if self._scratch else self._target
        self.folder.mkdir(parents=True, exist_ok=True)
        self._period = 60.0 if self._scratch else 10.0
        self._clock, self._flushed, self._copied = clock, clock(), {}
        self._begin()
        if purge_step is not None:
            self._write(purge_step, session_log=SessionLog(status=SessionLog.START))

    def _begin(self):
        # Names of event files have the second; the suffix keeps two within one second apart,
        # and in order.
        self._writer = EventsWriter(str(self.folder / "events"), f".{time.time_ns()}")

    def _write(self, step, **what):
        self._writer.write_event(Event(step=int(step), wall_time=time.time(), **what))
        if self._clock() - self._flushed >= self._period:
            self.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point to a curve."""
        self._write(step, summary=summary.scalar(name, value))

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """Adds a picture, uint8 [h, w, c] with c of 1, 3 or 4."""
        self._write(step, summary=summary.image(name, picture, dataformats="HWC"))

    def text(self, name: str, text: str, step: int) -> None:
        """Adds Markdown."""
        self._write(step, summary=summary.text(name, text))

    def flush(self) -> None:
        """Lets readers see everything."""
        self._writer.flush()
        self._flushed = self._clock()
        if self._scratch and self._copy() >= FULL:
            self._writer.close()
            self._begin()

    def _copy(self) -> int:
        """Copies the files that have grown, and gives the size of the largest of them."""
        largest = 0
        for folder, _, names in self.folder.walk():
            for path in (folder / name for name in names):
                name, content = path.relative_to(self.folder), path.read_bytes()
                if self._copied.get(name) != len(content):
                    files.write(self._target / name, content)
                    self._copied[name] = len(content)
                    largest = max(largest, len(content))
        return largest

    def close(self) -> None:
        """Writes out what is buffered; nothing can be written afterwards."""
        self._writer.close()
        if self._scratch:
            self._copy()
            self._scratch.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
