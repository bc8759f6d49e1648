"""The stage that draws held-out conditions, and measures what can be measured of the pictures."""

import os
import shutil
from typing import Any

import numpy as np

from ldm_jax import api, build
from ldm_jax.data import shapes
from ldm_jax.experiment.pictures import draw, held_out, side_by_side
from ldm_jax.experiment.stage import Experiment
from ldm_jax.primitives.files import write_json
from ldm_jax.training import distributed, sharding
from ldm_jax.workdir import free_folder, save_pictures

PyTree = Any


def evaluate(experiment: Experiment) -> None:
    """Pictures from the averaged weights for held-out conditions; for `shapes`, how many of them are what was asked for."""
    config, mesh = experiment.config, experiment.mesh
    ldm = api.load_workdir(experiment.workdir)
    params = sharding.replicate(mesh, ldm.params)
    shown = held_out(experiment, 64)
    images = draw(ldm.specification, params, shown.inputs, len(shown.words), config["evaluation"]["batch_size"], mesh)
    found = {"validation": (*side_by_side(images, shown), shown.words)}
    results = {}
    if config["data"]["source"] == "shapes" and config["conditioner"]["kind"] == "text":
        for objects in (1, 2):
            measured, drawn, words = check_shapes(experiment, ldm.specification, params, objects)
            results |= measured
            found[f"{objects}_objects"] = (drawn, 0, words)
    distributed.on_first("evaluation", lambda: save(experiment, found, results))


def save(experiment: Experiment, found: dict[str, Any], results: dict[str, float]) -> None:
    """A new folder under WORKDIR/evaluation, made beside its place and renamed when it is whole."""
    folder = free_folder(experiment.workdir / "evaluation")
    temporary = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    for name, (pictures, columns, words) in found.items():
        save_pictures(temporary, name, pictures, words, columns)
    write_json(temporary / "results.json", results)
    os.rename(temporary, folder)
    experiment.say(f"evaluation: {len(found['validation'][2])} pictures for validation conditions in {folder}")


def check_shapes(
    experiment: Experiment, spec: api.Specification, params: PyTree, objects: int
) -> tuple[dict[str, float], np.ndarray, list[str]]:
    """Draws held-out prompts of so many objects and reads the pictures back: what is right, some pictures, their prompts."""
    count, batch_size = (experiment.config["evaluation"][name] for name in ("prompts", "batch_size"))
    prompts = shapes.prompts(count, objects, experiment.config["seed"], build.make_mix(experiment.config))
    # not parsed as a user's prompts: a small training set may lack a word of theirs, and is then judged without it
    inputs = np.stack([spec.condition.tokenize(text) for text, _ in prompts])
    images = draw(spec, params, inputs, count, batch_size, experiment.mesh)
    found = {name: float(np.mean(right)) for name, right in shapes.check_all(images, [scene for _, scene in prompts]).items()}
    said = f"shape {found['shape']:.1%}, colour {found['colour']:.1%}, both {found['bound']:.1%}"
    if objects == 2:
        said += f", also the relation {found['all']:.1%}"
    experiment.say(f"evaluation: {count} held-out prompts with {objects} object{'s' * (objects > 1)}: {said} right")
    results = {f"{objects}_objects/{name}": value for name, value in found.items()}
    return results, images[:64], [text for text, _ in prompts[:64]]
