"""A device that is asked for and not there is one line: what was asked, what there is."""

import os
import subprocess
import sys

import jax
import pytest

from ddpm_jax.runtime import devices
from program import ROOT

PROGRAMS = {
    "command": """
import sys
from ddpm_jax import cli
sys.argv = ["main.py", "--config=digits", "--workdir={}"]
cli.main()
""",
    "train": """
import ddpm_jax
from ddpm_jax.configs import digits
try:
    ddpm_jax.train(digits.get_config(), "{}")
except ValueError as error:
    raise SystemExit(f"error: {{error}}")
""",
}


@pytest.mark.skipif(any(d.platform != "cpu" for d in jax.devices()), reason="has a device")
@pytest.mark.parametrize("platform, says", [
    ("cuda", 'install JAX for it, pip install -U "jax[cuda13]", or unset JAX_PLATFORMS'),
    ("tpu", 'install JAX for it, pip install -U "jax[tpu]", or unset JAX_PLATFORMS'),
    ("nonsense", "write cpu, cuda or tpu, or unset JAX_PLATFORMS to use what there is"),
])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_device_that_is_not_there_is_one_line(tmp_path, program, platform, says):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS[program].format(tmp_path / "run")],
        env=os.environ | {"JAX_PLATFORMS": platform}, capture_output=True, text=True, cwd=ROOT,
    )
    [line] = done.stderr.splitlines()
    assert done.returncode and line.startswith(f"error: JAX_PLATFORMS={platform}: JAX finds no ")
    assert says in line and "installed for cpu" in line
    assert not (tmp_path / "run").exists()


def test_devices_that_are_there_pass():
    devices.check()
