"""`config.train.profile`: a trace begins and ends with the chosen steps."""

import jax
import pytest

from ddpm_jax.runtime import profiling


class Result:
    """Work in flight that knows whether it was waited for while a trace ran."""

    def __init__(self, log):
        self.log = log

    def block_until_ready(self):
        self.log.append("wait")


@pytest.fixture
def log(monkeypatch):
    log = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: log.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: log.append("stop"))
    return log


@pytest.mark.parametrize("steps, profile, want", [
    (range(1, 5), (), [1, 2, 3, 4]),
    (range(1, 5), (2, 3), [1, "wait", "start x", 2, 3, "wait", "stop", 4]),
    (range(1, 5), (1, 1), ["wait", "start x", 1, "wait", "stop", 2, 3, 4]),
    (range(1, 4), (3, 3), [1, 2, "wait", "start x", 3, "wait", "stop"]),  # The last step of all.
    (range(3, 5), (2, 3), ["wait", "start x", 3, "wait", "stop", 4]),  # Resumed within them.
    (range(4, 6), (2, 3), [4, 5]),  # Resumed after them.
])
def test_traces_begin_and_end_with_what_is_in_flight(log, steps, profile, want):
    for step in profiling.traced(steps, profile, "x", [Result(log)], pytest.fail):
        log.append(step)
    assert log == want


def test_a_run_that_fails_ends_its_trace(log):
    steps = profiling.traced(range(1, 9), (2, 7), "x", [], pytest.fail)
    assert [next(steps), next(steps)] == [1, 2]
    steps.close()
    assert log == ["start x", "stop"]


@pytest.mark.parametrize("end, want", [("start_trace", []), ("stop_trace", ["start x"])])
def test_a_trace_that_fails_leaves_the_steps_alone(log, monkeypatch, end, want):
    failures = []

    def fail(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(jax.profiler, end, fail)
    steps = list(profiling.traced(range(1, 6), (2, 4), "x", [], failures.append))
    assert steps == [1, 2, 3, 4, 5] and log == want
    assert [str(error) for error in failures] == ["no room"]
