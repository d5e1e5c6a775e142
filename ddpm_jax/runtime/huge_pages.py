"""Pages of 2 MiB for what a program on a Linux machine allocates.

A training step on a CPU writes to hundreds of megabytes that it has just been given. In pages of
4 KiB the kernel hands out, and the processor looks up, each of some hundred thousand. glibc asks
for large ones where GLIBC_TUNABLES says so when a process starts, and not later.
"""

import os
import pathlib
import sys

_TUNABLE = "glibc.malloc.hugetlb"  # Since glibc 2.35; an older one ignores it.
_ENABLED = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use() -> None:
    """Starts the program over, in the same process, with large pages; first thing in its `main`.

    It goes on as it is where `environment` has nothing to add, and in an interactive session,
    which would be lost.
    """
    added = environment()
    if added and not hasattr(sys, "ps1"):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | added)


def environment() -> dict[str, str]:
    """What a program's environment must have beside this one's to get large pages.

    Nothing where they are asked for already, where GLIBC_TUNABLES forbids them
    (glibc.malloc.hugetlb=0), and where the kernel gives them unasked, or never.
    """
    chosen = os.environ.get("GLIBC_TUNABLES", "")
    on_request = _ENABLED.exists() and "[madvise]" in _ENABLED.read_text()
    if _TUNABLE in chosen or not on_request:
        return {}
    return {"GLIBC_TUNABLES": f"{chosen}:{_TUNABLE}=1".removeprefix(":")}
