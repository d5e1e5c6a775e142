"""Goodput: the share of a run's time, since its first start, that went into steps that count."""

import time
from collections.abc import Callable, Iterable
from typing import Any


class Goodput:
    """The times of the rows of one start of a run.

    Time that does not count: compilation, held-out losses, grids, checkpoints, the time between two
    starts, and steps that were lost and made again.

    Args:
        rows: of the starts before, if any.
        start_step: updates done; what was done after it is lost.
        clock: gives seconds since 1970.

    Attributes:
        share: at the last row; None before any.
    """

    def __init__(
        self, rows: Iterable[dict[str, Any]], start_step: int,
        clock: Callable[[], float] = time.time,
    ):
        rows = [row for row in rows if "goodput" in row]
        kept = [row for row in rows if row["step"] <= start_step]
        self._clock, self._step, self._uncounted = clock, start_step, 0
        self._began = min((row["time"] - row["seconds"] for row in rows), default=clock())
        self._in_steps = kept[-1]["goodput"] * kept[-1]["seconds"] if kept else 0.0
        self._first, self.share = True, kept[-1]["goodput"] if kept else None

    def row(self, step: int, steps_per_second: float) -> dict[str, float]:
        """What the row of a step has of it.

        Args:
            step: updates done.
            steps_per_second: since the row before. The speed of the first row of a start includes
                compilation, so its steps are counted with the second, at the speed of that.

        Returns:
            time, in seconds since 1970; seconds since the first start; and goodput.
        """
        self._uncounted += step - self._step
        self._step = step
        if not self._first and steps_per_second > 0:
            self._in_steps += self._uncounted / steps_per_second
            self._uncounted = 0
        self._first = False
        now = self._clock()
        seconds = now - self._began
        self.share = self._in_steps / seconds if seconds > 0 else 0.0
        return {"time": now, "seconds": seconds, "goodput": self.share}
