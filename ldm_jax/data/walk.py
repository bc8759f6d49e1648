"""Which files below a folder are images, and what is passed by.

Hidden and system folders and files are passed by at every depth: names that begin with a dot (".ipynb_checkpoints", "._1.jpg"),
and the litter of archivers, network drives and operating systems ("__MACOSX", "@eaDir", "Thumbs.db"). Links to folders are
followed, but no folder is read twice, and none that holds the root. Working directories of trainings are passed by: what a
model drew must not become what it learns. What looks like an image and is not read is counted.
"""

import mimetypes
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ldm_jax.data.decode import suffixes

LITTER = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "#recycle", "#snapshot", "@recycle",
     "@tmp", "__pycache__", "recycler", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
)  # fmt: skip
OTHER_IMAGES = frozenset(
    (".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".svgz", ".exr", ".hdr", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng",
     ".orf", ".rw2", ".raf", ".psb", ".xcf", ".avif", ".webp", ".eps", ".jp2", ".qoi")
)  # fmt: skip
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Found:
    """What is below a root.

    images    folder, relative to the root ("" is the root itself) -> names of its image files, all in order
    folders   all folders that were looked into
    left_out  what was passed by -> how often
    """

    images: dict[str, list[str]]
    folders: tuple[str, ...]
    left_out: Counter

    def paths(self) -> Iterable[str]:
        """Every image, relative to the root."""
        return (f"{folder}/{name}" if folder else name for folder, names in self.images.items() for name in names)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed by."""
    return name.startswith(".") or name.lower() in LITTER


def _is_workdir(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "versions.json"))


def find_images(root: Path) -> Found:
    """All images below `root`. ValueError for a folder that may not be read."""
    images: dict[str, list[str]] = {}
    folders, left_out, unread = [], Counter(), set()
    above = {_identity(folder) for folder in Path(os.path.realpath(root)).parents}
    seen, queue, links = {_identity(root)} | above, [""], []
    while queue or links:
        if not queue:  # links come last: a folder is found under its own name where it has one
            links.sort(reverse=True)
            queue = _new([links.pop()], root, seen, left_out)
            continue
        folder = queue.pop()
        folders.append(folder)
        subfolders, files = [], []
        for entry in _entries(root / folder):
            inside = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                if entry.is_dir():
                    left_out["hidden or system folders"] += 1
                elif _suffix(entry.name) in suffixes():
                    left_out["hidden files"] += 1
            elif entry.is_dir() and _is_workdir(root / inside):
                left_out["working directories of trainings"] += 1
            elif entry.is_dir():
                (links if entry.is_symlink() else subfolders).append(inside)
            elif not entry.is_file():
                left_out["broken links"] += entry.is_symlink()
            elif _suffix(entry.name) in suffixes():
                files.append(entry.name)
            elif _looks_like_an_image(root / inside):
                unread.add(_suffix(entry.name) or "no suffix")
                left_out["of unread formats"] += 1
        if files:
            images[folder] = sorted(files)
        queue += _new(subfolders, root, seen, left_out)
    if count := left_out.pop("of unread formats", 0):
        left_out[f"image files that are not read ({', '.join(sorted(unread))})"] = count
    return Found({folder: images[folder] for folder in sorted(images)}, tuple(sorted(folders)), +left_out)


def _new(folders: list[str], root: Path, seen: set[tuple[int, int]], left_out: Counter) -> list[str]:
    """Those that were not read before; they count as read from now on."""
    new = []
    for folder in folders:
        if (identity := _identity(root / folder)) in seen:
            left_out["links to folders that are read already, or hold this one"] += 1
        else:
            seen.add(identity)
            new.append(folder)
    return new


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{folder} can't be read: {error.strerror}") from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _looks_like_an_image(path: Path) -> bool:
    suffix = _suffix(path.name)
    if suffix:
        return suffix in OTHER_IMAGES or (mimetypes.types_map.get(suffix) or "").startswith("image/")
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(_BEGINNINGS)
    except OSError:
        return False
