"""The program as its users start it: `main.py` in processes of its own."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
    "model.channels": 8, "model.channel_multipliers": "(1,)", "model.dropout": 0.2,
    "model.attention_resolutions": "()", "model.num_groups": 0,
    "diffusion.num_timesteps": 20, "diffusion.beta_end": 0.4,
    "train.batch_size": 16, "train.log_every": 5,
    "train.warmup_steps": 10, "train.eval_every": 60, "train.eval_images": 20,
    "train.sample_every": 60, "train.sample_images": 8, "train.checkpoint_every": 20,
    "train.t_sampling": "importance",  # Its history is pooled over devices, and resumed.
}


def command(workdir, mode="train", config="digits", **settings):
    flags = [f"--config.{k}={v}" for k, v in (SMALL | settings).items()]
    return [sys.executable, str(ROOT / "main.py"), f"--config={ROOT}/configs/{config}.py",
            f"--workdir={workdir}", f"--mode={mode}", *flags]


def on(devices):
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}


def run(arguments, *, devices=2, fails=False, folder=ROOT):
    """The output of a program, which must succeed, or must not where `fails`."""
    done = subprocess.run(arguments, env=on(devices), capture_output=True, text=True, cwd=folder)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
