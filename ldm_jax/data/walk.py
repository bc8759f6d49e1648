"""Which files below a folder are images (or sounds, or whatever kind is looked for), and what is passed by.

Hidden and system folders and files are passed by at every depth: names that begin with a dot (".ipynb_checkpoints", "._1.jpg"),
and the litter of archivers, network drives and operating systems ("__MACOSX", "@eaDir", "Thumbs.db"). Links to folders are
followed, but no folder is read twice, and none that holds the root. Working directories of trainings are passed by: what a
model drew must not become what it learns. So is the picture of all pictures that `sample.py` writes beside them (grid.png with
grid.txt and 0000.png). What looks like a file of the kind and is not read is counted, and so is what may say
something of the files and is not read, such as captions under another name.
"""

import mimetypes
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ldm_jax.data.decode import suffixes
from ldm_jax.primitives.files import is_workdir

LITTER = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "#recycle", "#snapshot", "@recycle",
     "@tmp", "__pycache__", "recycler", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
)  # fmt: skip
OTHER_IMAGES = frozenset(
    (".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".svgz", ".exr", ".hdr", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng",
     ".orf", ".rw2", ".raf", ".psb", ".xcf", ".avif", ".webp", ".eps", ".jp2", ".qoi")
)  # fmt: skip
# Files that may say what is on the pictures; those that are read have names that are known (`metadata.TABLES`).
TELLING = frozenset((".csv", ".tsv", ".json", ".jsonl", ".txt", ".xml", ".parquet", ".arrow", ".xls", ".xlsx", ".caption"))
READ = frozenset(("metadata.jsonl", "metadata.csv", "metadata.parquet"))  # the last is refused
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class FileKind:
    """What a folder is searched for.

    column      of a source's rows that holds such a file
    one, many   what it is called, in words
    suffixes    gives those of the files that are read, lower case with a dot
    unread      suffixes of files that are of this kind and not read
    mime        how the kind's MIME types begin, such as "image/"
    beginnings  first bytes of such files, to know those without a suffix by
    hint        gives a sentence for those who have only files that are not read, or ""
    stacks      whether a folder that holds pictures, and neither files of the kind nor folders, is one of them too
    """

    column: str
    one: str
    many: str
    suffixes: Callable[[], frozenset[str]]
    unread: frozenset[str]
    mime: str
    beginnings: tuple[bytes, ...] = ()
    hint: Callable[[], str] = str
    stacks: bool = False

    def looks_so(self, path: Path) -> bool:
        """Whether a file that is not read would be one of the kind."""
        suffix = _suffix(path.name)
        if suffix:
            return suffix in self.unread or (mimetypes.types_map.get(suffix) or "").startswith(self.mime)
        try:
            with open(path, "rb") as file:
                return bool(self.beginnings) and file.read(8).startswith(self.beginnings)
        except OSError:
            return False


IMAGES = FileKind("image", "image", "images", suffixes, OTHER_IMAGES, "image/", _BEGINNINGS)


@dataclass(frozen=True)
class Found:
    """What is below a root.

    files     folder, relative to the root ("" is the root itself) -> names of its files of the kind, all in order
    folders   all folders that were looked into
    left_out  what was passed by -> how often
    """

    files: dict[str, list[str]]
    folders: tuple[str, ...]
    left_out: Counter

    def paths(self) -> Iterable[str]:
        """Every file, relative to the root."""
        return (f"{folder}/{name}" if folder else name for folder, names in self.files.items() for name in names)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed by."""
    return name.startswith(".") or name.lower() in LITTER


def plain_suffix(name: str) -> str:
    """A file's name with its suffix in small letters: "1.TXT" is called "1.txt"."""
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower()


def find_files(root: Path, kind: FileKind = IMAGES) -> Found:
    """All files of a kind below `root`. ValueError for a folder that may not be read."""
    found: dict[str, list[str]] = {}
    folders, left_out, unread, untold, captions = [], Counter(), set(), [], set()
    above = {_identity(folder) for folder in Path(os.path.realpath(root)).parents}
    seen, queue, links = {_identity(root)} | above, [""], []
    while queue or links:
        if not queue:  # links come last: a folder is found under its own name where it has one
            links.sort(reverse=True)
            queue = _new([links.pop()], root, seen, left_out)
            continue
        folder = queue.pop()
        folders.append(folder)
        subfolders, files, telling, pictures, entries = [], [], [], 0, entries_of(root / folder)
        together = _together({entry.name for entry in entries})
        for entry in entries:
            inside = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                if _is_folder(entry):
                    left_out["hidden or system folders"] += 1
                elif _suffix(entry.name) in kind.suffixes():
                    left_out["hidden files"] += 1
            elif _is_folder(entry) and is_workdir(root / inside):
                left_out["working directories of trainings"] += 1
            elif _is_folder(entry):
                (links if entry.is_symlink() else subfolders).append(inside)
            elif not os.path.isfile(root / inside):
                left_out["broken links"] += entry.is_symlink()
            elif entry.name in together:
                left_out["pictures of all pictures together, as sample.py writes them"] += entry.name != "grid.txt"
            elif entry.name in READ:
                pass  # whatever is looked for: it says something of the files
            elif _suffix(entry.name) in kind.suffixes():
                files.append(entry.name)
            elif kind.stacks and _suffix(entry.name) in suffixes():
                pictures += 1
            elif kind.looks_so(root / inside):
                unread.add(_suffix(entry.name) or "no suffix")
                left_out["of unread formats"] += 1
            elif _suffix(entry.name) in TELLING and not entry.name.lower().startswith(("readme", "license")):
                telling.append(entry.name)
        beside = {f"{os.path.splitext(name)[0]}.txt" for name in files}
        untold += [(folder, name) for name in telling if plain_suffix(name) not in beside]
        if files:
            found[folder] = sorted({*files, *found.get(folder, ())})
        if pictures and (files or subfolders or not folder):
            left_out["pictures beside what is looked for"] += pictures
        elif pictures:
            above_it, _, name = folder.rpartition("/")
            found[above_it] = sorted([*found.get(above_it, ()), name])
            captions.add((above_it, f"{name}.txt"))
            folders.remove(folder)
        queue += _new(subfolders, root, seen, left_out)
    if count := left_out.pop("of unread formats", 0):
        left_out[f"{kind.one} files that are not read ({', '.join(sorted(unread))})"] = count
    if untold := [name for folder, name in untold if (folder, name) not in captions]:
        shown = ", ".join(untold[:3]) + (", ..." if len(untold) > 3 else "")
        left_out[f"tables and texts of other names than are read ({shown})"] = len(untold)
    return Found({folder: found[folder] for folder in sorted(found)}, tuple(sorted(folders)), +left_out)


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


def _together(names: set[str]) -> set[str]:
    """Of a folder's names, those of the grid of all pictures that `sample.py` writes beside them, and of its text."""
    grids = {name for name in names if name.startswith("grid.") and _suffix(name) in suffixes()}
    written = "grid.txt" in names and any(name.startswith("0000.") for name in names)
    return {*grids, "grid.txt"} if grids and written else set()


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def entries_of(folder: Path) -> list[os.DirEntry]:
    """What is in a folder, by name. ValueError for one that may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{folder} can't be read: {error.strerror}") from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
