"""Sources and transforms, from config.data."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_jax.build.options import image_size
from ldm_jax.conditioning import Condition
from ldm_jax.data import shapes
from ldm_jax.data.captioned import Captioned
from ldm_jax.data.described import Described
from ldm_jax.data.folder import folder
from ldm_jax.data.moving_shapes import MovingShapes
from ldm_jax.data.sentences import Sentences
from ldm_jax.data.source import MissingColumn
from ldm_jax.data.texts import texts
from ldm_jax.data.transform import LatentTransform
from ldm_jax.data.vessels import Vessels
from ldm_jax.media import Medium
from ldm_jax.media import make_medium as make
from ldm_jax.primitives.choices import check_choice


def make_source(config: Mapping[str, Any], split: str, columns: Sequence[str]) -> Any:
    """The rows of config.data's "train" or "validation" split, with an image (or what the medium's column is) and these further
    columns."""
    section, medium = config["data"], make_medium(config)
    if medium.name == "text" and section["source"] in DESCRIBED:
        return _captions(config, split, columns)
    own = medium.files.column if medium.files else medium.name
    if section.get("captions") and "caption" in columns:
        plain = {**config, "data": {**section, "captions": ()}}
        return Captioned(make_source(plain, split, [c for c in columns if c != "caption"]), section["captions"])
    split, columns = section[f"{split}_split"], (own, *columns)
    names = {c: section[f"{c}_column"] for c in columns if section.get(f"{c}_column")}
    kind = check_choice(section["source"], medium.sources, "config.data.source")
    if kind in EMBEDDED:
        return EMBEDDED[kind](config, split, columns)
    if not section["path"]:
        what = f"the folder of {medium.files.many if medium.files else medium.many}" if kind == "folder" else "TFDS's data_dir"
        raise ValueError(f"config.data.path is empty: name {what}, --config.data.path=...")
    if kind == "folder" and medium.files is None:
        return texts(section["path"], split, columns, names)
    if kind == "folder":
        return folder(section["path"], split, columns, {c: n for c, n in names.items() if c != own}, kind=medium.files)
    from ldm_jax.data.tfds_source import tfds_source  # here, because importing it takes half a second

    return tfds_source(section["name"], split, section["path"], columns, names)


def _captions(config: Mapping[str, Any], split: str, columns: Sequence[str]) -> Described:
    """Captions of pictures, with the pictures if they are asked for."""
    source, seen = config["data"]["source"], "conditioning" in columns
    if further := [column for column in columns if column != "conditioning"]:
        raise MissingColumn(f"config.data.source={source!r} has captions and their pictures, but no {further[0]}")
    size = config.get("conditioner", {}).get("image_size", 0)
    data = {**config["data"], "medium": "image", "source": DESCRIBED[source], "image_size": size or SIDE}
    return Described(make_source({**config, "data": data}, split, ("caption",)), size if seen else 0)


def _shapes(config: Mapping[str, Any], split: str, columns: Sequence[str]) -> Any:
    from ldm_jax.data.tfds_source import shapes_source

    section = config["data"]
    path = section["path"] or Path.home() / ".cache" / "ldm_jax"
    train, validation = section["examples"]
    mix = dataclasses.asdict(make_mix(config))
    return shapes_source(path, split, columns, resolution=section["image_size"], train=train, validation=validation, **mix)


def _moving_shapes(config: Mapping[str, Any], split: str, columns: Sequence[str]) -> Any:
    frames, height, width = image_size(config)
    if height != width:
        raise ValueError(f"config.data.image_size={(frames, height, width)}: films of moving_shapes are as high as wide")
    return MovingShapes(split, columns, frames, height, tuple(config["data"]["examples"]))


def _vessels(config: Mapping[str, Any], split: str, columns: Sequence[str]) -> Any:
    return Vessels(split, columns, image_size(config), tuple(config["data"]["examples"]))


def _sentences(config: Mapping[str, Any], split: str, columns: Sequence[str]) -> Any:
    train, validation = config["data"]["examples"]
    return Sentences(split, columns, train=train, validation=validation)


# sources of captions, and those of their pictures; the side of pictures that nobody looks at
DESCRIBED, SIDE = {"shapes": "shapes", "pictures": "folder"}, 32
# data sets that are made here
EMBEDDED = {"shapes": _shapes, "moving_shapes": _moving_shapes, "vessels": _vessels, "sentences": _sentences}


def make_mix(config: Mapping[str, Any]) -> shapes.Mix:
    """What the scenes of `shapes` hold."""
    section = config["data"]
    return shapes.Mix(tuple(section["counts"]), tuple(section["fills"]), section["spread"])


def make_medium(config: Mapping[str, Any], workdir: Path | None = None) -> Medium:
    """What the data are: config.data.medium. `workdir`: where one that learns something of its data keeps it."""
    return make(config["data"], workdir)


def make_transform(config: Mapping[str, Any], condition: Condition | None = None, workdir: Path | None = None) -> Any:
    """Rows -> arrays of config.data.image_size in [-1, 1], by the medium's transform (see `data.transform`); with a condition,
    also the columns that its `from_batch` reads."""
    return make_medium(config, workdir).transform(
        tokenize=condition.tokenize if condition else None,
        task=condition.task() if condition else None,
        whole_boxes=condition.whole_boxes if condition else False,
    )


def make_probe_transform(config: Mapping[str, Any], split: str) -> Any:
    """How small networks that judge look at rows that are no pictures: in training at random crops. None for pictures, of which
    they choose the size. ValueError for data that have not two axes, and are not looked at as if they had."""
    medium = make_medium(config)
    if medium.name == "image":
        return None
    crop = "random" if split == "train" else "center"
    transform = make_transform({**config, "data": {**medium.judged(), "crop": crop}})
    if len(transform.array_shape) != 3:
        raise ValueError(f"networks that judge look at two axes; config.data.medium={medium.name!r} has {medium.axes}")
    return transform


def make_latent_transform(config: Mapping[str, Any], condition: Condition) -> LatentTransform:
    """The same for rows of a latent cache."""
    return LatentTransform(config["data"]["flip"], condition.tokenize, task=condition.task())
