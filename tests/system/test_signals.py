"""Programs that are sent a signal: what they save, and the status that they end with."""

import contextlib
import signal
import subprocess

import pytest

from ddpm_jax.workdir import checkpoints
from program import ROOT, command, free_port, on
from records import rows

CTRL_C, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize("number, status", [(CTRL_C, 130), (TERM, 143)])
def test_the_program_ends_with_the_documented_status(tmp_path, number, status):
    endless = command(tmp_path, **{
        "train.num_steps": 10**6, "train.checkpoint_every": 10**6, "train.eval_images": 0,
        "train.sample_every": 10**6, "train.log_every": 1, "train.t_sampling": "uniform",
    })
    lines, pipe = [], dict(stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(endless, env=on(1), cwd=ROOT, **pipe) as process:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step 3 of"):
                process.send_signal(number)
    assert process.returncode == status
    step = rows(tmp_path)[-1]["step"]
    assert lines[-1] == f"{number.name}: step {step} is saved; the same command continues there\n"
    assert checkpoints.steps(tmp_path) == [step] and step < 100


@pytest.mark.slow
@pytest.mark.parametrize("signalled, number", [(1, TERM), (0, CTRL_C)])
def test_all_processes_save_the_same_step(tmp_path, signalled, number):
    """JAX's real service: one of two processes gets the signal; the job resumes with one."""
    settings = {
        "train.num_steps": 10**6, "train.checkpoint_every": 10**6, "train.eval_images": 0,
        "train.sample_every": 10**6, "train.log_every": 1, "train.t_sampling": "uniform",
    }
    address = f"--coordinator=127.0.0.1:{free_port()}"
    lines = []
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(
                [*command(tmp_path, **settings), address, "--num_processes=2", f"--process_id={i}"],
                env=on(1), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )) for i in range(2)
        ]
        for line in processes[0].stdout:
            lines.append(line)
            if "step 3 of" in line:
                processes[signalled].send_signal(number)
        others = processes[1].stdout.read()
    assert processes[signalled].returncode == 128 + number
    assert processes[1 - signalled].returncode in (143, 128 + number)
    step = rows(tmp_path)[-1]["step"]
    assert f"step {step} is saved; the same command continues there" in lines[-1]
    assert "is saved" not in others
    assert checkpoints.steps(tmp_path) == [step]
    again = command(tmp_path, **settings | {"train.num_steps": step + 2})
    subprocess.run(again, env=on(1), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, step + 3))
