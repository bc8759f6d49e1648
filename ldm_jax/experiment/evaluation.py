"""The stage that draws held-out conditions, and measures how good the pictures are."""

import os
import shutil
from typing import Any

import numpy as np

from ldm_jax import api, scoring
from ldm_jax.experiment.evaluators import Model
from ldm_jax.experiment.evaluators.prompts import read_back, readable, reader
from ldm_jax.experiment.pictures import draw, held_out, side_by_side
from ldm_jax.experiment.stage import Experiment
from ldm_jax.pictures import save_pictures
from ldm_jax.primitives.files import write_json
from ldm_jax.scoring.sweep import settings_of
from ldm_jax.training import distributed, sharding
from ldm_jax.training.bucket import name_of, stage_folder
from ldm_jax.training.checkpoint import best_in, steps_in
from ldm_jax.workdir import free_folder

PyTree = Any


def evaluate(experiment: Experiment) -> None:
    """Pictures from the averaged weights for held-out conditions; of data that can be read back (`prompts.READERS`), how many
    of them are what was asked for; with config.evaluation.num, their distance from the data."""
    config, mesh = experiment.config, experiment.mesh
    which = config["evaluation"].get("which", "last")
    ldm = api.load_workdir(experiment.workdir, which=which)
    params = sharding.replicate(mesh, ldm.params)
    shown = held_out(experiment, 64)
    images = draw(ldm.specification, params, shown.inputs, len(shown.words), config["evaluation"]["batch_size"], mesh)
    found = {"validation": (*side_by_side(experiment.medium.shown(images), shown), shown.words)}
    results = {}
    if config["evaluation"]["prompts"] and readable(config):  # 0: none
        for objects in reader(config).objects:
            measured, drawn, words = check_prompts(Model(experiment, ldm.specification, {}), params, objects)
            results |= measured
            found[reader(config).place(objects)] = (experiment.medium.shown(drawn), 0, words)
    if config["evaluation"].get("num", 0):
        distributed.on_first("working directory", experiment.check_place)
        results |= distances(experiment, ldm, which)
    distributed.on_first("evaluation", lambda: save(experiment, found, results, images))


def distances(experiment: Experiment, ldm: api.LatentDiffusion, which: str) -> dict[str, float]:
    """What `python -m ldm_jax.evaluation` measures of config.evaluation.num pictures, in WORKDIR/evaluation/step_STEP."""
    config, place = experiment.config, experiment.workdir / "evaluation"
    section, checkpoints = config["evaluation"], stage_folder(experiment.workdir, "diffusion")
    step = best_in(checkpoints)[0] if which == "best" else steps_in(checkpoints)[-1]
    request = scoring.Request(
        num=section["num"], features=section["features"], batch_size=section["batch_size"], seed=config["seed"]
    )
    model = {"model": name_of(experiment.workdir.absolute()), "which": which, "step": step}
    out = place / f"step_{step}"
    found = scoring.evaluate(ldm, request, out, config=config, folder=place, model=model, mesh=experiment.mesh,
                             say=lambda text: experiment.say(f"evaluation: {text}"))  # fmt: skip
    experiment.say(f"evaluation: more in {out}: results.md, report.html")
    own = settings_of(ldm.config, (), (), ())[0].name
    return next((dict(result["values"]) for result in found["results"] if result["setting"] == own), {})


def save(experiment: Experiment, found: dict[str, Any], results: dict[str, float], drawn: np.ndarray) -> None:
    """A new folder under WORKDIR/evaluation, made beside its place and renamed when it is whole. `drawn`: for the conditions of
    validation, of which the medium's own files, such as sounds, are written as well."""
    experiment.check_place()
    folder = free_folder(experiment.workdir / "evaluation")
    temporary = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    for name, (pictures, columns, words) in found.items():
        save_pictures(temporary, name, pictures, words, columns)
    experiment.medium.write(temporary / "validation", drawn)
    write_json(temporary / "results.json", results)
    os.rename(temporary, folder)
    experiment.say(f"evaluation: {len(found['validation'][2])} pictures for validation conditions in {folder}")


SAID = {"bound": "both"}  # what measures are called


def check_prompts(model: Model, params: PyTree, objects: int) -> tuple[dict[str, float], np.ndarray, list[str]]:
    """Draws held-out prompts of so many objects and reads the pictures back: what is right, some pictures, their prompts."""
    count, own = model.experiment.config["evaluation"]["prompts"], reader(model.experiment.config)
    found, images, words = read_back(model, params, count, objects)
    said = ", ".join(f"{SAID.get(name, name)} {found[name]:.1%}" for name in own.measures)
    asked = f"held-out prompts with {objects} object{'s' * (objects > 1)}" if own.condition == "text" else "drawn by class"
    model.experiment.say(f"evaluation: {count} {asked}: {said} right; shuffled, all {found['shuffled/all']:.1%}")
    results = {f"{own.place(objects)}/{name}": value for name, value in found.items()}
    return results, images[:64], words[:64]
