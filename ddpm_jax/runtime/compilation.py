"""Compiling a large program once, before its first call."""

import contextlib
import ctypes
import gc
import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax import stages

_QUICKER = {"xla_backend_optimization_level": 2}  # Than level 3 by a tenth, for programs as fast.
# A program's temporaries are one block by default, which glibc's malloc takes from the system at
# each call and gives back after it. It can keep blocks of up to 32 MiB, if it is told to.
_BLOCKS = {"xla_multiheap_size_constraint_per_heap": 30 * 2**20}
_KEEP = {-1: 2**27, -2: 2**27, -3: 2**25}  # M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD.


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


def memory_of(compiled: stages.Compiled) -> int:
    """Bytes that each device holds during a call of this program, arguments included."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes + memory.output_size_in_bytes
        - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    )


def compiled(lowered: stages.Lowered) -> stages.Compiled:
    """The program of `lowered`, to be called with such arguments.

    The memory that the compiler has freed goes back to the system. On a CPU with several devices
    the memory of the program's temporaries stays with the process from call to call. (With one
    device the threads take turns, and each of them would keep it.)
    """
    options, keeps = None, False
    if jax.default_backend() == "cpu":
        keeps = jax.local_device_count() > 1
        options = _QUICKER | (_BLOCKS if keeps else {})
    with warnings.catch_warnings():  # XLA cannot store a program of several blocks in its cache.
        warnings.filterwarnings("ignore", ".*Multiple temp buffer allocations found")
        program = lowered.compile(options)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # Only glibc has these functions.
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc_trim(0)
        for parameter, value in _KEEP.items() if keeps else ():
            libc.mallopt(parameter, value)
    return program
