"""Runs that are killed again and again, at seeded moments, equal an undisturbed run."""

import collections
import json
import os
import random
import signal
import subprocess
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm_jax.workdir import checkpoints
from ddpm_jax.workdir.logs import tag
from program import ROOT, command, on, run
from records import lasting, rows, saved

SAVE_EVERY, SAMPLE_EVERY = 20, 40
PERIODS = {"train.checkpoint_every": SAVE_EVERY, "train.sample_every": SAMPLE_EVERY,
           "train.eval_every": 60, "train.extra_ema_decays": "(0.5,)"}


def settings(num_steps):
    return PERIODS | {"train.num_steps": num_steps}


def whole_rows(workdir):
    """The rows in metrics.jsonl, without one that is being written or that a kill has torn."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def half_saved(workdir):
    """(step, inode of its folder) of every checkpoint that is being written."""
    being_written = set()
    for path in (workdir / "checkpoints").glob(f"*{checkpoints.TEMPORARY}*"):
        try:
            being_written.add((int(path.name.split(".")[0]), path.stat().st_ino))
        except FileNotFoundError:  # renamed meanwhile: it is whole
            pass
    return being_written


def half_sampled(workdir):
    """Steps whose row is written and whose picture, which comes next, is not."""
    return {
        row["step"] for row in whole_rows(workdir) if row["step"] % SAMPLE_EVERY == 0
        and not (workdir / "samples" / f"step_{row['step']:08d}.png").exists()
    }


class Moment:
    """When to kill: once `count` events of a kind have begun since this start.

    "save": a checkpoint's temporary folder exists. "sampling": a grid's row is written and its
    picture is not. "step": some time after a row. "start": some time after the start.
    """

    def __init__(self, kind, random):
        self.kind = kind
        self.count = random.randint(1, 2) if kind == "save" else 1
        self.delay = random.uniform(0, 6 if kind == "start" else 0.1)
        self.seen = set()

    def come(self, workdir, before):
        began = {"save": half_saved, "sampling": half_sampled}.get(
            self.kind, lambda workdir: {row["step"] for row in whole_rows(workdir)}
        )
        self.seen |= began(workdir) - before
        if self.kind == "start":
            time.sleep(self.delay)
            return True
        if self.kind == "step" and self.seen:
            time.sleep(self.delay)
        return len(self.seen) >= self.count


def killed(arguments, workdir, moment):
    """Starts a run and kills it at `moment`; what its files say that it was doing."""
    newest = max(checkpoints.steps(workdir), default=0)
    leftovers = half_saved(workdir)
    before = {"save": leftovers, "sampling": {s for s in half_sampled(workdir) if s <= newest}}
    before = before.get(moment.kind, {row["step"] for row in whole_rows(workdir)})
    output = workdir.parent / "output"
    with output.open("w") as out, subprocess.Popen(
        arguments, env=on(1), stdout=out, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        resumed = moment.kind == "start"
        while process.poll() is None:
            # Leftovers of earlier starts are gone once this one has printed its first step.
            resumed = resumed or "ing at step" in output.read_text()
            if resumed and moment.come(workdir, before):
                break
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    within = []
    if half_saved(workdir) - leftovers:
        within.append("save")
    if half_sampled(workdir) and max(half_sampled(workdir)) == whole_rows(workdir)[-1]["step"]:
        within.append("sampling")
    return within


def survive(tmp_path, kinds, num_steps, seed):
    """Kills a run once per kind; it equals an undisturbed one. Counts what it was doing then."""
    whole, workdir = tmp_path / "whole", tmp_path / "killed" / "run"
    workdir.parent.mkdir()
    run(command(whole, **settings(num_steps)), devices=1)
    arguments, chance = command(workdir, **settings(num_steps)), random.Random(seed)
    kinds = chance.sample(kinds, len(kinds))
    within = collections.Counter()
    for kind in kinds:
        interrupted = killed(arguments, workdir, Moment(kind, chance))
        print(f"{kind}: within {interrupted}", flush=True)
        within.update(interrupted)
    output = run(arguments, devices=1)
    assert f"done: {num_steps} steps" in output

    assert list(map(lasting, rows(workdir))) == list(map(lasting, rows(whole)))
    assert len({row["step"] for row in rows(workdir)}) == num_steps // 5
    for step in checkpoints.steps(whole):
        for a, b in zip(saved(workdir, step), saved(whole, step), strict=True):
            np.testing.assert_array_equal(a, b)
    assert_same_files(workdir, whole)
    assert_same_events(workdir, whole)
    return within


def assert_same_files(workdir, whole):
    """The same pictures and checkpoints, and nothing half written."""
    for folder in ("samples", "checkpoints"):
        assert set(os.listdir(workdir / folder)) == set(os.listdir(whole / folder))
    for picture in (whole / "samples").iterdir():
        assert (workdir / "samples" / picture.name).read_bytes() == picture.read_bytes()
    top = {"config.json", "metrics.jsonl", "owner.json", "tensorboard", "checkpoints", "samples"}
    assert {path.name for path in workdir.iterdir()} == top


def assert_same_events(workdir, whole):
    """TensorBoard has every step once, with its value."""
    one, other = (
        EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        for path in (workdir, whole)
    )
    for name in ("loss", "grad_norm", "heldout_loss", "skipped"):
        values = {event.step: event.value for event in other.Scalars(tag(name))}
        events = [(event.step, event.value) for event in one.Scalars(tag(name))]
        assert sorted(events) == sorted(values.items())


@pytest.mark.slow
def test_a_run_survives_a_few_kills(tmp_path):
    within = survive(tmp_path, ["save", "sampling", "step"], num_steps=160, seed=0)
    assert within["sampling"] >= 1


@pytest.mark.slow
def test_a_run_survives_twenty_kills(tmp_path):
    kinds = ["save"] * 6 + ["sampling"] * 5 + ["step"] * 7 + ["start"] * 2
    within = survive(tmp_path, kinds, num_steps=480, seed=1)
    assert within["save"] >= 3 and within["sampling"] >= 3, within
