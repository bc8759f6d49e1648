"""Pictures for held-out conditions, while a model trains and afterwards."""

from typing import Any

import jax
import numpy as np

from ldm_jax import api
from ldm_jax.data.source import Spread
from ldm_jax.experiment.stage import Experiment

PyTree = Any


def held_out_conditions(experiment: Experiment, count: int) -> tuple[np.ndarray | None, list[str]]:
    """Conditions of rows spread over the validation set, as inputs of the conditioner and in words."""
    source, conditioning = Spread(experiment.sources["validation"], count), experiment.conditioning
    rows = [source[i] for i in range(len(source))]
    if conditioning.kind == "none":
        return None, [""] * len(rows)
    if conditioning.kind == "text":
        words = [row["caption"] if isinstance(row["caption"], str) else row["caption"][0] for row in rows]
        # not parsed as prompts: captions of the data may be too long, and hold words that no training caption had
        return np.stack([conditioning.tokenize(caption) for caption in words]), words
    labels = [row["label"] for row in rows]
    names = source.info.class_names
    return np.asarray(labels, np.int32), [names[label] if names else str(label) for label in labels]


def draw(ldm: api.LatentDiffusion, params: PyTree, inputs: np.ndarray | None, count: int, batch_size: int) -> np.ndarray:
    """`count` pictures, always `batch_size` at once, so that there is one compilation."""
    images = []
    for start in range(0, count, batch_size):
        cond = None
        if inputs is not None:
            rows = np.minimum(np.arange(start, start + batch_size), count - 1)
            cond = ldm.embed(params, inputs[rows])
        drawn = ldm.sample(params, jax.random.fold_in(jax.random.key(0), start), cond, num=batch_size)
        images.append(np.asarray(drawn)[: count - start])
    return np.concatenate(images)
