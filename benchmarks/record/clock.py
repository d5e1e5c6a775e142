"""The clock of training: the seconds behind a run's rows, and the signal that ends it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

POLL = 0.5  # Seconds between checks.


def seconds(rows: Sequence[dict[str, Any]], starts: Collection[int]) -> tuple[float, np.ndarray]:
    """The time of all steps of a run, and the extra time of each of its starts.

    A row's speed leaves out what training waits for: held-out loss, images, checkpoints. The first
    row after a start includes compilation. Its steps count at the speed of the next row without
    compilation (or of the previous one, if there is no next), and the rest of its time belongs to
    the start. Without any such row all time belongs to the starts.

    Args:
        rows: all rows of `read_metrics`.
        starts: the steps at which training was started or resumed.

    Returns:
        Seconds of all steps up to the last row, and of each start that has a row.
    """
    ends = np.array([row["step"] for row in rows], np.float64)
    begins = np.array([0, *ends[:-1]])
    pace = 1 / np.array([row["steps_per_second"] for row in rows], np.float64)
    since = np.array([max((s for s in starts if b <= s < e), default=-1)
                      for b, e in zip(begins, ends)])
    first, plain = since >= 0, np.flatnonzero(since < 0)
    usual = np.where(first, 0.0, pace)
    for i in np.flatnonzero(first) if len(plain) else ():
        behind = plain[plain > i]
        usual[i] = pace[behind[0] if len(behind) else plain[-1]]
    beside = ((ends - since) * (pace - usual))[first]
    return float(usual @ (ends - begins)), beside.clip(min=0)


@contextlib.contextmanager
def ended_when(due: Callable[[], bool]) -> Iterator[threading.Event]:
    """Sends SIGTERM to the training inside once `due()`; yields an event that says whether it did.

    It sends the signal only if there is a handler; a process without one would end.
    """
    over, asked = threading.Event(), threading.Event()

    def watch():
        while not over.wait(POLL):
            if due() and callable(signal.getsignal(signal.SIGTERM)):
                asked.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()
