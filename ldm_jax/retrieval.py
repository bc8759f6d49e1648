"""Retrieval-augmented diffusion: data bases of pictures, and what of them a drawing is conditioned on (Blattmann et al. 2022).

    python -m ldm_jax.retrieval build --data FLOWERS --embedder JUDGE --out DATABASE
    python -m ldm_jax.retrieval find --database DATABASE --text "a photo of a daisy"

    cond = ldm.embed(ldm.params, [retrieval.condition("DATABASE", text="a photo of a daisy", k=4)])

JUDGE is a contrastive judge (`python -m ldm_jax.judges train --kind contrastive`) or a folder of transformers' CLIP. A model
that was trained with one data base draws in the style of another if it is given that one's neighbours.
"""

import argparse
import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build as parts
from ldm_jax import judges, models, weights
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.data.neighbours import INDICES, Database, load_database, neighbours_of_rows, of_class, relative, search
from ldm_jax.data.pipeline import eval_batches
from ldm_jax.data.source import Source
from ldm_jax.data.tokenizer import Tokenizer
from ldm_jax.data.transform import Transform


class Embedder(Protocol):
    """Pictures [N, H, W, 3] in [-1, 1], or texts, to unit vectors [N, D]. `size`: what pictures are best given at."""

    size: tuple[int, int]

    def __call__(self, images: np.ndarray) -> np.ndarray: ...

    def words(self, texts: Sequence[str]) -> np.ndarray: ...


def load_embedder(path: str | Path) -> Embedder:
    """A contrastive judge, or CLIP from a folder of transformers. ValueError or FileNotFoundError for anything else."""
    path = Path(path)
    if (path / "judge.json").is_file():
        kind = json.loads((path / "judge.json").read_text())["kind"]
        if kind != "contrastive":
            raise ValueError(f"{path} is a {kind}; pictures are embedded by a contrastive judge")
        return judges.load(path)
    if (path / "config.json").is_file():
        return load_clip(path)
    raise FileNotFoundError(
        f"{path} is neither a judge (python -m ldm_jax.judges train --kind contrastive) nor a folder of CLIP"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """CLIP's towers as an embedder; `text` and `tokenizer` are None where the folder has none."""

    image: Any
    image_params: Any
    text: Any = None
    text_params: Any = None
    tokenizer: Tokenizer | None = None

    @property
    def size(self) -> tuple[int, int]:
        return (self.image.image_size,) * 2

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return judges.in_parts(functools.partial(self._look, self.image_params), np.asarray(images, np.float32))

    def words(self, texts: Sequence[str]) -> np.ndarray:
        if self.text is None or self.tokenizer is None:
            raise ValueError("this CLIP has no text tower, or no tokenizer beside it: query with pictures")
        tokens = self.tokenizer.encode(texts, self.text.max_position_embeddings)
        return judges.in_parts(functools.partial(self._read, self.text_params), tokens)

    @functools.partial(jax.jit, static_argnums=0)
    def _look(self, params: Any, images: jax.Array) -> jax.Array:
        images = jnp.clip(jax.image.resize(images, (len(images), *self.size, 3), "cubic"), -1, 1)
        return _unit(self.image.apply({"params": params}, models.clip_normalize(images)).embeds)

    @functools.partial(jax.jit, static_argnums=0)
    def _read(self, params: Any, tokens: jax.Array) -> jax.Array:
        return _unit(self.text.apply({"params": params}, tokens).embeds)


def load_clip(path: Path) -> Clip:
    towers = {
        name: (fields, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), params))
        for name, (fields, params) in weights.read_clip(path).items()
    }
    fields, params = towers["image"]
    clip = Clip(models.CLIPVision(**fields), params)
    if "text" not in towers or not checkpoint_tokenizers.found_in(path):
        return clip
    fields, params = towers["text"]
    tokenizer = checkpoint_tokenizers.load(path)
    return dataclasses.replace(clip, text=models.CLIPText(**fields), text_params=params, tokenizer=tokenizer)


