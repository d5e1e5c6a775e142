"""How much memory there is and was: of devices, of this machine, of this process."""

import contextlib
import os
import pathlib
import re
import resource

import jax


def on_each_device() -> int:
    """Bytes that a device of this process may have; CPU devices share those of the host."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or of_host() // jax.local_device_count()


def of_host() -> int:
    """Bytes of memory of this machine, or of the container that this runs in."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # Absent, or "max".
            limits.append(int(pathlib.Path("/sys/fs/cgroup", path).read_text()))
    return min(limits)


def device_memory() -> int:
    """Bytes of the first device, 4 GiB where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 4 * 2**30)


def host_memory() -> int:
    """Bytes that this process may still take, where Linux tells; else those of the machine."""
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        return int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak() -> str:
    """Peak memory: of the first device where it is counted, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        limit = stats.get("bytes_limit", 0) / 2**30
        return f"{stats['peak_bytes_in_use'] / 2**30:.2f} of {limit:.2f} GiB on the first device"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{peak / 2**30:.2f} GiB in this process"
