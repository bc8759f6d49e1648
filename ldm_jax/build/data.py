"""Sources and transforms, from config.data, and what tasks make of an example, from config.conditioner."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_jax.build.conditioner import make_conditioner, superres_scale
from ldm_jax.build.options import choose
from ldm_jax.data import degradation, label_maps, layout, masks, shapes
from ldm_jax.data.folder import folder
from ldm_jax.data.neighbours import NeighboursOf, load_database
from ldm_jax.data.tfds_source import shapes_source, tfds_source
from ldm_jax.data.transform import Task, Transform


def make_source(config: Mapping[str, Any], split: str, columns: Sequence[str]) -> Any:
    """The rows of config.data's "train" or "validation" split, with an image and these further columns."""
    section = config["data"]
    split, columns = section[f"{split}_split"], ("image", *columns)
    names = {c: section[f"{c}_column"] for c in columns if section.get(f"{c}_column")}
    kind = choose({"shapes": "shapes", "folder": "folder", "tfds": "tfds"}, section["source"], "config.data.source")
    if kind != "shapes" and not section["path"]:
        what = "the folder of images" if kind == "folder" else "TFDS's data_dir"
        raise ValueError(f"config.data.path is empty: name {what}, --config.data.path=...")
    if kind == "folder":
        return folder(section["path"], split, columns, {c: n for c, n in names.items() if c != "image"})
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


def make_transform(config: Mapping[str, Any], tokenize: Callable | None = None, task: Task | None = None) -> Transform:
    """Rows -> images of config.data.image_size in [-1, 1], and what goes with them."""
    section = config["data"]
    if section["flip"] and section["source"] == "shapes":
        raise ValueError("config.data.flip=True: captions of shapes say left and right, which a flip exchanges")
    palette = label_maps.read_palette(section["palette"]) if section.get("palette") else None
    whole = config["conditioner"]["kind"] == "layout" and layout_code(config).crop
    options = {"tokenize": tokenize, "palette": palette, "task": task, "whole_boxes": whole}
    options["short_side"] = section.get("short_side", 0)
    return Transform(section["image_size"], section["crop"], section["flip"], **options)


def make_task(config: Mapping[str, Any]) -> Task | None:
    """What the task of config.conditioner adds to an example: (example, rng) -> columns that its conditioning reads."""
    section = config["conditioner"]
    match section["kind"]:
        case "superres":
            kind = choose({kind: kind for kind in degradation.KINDS}, section["degradation"], "config.conditioner.degradation")
            levels = section["noise_levels"]
            return functools.partial(degradation.low_resolution, scale=superres_scale(config), kind=kind, noise_levels=levels)
        case "inpaint":
            kinds, area = tuple(section["masks"]), tuple(section["mask_area"])
            masks.check(kinds, area)
            return functools.partial(masks.random_hole, kinds=kinds, area=area)
        case "semantic":
            return functools.partial(label_maps.checked_map, n_classes=section["in_channels"])
        case "layout":
            return functools.partial(layout.layout_tokens, code=layout_code(config))
        case "retrieval":
            if not section["database"]:
                raise ValueError("config.conditioner.database is empty: name what python -m ldm_jax.retrieval build made")
            width, context_dim = load_database(section["database"]).vectors.shape[1], config["network"]["context_dim"]
            if width != context_dim:
                raise ValueError(f"config.network.context_dim={context_dim}: the data base's vectors have {width} numbers")
            return NeighboursOf(section["database"], section["neighbours"], config["data"]["path"])
    return None


def layout_code(config: Mapping[str, Any]) -> layout.LayoutCode:
    """The coding of the token transformer that config.conditioner describes."""
    module = make_conditioner(config)
    return layout.layout_code(module.max_seq_len, module.vocab_size)
