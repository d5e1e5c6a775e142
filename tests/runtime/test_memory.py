"""Memory of this machine, or less if a control group of this process limits it."""

import re

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.runtime import memory

MIB = 2**20


@pytest.fixture
def linux(monkeypatch, tmp_path):
    """Writes a file of a machine that has 4,000 MiB available and no control groups yet."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", f"MemTotal: 8000 kB\nMemAvailable:    {4000 * 1024} kB\n")
    return write


def v2(write, folder, limit, used, cache):
    write(f"cgroup/{folder}/memory.max", f"{limit}\n")
    write(f"cgroup/{folder}/memory.current", f"{used * MIB}\n")
    write(f"cgroup/{folder}/memory.stat", f"anon 1\ninactive_file {cache * MIB}\n")


def v1(write, folder, limit, used, cache):
    write(f"cgroup/memory/{folder}/memory.limit_in_bytes", f"{limit}\n")
    write(f"cgroup/memory/{folder}/memory.usage_in_bytes", f"{used * MIB}\n")
    write(f"cgroup/memory/{folder}/memory.stat",
          f"inactive_file 1\ntotal_inactive_file {cache * MIB}\n")


def test_it_is_that_of_this_machine():
    with open("/proc/meminfo") as file:
        total = int(re.search(r"MemTotal: +(\d+) kB", file.read())[1]) * 1024
    assert 2**28 < memory.host_total() <= total
    assert 2**26 < memory.host_free() < memory.host_total()


def test_devices_of_a_cpu_divide_the_host():
    assert memory.device_total() == memory.host_total() // jax.local_device_count()
    assert memory.device_budget() == 2 * 2**30  # A CPU does not report its memory.


def test_without_groups_it_is_what_the_kernel_has_available(linux):
    assert memory.host_free() == 4000 * MIB
    linux("proc/self/cgroup", "0::/\n")
    assert memory.host_free() == 4000 * MIB


def test_without_a_kernel_that_tells_it_is_the_whole_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path / "none")
    assert memory.host_free() == memory.host_total()


@pytest.mark.parametrize("group, line", [
    (v2, "0::/job/step\n"),
    (v1, "5:cpu,cpuacct:/other\n4:memory:/job/step\n0::/\n"),
])
def test_a_limit_of_any_group_around_the_process_counts(linux, group, line):
    linux("proc/self/cgroup", line)
    group(linux, "job/step", "max" if group is v2 else 2**63 - 4096, 900, 0)
    group(linux, "job", 1000 * MIB, 950, 100)
    assert memory.host_total() == 1000 * MIB
    assert memory.host_free() == (1000 - 950 + 100) * MIB  # The file cache can be dropped.


def test_the_groups_that_a_container_sees_as_its_root_count(linux):
    """The path is that on the host, which does not exist inside."""
    linux("proc/self/cgroup", "0::/docker/0123\n")
    v2(linux, ".", 1000 * MIB, 400, 0)
    assert memory.host_total() == 1000 * MIB
    assert memory.host_free() == 600 * MIB


def test_free_memory_is_not_negative(linux):
    linux("proc/self/cgroup", "0::/\n")
    v2(linux, ".", 1000 * MIB, 1001, 0)
    assert memory.host_free() == 0


def test_the_peak_is_that_of_the_process_on_a_cpu():
    assert re.fullmatch(r"\d+\.\d\d GiB in this process", memory.peak())


@pytest.mark.parametrize("message, asked", [
    ("RESOURCE_EXHAUSTED: Out of memory allocating 1099511627776 bytes.", "1,024.00 GiB was"),
    ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2147483648 bytes.", "2.00 GiB"),
    ("RESOURCE_EXHAUSTED: Attempting to reserve 12.34G at the bottom of memory. That was not "
     "possible. There are 10.05G free", "12.34G was"),
    ("INTERNAL: RESOURCE_EXHAUSTED: Failed to allocate request for 2.00GiB on device ordinal 0",
     "2.00GiB was"),
    ("RESOURCE_EXHAUSTED: no more", "more was asked for"),
])
def test_running_out_is_one_line_with_what_was_asked_and_what_there_is(message, asked):
    with pytest.raises(UserError) as caught, memory.explained("batch_size", 8, {"batch_size": 4}):
        raise jax.errors.JaxRuntimeError(message)
    line = str(caught.value)
    assert line.startswith("batch_size=8 is too much: memory ran out, where ") and asked in line
    assert line.endswith(f"has {memory.device_total() / 2**30:,.2f} GiB; write batch_size=4.")
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)


def test_other_errors_of_a_device_stay_what_they_are():
    for error in (jax.errors.JaxRuntimeError("INTERNAL: broken"), ValueError("x")):
        with pytest.raises(type(error)), memory.explained("batch_size", 8, {}):
            raise error


def test_an_array_that_the_host_cannot_hold_is_one_line_too():
    with pytest.raises(UserError, match="n=8 is too much: memory ran out, where 8.00 PiB was"):
        with memory.explained("n", 8, {}):
            np.empty(2**50)
