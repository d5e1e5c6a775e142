"""Whole runs of a few steps (loop.py, records.py): traced, resumed, or stopped by bad numbers."""

import contextlib
import dataclasses
import os
import shutil
import signal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.profiler import ProfileData

import ddpm_jax
import exhausting
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError
from ddpm_jax.inference import sample as sample_lib
from ddpm_jax.network import averages
from ddpm_jax.runtime import memory
from ddpm_jax.runtime.interruption import Interrupted
from ddpm_jax.training import loop, monitoring
from ddpm_jax.training import records as records_lib
from ddpm_jax.training import run as run_lib
from ddpm_jax.training import state as state_lib
from ddpm_jax.workdir import checkpoints, logs, pictures, run_folder, snapshots
from ddpm_jax.workdir.checkpoints import Checkpoints, restore_part
from records import lasting, rows, saved
from tiny_run import tiny_config


def test_a_row_has_what_is_finite():
    metrics = {"loss": jnp.ones(()), "grad_norm": jnp.inf, "loss_quartile_1": jnp.nan}
    assert loop.finite_row(metrics) == {"loss": 1.0}


def traced_steps(workdir):
    """The steps of each trace in TensorBoard's folder."""
    folder = workdir / "tensorboard" / "profile" / "plugins" / "profile"
    traces = []
    for path in sorted(folder.glob("*/*.xplane.pb")):  # Where the profile plugin looks.
        planes = ProfileData.from_file(str(path)).planes
        events = [e for plane in planes for line in plane.lines for e in line.events]
        with warnings.catch_warnings():  # Of jaxlib 0.12's binding; an error ends the process.
            warnings.filterwarnings("ignore", "builtin type event_stats", DeprecationWarning)
            traces.append({dict(e.stats)["step_num"] for e in events if e.name == "train"})
        assert any("PjitFunction" in e.name or "pmap" in e.name.lower() for e in events)
    return traces


def test_a_trace_is_left_and_the_numbers_stay_bit_for_bit(tiny, tmp_path):
    loop.train(tiny_config(), tmp_path / "plain")
    loop.train(tiny_config(**{"train.profile": (3, 4)}), tmp_path / "traced")
    assert traced_steps(tmp_path / "traced") == [{3, 4}]
    assert not (tmp_path / "plain" / "tensorboard" / "profile").exists()
    one, other = (list(map(lasting, rows(tmp_path / name))) for name in ("plain", "traced"))
    assert one == other and len(one) == 6
    for a, b in zip(saved(tmp_path / "plain", 6), saved(tmp_path / "traced", 6), strict=True):
        np.testing.assert_array_equal(a, b)


CTRL_C, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture
def signals(monkeypatch):
    """Signals by the step while whose logging they come, each once."""
    coming, advance = {}, logs.Logs.advance

    def advanced(self, step):
        advance(self, step)
        if step in coming:
            os.kill(os.getpid(), coming.pop(step))

    monkeypatch.setattr(logs.Logs, "advance", advanced)
    return coming


def test_a_run_saves_the_step_and_continues_bit_for_bit(
    tiny, tmp_path, capsys, signals
):
    loop.train(tiny_config(), tmp_path / "whole")
    for step, number in ((2, CTRL_C), (3, TERM), (5, CTRL_C)):
        signals[step] = number
        with pytest.raises(Interrupted, match=number.name):
            loop.train(tiny_config(), tmp_path / "stopped")
        assert f"{number.name}: step {step} is saved; the same command" in capsys.readouterr().out
        assert checkpoints.steps(tmp_path / "stopped")[-1] == step
        assert rows(tmp_path / "stopped")[-1]["step"] == step
    loop.train(tiny_config(), tmp_path / "stopped")
    one, other = (list(map(lasting, rows(tmp_path / name))) for name in ("whole", "stopped"))
    assert one == other and len(one) == 6
    for a, b in zip(saved(tmp_path / "whole", 6), saved(tmp_path / "stopped", 6), strict=True):
        np.testing.assert_array_equal(a, b)


