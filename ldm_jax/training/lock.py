"""One training per working directory: a lock file that says whose it is.

    FOLDER/training.lock    {"process", "host", "since", "started", "space"}

It is made at once or not at all (a hard link of a finished file), touched every HEARTBEAT seconds, and removed at the end, also
after an error. While one process looks and takes, others on its host wait (`flock` of the folder, which ends with a process).
A lock is passed over when its process is dead: on this host by the process table, where the process's start time tells it from
a later one of the same number; on another host when it was not touched for STALE seconds. Containers of one host name each
count processes for themselves ("space"): between them, a lock lives while its file is locked (`flock`, or else touched).
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
    handle = _take(path, mine)
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
        if handle is not None:
            os.close(handle)


def owner() -> dict:
    """What a lock of this process says."""
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "started": _started(os.getpid()),
        "space": _space(),
    }


def refusal(place: str | Path, found: dict) -> str:
    """Why `place` can't be had while `found` lives."""
    killed = f" (where it was killed, {STALE / 60:.0f} minutes)" if found["host"] != socket.gethostname() else ""
    return (
        f"{place} is in use by process {found['process']} on {found['host']} since {found['since']}; "
        f"wait for it to end{killed}, or choose another working directory"
    )


def _take(path: Path, mine: dict) -> int | None:
    """Makes the lock, and returns a handle that keeps its file locked, where the file system can."""
    temporary = path.with_name(f".{NAME}.{mine['host']}.{mine['process']}.{threading.get_ident()}")
    temporary.write_text(json.dumps(mine), encoding="utf-8")
    try:
        with _alone(path.parent):
            for _ in range(10):
                with contextlib.suppress(FileExistsError):
                    _place(temporary, path)
                    _clear(path.parent)
                    with contextlib.suppress(OSError):
                        return _locked(path)
                    return None
                found = _read(path)
                if found is not None and is_alive(found, lambda: time.time() - path.stat().st_mtime, lambda: _is_locked(path)):
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


def _locked(path: Path) -> int | None:
    """A handle of the file that keeps it locked until it is closed; None where the file system can't. BlockingIOError where
    another has it."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def _is_locked(path: Path) -> bool | None:
    """Whether some process keeps the file locked; None where the file system can't say."""
    try:
        handle = _locked(path)
    except BlockingIOError:
        return True
    except OSError:  # gone meanwhile
        return False
    if handle is None:
        return None
    os.close(handle)
    return False


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


def is_alive(found: dict, age: Callable[[], float], locked: Callable[[], bool | None] = lambda: None) -> bool:
    """Whether a lock's owner lives. `age`: seconds since it was touched, which is asked of another host's. `locked`: whether
    its file is, which is asked of another container's on this machine (where it can't be said, the age)."""
    here, elsewhere = _space(), found["host"] != socket.gethostname()
    beside = not elsewhere and here and found.get("space", here) != here and _boot() == _boot(found)
    if beside and (kept := locked()) is not None:
        return kept
    if elsewhere or beside:
        try:
            return age() < STALE
        except FileNotFoundError:
            return False
    if not isinstance(found["process"], int) or not _runs(found["process"]):
        return False
    started = _started(found["process"])
    return found["started"] is None or started is None or started == found["started"]


def _space() -> str | None:
    """In which space of process numbers this process is, of which a machine with containers has several."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _boot(found: dict | None = None) -> str:
    """The start of the machine since which a lock's owner, or this process, runs."""
    return str(_started(os.getpid()) if found is None else found["started"]).split(" ")[0]


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
