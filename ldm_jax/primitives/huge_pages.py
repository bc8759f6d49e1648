"""Huge pages for what a CPU computes with.

XLA allocates all that a program needs anew whenever it runs, and the processor looks its addresses up page by page. With pages
of 2 MB instead of 4 KB a training step of a small model takes about three quarters of the time on two cores. glibc's allocator
asks the kernel for them if GLIBC_TUNABLES says so when a process starts: so `ask` starts the same program once more.
"""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TUNABLES, HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # "always [madvise] never": to those who ask
ACCELERATORS = ("nvidiactl", "kfd", "accel0", "accel", "vfio/0")  # under /dev


def ask() -> None:
    """Starts this program again, as it was started, with an allocator that asks for huge pages; returns where that is so
    already, can't be, or would help nothing. To be called before anything is done."""
    environment = asking(os.environ)
    if environment and sys.executable and is_program(sys.orig_argv, sys.argv):
        sys.stdout.flush()
        with contextlib.suppress(OSError):  # a machine that starts no second program trains at the old speed
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def asking(environment: Mapping[str, str], pages: Path = PAGES, devices: Path = Path("/dev")) -> dict[str, str]:
    """The environment in which glibc asks for huge pages; {} where a variable says something of it, the kernel gives them to
    all or to nobody, the C library is another or older than 2.35, or a GPU or TPU does the work."""
    said = environment.get(TUNABLES, "")
    if HUGE in said or not _on_demand(pages) or _glibc() < (2, 35):
        return {}
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms.split(",")[0] != "cpu" and (platforms or any((devices / name).exists() for name in ACCELERATORS)):
        return {}
    return {**environment, TUNABLES: ":".join(filter(None, (said, f"{HUGE}=1")))}


def is_program(started: Sequence[str], arguments: Sequence[str]) -> bool:
    """Whether the process was `started` as an interpreter, its options and the script of these `arguments`; not as a notebook,
    a shell, a debugger or a profiler that runs it."""
    options = started[1 : len(started) - len(arguments)]
    whole = list(started[len(started) - len(arguments) :]) == list(arguments)
    return whole and all(option.startswith("-") and option not in ("-m", "-c") for option in options)


def _on_demand(pages: Path) -> bool:
    try:
        return "[madvise]" in pages.read_text()
    except OSError:
        return False


def _glibc() -> tuple[int, ...]:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return tuple(map(int, version.split("."))) if name == "glibc" else ()
    except (AttributeError, ValueError, OSError):
        return ()
