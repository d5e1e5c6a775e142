"""A program restarts with large pages once, and only where that helps."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, pathlib, sys
from ddpm_jax.runtime import huge_pages
print("started", os.getpid(), flush=True)
huge_pages._ENABLED = pathlib.Path(sys.argv[1])
huge_pages.use()
print("runs", os.getpid(), sys.argv[2:], sys.flags.dev_mode, os.environ.get("GLIBC_TUNABLES"))
"""


@pytest.fixture
def run(tmp_path):
    def run(enabled, tunables=None):
        program, setting = tmp_path / "a program.py", tmp_path / "enabled"
        program.write_text(PROGRAM)
        if enabled is not None:
            setting.write_text(enabled)
        env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        done = subprocess.run(
            [sys.executable, "-X", "dev", program, setting, "an argument", "--other=1"],
            env=env | ({} if tunables is None else {"GLIBC_TUNABLES": tunables}),
            stdout=subprocess.PIPE, text=True, check=True,
        )
        *started, last = done.stdout.splitlines()
        pids = {line.split()[1] for line in [*started, last]}
        assert len(pids) == 1  # Signals to the program reach it as before.
        assert f"['an argument', '--other=1'] True {_last_word(last)}" in last
        return len(started), _last_word(last)

    return run


def _last_word(line):
    return line.rsplit(" ", 1)[1]


def test_it_starts_over_once_and_keeps_its_arguments(run):
    assert run("always [madvise] never\n") == (2, "glibc.malloc.hugetlb=1")


def test_other_tunables_stay(run):
    assert run("always [madvise] never\n", "glibc.malloc.arena_max=2") == (
        2, "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    )


@pytest.mark.parametrize("enabled", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_it_goes_on_where_the_kernel_gives_them_unasked_or_never(run, enabled):
    assert run(enabled) == (1, "None")


def test_a_choice_of_the_users_own_stays(run):
    assert run("always [madvise] never\n", "glibc.malloc.hugetlb=0") == (
        1, "glibc.malloc.hugetlb=0"
    )
