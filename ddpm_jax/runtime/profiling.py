"""Traces of some steps of a loop, by `jax.profiler`."""

import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax


def traced(
    steps: range, profile: tuple[int, ...], folder: Any, in_flight: Collection[jax.Array],
    failed: Callable[[Exception], None],
) -> Iterator[int]:
    """The steps one by one; `jax.profiler` traces what the loop does for those of `profile`.

    Args:
        steps: of a training loop.
        profile: the first and the last step to trace; () traces none.
        folder: for the trace, somewhere below TensorBoard's.
        in_flight: what runs on the devices; each end of the trace waits for it.
        failed: gets the error of a trace that cannot be begun or written; the steps go on.
    """
    within = range(profile[0], profile[1] + 1) if profile else ()
    tracing = False

    def turn(on):
        jax.block_until_ready(list(in_flight))
        try:
            if on:
                jax.profiler.start_trace(os.fspath(folder))
            else:
                jax.profiler.stop_trace()
        except Exception as error:
            failed(error)
            return False
        return on

    try:
        for step in steps:
            wanted = step in within
            if tracing != wanted:
                tracing = turn(wanted)
                if tracing != wanted:
                    within = ()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step
    finally:
        if tracing:
            turn(False)
