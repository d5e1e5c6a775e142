"""Which checkpoints of a run stay when a new one is written."""

from collections.abc import Sequence
from typing import Any


class Retention:
    """Orbax's preservation policy: the newest, those of a period, and one saved for the time.

    Args:
        keep: how many of the newest stay; None for all.
        keep_every: those at multiples of this many steps stay as well; 0 for none.

    Attributes:
        timed: steps of those that were saved because of the time. The newest of them stays beside
            the others, and none of them pushes out another.
    """

    def __init__(self, keep: int | None, keep_every: int):
        self._keep, self._keep_every, self.timed = keep, keep_every, set()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each of these stays; Orbax calls it with what is there, in order of steps."""
        steps = [info.step for info in checkpoints]
        keep = self._keep or len(steps)
        newest = {
            *[step for step in steps if step not in self.timed][-keep:],
            *[step for step in steps if step in self.timed][-1:],
        }
        every = self._keep_every
        return [step in newest or bool(every) and step % every == 0 for step in steps]
