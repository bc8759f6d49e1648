"""A working directory in a bucket: what outlives the hosts lies there, and every host has a copy of its small files.

    gs://BUCKET/PATH      Google Cloud Storage, by the machine's own credentials (pip install gcsfs)
    file:///MOUNT/PATH    a file system that keeps whole files and promises little more, such as a mount of gcsfuse or s3fs

All programs work in the copy as in any working directory. A copy knows its address (`MARK`), and `stage_folder` says where the
checkpoints of its stages are: in the bucket itself, where Orbax writes from all hosts and reads. Every other file is copied:
`Copy.push` takes to the bucket what changed here since it was last equal, `Copy.pull` brings what changed there. Files that
changed on both sides are the bucket's. Copies lie in $LDM_JAX_COPIES, or ~/.cache/ldm_jax/copies, and may be deleted when no
program works in them.

A training holds the bucket (`opened`): a lock in it names the process, as `lock` does in a folder. Readers (`fetched`) write
nothing there.
"""

import contextlib
import json
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from ldm_jax.primitives.files import ADDRESS, TEMPORARY, is_address, read_json, write_json
from ldm_jax.training import distributed, lock

MARK = ".bucket.json"  # in a copy: its address, and each file's version there and here when they were last equal
DIRECT = ("checkpoints", "averages", "damaged")  # of a stage: in the bucket only
STAGES = ("first_stage", "diffusion")
EVERY = 30.0  # seconds between two looks for what a training has written

_DIRECT = re.compile(rf"({'|'.join(STAGES)})/({'|'.join(DIRECT)})/.*")
_OURS = re.compile(  # of a copy alone: its own files, half-written ones, and rows of a latent cache before it is whole
    rf"(.*/)?({re.escape(MARK)}|\.?{re.escape(lock.NAME)}.*|{TEMPORARY.pattern}|[^/]+\.\d+\.(pulled|pushed)|"
    r"\.[^/]+\.incomplete/(rows|ends)-.*)"
)
_READ = re.compile(r"[^/]+")  # what a reader needs: the files at the top


def name_of(workdir: str | Path) -> str:
    """What to call a working directory: a copy by its address."""
    return _address(Path(workdir)) or str(workdir)


def stage_folder(workdir: Path, stage: str, what: str = "checkpoints") -> Any:
    """Where `what`, one of DIRECT, of a stage is: in the working directory, or in the bucket whose copy it is. A pathlib.Path,
    or for gs:// etils' path, which has the same methods."""
    address = _address(workdir)
    if not address:
        return workdir / stage / what
    scheme, path = ADDRESS.fullmatch(address).groups()
    if scheme == "file":
        return Path("/" + path) / stage / what
    from etils import epath  # here: only who works in a bucket has a use for it

    return epath.Path(address) / stage / what


@contextlib.contextmanager
def opened(workdir: str | Path) -> Iterator[Path]:
    """The working directory to train in: `workdir` itself, or for an address a copy, which all processes of the run hold while
    the block runs. The first process takes what it writes to the bucket every EVERY seconds and at the end; processes with a
    disk of their own share what they prepare (`distributed.barrier`).

    Raises:
      ValueError: another process holds the bucket.
      OSError: it can't be reached, read or written; says why.
    """
    if not is_address(workdir):
        yield Path(workdir)
        return
    copy = Copy(str(workdir))
    first, done = jax.process_index() == 0, threading.Event()
    mine = lock.owner()
    distributed.on_first("bucket", lambda: copy.take(mine))
    try:
        copy.pull()
        work = threading.Thread(target=copy.work, args=(mine, done), name="bucket", daemon=True)
        if first:
            work.start()
        try:
            with distributed.shares(copy):
                yield copy.local
        finally:
            done.set()
            if first:
                work.join()
                copy.push()
    finally:
        if first:
            copy.release(mine)


def fetched(address: str | os.PathLike) -> Path:
    """A copy, for readers only, of what they need of a working directory in a bucket. Errors as `opened`; FileNotFoundError for
    none."""
    copy = Copy(os.fspath(address), "read")
    copy.pull(_READ.fullmatch)
    if not (copy.local / "config.json").is_file():
        raise FileNotFoundError(f"{copy.address} holds no working directory")
    return copy.local


