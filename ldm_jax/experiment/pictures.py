"""Pictures for held-out conditions, while a model trains and afterwards."""

import dataclasses
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from ldm_jax import api, build
from ldm_jax.data import label_maps
from ldm_jax.data.pipeline import eval_batches
from ldm_jax.data.source import Spread
from ldm_jax.experiment.stage import Experiment

PyTree = Any


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Conditions of the validation set: as inputs of the conditioner, in words, and, where they are pictures themselves or
    lie on one, as pictures [N, H, W, 3] beside the real ones."""

    inputs: PyTree
    words: list[str]
    conditions: np.ndarray | None = None
    images: np.ndarray | None = None


def held_out(experiment: Experiment, count: int) -> HeldOut:
    """Conditions of `count` rows, spread over the validation set."""
    config, conditioning = experiment.config, experiment.conditioning
    source = Spread(experiment.sources["validation"], count)
    transform = build.make_transform(config, conditioning.tokenize, build.make_task(config))
    batch = next(eval_batches(source, transform, len(source)))
    rows = [source[i] for i in range(len(source))]
    words = [_in_words(conditioning.kind, row, source.info) for row in rows]
    shown = _as_pictures(conditioning.kind, batch, config, rows)
    return HeldOut(conditioning.from_batch(batch), words, shown, None if shown is None else batch["image"])


def _in_words(kind: str, row: dict[str, Any], info: Any) -> str:
    match kind:
        case "text" | "clip_text":
            return row["caption"] if isinstance(row["caption"], str) else row["caption"][0]
        case "class" | "label":
            return info.class_names[row["label"]] if info.class_names else str(row["label"])
        case "layout":
            named = [info.box_names[label] if info.box_names else str(label) for label in row["box_labels"]]
            return "; ".join(f"{name} {np.round(box, 2).tolist()}" for name, box in zip(named, row["boxes"]))
    return "" if kind == "none" else row["name"]


def _as_pictures(kind: str, batch: dict[str, np.ndarray], config: Any, rows: list[dict[str, Any]]) -> np.ndarray | None:
    match kind:
        case "superres":
            scale = build.superres_scale(config)
            return np.repeat(np.repeat(batch["low"], scale, 1), scale, 2)
        case "inpaint":
            return np.where(batch["hole"] > 0, np.float32(0), batch["image"])
        case "semantic":
            palette = label_maps.bit_palette(config["conditioner"]["in_channels"])
            return label_maps.to_colours(batch["label_map"], palette).astype(np.float32) / 127.5 - 1
        case "layout":
            return np.stack([boxes_drawn(image, row["boxes"], row["box_labels"]) for image, row in zip(batch["image"], rows)])
    return None


def boxes_drawn(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Frames in the classes' colours on grey, float32 like the image [H, W, 3]."""
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (width, height), (230, 230, 230))
    palette = label_maps.bit_palette(max(int(labels.max(initial=0)) + 1, 1))
    for box, label in zip(boxes, labels):
        corners = np.round(box * [width, height, width, height] - [0, 0, 1, 1]).astype(int)
        ImageDraw.Draw(canvas).rectangle(np.maximum(corners, [*corners[:2], *corners[:2]]).tolist(), outline=palette[label])
    return np.asarray(canvas, np.float32) / 127.5 - 1


def side_by_side(images: np.ndarray, shown: HeldOut) -> tuple[np.ndarray, int]:
    """Pictures for a grid and its columns: drawn ones alone, or condition, drawn and real one side by side."""
    if shown.conditions is None:
        return images, 0
    triples = np.stack([shown.conditions, images, shown.images], axis=1)
    return triples.reshape(-1, *images.shape[1:]), 12


def draw(ldm: api.LatentDiffusion, params: PyTree, inputs: PyTree, count: int, batch_size: int) -> np.ndarray:
    """`count` pictures, always `batch_size` at once, so that there is one compilation."""
    images = []
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        chosen = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], inputs)
        cond = None if inputs is None else ldm.embed(params, chosen)
        drawn = ldm.sample(params, jax.random.fold_in(jax.random.key(0), start), cond, num=batch_size)
        images.append(np.asarray(drawn)[: count - start])
    return np.concatenate(images)
