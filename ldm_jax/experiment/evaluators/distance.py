"""How far drawn pictures are from the training pictures, seen by a network: a quick look at what `python -m ldm_jax.evaluation`
measures in full.

    config.evaluation.evaluators.distance.every = 1000

The same conditions and noise every time. Its distances are of `num` pictures, and too large for few: they tell states of one
run apart, and are not for comparison with others.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ldm_jax import build, evaluation, scoring
from ldm_jax.experiment.evaluators.model import Model
from ldm_jax.scoring import features as networks
from ldm_jax.scoring.drawing import Conditions, Drawer
from ldm_jax.scoring.looking import features_of
from ldm_jax.training.loop import Report
from ldm_jax.training.state import TrainState

FIELDS = {
    "num": 256,  # pictures
    "features": "",  # what looks at them; "": config.evaluation.features
    "steps": 0,  # of the sampler; 0: config.sampling.steps
    "reference_num": 10_000,  # training pictures at most
}
# Each network's numbers of a small set, and whether more is better.
MEASURES = {"frechet": False, "kernel": False, "precision": True, "recall": True, "density": True, "coverage": True,
            "accuracy": True, "text_score": True}  # fmt: skip


def check(section: Mapping[str, Any], config: Mapping[str, Any], place: str) -> None:
    """ValueError for numbers that can't be meant, and for models of text."""
    if section["every"] and config["data"].get("medium") == "text":
        raise ValueError(f"{place}.every={section['every']}: it looks at pictures, and this model draws sentences; set it to 0")
    for name in ("num", "reference_num"):
        if section[name] < 16:
            raise ValueError(f"{place}.{name}={section[name]}: must be at least 16")
    networks.check_kind(_features(section, config), f"{place}.features")


def gives(section: Mapping[str, Any], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """The names of its numbers. FileNotFoundError or ValueError where the network isn't there and can't be made."""
    kind, _ = networks.check(_features(section, config), build.with_lists(config), workdir / "evaluation")
    columns = build.make_condition(config).columns
    only = {"accuracy": kind == "classifier" and "label" in columns, "text_score": kind == "clip" and "caption" in columns}
    return [networks.name_of(kind, name) for name in MEASURES if only.get(name, True)]


def make(model: Model, section: Mapping[str, Any]) -> Callable[[TrainState], Report]:
    """The hook that draws and measures."""
    experiment = model.experiment
    config, mesh, place = experiment.config, experiment.mesh, experiment.workdir / "evaluation"
    network = networks.load(_features(section, config), config, place)
    run = network.on(mesh)
    batch_size = config["evaluation"]["batch_size"]
    reference = scoring.of_data(config, "train", network, mesh, folder=place, count=section["reference_num"],
                                batch_size=batch_size)  # fmt: skip
    source = build.make_source(config, "validation", experiment.condition.columns)
    conditions = Conditions(config, experiment.condition, source, section["num"], config["data"]["on_error"])
    options = {"steps": section["steps"]} if section["steps"] else {}
    texts = conditions.texts() if network.words else None
    higher = frozenset(network.name(name) for name, more in MEASURES.items() if more)

    def look(state: TrainState) -> Report:
        drawer = Drawer(model.spec, model.params(state), conditions, mesh, config["seed"])
        batches = drawer.batches(range(section["num"]), batch_size, options)
        drawn = evaluation.join(features_of(run, batch) for batch in batches)
        if jax.process_index():
            return Report()
        found = scoring.measure(
            drawn, reference, network, resamples=0, infinity=False, labels=conditions.labels(),
            class_names=conditions.source.info.class_names, texts=texts,
        )  # fmt: skip
        kept = {network.name(name) for name in MEASURES}
        return Report({name: value for name, value in found.values.items() if name in kept}, higher=higher)

    return look


def _features(section: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    return section["features"] or config["evaluation"].get("features", "auto")
