"""SIGINT, SIGTERM and notices of preemption: a run finishes its step and saves before it stops."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved its state.

    Attributes:
        status: exit status of the process, 128 plus the signal's number, as in shells: 130 after
            SIGINT, 143 after SIGTERM or a notice of preemption.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(f"interrupted by {number.name}")
        self.status = 128 + number


@contextlib.contextmanager
def watched() -> Iterator[Callable[[int], signal.Signals | None]]:
    """Gives asked(step) -> the signal by which the run was asked to stop, or None.

    The first SIGINT or SIGTERM is noted; the second does what it did before: Ctrl-C raises
    KeyboardInterrupt, SIGTERM ends the process. Among several processes (`jax.distributed`) one
    signal is enough: JAX's preemption service, which handles SIGTERM there and knows the
    platform's own notices, makes all of them stop at the same step, and SIGINT is passed on to
    it. So every process asks at every step. Signals are left alone if that service is off, because
    one process cannot stop by itself, and outside the main thread, which alone may handle them.
    """
    distributed = jax.distributed.is_initialized()
    by_service = distributed and jax.config.jax_enable_preemption_service
    numbers = (signal.SIGINT,) if by_service else (signal.SIGINT, signal.SIGTERM)
    in_main = threading.current_thread() is threading.main_thread()
    handles = in_main and by_service == distributed
    before = {number: signal.getsignal(number) for number in numbers} if handles else {}
    noted = []

    def note(number, frame):
        noted.append(signal.Signals(number))
        restore()
        if by_service:
            os.kill(os.getpid(), signal.SIGTERM)

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked(step):
        if by_service and not multihost_utils.reached_preemption_sync_point(step):
            return None
        if noted:
            return noted[0]
        return signal.SIGTERM if by_service else None

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()
