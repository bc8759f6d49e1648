"""One training per working directory: a lock file that says whose it is.

    FOLDER/training.lock    {"process", "host", "since", "started"}

It is made at once or not at all (a hard link of a finished file), touched every HEARTBEAT seconds, and removed at the end, also
after an error. While one process looks and takes, others on its host wait (`flock` of the folder, which ends with a process).
A lock is passed over when its process is dead: on this host by the process table, where the process's start time tells it from
a later one of the same number; on another host when it was not touched for STALE seconds.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

NAME = "training.lock"
HEARTBEAT, STALE = 30.0, 300.0


@contextlib.contextmanager
def hold(folder: str | Path) -> Iterator[None]:
    """Holds `folder` (made if need be) while the block runs. In a run of several processes, process 0 does.

    Raises:
      ValueError: another process holds it; says which.
    """
    if jax.process_index():
        yield
        return
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = owner()
    _take(path, mine)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, mine, done), name="lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def owner() -> dict:
    """What a lock of this process says."""
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "started": _started(os.getpid()),
    }


def refusal(place: str | Path, found: dict) -> str:
    """Why `place` can't be had while `found` lives."""
    return (
        f"{place} is in use by process {found['process']} on {found['host']} since {found['since']}; "
        "wait for it to end, or choose another working directory"
    )


def _take(path: Path, mine: dict) -> None:
    temporary = path.with_name(f".{NAME}.{mine['host']}.{mine['process']}.{threading.get_ident()}")
    temporary.write_text(json.dumps(mine), encoding="utf-8")
    try:
        with _alone(path.parent):
            for _ in range(10):
                with contextlib.suppress(FileExistsError):
                    _place(temporary, path)
                    _clear(path.parent)
                    return
                found = _read(path)
                if found is not None and is_alive(found, lambda: time.time() - path.stat().st_mtime):
                    raise ValueError(refusal(path.parent, found))
                _remove_stale(path, found)
        raise ValueError(f"{path.parent} is being taken by several processes at once; start one of them again")
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One thread of this host at a time, where the file system can lock a folder; `_remove_stale` sees to the rest."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _place(made: Path, path: Path) -> None:
    """`path` with what `made` holds. FileExistsError if it is there."""
    try:
        os.link(made, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with open(path, "x", encoding="utf-8") as file:
            file.write(made.read_text(encoding="utf-8"))


def _remove_stale(path: Path, found: dict | None) -> None:
    """Away with a dead process's lock, unless another process has put its own there meanwhile."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.stale")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if _read(aside) != found:
            with contextlib.suppress(FileExistsError):
                _place(aside, path)
        aside.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Away with what processes of this host were killed beside, half way into the lock or out of it."""
    host = re.escape(socket.gethostname())
    left = re.compile(rf"\.{re.escape(NAME)}\.{host}\.(\d+)\.\d+|{re.escape(NAME)}\.(\d+)\.\d+\.stale")
    for path in folder.iterdir():
        match = left.fullmatch(path.name)
        if match and not _runs(int(match[1] or match[2])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _read(path: Path) -> dict | None:
    """Whose lock it is; None if there is none, or none that can be read."""
    try:
        return owner_in(path.read_bytes())
    except OSError:
        return None


def owner_in(data: bytes) -> dict | None:
    """What a lock says; None for what is no lock."""
    try:
        found = json.loads(data)
        return found if {"process", "host", "since", "started"} <= found.keys() else None
    except (ValueError, AttributeError):
        return None


def is_alive(found: dict, age: Callable[[], float]) -> bool:
    """Whether a lock's owner lives. `age`: seconds since it was touched, which is asked of another host's."""
    if found["host"] != socket.gethostname():
        try:
            return age() < STALE
        except FileNotFoundError:
            return False
    if not isinstance(found["process"], int) or not _runs(found["process"]):
        return False
    started = _started(found["process"])
    return found["started"] is None or started is None or started == found["started"]


def _started(process: int) -> str | None:
    """When a process of this host began, as its operating system counts it; None where there is no /proc. A zombie has none
    that counts."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except (OSError, IndexError):
        return None
    return f"{boot} {fields[19]}" if fields[0] not in "ZX" else f"{boot} dead"


def _beat(path: Path, mine: dict, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            if _read(path) == mine:
                os.utime(path)
