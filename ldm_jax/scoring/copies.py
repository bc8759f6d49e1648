"""Samples beside the training pictures that are nearest to them, in pixels and in features, and whether they are copies."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ldm_jax import build, evaluation
from ldm_jax.data.pipeline import example
from ldm_jax.data.source import Spread
from ldm_jax.evaluation import FeatureSet
from ldm_jax.primitives.arrays import block_mean
from ldm_jax.scoring.features import Features
from ldm_jax.scoring.looking import of_source
from ldm_jax.scoring.reference import Reference, labelled_source
from ldm_jax.training import sharding

SIDE = 32  # pixels are compared at about this many a side, as means of blocks


class Copies(NamedTuple):
    """`values`: "memorisation/pixels/closer" and the like; `rows` uint8 [n, 3, H, W, 3]: a sample, the training picture nearest
    in pixels, the one nearest in features; the samples nearest to a training picture come first."""

    values: dict[str, float]
    rows: np.ndarray


class Neighbours:
    """The real pictures that samples are compared with: all of the training and the validation set, at most `count` each."""

    def __init__(
        self,
        config: Mapping[str, Any],
        features: Features,
        train: Reference,
        held_out: Reference,
        mesh: Any,
        count: int = 50_000,
    ):
        if train.features is None or held_out.features is None:
            raise ValueError("nearest neighbours need the real pictures' features; files of statistics alone have none")
        self.features, self.train, self.held_out = features, train, held_out
        self.transform, self.medium = build.make_transform(config), build.make_medium(config)
        sources = [Spread(labelled_source(config, split), count) for split in ("train", "validation")]
        self.source, self.on_error = sources[0], config["data"]["on_error"]
        self.pixels = [self._pixels(source, mesh) for source in sources]
        learnt = {row.tobytes() for row in self.pixels[0]}
        if all(row.tobytes() in learnt for row in self.pixels[1]):  # said before anything is drawn
            splits = " and ".join(f"{split}_split={config['data'][f'{split}_split']!r}" for split in ("train", "validation"))
            raise ValueError(f"all held-out pictures are training pictures (config.data: {splits}): memorisation compares with "
                             "unseen ones; hold some out, or leave --memorisation out")  # fmt: skip

    def _pixels(self, source: Any, mesh: Any) -> np.ndarray:
        parts = []
        for batch in of_source(source, self.transform, 256, mesh, self.on_error):
            images = self.medium.shown(np.asarray(sharding.replicate(mesh, batch.images))[batch.rows >= 0])
            parts.append(pixels_of(evaluation.as_uint8(images)))
        return np.concatenate(parts)

    def of(self, images: np.ndarray, features: FeatureSet, numbers: np.ndarray, shown: int = 8) -> Copies:
        """How near samples are to training pictures: uint8 `images` [n, H, W, 3], which are `numbers` int64 [n] of the samples
        whose `features` are given (all of those count)."""
        in_pixels = evaluation.memorisation(pixels_of(images), *self.pixels)
        in_features = evaluation.memorisation(features.features, self.train.features.features, self.held_out.features.features)
        values = {}
        for name, found in (("pixels", in_pixels), (self.features.kind, in_features)):
            values |= {f"memorisation/{name}/closer": found.closer, f"memorisation/{name}/copies": found.copies}
        places = np.searchsorted(features.rows, numbers)
        nearest_first = np.argsort(in_features.distances[places, 0], kind="stable")[:shown]
        rows = []
        for i in nearest_first:
            numbers = in_pixels.neighbours[i, 0], self.train.features.rows[in_features.neighbours[places[i], 0]]
            found = [example(self.source, self.transform, int(number), self.on_error) for number in numbers]
            real = np.stack([row["image"] for row in found])
            rows.append([images[i], *evaluation.as_uint8(self.medium.shown(real))])
        return Copies(values, np.stack([np.stack(row) for row in rows]))


def pixels_of(images: np.ndarray) -> np.ndarray:
    """float32 [N, D]: uint8 pictures [N, H, W, 3] as means of blocks, about `SIDE` a side, in [0, 1]."""
    n = max(1, min(images.shape[1:3]) // SIDE)
    small = block_mean(images, n) if n > 1 else images
    return (np.asarray(small, np.float32) / 255).reshape(len(images), -1)

