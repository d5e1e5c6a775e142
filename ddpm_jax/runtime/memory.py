"""Memory in bytes: what a device and this host have, what is free, and the most that was used.

The limits of control groups count, since a container or a batch job gets no more than they allow.
"""

import contextlib
import os
import pathlib
import re
import resource
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from ddpm_jax.errors import UserError, one_line

PROC, CGROUPS = pathlib.Path("/proc"), pathlib.Path("/sys/fs/cgroup")  # Absent outside of Linux.
_UNKNOWN_DEVICE = 4 * 2**30  # Assumed of a device that does not report its memory.
# By version of control groups: the limit, the usage, and the file cache within it, which the
# kernel drops when memory is short.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def device_total() -> int:
    """Memory of each device of this process; CPU devices divide that of the host."""
    return _device_stats().get("bytes_limit") or host_total() // jax.local_device_count()


def device_budget() -> int:
    """What the images of a chain may take of each device; the rest is for the network.

    Half of the device's memory, or 2 GiB if the device, for example a CPU, does not report it.
    """
    return _device_stats().get("bytes_limit", _UNKNOWN_DEVICE) // 2


def host_total() -> int:
    """Memory of this machine, or the least limit of the control groups of this process."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit, _ in _cgroup_limits())])


def host_free() -> int:
    """Memory that this process can still take, on Linux; elsewhere all of the machine's."""
    meminfo = PROC / "meminfo"
    if not meminfo.exists():
        return host_total()
    available = 1024 * int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())[1])
    return max(0, min([available, *(limit - used for limit, used in _cgroup_limits())]))


def peak() -> str:
    """Peak memory in words: of the first device if it reports it, else of the process."""
    stats = _device_stats()
    if "peak_bytes_in_use" in stats:
        limit = stats.get("bytes_limit", 0) / 2**30
        return f"{stats['peak_bytes_in_use'] / 2**30:.2f} of {limit:.2f} GiB on the first device"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{used / 2**30:.2f} GiB in this process"


@contextlib.contextmanager
def explained(field: str, value: Any, instead: Mapping[str, Any]) -> Iterator[None]:
    """Makes one line of running out of memory inside, on a device or on the host.

    Args:
        field: the argument or setting to lower.
        value: its value.
        instead: as of `UserError`; empty where it cannot be lowered.

    Raises:
        UserError: memory ran out; its cause is the error of JAX or NumPy.
    """
    try:
        yield
    except Exception as error:
        if not is_exhausted(error):
            raise
        rule = f"is too much: {shortage(error)}"
        if not instead:
            rule += ", and it cannot be lowered; use a smaller model or a larger device."
        raise UserError(rule, field=field, value=value, instead=instead) from error


def is_exhausted(error: BaseException) -> bool:
    """Whether this error says that the memory of a device or of the host has run out."""
    on_device = isinstance(error, jax.errors.JaxRuntimeError)
    return isinstance(error, MemoryError) or on_device and "RESOURCE_EXHAUSTED" in str(error)


def shortage(error: BaseException) -> str:
    """What an error of `is_exhausted` asked for, and what there is."""
    text = one_line(error)
    in_bytes = re.search(r"(\d+) ?bytes", text)
    in_words = re.search(r"[\d.]+ ?[KMGTPE]i?B?\b", text)
    asked = f"{int(in_bytes[1]) / 2**30:,.2f} GiB" if in_bytes else in_words and in_words[0]
    return (
        f"memory ran out, where {asked or 'more'} was asked for and each device has "
        f"{device_total() / 2**30:,.2f} GiB"
    )


def _device_stats() -> dict[str, int]:
    return jax.local_devices()[0].memory_stats() or {}


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of each control group that this process is in and that has a limit."""
    for group, (limit, usage, cache) in _cgroups():
        with contextlib.suppress(OSError, ValueError):  # The file is absent, or says "max".
            most = int((group / limit).read_text())
            stat = re.search(rf"^{cache} (\d+)$", (group / "memory.stat").read_text(), re.M)
            reclaimable = int(stat[1]) if stat else 0
            yield most, int((group / usage).read_text()) - reclaimable


def _cgroups() -> Iterator[tuple[pathlib.Path, tuple[str, str, str]]]:
    """The folder of each control group of this process, from the innermost, with its file names."""
    memberships = PROC / "self" / "cgroup"
    for line in memberships.read_text().splitlines() if memberships.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (CGROUPS / "memory", _V1) if controllers else (CGROUPS, _V2)
        innermost = root / path.lstrip("/")
        for group in (innermost, *innermost.parents):
            yield group, names
            if group == root:
                break
