"""`shapes` as a TFDS data set: our own builder, written as array_record and read without TensorFlow.

    source = prepare("data_dir", resolution=32).as_data_source("train")

Every picture is a pure function of (seed, split, number), so a data set can be made anew anywhere.
"""

import contextlib
import io
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ldm_jax.data.shapes.render import bounding_box, render_all
from ldm_jax.data.shapes.scene import COLOUR_NAMES, FILLS, SHAPES, SIZES, Mix, Scene, draw_scene

STREAMS = {"train": 0, "validation": 1}


@dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
    """What distinguishes one `shapes` from another; `counts`, `fills` and `spread` as in `Mix`."""

    resolution: int = 32
    seed: int = 0
    train: int = 20_000
    validation: int = 1_000
    counts: tuple[float, float, float] = Mix.counts
    fills: tuple[float, float, float] = Mix.fills
    spread: float = Mix.spread
    name: str = field(default="", kw_only=True)

    def __post_init__(self):
        if not 32 <= self.resolution <= 256:
            raise ValueError(f"shapes resolution={self.resolution}: choose from 32 to 256 pixels")
        if min(self.train, self.validation) < 1:
            raise ValueError(f"shapes train={self.train}, validation={self.validation}: both need at least 1 picture")
        mix = self.mix
        shares = ("-".join(f"{share / sum(shares):.2f}" for share in shares) for shares in (mix.counts, mix.fills))
        kind = f"counts{next(shares)}_fills{next(shares)}_spread{mix.spread:g}_seed{self.seed}"
        self.name = self.name or f"{self.resolution}px_{self.train}_{self.validation}_{kind}"

    @property
    def mix(self) -> Mix:
        """What the scenes hold."""
        return Mix(tuple(self.counts), tuple(self.fills), self.spread)


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Captioned pictures of simple shapes, with objects, boxes and semantic maps."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, config: ShapesConfig | None = None, **kwargs: Any):
        super().__init__(config=config or ShapesConfig(), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.resolution
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            description="One to three simple shapes on a quiet background, described in words.",
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(size, size, 3), encoding_format="png"),
                    "caption": features.Text(),
                    "label": features.ClassLabel(names=SHAPES),
                    "label_map": features.Image(shape=(size, size, 1), encoding_format="png"),
                    "objects": features.Sequence(
                        {
                            "label": features.ClassLabel(names=SHAPES),
                            "colour": features.ClassLabel(names=COLOUR_NAMES),
                            "size": features.ClassLabel(names=SIZES),
                            "fill": features.ClassLabel(names=FILLS),
                            # x0, y0, x1, y1 as fractions
                            "box": features.Tensor(shape=(4,), dtype=np.float32),
                        }
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        config = self.builder_config
        return {
            "train": self._generate_examples("train", config.train),
            "validation": self._generate_examples("validation", config.validation),
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        for start in range(0, count, 512):
            numbers = range(start, min(start + 512, count))
            drawn = [draw_scene(config.seed, i, STREAMS[split], config.mix) for i in numbers]
            images, maps = render_all([scene for scene, _ in drawn], config.resolution)
            for number, (scene, text), image, label_map in zip(numbers, drawn, images, maps):
                yield (
                    number,
                    {
                        "image": io.BytesIO(png(image)),
                        "caption": text,
                        "label": scene.things[0].shape,
                        "label_map": io.BytesIO(png(label_map)),
                        "objects": _objects(scene),
                    },
                )


def prepare(data_dir: str | Path, **config: Any) -> Shapes:
    """The builder for `ShapesConfig(**config)`, its data written below `data_dir` unless they are there already. OSError where
    they can't be; nothing half-written counts as there. Of several processes that write them at once, the first one's stay."""
    tfds.display_progress_bar(sys.stderr.isatty())

    def make() -> Shapes:
        return Shapes(config=ShapesConfig(**config), data_dir=str(data_dir), file_format="array_record")

    builder = make()
    if not builder.data_path.exists():
        print(f"data: rendering shapes into {builder.data_path}, once", flush=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS talks of downloading, and nothing is downloaded
                builder.download_and_prepare()
        except RuntimeError as error:  # of the writer of records, whose disk is full
            raise OSError(f"the data set shapes can't be written below {data_dir}: {str(error).splitlines()[0]}") from None
        except OSError:
            if not builder.data_path.exists():
                raise
            return make()  # another process was first, with the same data
    return builder


def png(image: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] as PNG (ISO/IEC 15948), fast: no filters, light compression."""
    height, width = image.shape[:2]
    rows = np.zeros((height, 1 + image[0].size), np.uint8)  # filter type 0 before every row
    rows[:, 1:] = image.reshape(height, -1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2 if image.ndim == 3 else 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)) + chunk(b"IEND", b"")
    )


def _objects(scene: Scene) -> list[dict[str, Any]]:
    return [
        {"label": t.shape, "colour": t.colour, "size": t.size, "fill": t.fill, "box": np.float32(bounding_box(t))}
        for t in scene.things
    ]
