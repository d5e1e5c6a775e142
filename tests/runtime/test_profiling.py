"""`config.train.profile`: the steps asked for are traced, and the run's numbers stay."""

import warnings

import jax
import numpy as np
import pytest
from jax.profiler import ProfileData

from ddpm_jax import validation
from ddpm_jax.runtime import profiling
from ddpm_jax.training import loop
from records import lasting, rows, saved
from tiny_run import tiny_config


def traced_steps(workdir):
    """Of each trace below TensorBoard's folder, the steps that it holds."""
    folder = workdir / "tensorboard" / "profile" / "plugins" / "profile"
    found = []
    for path in sorted(folder.glob("*/*.xplane.pb")):  # Where the profile plugin looks.
        planes = ProfileData.from_file(str(path)).planes
        events = [e for plane in planes for line in plane.lines for e in line.events]
        with warnings.catch_warnings():  # Of jaxlib 0.12's own binding; an error ends the process.
            warnings.filterwarnings("ignore", "builtin type event_stats", DeprecationWarning)
            found.append({dict(e.stats)["step_num"] for e in events if e.name == "train"})
        assert any("PjitFunction" in e.name or "pmap" in e.name.lower() for e in events)
    return found


def test_a_trace_is_left_and_the_numbers_stay_bit_for_bit(tiny, tmp_path):
    loop.train(tiny_config(), tmp_path / "plain")
    loop.train(tiny_config(**{"train.profile": (3, 4)}), tmp_path / "traced")
    assert traced_steps(tmp_path / "traced") == [{3, 4}]
    assert not (tmp_path / "plain" / "tensorboard" / "profile").exists()
    one, other = (list(map(lasting, rows(tmp_path / name))) for name in ("plain", "traced"))
    assert one == other and len(one) == 6
    for a, b in zip(saved(tmp_path / "plain", 6), saved(tmp_path / "traced", 6), strict=True):
        np.testing.assert_array_equal(a, b)


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
    (range(1, 4), (3, 3), [1, 2, "wait", "start x", 3, "wait", "stop"]),  # the last step of all
    (range(3, 5), (2, 3), ["wait", "start x", 3, "wait", "stop", 4]),  # resumed within
    (range(4, 6), (2, 3), [4, 5]),  # resumed behind
])
def test_traces_begin_and_end_with_what_is_in_flight(log, steps, profile, want):
    for step in profiling.traced(steps, profile, "x", [Result(log)]):
        log.append(step)
    assert log == want


def test_a_run_that_fails_ends_its_trace(log):
    steps = profiling.traced(range(1, 9), (2, 7), "x", [])
    assert [next(steps), next(steps)] == [1, 2]
    steps.close()
    assert log == ["start x", "stop"]


@pytest.mark.parametrize("profile", [(3,), (0, 2), (4, 3), (5, 7), (1, 2, 3), (1.0, 2), ("1", 2)])
def test_steps_that_do_not_exist_are_refused(profile):
    with pytest.raises(ValueError, match=r"config.train.profile=.* in 1..6.*profile=\"\(6, 6\)\""):
        validation.validate(tiny_config(**{"train.profile": profile}), num_devices=8)


def test_every_step_may_be_traced():
    validation.validate(tiny_config(**{"train.profile": (1, 6)}), num_devices=8)
