"""How many pictures of held-out prompts, or of classes, show what was asked for. Only of data that can be read back: `READERS`.

config.evaluation.evaluators.prompts.every = 600
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldm_jax import build
from ldm_jax.data import moving_shapes, shapes, vessels
from ldm_jax.experiment.evaluators.model import Model
from ldm_jax.experiment.pictures import draw
from ldm_jax.training.loop import Report
from ldm_jax.training.state import TrainState

FIELDS = {"num": 120, "objects": 1}  # prompts, and how many objects each asks for


class Reader(NamedTuple):
    """How pictures (or films, or volumes) of a data set are read.

    prompts     (config, how many, objects) -> [(prompt, what it describes)], from a stream that nothing is learnt from; of
                classes their names and numbers
    read        drawn arrays -> what is seen in each
    check       what is seen, what was described -> {name: bool [n]}
    measures    those names that are followed in training
    objects     how many of them prompts may ask for
    condition   the kind of condition that is asked by: "text" or "class"
    """

    prompts: Callable[[Mapping[str, Any], int, int], list[tuple[str, Any]]]
    read: Callable[[np.ndarray], list[Any]]
    check: Callable[[list[Any], list[Any]], dict[str, np.ndarray]]
    measures: tuple[str, ...]
    objects: tuple[int, ...]
    condition: str = "text"

    def place(self, objects: int) -> str:
        """What comes before the names of its numbers."""
        return f"{objects}_objects" if self.condition == "text" else "classes"


READERS = {
    "shapes": Reader(
        lambda config, num, objects: shapes.prompts(num, objects, config["seed"], build.make_mix(config)),
        shapes.read_all,
        shapes.compare_all,
        ("shape", "colour", "bound", "all"),
        (1, 2),
    ),
    "moving_shapes": Reader(
        lambda config, num, objects: moving_shapes.prompts(num, config["seed"]),
        moving_shapes.read_films,
        moving_shapes.check_all,
        moving_shapes.CHECKS,
        (1,),
    ),
    "vessels": Reader(
        lambda config, num, objects: vessels.prompts(num),
        vessels.read_volumes,
        vessels.check_all,
        vessels.CHECKS,
        (1,),
        "class",
    ),
}


def readable(config: Mapping[str, Any]) -> bool:
    """Whether pictures of this config's model can be read back."""
    found = READERS.get(config["data"]["source"])
    return found is not None and config["conditioner"]["kind"] == found.condition


def reader(config: Mapping[str, Any]) -> Reader:
    """Of this config's data."""
    return READERS[config["data"]["source"]]


def check(section: Mapping[str, Any], config: Mapping[str, Any], place: str) -> None:
    """ValueError for numbers that can't be meant, or pictures that nobody can read."""
    for name, most in (("num", 100_000), ("objects", 3)):
        if not 1 <= section[name] <= most:
            raise ValueError(f"{place}.{name}={section[name]}: must be from 1 to {most}")
    if section["every"] and not readable(config):
        known = ", ".join(f"{name!r} (conditioner.kind={own.condition!r})" for name, own in READERS.items())
        raise ValueError(f"{place}.every={section['every']}: only what is drawn of {known} can be read; set it to 0")
    if section["every"] and section["objects"] > 1 and reader(config).objects == (1,):
        source = config["data"]["source"]
        raise ValueError(f"{place}.objects={section['objects']}: prompts of {source!r} ask for one; set it to 1")


def gives(section: Mapping[str, Any], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """The names of its numbers."""
    return list(reader(config).measures) if readable(config) else []


def make(model: Model, section: Mapping[str, Any]) -> Callable[[TrainState], Report]:
    """The hook that draws and reads."""

    def look(state: TrainState) -> Report:
        found, _, _ = read_back(model, model.params(state), section["num"], section["objects"])
        measures = reader(model.experiment.config).measures
        return Report({name: found[name] for name in measures}, higher=frozenset(measures))

    return look


def read_back(model: Model, params: Any, num: int, objects: int) -> tuple[dict[str, float], np.ndarray, list[str]]:
    """Draws held-out prompts of so many objects: the shares that are right (by the reader's `check`), and under "shuffled/" how
    many would be if every picture had been asked for with the next one's prompt; pictures, prompts."""
    config = model.experiment.config
    own = reader(config)
    prompts = own.prompts(config, num, objects)
    if own.condition == "class":
        inputs = model.spec.condition.from_batch({"label": np.array([label for _, label in prompts], np.int32)})
    else:  # not parsed as a user's prompts: a small training set may lack a word of theirs, and is then judged without it
        inputs = np.stack([model.spec.condition.tokenize(text) for text, _ in prompts])
    images = draw(model.spec, params, inputs, num, config["evaluation"]["batch_size"], model.experiment.mesh)
    seen, asked = own.read(images), [scene for _, scene in prompts]
    right = own.check(seen, asked)
    right |= {f"shuffled/{name}": each for name, each in own.check(seen, asked[1:] + asked[:1]).items()}
    return {name: float(np.mean(each)) for name, each in right.items()}, images, [text for text, _ in prompts]
