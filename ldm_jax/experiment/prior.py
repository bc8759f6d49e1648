"""What a model draws of a class before it is taught one thing of it: the pictures by which DreamBooth (Ruiz et al. 2023) keeps
what it knew."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax import api
from ldm_jax.data.captioned import Captioned
from ldm_jax.data.folder import folder
from ldm_jax.experiment.stage import Experiment
from ldm_jax.pictures import save_picture, to_uint8
from ldm_jax.primitives.arrays import key_of
from ldm_jax.training import distributed

FOLDER = "prior"  # in the working directory


def prior_source(experiment: Experiment) -> Any:
    """Rows of config.diffusion_train.dreambooth's pictures of the class, in WORKDIR/prior, with its prompt as their caption.
    Those that are not there yet are drawn now, by the model of `start_from`; picture i is always the same one."""
    section, place = experiment.config["diffusion_train"]["dreambooth"], experiment.workdir / FOLDER
    # all load it, the first draws: Orbax numbers what a process reads and saves, and saves together under these numbers
    if distributed.agreed(bool(_missing(section, place))):
        ldm = api.load_whole(experiment.config["diffusion_train"]["start_from"])
        distributed.on_first("pictures of the class", lambda: _draw(experiment, place, ldm))
    return Captioned(folder(place, "train", ("image",)), [section["class_prompt"]])


def _missing(section: Mapping[str, Any], place: Path) -> list[int]:
    return [i for i in range(section["class_pictures"]) if not (place / f"{i:05d}.png").is_file()]


def _draw(experiment: Experiment, place: Path, ldm: api.LatentDiffusion) -> None:
    config = experiment.config
    section, batch_size = config["diffusion_train"]["dreambooth"], config["evaluation"]["batch_size"]
    place.mkdir(exist_ok=True)
    missing = _missing(section, place)
    cond = ldm.embed(ldm.params, [section["class_prompt"]] * batch_size)
    key = jax.random.fold_in(key_of(config["seed"]), 2)
    for start in range(0, len(missing), batch_size):
        distributed.stop_point()
        numbers = [*missing[start : start + batch_size]]
        padded = np.asarray(numbers + numbers[-1:] * (batch_size - len(numbers)))  # one compilation
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(padded)
        drawn = to_uint8(np.asarray(ldm.sample(ldm.params, keys, cond)))
        for number, picture in zip(numbers, drawn):
            temporary = place / f".{number:05d}.png"
            save_picture(temporary, picture, {"prompt": section["class_prompt"]})
            os.replace(temporary, place / f"{number:05d}.png")
    experiment.say(f"diffusion: {len(missing)} pictures of {section['class_prompt']!r} drawn, in {place}")