class Copy:
    """The copy of the working directory at `address` on this host, under `.local`; one for each `use`."""

    def __init__(self, address: str, use: str = "train"):
        import fsspec

        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what failed is said by us, and without a traceback
        scheme, path = ADDRESS.fullmatch(address).groups()
        self.address = f"{scheme}://{'/' * (scheme == 'file')}{path.rstrip('/')}"
        try:
            self.files = fsspec.filesystem({"file": "file", "gs": "gcs"}[scheme], use_listings_cache=False)
        except ImportError:
            raise ValueError(f"{self.address}: pip install gcsfs to work in a bucket of Google Cloud Storage") from None
        self.root = ("/" if scheme == "file" else "") + path.rstrip("/")
        self._whole = scheme == "gs"  # a file appears there when it is all written
        copies = Path(os.environ.get("LDM_JAX_COPIES") or Path.home() / ".cache" / "ldm_jax" / "copies").expanduser()
        several = [f"process-{jax.process_index()}"] if jax.process_count() > 1 else []
        self.local = copies.joinpath(use, scheme, *self.root.strip("/").split("/"), *several)
        self.local.mkdir(parents=True, exist_ok=True)
        self._busy = threading.Lock()
        self._same = self._recalled()

    def _recalled(self) -> dict[str, list]:
        """Of every file that was equal on both sides: its version there, and here."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = read_json(self.local / MARK)
            if found.get("address") == self.address and isinstance(found.get("files"), dict):
                return found["files"]
        write_json(self.local / MARK, {"address": self.address, "files": {}})
        return {}

    def _there(self) -> dict[str, str]:
        """The version of every file in the bucket, but for checkpoints."""
        try:
            found = self.files.find(self.root, detail=True) if self._whole else dict(self._listed(self.root))
        except FileNotFoundError:
            return {}
        names = {name.removeprefix(self.root).lstrip("/"): _version(info) for name, info in found.items()}
        return {name: version for name, version in names.items() if not _DIRECT.fullmatch(name)}

    def _listed(self, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names and descriptions of the files below a folder of a mount, but for checkpoints. What can't be read is an OSError:
        fsspec's `find` passes over it, and what it holds would be taken for removed."""
        for attempt in range(10):
            try:
                entries = self.files.ls(folder, detail=True)
                break
            except FileNotFoundError:  # of the folder, or of a file in it that was renamed meanwhile
                if not self.files.exists(folder):
                    return
                if attempt == 9:
                    raise
        for entry in entries:
            if entry["type"] != "directory":
                yield entry["name"], entry
            elif not _DIRECT.fullmatch(f"{entry['name'].removeprefix(self.root).lstrip('/')}/"):
                yield from self._listed(entry["name"])

    def _here(self) -> dict[str, list]:
        """The size and time of every file of the copy that belongs in the bucket."""
        found = {}
        for folder, _, names in os.walk(self.local):
            for path in (Path(folder, name) for name in sorted(names)):
                name = path.relative_to(self.local).as_posix()
                with contextlib.suppress(FileNotFoundError):  # one that was removed meanwhile
                    if not _OURS.fullmatch(name):
                        found[name] = _stamp(path)
        return found

    def check(self) -> None:
        """ValueError if there is something else than a working directory in the bucket, or one that was there is gone; nothing
        of it is read."""
        with _said(f"{self.address} can't be read"):
            if self.files.exists(f"{self.root}/config.json"):
                return
            if "config.json" in self._same:
                raise ValueError(
                    f"{self.address} held a working directory when this host last saw it, and holds none now: is it mounted? "
                    f"If it was removed, remove its copy, {self.local}, too"
                )
            there = self.files.ls(self.root, detail=False) if self.files.exists(self.root) else []
            names = [name.rstrip("/").rpartition("/")[2] for name in there]
            if other := [name for name in names if name and not name.startswith((lock.NAME, "config.json"))]:
                raise ValueError(
                    f"{self.address} holds {', '.join(sorted(other)[:3])} and is no working directory of ours; choose another "
                    "--workdir"
                )

    def pull(self, wanted: Callable[[str], Any] = lambda name: True) -> None:
        """Brings every wanted file that is another one in the bucket than when it was last equal; one that is gone there, and
        was not changed here, goes."""
        with self._busy, _said(f"{self.address} can't be read"):
            there = self._there()
            for name in [name for name in self._same if wanted(name) and name not in there]:
                path, (_, stamp) = self.local / name, self._same.pop(name)
                if path.is_file() and _stamp(path) == stamp:
                    path.unlink()
            for name, version in there.items():
                path = self.local / name
                same = self._same.get(name)
                if not wanted(name) or _OURS.fullmatch(name) or (same and same[0] == version and path.exists()):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.{os.getpid()}.pulled")
                try:
                    self.files.get_file(f"{self.root}/{name}", str(temporary))
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
                self._same[name] = [version, _stamp(path)]
            self._remember()

    def push(self) -> None:
        """Takes to the bucket what changed here, and away from it what was removed here."""
        with self._busy, _said(f"what is in {self.local} can't be taken to {self.address}"):
            here = self._here()
            # config.json first: with it, what is there is a working directory
            for name, stamp in sorted(here.items(), key=lambda each: each[0] != "config.json"):
                if self._same.get(name, [None, None])[1] != stamp:
                    try:
                        self._same[name] = [self._write(name), stamp]
                    except FileNotFoundError:
                        if (self.local / name).exists():
                            raise
            for name in [name for name in self._same if name not in here]:
                self._erase(name)
                del self._same[name]
            self._remember()

    def _write(self, name: str) -> str:
        place, written = f"{self.root}/{name}", f"{self.root}/{name}"
        if not self._whole:
            self.files.makedirs(os.path.dirname(place), exist_ok=True)
            written = f"{self.root}/{name}.{os.getpid()}.pushed"
        self.files.put_file(str(self.local / name), written)
        if written != place:
            self.files.mv(written, place)
        return _version(self.files.info(place))

    def _erase(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(f"{self.root}/{name}")
        while not self._whole and (name := os.path.dirname(name)):  # a bucket has no folders, a mount has empty ones
            try:
                self.files.rmdir(f"{self.root}/{name}")
            except OSError:
                break

    def _remember(self) -> None:
        write_json(self.local / MARK, {"address": self.address, "files": self._same})

    def work(self, mine: dict[str, Any], done: threading.Event) -> None:
        """In the background until `done`: takes what is new to the bucket, and says that the lock's owner lives."""
        while not done.wait(min(EVERY, lock.HEARTBEAT)):
            try:
                self.push()
                if self._owner() == mine:
                    self.files.pipe_file(f"{self.root}/{lock.NAME}", json.dumps(mine).encode())
            except OSError as error:
                warnings.warn(f"{error}; tried again", stacklevel=2)

    # The lock. It is made by a write that fails where there is one, and passed over as `lock` does it.

    def take(self, mine: dict[str, Any]) -> None:
        """Takes the lock. ValueError if a living process has it, or as of `check`."""
        self.check()
        place = f"{self.root}/{lock.NAME}"
        with _said(f"{self.address} can't be written"):
            if not self._whole:
                self.files.makedirs(self.root, exist_ok=True)
            for _ in range(10):
                try:
                    self.files.pipe_file(place, json.dumps(mine).encode(), mode="create")
                    return
                except FileExistsError:
                    owner = self._owner()
                if owner is not None and lock.is_alive(owner, self._age):
                    raise ValueError(lock.refusal(self.address, owner))
                with contextlib.suppress(FileNotFoundError):
                    if self._owner() == owner:  # and not one who came just now
                        self.files.rm_file(place)
        raise ValueError(f"{self.address} is being taken by several processes at once; start one of them again")

    def release(self, mine: dict[str, Any]) -> None:
        """Gives the lock back."""
        with contextlib.suppress(OSError):
            if self._owner() == mine:
                self.files.rm_file(f"{self.root}/{lock.NAME}")

    def _owner(self) -> dict[str, Any] | None:
        try:
            return lock.owner_in(self.files.cat_file(f"{self.root}/{lock.NAME}"))
        except OSError:
            return None

    def _age(self) -> float:
        """Seconds since the lock was written, by the clocks of the bucket and of this host."""
        return time.time() - self.files.modified(f"{self.root}/{lock.NAME}").timestamp()


def _address(workdir: Path) -> str:
    """Of a copy, "" of any other folder."""
    try:
        found = json.loads((workdir / MARK).read_text(encoding="utf-8")).get("address", "")
    except (OSError, ValueError, AttributeError):
        return ""
    return found if isinstance(found, str) and ADDRESS.fullmatch(found) else ""


def _stamp(path: Path) -> list:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _version(info: dict[str, Any]) -> str:
    """What changes with every writing of a file."""
    return str(info.get("generation") or info.get("etag") or [info["size"], info.get("mtime"), info.get("ino")])


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """Whatever a store raises, as an OSError of one line."""
    try:
        yield
    except (FileExistsError, ValueError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise OSError(f"{what} ({type(error).__name__}: {reason})") from None
