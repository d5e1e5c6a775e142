"""Keeps compiled programs on disk, for the next start.

XLA's programs for a CPU may use every instruction that it has, and machines of several kinds often
share a home: each kind has its own folder, as has each release of JAX.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import warnings

import jax
import jaxlib

MAX_BYTES = 2 * 2**30  # For all kinds of CPU and releases together.
CPUINFO = pathlib.Path("/proc/cpuinfo")  # Without it, the names that Python knows must do.
_SAME_PER_KIND = (  # Its entries that all machines of a kind share, for x86 and for Arm.
    "vendor_id", "cpu family", "model", "model name", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features",
)


def enable() -> None:
    """Makes JAX keep what it compiles; for a program's `main`, since all of the process changes.

    It respects what the user has chosen by JAX_COMPILATION_CACHE_DIR or
    JAX_ENABLE_COMPILATION_CACHE. JAX stores programs that took at least
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS (1) to compile. If the folder cannot be made, nothing
    changes; what cannot be read or written there is compiled again, without a warning.
    """
    chosen = jax.config.jax_compilation_cache_dir is not None
    if chosen or not jax.config.jax_enable_compilation_cache:
        return
    try:
        root = folder()
        path = root / f"jax_{jax.__version__}_{jaxlib.__version__}_{cpu_type()}"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)  # Who can write there runs code here.
        prune(root, MAX_BYTES)
    except (OSError, RuntimeError):  # No home, or none that can be written.
        return
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(path))


def folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/ddpm_jax/xla`, by default in ~/.cache (XDG Base Directory 0.8).

    Raises:
        RuntimeError: there is no home.
    """
    chosen = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache_home = chosen if chosen.is_absolute() else pathlib.Path.home() / ".cache"
    return cache_home / "ddpm_jax" / "xla"


def cpu_type() -> str:
    """Eight hexadecimal digits that stand for the model of this CPU and its instructions."""
    lines = [platform.machine(), platform.processor()]
    if CPUINFO.exists():
        first = CPUINFO.read_text().partition("\n\n")[0]
        lines += [
            line for line in first.splitlines() if line.partition(":")[0].strip() in _SAME_PER_KIND
        ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def prune(root: pathlib.Path, max_bytes: int) -> None:
    """Deletes the least recently used files below `root` until the rest fits.

    JAX's own limit counts one folder, and leaves those of older releases.

    Args:
        root: folder of caches; other processes may use it at the same time.
        max_bytes: how much may stay.
    """
    cached = []
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                stat = path.stat()
                cached.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    kept = 0
    for _, size, path in sorted(cached, reverse=True):
        kept += size
        if kept > max_bytes:
            with contextlib.suppress(OSError):
                path.unlink()
