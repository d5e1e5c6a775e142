"""Progress of long work: a bar on a terminal or in a notebook, elsewhere a line a minute."""

import math
import sys
import threading
import time
from collections.abc import Callable

import tqdm

PERIOD = 60.0  # Seconds between two lines.


class Lines:
    """Stands in for a bar where nobody could see one move: a line on stderr now and then.

    Args:
        total: units of work in all.
        unit: what one is called, for example "step".
        clock: gives seconds from any origin.

    Attributes:
        n: units done.
    """

    def __init__(self, total: int, unit: str, clock: Callable[[], float] = time.monotonic):
        self.n, self._total, self._unit, self._clock = 0, total, unit, clock
        self._began = self._said = clock()
        self._lock = threading.RLock()

    def get_lock(self) -> threading.RLock:
        """Held by a thread that moves it."""
        return self._lock

    def update(self, n: int = 1) -> None:
        """Adds `n` units; says how far the work is, unless it did so less than `PERIOD` ago."""
        self.n += n
        now = self._clock()
        if now - self._said < PERIOD or self.n >= self._total:
            return
        self._said = now
        left = (now - self._began) * (self._total - self.n) / self.n if self.n else math.nan
        print(
            f"{self.n:,} of {self._total:,} {self._unit}s  eta {format_duration(left)}",
            file=sys.stderr, flush=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def bar(total: int, unit: str, *, shown: bool) -> tqdm.tqdm | Lines:
    """A bar, or what stands in for it; a context manager with `n` and `update`.

    Args:
        total: units of work in all.
        unit: what one is called, for example "step".
        shown: False for a bar that nobody sees.
    """
    if shown and not on_screen():
        return Lines(total, unit)
    return tqdm.tqdm(total=total, unit=unit, disable=not shown)


def on_screen() -> bool:
    """Whether somebody could see a bar move: on a terminal, in a notebook."""
    return sys.stderr.isatty() or "ipykernel.kernelapp" in sys.modules


def format_duration(seconds: float) -> str:
    """Seconds in words: "12 s", "1 min 04 s", "2 h 05 min", "3 d 04 h"; "unknown" if not finite."""
    if not math.isfinite(seconds):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, days = minutes // 60, minutes // 1440
    if days >= 2:
        return f"{days} d {hours % 24:02d} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
