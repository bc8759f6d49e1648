"""Pictures for held-out conditions, while a model trains and afterwards."""

import dataclasses
from typing import Any

import jax
import numpy as np

from ldm_jax import api
from ldm_jax.api import drawing
from ldm_jax.data.pipeline import eval_batches
from ldm_jax.data.source import Spread
from ldm_jax.experiment.stage import Experiment
from ldm_jax.primitives.arrays import key_of
from ldm_jax.scoring.looking import full_batch
from ldm_jax.training import distributed, sharding

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
    condition = experiment.condition
    source = Spread(experiment.sources["validation"], count)
    on_error = experiment.config["data"]["on_error"]
    batch = next(eval_batches(source, experiment.transform(condition), len(source), on_error=on_error))
    rows = [source[i] for i in batch["row"].tolist()]
    words = [condition.in_words(row, source.info) for row in rows]
    shown = condition.as_pictures(batch, rows)
    real = None if shown is None else experiment.medium.shown(batch["image"])
    if real is not None and shown.shape != real.shape:
        shown = on_white(shown, real.shape[1:3])
    return HeldOut(condition.from_batch(batch), words, shown, real)


def on_white(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pictures [N, h, w, 3] in the middle of white ones of `size`: as large as fits in whole multiples, or every so many-th
    pixel of one that is too large."""
    height, width = images.shape[1:3]
    times, every = max(1, min(size[0] // height, size[1] // width)), max(-(-height // size[0]), -(-width // size[1]))
    images = images.repeat(times, 1).repeat(times, 2)[:, ::every, ::every]
    free = [(full - side) for full, side in zip(size, images.shape[1:3], strict=True)]
    around = [(left // 2, left - left // 2) for left in free]
    return np.pad(images, ((0, 0), *around, (0, 0)), constant_values=1)


def side_by_side(images: np.ndarray, shown: HeldOut) -> tuple[np.ndarray, int]:
    """Pictures, as the medium shows them, for a grid, and its columns: drawn ones alone, or condition, drawn and real one side
    by side."""
    if shown.conditions is None:
        return images, 0
    triples = np.stack([shown.conditions, images, shown.images], axis=1)
    return triples.reshape(-1, *images.shape[1:]), 12


def draw(spec: api.Specification, params: PyTree, inputs: PyTree, count: int, batch_size: int, mesh: Any) -> np.ndarray:
    """`count` pictures, always as many at once, so that there is one compilation: `batch_size`, or the next multiple of the
    devices that batches are split over. What is drawn does not depend on the devices. Every process has all of them."""
    size, images = full_batch(batch_size, mesh), []
    with jax.set_mesh(mesh):
        for start in range(0, count, size):
            distributed.stop_point()
            rows = np.minimum(np.arange(start, start + size), count - 1)[sharding.local_rows(mesh, size)]
            chosen = jax.tree.map(lambda x, rows=rows: sharding.to_device(mesh, np.asarray(x)[rows]), inputs)
            batches, places = (sharding.to_device(mesh, x.astype(np.int32)) for x in np.divmod(rows, batch_size))
            drawn = _drawn(spec, params, _row_keys(batches * batch_size, places), chosen, size, mesh)
            images.append(np.asarray(drawn)[: count - start])
    return np.concatenate(images)


def _drawn(spec: api.Specification, params: PyTree, keys: jax.Array, inputs: PyTree, num: int, mesh: Any) -> jax.Array:
    cond = None if inputs is None else spec.embed(params, inputs)
    return sharding.replicate(mesh, drawing.sample(spec, params, keys, cond, num=num))


@jax.jit
def _row_keys(starts: jax.Array, places: jax.Array) -> jax.Array:
    """Of each picture, by the first one's number in its batch of config.evaluation.batch_size, and its place there."""
    key = key_of(0)
    return jax.vmap(lambda start, place: jax.random.fold_in(jax.random.fold_in(key, start), place))(starts, places)
