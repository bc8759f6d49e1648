"""Neighbours of pictures in a data base: what retrieval-augmented diffusion is conditioned on (Blattmann et al. 2022).

A data base is a folder with unit vectors of pictures, their names, and for every picture its nearest others:

    database.json     names, labels, which rows may be retrieved, what embedded them
    vectors.npy       float32 [N, D], rows of length one
    neighbours.npy    int32 [N, K], rows of the data base nearest to each, the picture itself left out

The first `members` rows are the data base. Rows after them are queries only: pictures of a training or validation set, which
ask for neighbours but are never one. Search is exact, by matrix products; FAISS and ScaNN serve large data bases if they are
installed and asked for.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.primitives.choices import class_number
from ldm_jax.primitives.files import read_json, write_json

INDICES = ("exact", "faiss", "scann")
_MAKE_AGAIN = "Delete the folder and build the data base again"
_CHUNK = 2**24  # products held at once
_SIDE = 2**16  # of them along the vectors


@dataclass(frozen=True, eq=False)
class Database:
    """`vectors` [N, D], of which the first `members` rows may be retrieved; `names` of all rows; `labels`: class numbers of
    rows, -1 for none, if there are classes; `made_by`: what embedded the pictures."""

    names: tuple[str, ...]
    vectors: np.ndarray
    members: int
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.names) or not 0 < self.members <= len(self.names):
            raise ValueError(
                f"{len(self.names)} names, {self.members} members and vectors of shape {self.vectors.shape}: expected a vector "
                "[D] a name, and at least one member"
            )
        if len(set(self.names)) < len(self.names):
            twice = next(name for i, name in enumerate(self.names) if name in self.names[:i])
            raise ValueError(f"the data base has {twice} twice")

    def save(self, path: str | Path, neighbours: np.ndarray) -> None:
        """Writes a folder; database.json, without which it is none, last. ValueError if it exists with something in it."""
        path = Path(path)
        if path.is_dir() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty; name a new folder")
        path.mkdir(parents=True, exist_ok=True)
        np.save(path / "vectors.npy", self.vectors.astype(np.float32))
        np.save(path / "neighbours.npy", neighbours.astype(np.int32))
        said = {"members": self.members, "names": self.names, "class_names": self.class_names, "made_by": self.made_by}
        labels = None if self.labels is None else self.labels.tolist()
        write_json(path / "database.json", said | {"labels": labels})


def load_database(path: str | Path) -> Database:
    """The data base in a folder; vectors stay on disk until they are read. FileNotFoundError if there is none; ValueError, with
    the file's name, if one of its files is damaged."""
    path = Path(path)
    if not (path / "database.json").is_file():
        raise FileNotFoundError(
            f"{path} holds no data base of neighbours; make one: python -m ldm_jax.retrieval build --data FOLDER --embedder "
            f"PROBE --out {path}"
        )
    said = read_json(path / "database.json", _MAKE_AGAIN, dict)
    try:
        labels = None if said["labels"] is None else np.asarray(said["labels"], np.int32)
        class_names = tuple(said["class_names"]) if said["class_names"] else None
        names, members, made_by = tuple(said["names"]), said["members"], said["made_by"]
        if not all(isinstance(name, str) for name in (*names, *(class_names or ()))) or not isinstance(members, int):
            raise ValueError("names are text, and members a number")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path / 'database.json'} is damaged: {error!r}. {_MAKE_AGAIN}") from error
    return Database(names, _load_array(path / "vectors.npy"), members, labels, class_names, made_by)


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path} is gone. {_MAKE_AGAIN}") from None
    except Exception as error:  # numpy evaluates the header, which raises whatever Python's parser does
        raise ValueError(f"{path} is damaged: {error}. {_MAKE_AGAIN}") from error


def search(database: Database, queries: np.ndarray, k: int, index: str = "exact") -> tuple[np.ndarray, np.ndarray]:
    """The k members whose vectors have the largest products with queries [Q, D]: rows int32 [Q, k] and products [Q, k],
    nearest first. `index`: "exact", or "faiss" or "scann", whose packages must be installed.

    Raises ValueError for more neighbours than members, vectors of another length, an unknown or missing index.
    """
    queries = np.atleast_2d(np.asarray(queries, np.float32))
    if not 1 <= k <= database.members:
        raise ValueError(f"k={k}: the data base has {database.members} pictures")
    if queries.shape[1] != database.vectors.shape[1]:
        raise ValueError(
            f"queries of {queries.shape[1]} numbers in a data base of vectors of {database.vectors.shape[1]}: another embedder "
            "made them"
        )
    if index not in INDICES:
        raise ValueError(f"index={index!r}: choose {', '.join(INDICES)}")
    return _indices()[index](database.vectors[: database.members], queries, k)


