"""What sentences of a model of text are worth while it trains: a quick look at what `python -m ldm_jax.evaluation` measures.

    config.evaluation.evaluators.sentences = ConfigDict({"every": 1000})

The same conditions and noise every time.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ldm_jax import build
from ldm_jax.experiment.evaluators.model import Model
from ldm_jax.scoring import language
from ldm_jax.scoring.drawing import Conditions, Drawer
from ldm_jax.training.loop import Report
from ldm_jax.training.state import TrainState

FIELDS = {"num": 256, "steps": 0}  # sentences; steps of the sampler, 0: config.sampling.steps
MEASURES = {"perplexity": False, "novel": True, "different": True, "distinct_2": True}  # whether more is better
OF_GRAMMAR = {"valid": True, "right_kind": True}


def check(section: Mapping[str, Any], config: Mapping[str, Any], place: str) -> None:
    """ValueError for numbers that can't be meant, and for models of something else."""
    if section["num"] < 16:
        raise ValueError(f"{place}.num={section['num']}: must be at least 16")
    if section["every"] and config["data"].get("medium") != "text":
        raise ValueError(f"{place}.every={section['every']}: it reads sentences, and this model draws none; set it to 0")


def _higher(config: Mapping[str, Any]) -> dict[str, bool]:
    if config["data"]["source"] != "sentences":
        return MEASURES
    told = "label" in build.make_condition(config).columns
    return MEASURES | {name: more for name, more in OF_GRAMMAR.items() if told or name == "valid"}


def gives(section: Mapping[str, Any], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """The names of its numbers."""
    return list(_higher(config))


def make(model: Model, section: Mapping[str, Any]) -> Callable[[TrainState], Report]:
    """The hook that draws and measures."""
    experiment, names = model.experiment, _higher(model.experiment.config)
    config = {**experiment.config, "data": experiment.medium.settled()}
    scorer = language.Scorer(config, experiment.condition)
    conditions = Conditions(config, experiment.condition, scorer.rows["validation"], section["num"])
    options = {"steps": section["steps"]} if section["steps"] else {}

    def look(state: TrainState) -> Report:
        drawer = Drawer(model.spec, model.params(state), conditions, experiment.mesh, config["seed"])
        drawn = language.draw(drawer, section["num"], config["evaluation"]["batch_size"], options)
        if jax.process_index():
            return Report()
        found, _ = scorer.of(drawn, conditions)
        return Report({name: found[name] for name in names}, higher=frozenset(name for name, more in names.items() if more))

    return look
