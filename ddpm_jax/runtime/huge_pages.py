"""Pages of 2 MiB for the memory of a program on Linux.

A training step on a CPU writes to hundreds of megabytes of fresh memory. With pages of 4 KiB the
kernel must hand out, and the processor look up, some hundred thousand of them. glibc asks for
large pages if GLIBC_TUNABLES says so when the process starts, and not later.
"""

import os
import pathlib
import sys

_TUNABLE = "glibc.malloc.hugetlb"  # Since glibc 2.35; an older one ignores it.
_ENABLED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use() -> None:
    """Restarts the program in the same process with large pages; call it first in `main`.

    Does nothing if `environment` has nothing to add, or in an interactive session, which would
    be lost.
    """
    added = environment()
    if added and not hasattr(sys, "ps1"):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | added)


def environment() -> dict[str, str]:
    """The variables that a program's environment needs besides this one's to get large pages.

    None if it asks for them already, if GLIBC_TUNABLES forbids them (glibc.malloc.hugetlb=0), or
    if the kernel gives them unasked, or never.
    """
    chosen = os.environ.get("GLIBC_TUNABLES", "")
    on_request = _ENABLED.exists() and "[madvise]" in _ENABLED.read_text()
    if _TUNABLE in chosen or not on_request:
        return {}
    return {"GLIBC_TUNABLES": f"{chosen}:{_TUNABLE}=1".removeprefix(":")}
