"""One trainer per workdir, by a lock of the kernel or by signs of life."""

import errno
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ddpm_jax.runtime import files, parallel
from ddpm_jax.workdir import lock
from object_store import Store, objects

ROOT = pathlib.Path(__file__).parents[2]
HOST = socket.gethostname()
HOLDER = """
import sys, time
from ddpm_jax.workdir import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the workdir."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_trainer_is_refused_until_the_first_is_killed(holder, tmp_path):
    second = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), f"--config={ROOT}/configs/digits.py",
         f"--workdir={tmp_path}"], capture_output=True, text=True, cwd=ROOT,
        timeout=120)
    assert second.returncode == 2
    assert second.stderr == (
        f"error: workdir={tmp_path} is being trained by process {holder.pid} on {HOST}; stop it, "
        "or name another --workdir.\n"
    )
    assert not (tmp_path / "config.json").exists()  # Only the first writes.
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with lock.hold(tmp_path) as check:
        check()
        owner = json.loads((tmp_path / "owner.json").read_text())
        assert (owner["pid"], owner["host"]) == (os.getpid(), HOST)
        assert abs(owner["time"] - time.time()) < 60


def test_a_workdir_is_free_once_its_owner_is_done(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), lock.hold(tmp_path):
            raise KeyError
    with lock.hold(tmp_path), lock.hold(tmp_path.parent):
        with pytest.raises(ValueError, match=f"process {os.getpid()} on {HOST}"):
            with lock.hold(str(tmp_path)):
                raise AssertionError("held twice")
    (tmp_path.parent / "owner.json").unlink()


def test_of_several_processes_the_first_owns(tmp_path, monkeypatch):
    with lock.hold(tmp_path):
        monkeypatch.setattr(parallel, "from_first", lambda produce: None)
        with lock.hold(tmp_path) as check:
            check()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.02)
    monkeypatch.setattr(lock, "SETTLE", 0.0)


@pytest.fixture(params=["store", "disk without locks"])
def lockless(request, bucket, tmp_path, monkeypatch, quick):
    """A workdir where nothing can be locked."""
    def flock(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    return bucket if request.param == "store" else tmp_path


def owner(workdir):
    return json.loads((files.path(workdir) / "owner.json").read_text())


def write(workdir, *, token="other", silent=0.0):
    entry = {"host": "elsewhere", "pid": 7, "token": token, "time": time.time() - silent}
    files.write(workdir / "owner.json", (json.dumps(entry) + "\n").encode())


def until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_without_locks_the_owner_shows_that_it_lives(lockless):
    with lock.hold(lockless) as check:
        first = owner(lockless)
        assert (first["host"], first["pid"]) == (HOST, os.getpid())
        until(lambda: owner(lockless)["time"] > first["time"])
        check()
        with pytest.raises(ValueError, match=f"process {os.getpid()} on {HOST}; it was alive 0 s"):
            with lock.hold(lockless):
                raise AssertionError("held twice")
        assert owner(lockless)["token"] == first["token"]
    assert not any(thread.name.endswith("(_beat)") for thread in threading.enumerate())
    with lock.hold(lockless):
        assert owner(lockless)["token"] != first["token"]
    assert not (lockless / "owner.json").exists()


@pytest.mark.parametrize("silent, taken", [(290, False), (310, True)])
def test_the_silent_are_taken_over_after_five_minutes(bucket, quick, silent, taken):
    write(bucket, silent=silent)
    if taken:
        with lock.hold(bucket):
            assert owner(bucket)["host"] == HOST
        return
    with pytest.raises(ValueError) as refused, lock.hold(bucket):
        raise AssertionError("held")
    assert str(refused.value) == (
        "workdir=gs://bucket is being trained by process 7 on elsewhere; it was alive 290 s ago: "
        "stop it, or try again in 10 s if it is dead, or name another --workdir."
    )
    assert owner(bucket)["token"] == "other"


def test_one_that_was_only_slow_notices_and_leaves_the_file_alone(bucket, quick):
    with lock.hold(bucket) as check:
        check()
        write(bucket)
        with pytest.raises(ValueError, match="by process 7 on elsewhere; it took over from this"):
            until(check)
    assert owner(bucket)["token"] == "other" and objects() == ["bucket/owner.json"]


def test_of_two_that_start_at_once_the_last_to_write_goes_on(bucket, quick, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", lambda _: write(bucket))
    with pytest.raises(ValueError, match="7 on elsewhere; it started at the same time"):
        with lock.hold(bucket):
            raise AssertionError("held")
    assert owner(bucket)["token"] == "other"


def test_a_store_that_fails_for_a_while_ends_nothing(bucket, quick, monkeypatch):
    failed = []

    def broken(*_, **__):
        failed.append(1)
        raise RuntimeError("503")

    with lock.hold(bucket) as check:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "_open", broken)
            until(lambda: len(failed) > 3)
        seen = owner(bucket)["time"]
        until(lambda: owner(bucket)["time"] > seen)
        check()


def test_a_beat_comes_often_enough_to_miss_some():
    assert lock.STALE >= 4 * lock.HEARTBEAT