def power_average(workdir, width, step):
    """The average after `step` from the parameters of each step, by the weights of its definition.

    Update tau has tau^(gamma+1) - (tau-1)^(gamma+1), over step^(gamma+1).
    """
    exponent = averages.power(width) + 1
    parts = [jax.tree.leaves(restore_part(workdir, "params", n + 1)[1]) for n in range(step)]
    params = np.stack([np.concatenate([x.ravel() for x in part]) for part in parts])
    taus = np.arange(1, step + 1)
    return ((taus / step) ** exponent - ((taus - 1) / step) ** exponent) @ np.float64(params)


def test_averages_of_any_length_are_rebuilt(tiny, tmp_path, signals):
    config = tiny_config(**{
        "train.num_steps": 24, "train.ema_snapshot_every": 2, "train.checkpoint_every": 1,
        "train.keep": 30, "train.sample_every": 24, "train.eval_every": 24,
    })
    signals[13] = TERM
    with pytest.raises(Interrupted):
        loop.train(config, tmp_path)
    later = {name: {"x": np.zeros(1)} for name in averages.TRACKED}
    with snapshots.open_snapshots(tmp_path, 13) as kept:  # As of a run killed after step 14.
        snapshots.save(kept, 14, later, {})
    loop.train(config, tmp_path)
    assert checkpoints.steps(tmp_path / "ema") == list(range(2, 25, 2))

    def loaded(width):
        params = run_folder.load(tmp_path, weights=f"sigma_rel={width}").params
        return np.concatenate([x.ravel() for x in jax.tree.leaves(params)])

    exact = {width: power_average(tmp_path, width, 24) for width in (0.05, 0.08, 0.1, 0.15)}
    for width in (0.05, 0.1):
        np.testing.assert_allclose(loaded(width), exact[width], rtol=1e-5, atol=1e-7)
    apart = np.linalg.norm(exact[0.05] - exact[0.1])
    for width in (0.08, 0.15):  # Seen: 0.02 and 0.06 of that.
        assert np.linalg.norm(loaded(width) - exact[width]) < 0.1 * apart


def test_a_period_of_0_is_never_but_the_last_step_is_saved(tiny, tmp_path):
    config = tiny_config(**{f"train.{name}_every": 0 for name in
                            ("log", "eval", "checkpoint", "sample", "ema_snapshot", "keep")})
    trained = ddpm_jax.train(config, tmp_path)
    assert checkpoints.steps(tmp_path) == [6] and trained.step == 6
    assert not list(tmp_path.glob("samples/*")) and ddpm_jax.read_metrics(tmp_path) == []
    config.train.eval_every = 3
    config.train.num_steps = 9
    ddpm_jax.train(config, tmp_path)
    assert [row["step"] for row in ddpm_jax.read_metrics(tmp_path)] == [9]
    assert "heldout_loss" in ddpm_jax.read_metrics(tmp_path)[0]


def test_a_signal_in_the_last_step_changes_nothing(tiny, tmp_path, capsys, signals):
    signals[6] = TERM
    loop.train(tiny_config(), tmp_path)
    said = capsys.readouterr().out
    assert "done: 6 steps" in said
    goodput = [row["goodput"] for row in rows(tmp_path)]
    assert goodput[0] == 0 and 0 < goodput[-1] < 1
    assert f"steps took {goodput[-1]:.0%} of the time since the first start (goodput)" in said


DIVERGES = {"train.learning_rate": 1e30, "train.warmup_steps": 0, "train.num_steps": 12,
            "train.checkpoint_every": 1, "train.keep": 100, "train.max_skipped": 4}


