"""Making a data base of pictures, and finding neighbours in it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax import probes
from ldm_jax.data.pipeline import eval_batches
from ldm_jax.data.source import Info, Source
from ldm_jax.data.transform import Transform
from ldm_jax.retrieval.database import Database, load_database, neighbours_of_rows, of_class, relative, search
from ldm_jax.retrieval.embedders import Embedder, load_embedder


def embed(
    source: Source, embedder: Embedder, root: str = "", on_error: str = "raise"
) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Names (without the folder `root`), unit vectors [N, D] and class numbers (if there are any) of a source's pictures.
    `on_error`: "raise", or "skip", which leaves out what can't be read."""
    names, vectors, labels = [], [], []
    for i, batch in enumerate(eval_batches(source, Transform(embedder.size), probes.AT_ONCE, on_error=on_error)):
        kept = batch["row"] == i * probes.AT_ONCE + np.arange(len(batch["row"]))  # not copies that stand for others
        names += [relative(source[row]["name"], root) for row in batch["row"][kept].tolist()]
        vectors.append(embedder(batch["image"])[kept])
        labels.append(batch["label"][kept] if "label" in batch else None)
    return names, np.concatenate(vectors), None if labels[0] is None else np.concatenate(labels)


def build(
    members: Source,
    embedder: Embedder,
    out: str | Path,
    *,
    queries: Sequence[Source] = (),
    root: str = "",
    k: int = 20,
    index: str = "exact",
    made_by: str = "",
    on_error: str = "raise",
) -> Database:
    """Writes the data base of the pictures `members`, with the k nearest of each and of the pictures `queries`, which are not
    retrieved themselves; `root`: a folder that names begin with, left out; `on_error` as for `embed`. A picture that several
    rows name is embedded once.
    ValueError for a picture of two classes, and for two pictures of one name."""
    embedded = [embed(source, embedder, root, on_error) for source in _each_once((members, *queries), root)]
    names = tuple(name for names, _, _ in embedded for name in names)
    labels = None
    if embedded[0][2] is not None:
        labels = np.concatenate([np.full(len(n), -1) if found is None else found for n, _, found in embedded]).astype(np.int32)
    vectors = np.concatenate([found for _, found, _ in embedded])
    said = {"embedder": str(Path(made_by).absolute())} if made_by else {}
    class_names = members.info.class_names if labels is not None else None
    database = Database(names, vectors, len(embedded[0][0]), labels, class_names, said)
    database.save(out, neighbours_of_rows(database, min(k, database.members - 1), index))
    return database


@dataclass(frozen=True)
class _Rows:
    """Some rows of a source."""

    source: Source
    numbers: Sequence[int]

    @property
    def info(self) -> Info:
        return self.source.info

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.numbers[index]]


def _each_once(sources: Sequence[Source], root: str) -> list[Source]:
    """The sources without rows of pictures that had one before; those that are empty then are left out."""
    seen: dict[str, tuple[str, Any]] = {}
    rows: list[Source] = []
    for source in sources:
        numbers = []
        for i in range(len(source)):
            row = source[i]
            name, found = relative(row["name"], root), (row["name"], row.get("label"))
            if name not in seen:
                seen[name] = found
                numbers.append(i)
            elif seen[name][0] != found[0]:
                raise ValueError(f"two pictures would be called {name}: {seen[name][0]} and {found[0]}; rename one of them")
            elif None not in (seen[name][1], found[1]) and seen[name] != found:
                labels = f"{seen[name][1]} and {found[1]}"
                raise ValueError(f"{found[0]} has two rows of different labels, {labels}: keep one of them")
        rows += [_Rows(source, numbers)] if numbers else []
    return rows


def condition(database: Database | str | Path, **question: Any) -> np.ndarray:
    """The vectors [k, D] of what `find` finds, as a retrieval model takes them: one such array a picture."""
    database = _open(database)
    return np.asarray(database.vectors[find(database, **question)], np.float32)


def find(
    database: Database | str | Path,
    *,
    image: np.ndarray | None = None,
    text: str | None = None,
    label: int | str | None = None,
    k: int = 4,
    seed: int = 0,
    embedder: Embedder | None = None,
    index: str = "exact",
) -> np.ndarray:
    """The rows, int [k], of k pictures of a data base: the nearest to an image [H, W, 3] in [-1, 1] or to a text, in order; or
    k of a class; or, if nothing is asked for, the nearest to one that is drawn by `seed`.

    `embedder`: by default the one that made the data base, from where it was then.

    Raises:
      ValueError: more than one thing asked for; an embedder without a text tower for text; vectors of another length.
    """
    database, rng = _open(database), np.random.default_rng(seed)
    if sum(given is not None for given in (image, text, label)) > 1:
        raise ValueError("ask for neighbours of an image, of a text, or of a class: only one of them")
    if label is not None:
        return of_class(database, label, k, rng)
    if image is None and text is None:
        query = database.vectors[rng.integers(database.members)]
    else:
        embedder = embedder or embedder_of(database)
        query = embedder(np.asarray(image)[None])[0] if text is None else embedder.words([text])[0]
    return search(database, query, k, index)[0][0]


def read_query(database: Database | str | Path, path: str | Path) -> np.ndarray:
    """The middle of a picture file, [H, W, 3] in [-1, 1], as what embedded the data base takes it."""
    return Transform(embedder_of(_open(database)).size)({"image": Path(path), "name": str(path)})["image"]


def embedder_of(database: Database) -> Embedder:
    """What the data base was made with. ValueError if it doesn't say."""
    if "embedder" not in database.made_by:
        raise ValueError("this data base doesn't say what embedded its pictures: name the embedder")
    return _embedder(database.made_by["embedder"])


@functools.cache
def _embedder(path: str) -> Embedder:
    return load_embedder(path)


def _open(database: Database | str | Path) -> Database:
    return database if isinstance(database, Database) else load_database(database)
