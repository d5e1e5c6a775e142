"""Traces of some steps of a loop, by `jax.profiler`."""

import os
from collections.abc import Collection, Iterator
from typing import Any

import jax


def traced(
    steps: range, profile: tuple[int, ...], folder: Any, in_flight: Collection[jax.Array]
) -> Iterator[int]:
    """The steps one by one; what is done for each of `profile` is traced by `jax.profiler`.

    Args:
        steps: of a training loop.
        profile: the first and the last step to trace; () is none.
        folder: for the trace, somewhere below TensorBoard's.
        in_flight: what was started and not waited for; waited for at both ends of the trace.
    """
    within = range(profile[0], profile[1] + 1) if profile else ()
    tracing = False
    try:
        for step in steps:
            if tracing != (step in within):
                jax.block_until_ready(list(in_flight))
                jax.profiler.stop_trace() if tracing else jax.profiler.start_trace(
                    os.fspath(folder)
                )
                tracing = not tracing
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step
    finally:
        if tracing:
            jax.block_until_ready(list(in_flight))
            jax.profiler.stop_trace()
