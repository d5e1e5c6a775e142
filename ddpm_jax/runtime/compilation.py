"""Compiling a large program once, before its first call."""

import contextlib
import ctypes
import gc
from collections.abc import Callable
from typing import Any

import jax
from jax import stages

# For a CPU: a tenth less time for the compiler than with level 3, and programs as fast.
_OPTIONS = {"xla_backend_optimization_level": 2}


def ahead(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """`function`, compiled for arguments of these shapes before its first call.

    With several processes it is returned as it is: a compiled program would take the arrays of all
    processes, and the function takes those of its own.

    Args:
        function: of `parallel.pmap`.
        *args: not used up, also where the function takes them as donated.
    """
    return function if jax.process_count() > 1 else compiled(lowered(function, *args))


def lowered(function: Callable[..., Any], *args: Any) -> stages.Lowered:
    """`function` traced for arguments of these shapes, while Python's garbage collector rests.

    Args:
        function: of `parallel.pmap` or `jax.jit`.
        *args: not used up, also where the function takes them as donated.
    """
    if not gc.isenabled():
        return function.lower(*args)
    gc.disable()  # It takes a quarter of the time, and finds nothing in a trace.
    try:
        return function.lower(*args)
    finally:
        gc.enable()


def compiled(lowered: stages.Lowered) -> stages.Compiled:
    """The program of `lowered`, to be called with such arguments.

    The memory that the compiler has freed goes back to the system, a GiB for the paper's networks.
    """
    program = lowered.compile(_OPTIONS if jax.default_backend() == "cpu" else None)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # Only glibc has it.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return program
