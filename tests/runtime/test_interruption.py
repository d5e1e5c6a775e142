"""Signals: the first is noted, the second does what it did before."""

import os
import signal
import threading

import jax
import pytest

from ddpm_jax.runtime import interruption
from ddpm_jax.runtime.interruption import Interrupted

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
