"""The stage that draws held-out conditions, and measures what can be measured of the pictures."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax import api, build
from ldm_jax.data import shapes
from ldm_jax.experiment.pictures import draw, held_out, side_by_side
from ldm_jax.experiment.stage import Experiment
from ldm_jax.workdir import free_folder, save_pictures

PyTree = Any


def evaluate(experiment: Experiment) -> None:
    """Pictures from the averaged weights for held-out conditions; for `shapes`, how many of them are what was asked for."""
    if jax.process_index():
        return
    config, folder = experiment.config, free_folder(experiment.workdir / "evaluation")
    ldm = api.load_workdir(experiment.workdir)
    shown = held_out(experiment, 64)
    images = draw(ldm, ldm.params, shown.inputs, len(shown.words), config["evaluation"]["batch_size"])
    pictures, columns = side_by_side(images, shown)
    save_pictures(folder, "validation", pictures, shown.words, columns)
    experiment.say(f"evaluation: {len(images)} pictures for validation conditions in {folder}")
    results = {}
    if config["data"]["source"] == "shapes" and config["conditioner"]["kind"] == "text":
        for objects in (1, 2):
            results |= check_shapes(experiment, ldm, objects, folder)
    (folder / "results.json").write_text(json.dumps(results, indent=2))


def check_shapes(experiment: Experiment, ldm: api.LatentDiffusion, objects: int, folder: Path) -> dict[str, float]:
    """Draws held-out prompts of so many objects, and reads the pictures back."""
    count, batch_size = (experiment.config["evaluation"][name] for name in ("prompts", "batch_size"))
    asked = shapes.prompts(count, objects, experiment.config["seed"], build.make_mix(experiment.config))
    # not parsed as a user's prompts: a small training set may lack a word of theirs, and is then judged without it
    inputs = np.stack([ldm.conditioning.tokenize(text) for text, _ in asked])
    images = draw(ldm, ldm.params, inputs, count, batch_size)
    found = {name: float(np.mean(right)) for name, right in shapes.check_all(images, [scene for _, scene in asked]).items()}
    save_pictures(folder, f"{objects}_objects", images[:64], [text for text, _ in asked[:64]])
    said = f"shape {found['shape']:.1%}, colour {found['colour']:.1%}, both {found['bound']:.1%}"
    if objects == 2:
        said += f", also the relation {found['all']:.1%}"
    experiment.say(f"evaluation: {count} held-out prompts with {objects} object{'s' * (objects > 1)}: {said} right")
    return {f"{objects}_objects/{name}": value for name, value in found.items()}
