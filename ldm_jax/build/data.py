"""Sources and transforms, from config.data."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_jax.conditioning import Condition
from ldm_jax.data import label_maps, shapes
from ldm_jax.data.folder import folder
from ldm_jax.data.transform import LatentTransform, Transform
from ldm_jax.primitives.choices import check_choice


def make_source(config: Mapping[str, Any], split: str, columns: Sequence[str]) -> Any:
    """The rows of config.data's "train" or "validation" split, with an image and these further columns."""
    section = config["data"]
    split, columns = section[f"{split}_split"], ("image", *columns)
    names = {c: section[f"{c}_column"] for c in columns if section.get(f"{c}_column")}
    kind = check_choice(section["source"], ("shapes", "folder", "tfds"), "config.data.source")
    if kind != "shapes" and not section["path"]:
        what = "the folder of images" if kind == "folder" else "TFDS's data_dir"
        raise ValueError(f"config.data.path is empty: name {what}, --config.data.path=...")
    if kind == "folder":
        return folder(section["path"], split, columns, {c: n for c, n in names.items() if c != "image"})
    from ldm_jax.data.tfds_source import shapes_source, tfds_source  # here, because importing them takes half a second

    if kind == "tfds":
        return tfds_source(section["name"], split, section["path"], columns, names)
    path = section["path"] or Path.home() / ".cache" / "ldm_jax"
    train, validation = section["examples"]
    mix = dataclasses.asdict(make_mix(config))
    return shapes_source(path, split, columns, resolution=section["image_size"], train=train, validation=validation, **mix)


def make_mix(config: Mapping[str, Any]) -> shapes.Mix:
    """What the scenes of `shapes` hold."""
    section = config["data"]
    return shapes.Mix(tuple(section["counts"]), tuple(section["fills"]), section["spread"])


def make_transform(config: Mapping[str, Any], condition: Condition | None = None) -> Transform:
    """Rows -> images of config.data.image_size in [-1, 1]; with a condition, also the columns that its `from_batch` reads."""
    section = config["data"]
    if section["flip"] and section["source"] == "shapes":
        raise ValueError("config.data.flip=True: captions of shapes say left and right, which a flip exchanges")
    return Transform(
        section["image_size"],
        section["crop"],
        section["flip"],
        tokenize=condition.tokenize if condition else None,
        palette=label_maps.read_palette(section["palette"]) if section.get("palette") else None,
        task=condition.task() if condition else None,
        whole_boxes=condition.whole_boxes if condition else False,
        short_side=section.get("short_side", 0),
    )


def make_latent_transform(config: Mapping[str, Any], condition: Condition) -> LatentTransform:
    """The same for rows of a latent cache."""
    return LatentTransform(config["data"]["flip"], condition.tokenize, task=condition.task())
