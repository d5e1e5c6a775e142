"""Rows in metrics.jsonl, where files can grow and in a store where they cannot."""

import json

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.runtime import files
from ddpm_jax.workdir import logs, metrics_file
from clock import Clock
from object_store import Store, local_copy, objects
from records import TORN_LINES, events


def start(workdir, start, stop, value, clock=None):
    """One start of a run: a row for each step."""
    writer = metrics_file.MetricsFile(workdir, start, *([clock] if clock else []))
    for step in range(start + 1, stop + 1):
        writer.write({"step": step, "loss": value})
    writer.close()


def losses(workdir):
    return [(row["step"], row["loss"]) for row in ddpm_jax.read_metrics(workdir)]


STARTS = [  # (start, stop): later steps of the starts before are dropped
    [(0, 3)],
    [(0, 9), (6, 12), (10, 14)],
    [(0, 9), (6, 12), (6, 8)],
    [(0, 9), (8, 12), (12, 14), (4, 6)],  # behind a part that begins later
    [(0, 5), (5, 7), (0, 2)],
    [(0, 4), (4, 4)],
    [(0, 3), (2, 2)],
]


@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize("store", [True, False])
def test_every_step_stands_once(bucket, tmp_path, starts, store):
    workdir, want = bucket / "run" if store else tmp_path / "run", {}
    for number, (first, stop) in enumerate(starts):
        start(workdir, first, stop, number)
        want = {k: v for k, v in want.items() if k <= first}
        want |= {step: number for step in range(first + 1, stop + 1)}
        assert losses(workdir) == list(want.items())
        assert losses(str(workdir)) == list(want.items())
    if not store:
        assert [path.name for path in workdir.iterdir()] == ["metrics.jsonl"]
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        assert list(map(json.loads, lines)) == ddpm_jax.read_metrics(workdir)


def test_a_store_has_a_part_for_each_start(bucket):
    for first, stop in ((0, 9), (6, 12), (10, 14)):
        start(bucket, first, stop, 0)
    assert objects() == [f"bucket/metrics{part}.jsonl"
                         for part in (".from_00000006", ".from_00000010", "")]
    start(bucket, 6, 6, 0)
    assert objects() == ["bucket/metrics.from_00000006.jsonl", "bucket/metrics.jsonl"]


def test_a_run_may_move_between_stores_and_disks(bucket, tmp_path):
    for first, stop in ((0, 9), (6, 12)):
        start(bucket, first, stop, first)
    moved = local_copy(bucket, tmp_path / "run")
    before = losses(bucket)
    assert losses(moved) == before
    start(moved, 10, 14, 1)
    assert losses(moved) == before[:10] + [(step, 1) for step in range(11, 15)]
    assert [path.name for path in moved.iterdir()] == ["metrics.jsonl"]
    files.write(bucket / "back" / "metrics.jsonl", (moved / "metrics.jsonl").read_bytes())
    start(bucket / "back", 12, 13, 2)
    assert losses(bucket / "back") == losses(moved)[:12] + [(13, 2)]


def test_a_store_is_written_every_ten_seconds_and_at_flushes(bucket):
    clock = Clock()
    writer = metrics_file.MetricsFile(bucket, 0, clock)
    assert ddpm_jax.read_metrics(bucket) == []  # There, and empty.

    def write(step, seconds):
        clock.now += seconds
        writer.write({"step": step})
        return len(ddpm_jax.read_metrics(bucket))

    seen = [write(step, 4) for step in range(1, 8)]  # After 4, 8, 12, ... seconds.
    assert seen == [0, 0, 3, 3, 3, 6, 6]
    writer.flush()
    assert len(ddpm_jax.read_metrics(bucket)) == 7 and len(Store.writes) == 4
    writer.flush()
    assert len(Store.writes) == 4  # Nothing new.
    assert write(8, 9.9) == 7 and write(9, 0.1) == 9
    write(10, 0)
    writer.close()
    assert [row["step"] for row in ddpm_jax.read_metrics(bucket)] == list(range(1, 11))


@pytest.mark.parametrize("torn", [*TORN_LINES, "3\n", '{"loss": 1.0}\n'])
def test_what_is_no_row_is_left_out(tmp_path, torn):
    start(tmp_path, 0, 2, 1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert losses(tmp_path) == [(1, 1), (2, 1)]
    (tmp_path / "evaluations.jsonl").write_bytes(b'{"a": 1}\n\xff\xff\n{"a": 2')
    assert evaluate_lib.rows(tmp_path) == [{"a": 1}]


def test_a_workdir_that_is_not_there_is_said(tmp_path, bucket):
    for workdir in (tmp_path / "gone", bucket / "gone"):
        with pytest.raises(ValueError, match=f"workdir={workdir} does not exist; name"):
            ddpm_jax.read_metrics(workdir)


def test_other_files_of_similar_names_are_no_parts(tmp_path):
    start(tmp_path, 0, 2, 1)
    for name in ("metrics.jsonl.12.tmp", "metrics.from_x.jsonl", "old_metrics.jsonl"):
        (tmp_path / name).write_text('{"step": 2, "loss": 7}\n')
    assert losses(tmp_path) == [(1, 1), (2, 1)]


def test_tensorboard_reads_what_is_copied(bucket, tmp_path):
    for number, (first, stop) in enumerate([(0, 9), (6, 12), (10, 14)]):
        with logs.Logs(bucket, start_step=first, num_steps=20, progress=False) as both:
            for step in range(first + 1, stop + 1):
                both.write(step, {"loss": number})
            both.images("samples", np.zeros((2, 2, 1), np.uint8), stop)
            (both.folder / "profile").mkdir()
            (both.folder / "profile" / f"{number}.trace").write_bytes(b"trace")
    want = [(i + 1, v) for i, v in enumerate([0.0] * 6 + [1.0] * 4 + [2.0] * 4)]
    assert losses(bucket) == want
    found = events(local_copy(bucket, tmp_path))
    assert [(e.step, e.value) for e in found.Scalars("loss/loss")] == want
    assert [e.step for e in found.Images("samples")] == [14]  # The next starts purged 9, 12.
    assert sorted(p.name for p in (tmp_path / "tensorboard" / "profile").iterdir()) == [
        "0.trace", "1.trace", "2.trace"]
