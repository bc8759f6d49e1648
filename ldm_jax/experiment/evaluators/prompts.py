"""How many pictures of held-out prompts show what was asked for. Only of `shapes` with captions, whose pictures can be read.

config.evaluation.evaluators.prompts.every = 600
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax import build
from ldm_jax.data import shapes
from ldm_jax.experiment.evaluators.model import Model
from ldm_jax.experiment.pictures import draw
from ldm_jax.training.loop import Report
from ldm_jax.training.state import TrainState

FIELDS = {"num": 120, "objects": 1}  # prompts, and how many objects each asks for
MEASURES = ("shape", "colour", "bound", "all")


def readable(config: Mapping[str, Any]) -> bool:
    """Whether pictures of this config's model can be read back."""
    return config["data"]["source"] == "shapes" and config["conditioner"]["kind"] == "text"


def check(section: Mapping[str, Any], config: Mapping[str, Any], place: str) -> None:
    """ValueError for numbers that can't be meant, or pictures that nobody can read."""
    for name, most in (("num", 100_000), ("objects", 3)):
        if not 1 <= section[name] <= most:
            raise ValueError(f"{place}.{name}={section[name]}: must be from 1 to {most}")
    if section["every"] and not readable(config):
        raise ValueError(f"{place}.every={section['every']}: only pictures of 'shapes' with captions can be read; set it to 0")


def gives(section: Mapping[str, Any], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """The names of its numbers."""
    return list(MEASURES)


def make(model: Model, section: Mapping[str, Any]) -> Callable[[TrainState], Report]:
    """The hook that draws and reads."""

    def look(state: TrainState) -> Report:
        found, _, _ = read_back(model, model.params(state), section["num"], section["objects"])
        return Report({name: found[name] for name in MEASURES}, higher=frozenset(MEASURES))

    return look


def read_back(model: Model, params: Any, num: int, objects: int) -> tuple[dict[str, float], np.ndarray, list[str]]:
    """Draws held-out prompts of so many objects: the shares that are right (see `shapes.check_all`), pictures, prompts."""
    config = model.experiment.config
    prompts = shapes.prompts(num, objects, config["seed"], build.make_mix(config))
    # not parsed as a user's prompts: a small training set may lack a word of theirs, and is then judged without it
    inputs = np.stack([model.spec.condition.tokenize(text) for text, _ in prompts])
    images = draw(model.spec, params, inputs, num, config["evaluation"]["batch_size"], model.experiment.mesh)
    right = shapes.check_all(images, [scene for _, scene in prompts])
    return {name: float(np.mean(each)) for name, each in right.items()}, images, [text for text, _ in prompts]