def test_a_run_that_is_stuck_stops_and_says_where_it_was_good(tiny, tmp_path, capsys):
    with pytest.raises(FloatingPointError) as error:
        loop.train(tiny_config(**DIVERGES, **{"train.debug_nans": True}), tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for part in ("config.train.max_skipped=4:", "in 4 steps in a row, up to step 5",
                 "learning rate 1e+30", f"good checkpoint is {tmp_path / 'checkpoints' / '1'};"):
        assert part in message
    said = capsys.readouterr().out
    for step in (2, 3, 4, 5):
        assert f"step {step} is skipped: conv_out has an output that is not finite\n" in said, said
    assert "step 1 is skipped" not in said
    # All saved states are finite, and the rows count the skipped steps.
    for step in checkpoints.steps(tmp_path):
        for name in ("params", "ema_params", "opt_state", "tally"):
            for leaf in jax.tree.leaves(restore_part(tmp_path, name, step)[1]):
                assert np.isfinite(leaf).all()
    assert [(row["step"], row["skipped"]) for row in rows(tmp_path)[:4]] == [
        (1, 0), (2, 1), (3, 2), (4, 3)]
    assert "loss" in rows(tmp_path)[0] and "loss" not in rows(tmp_path)[1]

    # Resumed among the skipped steps, the run stops at the same step.
    for step in checkpoints.steps(tmp_path)[3:]:
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    with pytest.raises(FloatingPointError, match="in 4 steps in a row, up to step 5"):
        loop.train(tiny_config(**DIVERGES), tmp_path)
    assert "resuming at step 3" in capsys.readouterr().out


def test_a_run_that_is_stuck_at_its_end_is_not_done(tiny, tmp_path):
    with pytest.raises(FloatingPointError, match="up to step 5 .*good checkpoint is none"):
        loop.train(tiny_config(**DIVERGES | {
            "train.num_steps": 5, "train.checkpoint_every": 100}), tmp_path)


def fail(*_, **__):
    raise RuntimeError("a fault\nin two lines")


def complete(config, workdir):
    """Trains; returns what failed."""
    return loop.complete(run_lib.prepare(config, workdir, None))[1]


def grids(workdir):
    return sorted(path.name for path in (workdir / "samples").glob("*"))


@pytest.mark.parametrize("where, name, what", [
    (sample_lib, "sample", "the grid"),
    (pictures, "grid", "the grid"),
    (records_lib, "save_png", "the grid"),
    (jax.profiler, "start_trace", "the trace"),
    (jax.profiler, "stop_trace", "the trace"),
])
def test_a_picture_or_trace_that_fails_costs_nothing_else(
    tiny, tmp_path, capsys, monkeypatch, where, name, what
):
    settings = {"train.sample_every": 3, "train.checkpoint_every": 3, "train.profile": (2, 2)}
    loop.train(tiny_config(), tmp_path / "whole")
    capsys.readouterr()
    monkeypatch.setattr(where, name, fail)
    failures = complete(tiny_config(**settings), tmp_path / "run")
    monkeypatch.undo()
    if name == "stop_trace":
        jax.profiler.stop_trace()
    assert failures == ["the trace"] if what == "the trace" else [
        "the grid of step 3", "the grid of step 6"]
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if "failed (a fault in two lines); training goes on" in line]
    assert len(said) == len(failures)
    assert lines[-1].startswith("done: 6 steps") and lines[-1].endswith(
        f"; {len(failures)} failed beside it: {', '.join(failures)}")
    assert checkpoints.steps(tmp_path / "run") == [3, 6]
    assert len(grids(tmp_path / "run")) == (2 if what == "the trace" else 0)
    for a, b in zip(saved(tmp_path / "whole", 6), saved(tmp_path / "run", 6), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_held_out_loss_that_fails_is_left_out_of_its_row(tiny, tmp_path, capsys, monkeypatch):
    settings = {"train.eval_every": 2, "train.checkpoint_every": 2}
    loop.train(tiny_config(**settings), tmp_path / "whole")
    examples, calls = Source.examples, []

    def sometimes(self, places):
        calls.append(len(self))
        second = len(self) < 1000 and calls.count(len(self)) == 2  # Of the held-out images.
        return fail() if second else examples(self, places)

    monkeypatch.setattr(Source, "examples", sometimes)
    failures = complete(tiny_config(**settings), tmp_path / "run")
    assert failures == ["the held-out loss of step 4"]
    one, other = (list(map(lasting, rows(tmp_path / name))) for name in ("whole", "run"))
    del one[3]["heldout_loss"]
    assert one == other and "heldout_loss" in one[1]
    assert checkpoints.steps(tmp_path / "run") == [4, 6]


def test_nan_samples_do_not_end_a_run(tiny, tmp_path, capsys, monkeypatch):
    sample = sample_lib.sample

    def broken(trained, *arguments, **settings):
        params = jax.tree.map(lambda x: x * jnp.nan, trained.params)
        return sample(trained.replace(params=params), *arguments, **settings)

    monkeypatch.setattr(sample_lib, "sample", broken)
    failures = complete(tiny_config(), tmp_path)
    assert failures == ["the grid of step 6"]
    assert checkpoints.steps(tmp_path) == [6]


def test_a_checkpoint_of_before_the_count_is_continued(tiny, tmp_path):
    config = tiny_config(**{"train.num_steps": 2})
    run = run_lib.prepare(config, tmp_path, None)
    old = state_lib.to_saved(run_lib.fresh_state(run)) | {"step": jnp.int32(1)}
    del old["skipped"]
    with Checkpoints(tmp_path) as saved:
        saved.save(1, old, run.metadata())
    loop.train(config, tmp_path)
    assert list(restore_part(tmp_path, "skipped", 2)[1]) == [0, 0]
    with contextlib.closing(Checkpoints(tmp_path)) as saved:
        assert saved.restore(state_lib.to_saved(run_lib.fresh_state(run)))[0] == 2


class Minutes:
    """A clock that moves on by a minute with each step; stands in for the module `time`."""

    now = 0.0

    def monotonic(self):
        return self.now


def test_a_row_brings_a_checkpoint_where_the_last_is_old(tiny, tmp_path, monkeypatch):
    """Rows at 2, 4, ... and checkpoints at 8, 16; 3 minutes after one the next row has another."""
    clock, advance, kept = Minutes(), logs.Logs.advance, []
    monkeypatch.setattr(monitoring, "time", clock)

    def advanced(self, step):
        advance(self, step)
        clock.now += 60

    monkeypatch.setattr(logs.Logs, "advance", advanced)
    save = Checkpoints.save

    def noted(self, step, *args, timed):
        kept.append((step, timed))
        save(self, step, *args, timed=timed)

    monkeypatch.setattr(Checkpoints, "save", noted)
    settings = {"train.num_steps": 16, "train.log_every": 2, "train.eval_every": 100,
                "train.checkpoint_every": 8, "train.checkpoint_minutes": 3.0}
    loop.train(tiny_config(**settings), tmp_path / "timed")
    assert kept == [(4, True), (8, False), (12, True), (16, False)]
    assert checkpoints.steps(tmp_path / "timed") == [8, 12, 16]
    kept.clear()
    loop.train(tiny_config(**settings | {"train.checkpoint_minutes": 0.0}), tmp_path / "not")
    assert kept == [(8, False), (16, False)]


DECAYS = {"train.schedule": "cosine", "train.learning_rate": 1e-3, "train.warmup_steps": 0,
          "train.weight_decay": 0.1, "train.checkpoint_every": 1}


def cosine(done, rate=1e-3):
    """The rates of the updates after which these shares of the decay are over."""
    return pytest.approx(rate * (1 + np.cos(np.pi * np.array(done))) / 2, rel=1e-5)


def rates(workdir):
    return [row["learning_rate"] for row in rows(workdir)]


def test_a_decay_runs_to_a_new_end_from_where_it_stands(tiny, tmp_path, capsys, signals):
    """Stopped at 2 of 4 steps, with 8 in all the other half of the decay takes 6."""
    signals[2] = TERM
    with pytest.raises(Interrupted):
        loop.train(tiny_config(**DECAYS, **{"train.num_steps": 4}), tmp_path)
    config = tiny_config(**DECAYS, **{"train.num_steps": 8})
    shutil.copytree(tmp_path, tmp_path / "whole")
    loop.train(config, tmp_path / "whole")
    line = ("resuming with config.train.num_steps=8 (before: 4): the learning rate goes on at "
            "0.0005 (before: 0.0005)\n")
    assert line in capsys.readouterr().out
    assert rates(tmp_path / "whole") == cosine([0, 1/4, *(1/2 + i/12 for i in range(6))])

    signals[5] = TERM
    with pytest.raises(Interrupted):
        loop.train(config, tmp_path)
    assert line in capsys.readouterr().out
    loop.train(config, tmp_path)  # With the same end, the decay is the same.
    assert "resuming with" not in capsys.readouterr().out
    one, other = (list(map(lasting, rows(folder))) for folder in (tmp_path / "whole", tmp_path))
    assert one == other and len(one) == 8
    for a, b in zip(saved(tmp_path / "whole", 8), saved(tmp_path, 8), strict=True):
        np.testing.assert_array_equal(a, b)

    # The same rates in pieces: they are those of the updates, not only of the rows.
    made = rates(tmp_path)
    loop.train(tiny_config(**DECAYS | {
        "train.num_steps": 8, "train.schedule": "piecewise",
        "train.piecewise_steps": tuple(range(1, 8)),
        "train.piecewise_scales": tuple(np.divide(made[1:], made[:-1]).tolist()),
    }), tmp_path / "pieces")
    for a, b in zip(saved(tmp_path / "pieces", 8), saved(tmp_path, 8), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    loop.train(tiny_config(**DECAYS, **{"train.num_steps": 16}), tmp_path)  # It had ended.
    assert ("resuming with config.train.num_steps=16 (before: 8): the learning rate goes on at "
            "0.0005 (before: 0)\n") in capsys.readouterr().out
    assert rates(tmp_path)[8:] == cosine([1/2 + i/16 for i in range(8)])


def test_another_schedule_and_optimizer_are_taken_and_said(tiny, tmp_path, capsys):
    """Adam at a constant rate for 2 of 4 steps, then AdamW with a decay."""
    loop.train(tiny_config(**{"train.num_steps": 2}), tmp_path)
    loop.train(tiny_config(**DECAYS | {
        "train.num_steps": 4, "train.learning_rate": 1e-4, "train.adam_b2": 0.99}), tmp_path)
    assert (
        "resuming with config.train.learning_rate=0.0001 (before: 0.001), "
        "config.train.warmup_steps=0 (before: 100), config.train.schedule='cosine' (before: "
        "'constant'), config.train.weight_decay=0.1 (before: 0.0), config.train.adam_b2=0.99 "
        "(before: 0.999), config.train.num_steps=4 (before: 2): the learning rate goes on at "
        "5e-05 (before: 2e-05)\n"
    ) in capsys.readouterr().out
    assert rates(tmp_path)[2:] == cosine([1/2, 3/4], rate=1e-4)
    loop.train(tiny_config(**{"train.num_steps": 5}), tmp_path)  # And back.
    assert rates(tmp_path)[4] == pytest.approx(4e-5)


def test_an_optimizer_of_another_state_is_refused(tiny, tmp_path):
    config = tiny_config(**{"train.num_steps": 2})
    run = run_lib.prepare(config, tmp_path, None)
    momentum = dataclasses.replace(run, optimizer=optax.sgd(0.1, momentum=0.9))
    with Checkpoints(tmp_path) as saved:
        saved.save(1, state_lib.to_saved(run_lib.fresh_state(momentum)), run.metadata())
    with pytest.raises(UserError, match="checkpoints/1 was made with another model or optimizer: "
                       "it has opt_state/.*, which is not in this one. Go on with the settings"):
        loop.train(config, tmp_path)
    assert checkpoints.steps(tmp_path) == [1]


def test_a_device_without_memory_is_one_line_and_keeps_the_checkpoints(
    tiny, tmp_path, monkeypatch
):
    loop.train(tiny_config(), tmp_path)
    monkeypatch.setattr(loop.compilation, "compiled", lambda _: lambda *_: exhausting.run_out())
    with pytest.raises(UserError) as error:
        loop.train(tiny_config(**{"train.num_steps": 7}), tmp_path)
    assert str(error.value) == (
        "config.train.batch_size=16 is too much: memory ran out, where 1,024.00 GiB was asked for "
        f"and each device has {memory.device_total() / 2**30:,.2f} GiB; write "
        "--config.train.accumulate=2 or --config.train.batch_size=8."
    )
    assert checkpoints.steps(tmp_path)[-1] == 6


def test_the_console_says_when_updates_are_skipped(tiny, tmp_path, capsys):
    settings = DIVERGES | {"train.log_every": 2}
    with pytest.raises(FloatingPointError):
        loop.train(tiny_config(**settings), tmp_path)
    said = capsys.readouterr().out
    assert "step 2: 1 update skipped since the last row, 1 in all, because loss or gradient" in said
    assert "step 4: 2 updates skipped since the last row, 3 in all" in said
    for step in checkpoints.steps(tmp_path)[3:]:
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    with pytest.raises(FloatingPointError):
        loop.train(tiny_config(**settings), tmp_path)  # From step 3, with 2 of them.
    assert "step 4: 1 update skipped since the last row, 3 in all" in capsys.readouterr().out