def _unit(vectors: jax.Array) -> jax.Array:
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def embed(source: Source, embedder: Embedder, root: str = "") -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Names (without the folder `root`), unit vectors [N, D] and class numbers (if there are any) of a source's pictures."""
    names = [relative(source[i]["name"], root) for i in range(len(source))]
    vectors, labels = [], []
    for batch in eval_batches(source, Transform(embedder.size), judges.AT_ONCE):
        vectors.append(embedder(batch["image"])[batch["mask"]])
        labels.append(batch["label"][batch["mask"]] if "label" in batch else None)
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
) -> Database:
    """Writes the data base of the pictures `members`, with the k nearest of each and of the pictures `queries`, which are not
    retrieved themselves; `root`: a folder that names begin with, left out."""
    embedded = [embed(source, embedder, root) for source in (members, *queries)]
    names = tuple(name for names, _, _ in embedded for name in names)
    labels = None
    if embedded[0][2] is not None:
        labels = np.concatenate([np.full(len(n), -1) if found is None else found for n, _, found in embedded]).astype(np.int32)
    vectors = np.concatenate([found for _, found, _ in embedded])
    said = {"embedder": str(Path(made_by).absolute())} if made_by else {}
    database = Database(names, vectors, len(members), labels, members.info.class_names if labels is not None else None, said)
    database.save(out, neighbours_of_rows(database, min(k, database.members - 1), index))
    return database


def condition(database: Database | str | Path, **asked: Any) -> np.ndarray:
    """The vectors [k, D] of what `find` finds, as a retrieval model takes them: one such array a picture."""
    database = _open(database)
    return np.asarray(database.vectors[find(database, **asked)], np.float32)


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
    if sum(asked is not None for asked in (image, text, label)) > 1:
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


def _build_command(chosen: argparse.Namespace) -> None:
    config = judges.data_of(chosen.data)
    embedder = load_embedder(chosen.embedder)
    # where other data ask, their names and the data base's must not be mixed up: both stay whole
    root = config["data"]["path"] if not chosen.queries else ""
    columns = ("label",) if _has_labels(config) else ()
    members = parts.make_source(config, "train", columns)
    asking = [parts.make_source(config, "validation", columns)] if chosen.validation else []
    for path in chosen.queries:
        other = judges.data_of(path)
        asking += [parts.make_source(other, split, ()) for split in ("train", "validation")[: 1 + chosen.validation]]
    database = build(
        members, embedder, chosen.out, queries=asking, root=root, k=chosen.k, index=chosen.index, made_by=chosen.embedder
    )
    print(
        f"{chosen.out}: {database.members} pictures, vectors of {database.vectors.shape[1]} numbers, {chosen.k} neighbours each"
    )


def _has_labels(config: Any) -> bool:
    try:
        parts.make_source(config, "train", ("label",))
    except ValueError:
        return False
    return True


def _find_command(chosen: argparse.Namespace) -> None:
    database = load_database(chosen.database)
    image = read_query(database, chosen.image) if chosen.image else None
    rows = find(database, image=image, text=chosen.text, label=chosen.label, k=chosen.k, seed=chosen.seed, index=chosen.index)
    for row in rows:
        print(database.names[row])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ldm_jax.retrieval", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="a data base from a folder of images")
    command.add_argument("--data", required=True, help="a folder of images, or a working directory, whose data are meant")
    command.add_argument("--embedder", required=True, help="a contrastive judge, or a folder of transformers' CLIP")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--queries", nargs="*", default=[], help="further data to train on: they ask, and are not retrieved")
    command.add_argument("--no-validation", dest="validation", action="store_false", help="there is no validation split")
    command.add_argument("-k", type=int, default=20, help="neighbours to note for every picture")
    command.add_argument("--index", choices=INDICES, default="exact")
    command.set_defaults(run=_build_command)
    command = commands.add_parser("find", help="names of pictures in a data base")
    command.add_argument("--database", type=Path, required=True)
    asked = command.add_mutually_exclusive_group()
    asked.add_argument("--image", type=Path)
    asked.add_argument("--text")
    asked.add_argument("--label")
    command.add_argument("-k", type=int, default=4)
    command.add_argument(
        "--seed", type=int, default=0, help="of the picture whose neighbours are shown if nothing is asked for"
    )
    command.add_argument("--index", choices=INDICES, default="exact")
    command.set_defaults(run=_find_command)
    chosen = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # where TFDS and Orbax report their routine
    try:
        chosen.run(chosen)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
