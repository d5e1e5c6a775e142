"""Signals: the first finishes the step and saves, the second stops at once."""

import contextlib
import os
import signal
import subprocess
import threading

import jax
import numpy as np
import pytest

from ddpm_jax.runtime import interruption
from ddpm_jax.runtime.interruption import Interrupted
from ddpm_jax.training import loop
from ddpm_jax.workdir import checkpoints, logs
from program import ROOT, command, free_port, on
from records import lasting, rows, saved
from tiny_run import tiny_config

CTRL_C, TERM = signal.SIGINT, signal.SIGTERM


def handlers():
    return [signal.getsignal(number) for number in (CTRL_C, TERM)]


@pytest.mark.parametrize("number", [CTRL_C, TERM])
def test_the_first_is_noted_and_the_second_does_what_it_did(number):
    before, ended = handlers(), []
    signal.signal(CTRL_C, signal.default_int_handler)  # Workers of a test run ignore it.
    signal.signal(TERM, lambda *_: ended.append(1))
    try:
        with interruption.watched() as asked:
            assert asked(1) is None
            os.kill(os.getpid(), number)
            assert asked(2) is asked(3) is number
            if number is CTRL_C:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
            else:
                os.kill(os.getpid(), number)
                assert ended == [1]
        assert signal.getsignal(CTRL_C) is signal.default_int_handler
    finally:
        for kind, handler in zip((CTRL_C, TERM), before):
            signal.signal(kind, handler)


def test_handlers_are_put_back_whatever_happens():
    before = handlers()
    with pytest.raises(KeyError), interruption.watched():
        assert handlers() != before
        raise KeyError
    assert handlers() == before


def test_another_thread_leaves_signals_alone():
    before, found = handlers(), []

    def work():
        with interruption.watched() as asked:
            found.extend([asked(1), handlers()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None, before]


def test_of_several_processes_all_are_asked_at_the_step_that_jax_names(monkeypatch):
    """SIGINT goes to JAX's preemption service, which has SIGTERM and must keep it."""
    sent, before = [], handlers()
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        interruption.multihost_utils, "reached_preemption_sync_point", lambda step: step == 7
    )
    with interruption.watched() as asked:
        assert handlers()[1] is before[1]
        assert [asked(step) for step in (5, 7)] == [None, TERM]
        kill = os.kill
        monkeypatch.setattr(os, "kill", lambda *args: sent.append(args))
        kill(os.getpid(), CTRL_C)
        assert sent == [(os.getpid(), TERM)]
        assert [asked(step) for step in (6, 7)] == [None, CTRL_C]


def test_without_jaxs_service_signals_are_left_alone(monkeypatch):
    before = handlers()
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with interruption.watched() as asked:
            assert handlers() == before and asked(1) is None
    finally:
        jax.config.update("jax_enable_preemption_service", True)


def test_statuses_are_those_of_shells():
    assert (Interrupted(CTRL_C).status, Interrupted(TERM).status) == (130, 143)


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


def test_a_signal_in_the_last_step_changes_nothing(tiny, tmp_path, capsys, signals):
    signals[6] = TERM
    loop.train(tiny_config(), tmp_path)
    assert "done: 6 steps" in capsys.readouterr().out


@pytest.mark.parametrize("number, status", [(CTRL_C, 130), (TERM, 143)])
def test_the_program_ends_with_the_documented_status(tmp_path, number, status):
    endless = command(tmp_path, **{
        "train.num_steps": 10**6, "train.checkpoint_every": 10**6, "train.eval_images": 0,
        "train.sample_every": 10**6, "train.log_every": 1, "train.t_sampling": "uniform",
    })
    said, pipe = [], dict(stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(endless, env=on(1), cwd=ROOT, **pipe) as process:
        for line in process.stdout:
            said.append(line)
            if line.startswith("step 3 of"):
                process.send_signal(number)
    assert process.returncode == status
    step = rows(tmp_path)[-1]["step"]
    assert said[-1] == f"{number.name}: step {step} is saved; the same command continues there\n"
    assert checkpoints.steps(tmp_path) == [step] and step < 100


@pytest.mark.slow
@pytest.mark.parametrize("told, number", [(1, TERM), (0, CTRL_C)])
def test_all_processes_save_the_same_step(tmp_path, told, number):
    """JAX's real service: one of two processes is told, and the job continues with one."""
    settings = {
        "train.num_steps": 10**6, "train.checkpoint_every": 10**6, "train.eval_images": 0,
        "train.sample_every": 10**6, "train.log_every": 1, "train.t_sampling": "uniform",
    }
    address = f"--coordinator=127.0.0.1:{free_port()}"
    said = []
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(
                [*command(tmp_path, **settings), address, "--num_processes=2", f"--process_id={i}"],
                env=on(1), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )) for i in range(2)
        ]
        for line in processes[0].stdout:
            said.append(line)
            if "step 3 of" in line:
                processes[told].send_signal(number)
        others = processes[1].stdout.read()
    assert processes[told].returncode == 128 + number
    assert processes[1 - told].returncode in (143, 128 + number)
    step = rows(tmp_path)[-1]["step"]
    assert f"step {step} is saved; the same command continues there" in said[-1]
    assert "is saved" not in others
    assert checkpoints.steps(tmp_path) == [step]
    again = command(tmp_path, **settings | {"train.num_steps": step + 2})
    subprocess.run(again, env=on(1), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, step + 3))
