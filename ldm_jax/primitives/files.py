"""Text and JSON on disk: UTF-8 whatever the locale, written whole or not at all, read with the file's name in every error.

A JSON object that `write_json` wrote ends with its own SHA-256 under "sha256", so that a changed bit is seen. Objects without
one are read as they are.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SEAL = "sha256"
ADDRESS = re.compile(r"(gs|file):/{1,3}(?=[^/])(.+)")  # of a bucket, and what is in it
HUB = "hf:"  # of a name in the place of a path: a repository of the Hugging Face hub
TEMPORARY = re.compile(r"\..+\.(json|txt|yaml|py)\.\d+\.tmp")


def is_address(path: str | Path) -> bool:
    """Whether a path is an address of a working directory in a bucket (`training.bucket`). A folder of such a name is a
    folder."""
    return ADDRESS.fullmatch(str(path)) is not None and not Path(path).exists()


def of_this_machine(path: str | Path, what: str) -> Path:
    """The path of a file or folder, `~` written out.

    ValueError, which begins with `what`, for an address such as a bucket's: it would be taken for a folder called "gs:"."""
    path = Path(path).expanduser()
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)) and not path.exists():
        address = re.sub(":/+", "://", str(path), count=1)
        raise ValueError(
            f"{what}: {address} is an address, and only files and folders of this machine are read and written; mount "
            "the bucket (gcsfuse, s3fs) or download it, and name the folder"
        )
    return path


def existing(path: str | Path) -> Path:
    """The path, if there is something. FileNotFoundError names what there is in its place, ValueError what is no path."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"load({path!r}): give the path of a working directory or a checkpoint")
    path = of_this_machine(path, "load")
    if path.exists():
        return path
    if path.is_symlink():
        raise FileNotFoundError(to_nothing(path))
    parent = path.parent
    names = sorted(str(parent / entry.name) for entry in os.scandir(parent)) if parent.is_dir() else []
    near = difflib.get_close_matches(str(path), names, 3) or [name for name in names if not Path(name).name.startswith(".")][:5]
    there = f"; there are {', '.join(near)}" if near else ""
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path))
    hub = f'; for a repository of the Hugging Face hub write "{HUB}{path}"' if is_name else ""
    raise FileNotFoundError(f"{path} does not exist{there}{hub}")


def to_nothing(link: Path) -> str:
    """What is to be said of a link whose file is not there."""
    return f"{link} is a link to {os.readlink(link)}, which isn't there"


def is_workdir(folder: str | Path) -> bool:
    """Whether it is the working directory of a training."""
    folder = Path(folder)
    of_training = (folder / "versions.json").is_file() or any((folder / name).is_dir() for name in ("first_stage", "diffusion"))
    return of_training and (folder / "config.json").is_file()


def models_near(folder: Path) -> str:
    """A sentence on the working directory or pipeline that a folder is part of, or on those in it; empty where there are none.
    The folders of the Hugging Face hub's cache hold theirs in `snapshots`."""

    def is_model(place: Path) -> bool:
        return is_workdir(place) or (place / "model_index.json").is_file()

    for above in list(folder.absolute().parents)[:3]:
        if is_model(above):
            return f"It is part of {above}: give that."
    inside = [place for pattern in ("*", "snapshots/*") for place in sorted(folder.glob(pattern)) if is_model(place)]
    return f"Models are in {', '.join(map(str, inside[:5]))}: give one of them." if inside else ""


def place(path: str | Path, what: str) -> Path:
    """The path of a folder or file that is to be made, or of a folder to be written into; nothing is made yet. ValueError as of
    `of_this_machine`.

    Raises:
      OSError: it can't be made there: below a file, where nothing may be written, a link to nothing, too long a name.
    """
    path = of_this_machine(path, what)
    try:
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists() or folder.is_symlink())
        found = there.exists()
    except OSError as error:
        raise OSError(f"{what}: {str(path)[:200]} can't be made: {error.strerror}; name another place") from None
    if not found:
        raise FileNotFoundError(f"{what}: {path} can't be made: {there} is a link to what isn't there; name another place")
    if there.is_dir():
        if not os.access(there, os.W_OK | os.X_OK):
            why = "the disk is read-only, or it belongs to somebody else"
            raise PermissionError(f"{what}: nothing can be written in {there} ({why}); name another place")
    elif there != path:
        raise NotADirectoryError(f"{what}: {path} can't be made: {there} is a file; name another place")
    return path


def folder_place(path: str | Path, what: str) -> Path:
    """`place` of a folder: NotADirectoryError where the path is a file."""
    if of_this_machine(path, what).is_file():
        raise NotADirectoryError(f"{what}: {path} is a file, and a folder is meant; name another place")
    return place(path, what)


def identity(folder: Any) -> tuple[int, int] | None:
    """Device and number of a folder, which tell it from another of its name; None if there is none. One in a bucket has no
    others."""
    if not isinstance(folder, Path):
        return 0, 0
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def leftovers(folder: str | Path) -> list[Path]:
    """The temporary files in a folder, and in the folders in it, that a killed `write_text` left."""
    folder = Path(folder)
    return [path for pattern in (".*.tmp", "*/.*.tmp") for path in folder.glob(pattern) if TEMPORARY.fullmatch(path.name)]


def write_text(path: str | Path, text: str) -> None:
    """Writes a temporary file beside `path`, flushes it to the disk and renames it: a reader, or a power cut, finds the old
    file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """`value` as JSON, by `write_text`; an object is sealed with its SHA-256."""
    if isinstance(value, Mapping):
        value = {**value, SEAL: _digest(value)}
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON (`object_pairs_hook`). ValueError where a name stands in it twice: json would take the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:100]!r} stands there twice; keep one of them")
    return found


def read_json(path: str | Path, way_out: str = "", expect: type | tuple[type, ...] = dict) -> Any:
    """The value of a JSON file, without its seal.

    Raises:
      FileNotFoundError: there is none.
      ValueError: names the file and what is wrong with it, followed by `way_out`, a sentence that says what to do.
    """
    path = Path(path)
    hint = f" {way_out}" if way_out else ""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        what = "it is empty" if path.stat().st_size == 0 else str(error).splitlines()[0]
        raise ValueError(f"{path} can't be read as JSON: {what}.{hint}") from None
    if not isinstance(value, expect):
        raise ValueError(f"{path} holds a {type(value).__name__} where something else belongs.{hint}")
    if isinstance(value, dict):
        seal = value.pop(SEAL, None)
        # a changed bit in the seal's own name leaves a digest under another
        renamed = seal is None and any(isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) and len(k) == len(SEAL)
                                       for k, v in value.items())  # fmt: skip
        if renamed or (seal is not None and seal != _digest(value)):
            raise ValueError(f"{path} was changed after it was written: it doesn't match its checksum.{hint}")
    return value


def _digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of the object's canonical JSON, what a round trip through JSON leaves of it."""
    plain = json.loads(json.dumps({name: v for name, v in value.items() if name != SEAL}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
