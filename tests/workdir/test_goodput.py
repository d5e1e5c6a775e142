"""Goodput of runs whose times are known."""

import pytest

from clock import Clock
from ddpm_jax.workdir.goodput import Goodput


def test_a_start_counts_its_steps_and_not_what_is_beside_them():
    """30 s to compile, 10 steps of 2 s a row, 5 s for a grid; by hand."""
    clock = Clock()
    goodput, rows = Goodput([], 0, clock), []
    assert goodput.share is None
    for step, passes, speed in ((10, 50, 10 / 50), (20, 20, 0.5), (30, 25, 0.5)):
        clock.now += passes
        rows.append({"step": step} | goodput.row(step, speed))
    assert [row["seconds"] for row in rows] == [50, 70, 95]
    assert [row["goodput"] for row in rows] == pytest.approx([0, 40 / 70, 60 / 95])
    assert [row["time"] for row in rows] == [150, 170, 195] and goodput.share == 60 / 95

    # Killed at once, started again at step 20 after 105 s: the last 10 steps were for nothing.
    clock.now += 105
    again = Goodput(rows, 20, clock)
    assert again.share == rows[1]["goodput"]
    clock.now += 50
    again.row(30, 10 / 50)
    clock.now += 20
    assert again.row(40, 0.5) == {
        "time": 370, "seconds": 270, "goodput": pytest.approx((40 + 40) / 270)
    }

    # From the first step again: the time since the first start still counts.
    anew = Goodput(rows, 0, clock)
    clock.now += 30
    assert anew.row(10, 0.5) == {"time": 400, "seconds": 300, "goodput": 0}


def test_rows_of_older_versions_have_none_and_a_speed_may_be_unknown():
    clock = Clock()
    goodput = Goodput([{"step": 5, "steps_per_second": 2.0}], 5, clock)
    assert goodput.row(5, float("nan")) == {"time": 100, "seconds": 0, "goodput": 0}
    clock.now += 10
    assert goodput.row(9, float("nan"))["goodput"] == 0
    clock.now += 10
    assert goodput.row(10, 0.5)["goodput"] == pytest.approx(5 * 2 / 20)