def neighbours_of_rows(database: Database, k: int, index: str = "exact") -> np.ndarray:
    """For every row its k nearest members, int32 [N, k], itself left out."""
    if not 1 <= k < database.members:
        raise ValueError(f"k={k}: a data base of {database.members} pictures has {database.members - 1} neighbours for each")
    found, _ = search(database, database.vectors, k + 1, index)
    rows = np.arange(len(found))[:, None]
    # the picture itself goes to the end; where it was not found (an equal one took its place), the last one is dropped
    order = np.argsort(found == rows, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)[:, :k]


def search_exactly(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Products of some queries with some vectors at a time, the best k kept."""
    side = min(len(vectors), max(k, _SIDE))
    rows, products = [], []
    for start in range(0, len(queries), max(1, _CHUNK // side)):
        some = queries[start : start + max(1, _CHUNK // side)]
        best = np.full((len(some), 0), 0, np.float32)
        best_rows = np.full((len(some), 0), 0, np.int32)
        for first in range(0, len(vectors), side):
            found = some @ np.asarray(vectors[first : first + side]).T
            numbers = np.broadcast_to(np.arange(first, first + found.shape[1], dtype=np.int32), found.shape)
            best, best_rows = _largest(np.hstack([best, found]), np.hstack([best_rows, numbers]), k)
        rows.append(best_rows)
        products.append(best)
    return np.concatenate(rows), np.concatenate(products)


def _largest(products: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of every row, sorted."""
    if products.shape[1] > k:
        chosen = np.argpartition(-products, k - 1, axis=1)[:, :k]
        products, rows = np.take_along_axis(products, chosen, 1), np.take_along_axis(rows, chosen, 1)
    order = np.argsort(-products, axis=1, kind="stable")
    return np.take_along_axis(products, order, 1), np.take_along_axis(rows, order, 1)


def search_by_faiss(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A flat index below 100,000 vectors, inverted lists (of which an eighth is looked at) above."""
    try:
        import faiss
    except ImportError:
        raise ValueError('index="faiss" needs the package faiss-cpu or faiss-gpu: pip install faiss-cpu') from None
    vectors = np.ascontiguousarray(vectors, np.float32)
    index = faiss.IndexFlatIP(vectors.shape[1])
    if len(vectors) > 100_000:
        lists = int(np.sqrt(len(vectors)))
        index = faiss.IndexIVFFlat(index, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.nprobe = max(1, lists // 8)
    index.add(vectors)
    products, rows = index.search(queries, k)
    return rows.astype(np.int32), products


def search_by_scann(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Asymmetric hashing with exact scores for the best 10 k, as ScaNN's documentation advises."""
    try:
        import scann
    except ImportError:
        raise ValueError('index="scann" needs the package scann: pip install scann') from None
    vectors = np.ascontiguousarray(vectors, np.float32)
    builder = scann.scann_ops_pybind.builder(vectors, k, "dot_product")
    if len(vectors) > 20_000:
        lists = int(np.sqrt(len(vectors)))
        builder = builder.tree(lists, max(1, lists // 8)).score_ah(2).reorder(10 * k)
    else:
        builder = builder.score_brute_force()
    rows, products = builder.build().search_batched(queries)
    return rows.astype(np.int32), products


def _indices() -> dict[str, Callable]:
    return {"exact": search_exactly, "faiss": search_by_faiss, "scann": search_by_scann}


@dataclass(frozen=True)
class NeighboursOf:
    """A training task: an example's picture -> {"neighbours": float32 [k, D]}, the vectors of its k nearest others.

    path   the folder of a data base that has the picture among its rows
    root   what names of examples begin with and those in the data base don't: the data set's folder
    """

    path: str
    k: int
    root: str = ""

    def __post_init__(self):
        known = _load_array(Path(self.path) / "neighbours.npy").shape[1]
        if not 1 <= self.k <= known:
            raise ValueError(f"neighbours={self.k}: the data base {self.path} knows {known} of every picture")

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        vectors, neighbours, rows = _table(self.path)
        name = relative(example["name"], self.root)
        if name not in rows:
            raise ValueError(
                f"{name} is not in the data base {self.path}, so that its neighbours are not known: build it from the data "
                "that are trained on, or name these with --queries"
            )
        return {"neighbours": vectors[neighbours[rows[name], : self.k]]}


@functools.cache
def _table(path: str) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    database = load_database(path)
    rows = {name: i for i, name in enumerate(database.names)}
    return database.vectors, _load_array(Path(path) / "neighbours.npy"), rows


def relative(name: str, root: str) -> str:
    """A picture's name without the folder of its data set."""
    root = f"{Path(root).expanduser()}/"
    return name.removeprefix(root)


def of_class(database: Database, label: int | str, k: int, rng: np.random.Generator) -> np.ndarray:
    """k members of a class, drawn without repeating any while there are others: rows int [k]."""
    if database.labels is None:
        raise ValueError("this data base has no classes")
    number = class_number(label, database.class_names or tuple(map(str, range(int(database.labels.max()) + 1))))
    rows = np.flatnonzero(database.labels[: database.members] == number)
    if not len(rows):
        raise ValueError(f"the data base has no pictures of class {label!r}")
    return np.concatenate([rng.permutation(rows) for _ in range(-(-k // len(rows)))])[:k]
