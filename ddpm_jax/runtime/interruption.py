"""SIGINT, SIGTERM and notices of preemption: what is under way is finished and saved first."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop, and has saved its state.

    Attributes:
        status: of the process, 128 and the signal's number as shells have it: 130 after
            SIGINT, 143 after SIGTERM or a notice of preemption.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(f"interrupted by {number.name}")
        self.status = 128 + number


@contextlib.contextmanager
def watched() -> Iterator[Callable[[int], signal.Signals | None]]:
    """Gives asked(step) -> the signal by which the run was asked to stop, or None.

    The first SIGINT or SIGTERM is noted; a second one does what it did before: Ctrl-C raises
    KeyboardInterrupt, SIGTERM ends the process. Of several processes (`jax.distributed`) one
    signal is enough: JAX's preemption service, which has SIGTERM there and knows the platform's
    own notices, tells all of them at the same step; SIGINT is passed on to it. So every process
    asks at every step. Signals are left alone where that service is off (one process cannot stop by
    itself), and outside the main thread, which alone may have them.
    """
    several = jax.distributed.is_initialized()
    distributed = several and jax.config.jax_enable_preemption_service
    numbers = (signal.SIGINT,) if distributed else (signal.SIGINT, signal.SIGTERM)
    in_main = threading.current_thread() is threading.main_thread()
    heard = in_main and distributed == several
    before = {number: signal.getsignal(number) for number in numbers} if heard else {}
    noted = []

    def note(number, frame):
        noted.append(signal.Signals(number))
        restore()
        if distributed:
            os.kill(os.getpid(), signal.SIGTERM)

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked(step):
        if distributed and not multihost_utils.reached_preemption_sync_point(step):
            return None
        return noted[0] if noted else signal.SIGTERM if distributed else None

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()
