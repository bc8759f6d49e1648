"""python -m ldm_jax.retrieval: makes data bases of pictures and finds neighbours in them."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from ldm_jax.cli.data import data_of
from ldm_jax.primitives.console import Parser, check_positive, print_anything
from ldm_jax.primitives.files import existing, folder_place
from ldm_jax.retrieval.database import INDICES


def _build_command(chosen: argparse.Namespace) -> None:
    if folder_place(chosen.out, "--out").is_dir() and any(chosen.out.iterdir()):
        raise ValueError(f"--out: {chosen.out} is not empty; name a new folder")
    check_positive(k=chosen.k)
    config = data_of(existing(chosen.data))
    # Imported here, and below, so that --help and what is mistyped answer at once.
    from ldm_jax import build, retrieval

    embedder = retrieval.load_embedder(chosen.embedder)
    # where other data ask, their names and the data base's must not be mixed up: both stay whole
    root = config["data"]["path"] if not chosen.queries else ""
    columns = ("label",) if _has_labels(config) else ()
    members = build.make_source(config, "train", columns)
    asking = [build.make_source(config, "validation", columns)] if chosen.validation else []
    for path in chosen.queries:
        other = data_of(path)
        asking += [build.make_source(other, split, ()) for split in ("train", "validation")[: 1 + chosen.validation]]
    database = retrieval.build(
        members, embedder, chosen.out, queries=asking, root=root, k=chosen.k, index=chosen.index, made_by=chosen.embedder,
        on_error=config["data"].get("on_error", "raise"),
    )  # fmt: skip
    noted = min(chosen.k, database.members - 1)
    print(f"{chosen.out}: {database.members} pictures, vectors of {database.vectors.shape[1]} numbers, {noted} neighbours each")


def _has_labels(config: Any) -> bool:
    from ldm_jax import build

    try:
        build.make_source(config, "train", ("label",))
    except ValueError:
        return False
    return True


def _find_command(chosen: argparse.Namespace) -> None:
    check_positive(k=chosen.k)
    if chosen.seed < 0:
        raise ValueError(f"--seed={chosen.seed}: must be 0 or above")
    existing(chosen.database)
    from ldm_jax import retrieval

    database = retrieval.load_database(chosen.database)
    image = retrieval.read_query(database, chosen.image) if chosen.image else None
    rows = retrieval.find(
        database, image=image, text=chosen.text, label=chosen.label, k=chosen.k, seed=chosen.seed, index=chosen.index
    )
    for row in rows:
        print(database.names[row])


def main(arguments: list[str] | None = None) -> int:
    """Builds a data base or finds neighbours; returns the exit status."""
    print_anything()
    parser = Parser(
        prog="python -m ldm_jax.retrieval", description="Data bases of pictures, and neighbours in them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="a data base from a folder of images")
    command.add_argument("--data", required=True, help="a folder of images, or a working directory, whose data are meant")
    command.add_argument("--embedder", required=True, help="a contrastive probe, or a folder of transformers' CLIP")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--queries", nargs="*", default=[], help="further data to train on: they ask, and are not retrieved")
    command.add_argument("--no-validation", dest="validation", action="store_false", help="there is no validation split")
    command.add_argument("-k", type=int, default=20, help="neighbours to note for every picture")
    command.add_argument("--index", choices=INDICES, default="exact")
    command.set_defaults(run=_build_command)
    command = commands.add_parser("find", help="names of pictures in a data base")
    command.add_argument("--database", type=Path, required=True)
    question = command.add_mutually_exclusive_group()
    question.add_argument("--image", type=Path)
    question.add_argument("--text")
    question.add_argument("--label")
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
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
