"""`--mode=report` as its users start it."""

import sys

import pytest

import program
import recorded_run


def report(*arguments, fails=False):
    command = [sys.executable, str(program.ROOT / "main.py"), "--mode=report", *arguments]
    return program.run(command, devices=1, fails=fails)


def test_it_writes_the_page_of_one_workdir_or_of_several(tmp_path):
    runs = [recorded_run.recorded(tmp_path / name) for name in ("a", "b", "c, d")]
    assert f"{runs[2]}/report.html" in report(f"--workdir={runs[2]}")
    both = tmp_path / "both.html"
    assert str(both) in report(f"--workdir={runs[0]},{runs[1]}", f"--report={both}")
    assert "Settings that differ" in both.read_text()
    assert not (runs[0] / "report.html").exists()


@pytest.mark.parametrize("arguments, message", [
    (("--config.sample.seed=3",), "--config.sample.seed=3 is not read by --mode=report"),
    (("--config=digits",), "--mode=report takes the configs of its workdirs"),
    (("--multihost",), "--mode=report is for one process"),
    (("--mode=sample", "--report=x.html"), "--report=x.html is for --mode=report"),
    ((), "is no folder; name that of a run"),
])
def test_flags_without_a_use_are_refused(tmp_path, arguments, message):
    line, = report(f"--workdir={tmp_path / 'x'}", *arguments, fails=True).splitlines()
    assert line.startswith("error: ") and message in line
