"""The clock of training: the seconds behind a run's own rows, and the end when they are over."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

_POLL = 0.5  # Seconds between two looks.


def seconds(rows: Sequence[dict[str, Any]], starts: Collection[int]) -> tuple[float, np.ndarray]:
    """How long the steps of a run took, and what each of its starts took beside them.

    A row's speed leaves out what training waits for: held-out loss, pictures, checkpoints. The
    first row of a start holds its compilation too: its steps count as those of the next row that
    holds none (of the one before, where none comes), and the rest is the start's. Until there is
    such a row all is the starts'.

    Args:
        rows: of `read_metrics`, from the first.
        starts: the steps from which training was started or taken up again.

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
    """Asks the training inside to stop once `due()`, as SIGTERM does; gives whether it did.

    Only where somebody listens: a process without a handler would end.
    """
    over, asked = threading.Event(), threading.Event()

    def watch():
        while not over.wait(_POLL):
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
