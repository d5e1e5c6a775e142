"""A device that is asked for and not there is one line: what was asked, what there is."""

import os
import subprocess
import sys

import jax
import pytest

from ddpm_jax.runtime import devices, memory
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


USES_CORES = """
import os
os.sched_getaffinity = lambda process: range(6)
import jax
{before}
from ddpm_jax.runtime import devices, memory
devices.use_cores({images}, {held})
print(jax.device_count())
"""
LIBTPU = """
jax.config.update("jax_platforms", "")
import importlib.util
importlib.util.find_spec = lambda name: name == "libtpu"
"""


@pytest.mark.parametrize("images, expected", [(48, 6), (64, 4), (16, 2), (20, 2), (8, 1), (0, 1)])
def test_each_core_is_a_device_where_the_images_suffice(images, expected):
    assert devices_used(images=images) == expected


def test_states_take_a_quarter_of_the_memory_at_most():
    share = memory.host_total() // 4
    assert devices_used(images=48, held=share // 3) == 3
    assert devices_used(images=48, held=2 * share) == 1


@pytest.mark.parametrize("env", [
    {"JAX_NUM_CPU_DEVICES": "1"}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
])
def test_what_the_user_has_chosen_stays(env):
    assert devices_used(images=48, **env) == 1


@pytest.mark.parametrize("before", [
    "jax.devices()", "jax.distributed.is_initialized = lambda: True",
    f"{LIBTPU}\nimport glob\nglob.glob = lambda p: ['/dev/accel0'] if p[:5] == '/dev/' else []",
])
def test_nothing_is_done_too_late_in_a_job_or_beside_an_accelerator(before):
    assert devices_used(images=48, before=before) == 1


def test_libtpu_without_a_tpu_is_not_an_accelerator():
    """It may be there for `--target` alone. JAX marks at its import that it finds no TPU."""
    assert devices_used(images=48, before=LIBTPU, TPU_SKIP_MDS_QUERY="1") == 6


@pytest.mark.parametrize("plugins, platforms", [("", "cpu"), ("xla_cuda12", "")])
def test_jax_does_not_start_libtpu_or_libtpu_is_quiet(plugins, platforms):
    """Beside a plugin for other devices JAX has to look for those."""
    before = (
        f"{LIBTPU}\nfrom ddpm_jax.runtime import devices\nfrom types import SimpleNamespace\n"
        "devices.importlib.metadata.entry_points = lambda group: "
        f"[SimpleNamespace(name=name) for name in {plugins.split()}]\n"
        "devices.leave_out_libtpu()\nassert os.environ['TPU_WORKER_HOSTNAMES']\n"
        f"assert (jax.config.jax_platforms or '') == {platforms!r}\n"
        "print(0)\nraise SystemExit"
    )
    assert devices_used(images=48, before=before, TPU_SKIP_MDS_QUERY="1") == 0


def devices_used(*, images, held=0, before="", **env):
    """How many devices JAX has after `use_cores` on six cores, in a process of its own."""
    known = {"JAX_PLATFORMS": "cpu"} | os.environ
    known = {name: value for name, value in known.items() if name != "JAX_NUM_CPU_DEVICES"}
    program = USES_CORES.format(before=before, images=images, held=held)
    done = subprocess.run(
        [sys.executable, "-c", program], env=known | env, capture_output=True, text=True, cwd=ROOT,
        check=True,
    )
    return int(done.stdout)


WAITS = """
import os
os.sched_getaffinity = lambda process: range(2)
import time
import jax
import jax.numpy as jnp
import numpy as np
from ddpm_jax.runtime import devices, memory
devices.use_cores(16, 0)

def late(device):
    time.sleep(45 * int(device))
    return np.float32(device)

def sums(x):
    device = jax.lax.axis_index("batch")
    waited = jax.pure_callback(late, jax.ShapeDtypeStruct((), jnp.float32), device)
    return jax.lax.psum(x + waited, "batch")

print(jax.pmap(sums, "batch")(jnp.ones(2))[0])
"""


@pytest.mark.slow
def test_a_device_waits_long_for_another():
    """By itself XLA ends the process after 40 s."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run([sys.executable, "-c", WAITS], env=env, capture_output=True, text=True,
                          cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "3.0\n")
