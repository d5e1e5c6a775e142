"""Bars, lines a minute and durations."""

import math
import sys

import pytest
import tqdm

from ddpm_jax.runtime import progress
from ddpm_jax.runtime.progress import format_duration


@pytest.mark.parametrize(
    "seconds,text",
    [
        (0, "0 s"),
        (12.4, "12 s"),
        (59.6, "1 min 00 s"),
        (64, "1 min 04 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (172740, "47 h 59 min"),
        (172800, "2 d 00 h"),
        (360000, "4 d 04 h"),
        (math.nan, "unknown"),
        (math.inf, "unknown"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_without_a_terminal_there_is_a_line_a_minute(capsys):
    """One update of 10 s each: after 60 s six of 20 are done, so 140 s are left."""
    now = [0.0]
    with progress.Lines(20, "step", clock=lambda: now[0]) as lines:
        for _ in range(20):
            now[0] += 10
            lines.update()
    assert lines.n == 20
    assert capsys.readouterr().err.splitlines() == [
        "6 of 20 steps  eta 2 min 20 s", "12 of 20 steps  eta 1 min 20 s",
        "18 of 20 steps  eta 20 s",
    ]


@pytest.mark.parametrize("terminal,notebook,shown,is_bar", [
    (True, False, True, True), (False, True, True, True), (False, False, True, False),
    (False, False, False, True), (True, False, False, True),
])
def test_a_bar_is_for_who_can_see_it_move(
    terminal, notebook, shown, is_bar, monkeypatch, capsys
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel.kernelapp", raising=False)
    if notebook:  # A process that only starts kernels has the package, and not this part of it.
        monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", sys)
    with progress.bar(3, "image", shown=shown) as bar:
        bar.update(2)
    assert isinstance(bar, tqdm.tqdm if is_bar else progress.Lines)
    assert bool(capsys.readouterr().err) == (is_bar and shown)
