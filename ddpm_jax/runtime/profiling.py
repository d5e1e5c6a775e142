"""Traces of some steps of a loop, by `jax.profiler`."""

import os
from collections.abc import Collection, Iterator
from typing import Any

import jax


def traced(
    steps: range, profile: tuple[int, ...], folder: Any, in_flight: Collection[jax.Array]
) -> Iterator[int]:
    """The steps one by one; `jax.profiler` traces what the loop does for those of `profile`.

    Args:
        steps: of a training loop.
        profile: the first and the last step to trace; () traces none.
        folder: for the trace, somewhere below TensorBoard's.
        in_flight: what runs on the devices; each end of the trace waits for it.
    """
    within = range(profile[0], profile[1] + 1) if profile else ()
    tracing = False
    try:
        for step in steps:
            if tracing != (step in within):
                jax.block_until_ready(list(in_flight))
                if tracing:
                    jax.profiler.stop_trace()
                else:
                    jax.profiler.start_trace(os.fspath(folder))
                tracing = not tracing
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step
    finally:
        if tracing:
            jax.block_until_ready(list(in_flight))
            jax.profiler.stop_trace()
