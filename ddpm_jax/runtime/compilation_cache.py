"""Programs that were compiled for one command, kept on disk for the next.

XLA's programs for a CPU may use every instruction that it has, and a home is often shared by
machines of several kinds: each kind has a folder of its own, as has each release of JAX.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import warnings

import jax
import jaxlib

MAX_BYTES = 2 * 2**30  # Of all kinds of CPU and releases together.
CPUINFO = pathlib.Path("/proc/cpuinfo")  # Where there is none, the platform's words must do.
_OF_KIND = (  # Its lines that are the same on every machine of a kind, for x86 and for Arm.
    "vendor_id", "cpu family", "model", "model name", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features",
)


def enable() -> None:
    """Has JAX keep what it compiles; for a program's `main`, as it changes all of the process.

    A choice of the user's own stays: JAX_COMPILATION_CACHE_DIR, or JAX_ENABLE_COMPILATION_CACHE.
    JAX stores what took it JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS (1) or longer. A folder that
    cannot be made leaves everything as it is; entries that cannot be written or read are compiled
    as if there were none, in silence.
    """
    chosen = jax.config.jax_compilation_cache_dir is not None
    if chosen or not jax.config.jax_enable_compilation_cache:
        return
    try:
        root = folder()
        path = root / f"jax_{jax.__version__}_{jaxlib.__version__}_{cpu_type()}"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)  # Who writes there runs code here.
        prune(root, MAX_BYTES)
    except (OSError, RuntimeError):  # No home, or none that can be written.
        return
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(path))


def folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/ddpm_jax/xla`, and in ~/.cache without that (XDG Base Directory 0.8).

    Raises:
        RuntimeError: there is no home.
    """
    named = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = named if named.is_absolute() else pathlib.Path.home() / ".cache"
    return home / "ddpm_jax" / "xla"


def cpu_type() -> str:
    """Eight hexadecimal digits for the model of this CPU and the instructions it has."""
    lines = [platform.machine(), platform.processor()]
    if CPUINFO.exists():
        first = CPUINFO.read_text().partition("\n\n")[0]
        lines += [
            line for line in first.splitlines() if line.partition(":")[0].strip() in _OF_KIND
        ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def prune(root: pathlib.Path, max_bytes: int) -> None:
    """Deletes the files below `root` that were longest not read, until the rest fits.

    JAX's own limit counts one folder, and leaves those of older releases.

    Args:
        root: folder of caches; other processes may be at work there.
        max_bytes: how much may stay.
    """
    found = []
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                stat = path.stat()
                found.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    kept = 0
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > max_bytes:
            with contextlib.suppress(OSError):
                path.unlink()
