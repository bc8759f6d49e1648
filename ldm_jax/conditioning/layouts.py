"""Layout to image: what is where."""

import functools
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ldm_jax import models
from ldm_jax.conditioning.classes import keep_names, read_names
from ldm_jax.conditioning.condition import ABILITIES, Condition, check_numbers, module_of
from ldm_jax.data import label_maps, layout
from ldm_jax.primitives.files import write_text
from ldm_jax.primitives.flags import of_condition


class Layout(Condition):
    """Tokens int32 [B, L] (`data.layout`) -> context [B, L, D]. A user gives [{"label" or "name", "box": [x0, y0, x1, y1]}]."""

    kind = "layout"
    columns = ("boxes", "box_labels")
    flags = of_condition("layout")
    abilities = ABILITIES

    @functools.cached_property
    def module(self) -> Any:
        return module_of(models.TransformerEmbedder, self.section, dtype=self.setting.dtype)

    @functools.cached_property
    def code(self) -> layout.LayoutCode:
        """The coding that the module's tokens have room for."""
        return layout.layout_code(self.module.max_seq_len, self.module.vocab_size)

    @functools.cached_property
    def null(self) -> np.ndarray:
        return self._encode([])[None]

    def apply(self, params, inputs):
        return {"context": self.module.apply({"params": params}, inputs)}

    @property
    def takes(self) -> str:
        names = self.setting.class_names
        known = f", classes: {', '.join(names)}" if names and len(names) <= 20 else ""
        return f'a layout of at most {self.code.objects} objects, [{{"name" or "label", "box": [x0, y0, x1, y1]}}]{known}'

    def _encode(self, objects: Any) -> np.ndarray:
        boxes, labels = layout.read_layout(objects, self.setting.class_names)
        if len(boxes) > self.code.objects:
            raise ValueError(f"a layout of {len(boxes)} objects: this model has tokens for {self.code.objects}")
        return layout.encode(self.code, boxes, labels)

    def parse(self, values):
        return np.stack([self._encode(value) for value in values])

    def check_inputs(self, inputs):
        check_numbers(inputs, ("B", "L"), self.module.vocab_size, "tokens")

    def from_batch(self, batch):
        return batch["layout"]

    def task(self):
        return functools.partial(layout.layout_tokens, code=self.code)

    @property
    def whole_boxes(self) -> bool:
        return self.code.crop

    def learn(self, source, folder: Path) -> None:
        keep_names(folder, "box_names", source.info.box_names)

    @classmethod
    def recall(cls, section: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
        return {"class_names": read_names(folder, "box_names", "names")}  # the latter of the first working directories

    def in_words(self, row, info) -> str:
        named = [info.box_names[label] if info.box_names else str(label) for label in row["box_labels"]]
        return "; ".join(f"{name} {np.round(box, 2).tolist()}" for name, box in zip(named, row["boxes"]))

    def as_pictures(self, batch, rows):
        return np.stack([boxes_drawn(image, row["boxes"], row["box_labels"]) for image, row in zip(batch["image"], rows)])

    def told_as(self, row, info, batch, folder):
        both = zip(row["box_labels"], row["boxes"], strict=True)
        objects = [{"label": int(label), "box": np.float64(box).tolist()} for label, box in both]
        self.parse([objects])
        write_text(folder / "example.json", json.dumps(objects))
        return f"--layout {shlex.quote(str(folder / 'example.json'))}"

    def read(self, given):
        return list(given["layout"]), list(given["layout"])


def boxes_drawn(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Frames in the classes' colours on grey, float32 like the image [H, W, 3]."""
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (width, height), (230, 230, 230))
    palette = label_maps.bit_palette(max(int(labels.max(initial=0)) + 1, 1))
    for box, label in zip(boxes, labels):
        corners = np.round(box * [width, height, width, height] - [0, 0, 1, 1]).astype(int)
        ImageDraw.Draw(canvas).rectangle(np.maximum(corners, [*corners[:2], *corners[:2]]).tolist(), outline=palette[label])
    return np.asarray(canvas, np.float32) / 127.5 - 1
