"""What a training has learnt of a model that stays as it is, without that model: for files, and for other models."""

from pathlib import Path
from typing import Any

import jax

from ldm_jax import build, models, weights
from ldm_jax.api.load import local
from ldm_jax.primitives.files import read_json
from ldm_jax.training.bucket import stage_folder
from ldm_jax.training.checkpoint import load_averaged

PyTree = Any


def _trained(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """A working directory and its config. ValueError for anything else that is there."""
    workdir = local(path)
    if not (workdir / "config.json").is_file():
        raise ValueError(f"{workdir} is no working directory of a training: there is no config.json in it")
    return workdir, read_json(workdir / "config.json")


def load_lora(workdir: str | Path, which: str | int = "last") -> PyTree:
    """The factors that a working directory with config.diffusion_train.lora has learnt, averaged, for `apply_lora` with scale 1
    and for `LatentDiffusion.save_lora`: {"network": ...}, float32. `which` as for `load`.

    Raises:
      FileNotFoundError: no such working directory, or nothing trained in it yet.
      ValueError: it is no working directory, or learnt none.
    """
    workdir, config = _trained(workdir)
    lora = build.make_lora(config)
    if lora is None:
        raise ValueError(f"{workdir}: config.diffusion_train.lora.rank is 0: it adapts no model")
    factors = load_averaged(stage_folder(workdir, "diffusion"), which)["lora"]
    return {"network": models.scale_lora(factors, lora["scale"])}


def save_embedding(workdir: str | Path, path: str | Path, which: str | int = "last") -> None:
    """Writes the word that a working directory with config.diffusion_train.textual_inversion has learnt, averaged: a file that
    ends with .safetensors, for diffusers' `load_textual_inversion` and `LatentDiffusion.with_embedding`. `which` as for `load`.
    ValueError if it learnt none, or the file exists."""
    workdir, config = _trained(workdir)
    word = build.make_word(config)
    if word is None:
        raise ValueError(f"{workdir}: config.diffusion_train.textual_inversion.word is empty: it taught no word")
    vectors = load_averaged(stage_folder(workdir, "diffusion"), which)["word"]
    weights.write_embedding(path, word["word"], jax.device_get(vectors))


def save_control(workdir: str | Path, path: str | Path, which: str | int = "last") -> None:
    """Writes the ControlNet that a working directory with config.diffusion_train.control has learnt, averaged, as a folder that
    diffusers' ControlNetModel and `LatentDiffusion.with_control` read. `which` as for `load`. ValueError if it learnt none, or
    the folder exists."""
    workdir, config = _trained(workdir)
    if build.adapts(config) != "control":
        raise ValueError(f"{workdir}: config.diffusion_train.control.picture is empty: it trained no ControlNet")
    stage = build.make_first_stage(config)
    fields = build.control_fields(config, stage.channels, stage.factor)
    params = load_averaged(stage_folder(workdir, "diffusion"), which)["control"]
    weights.write_control(path, fields, config["conditioner"], jax.device_get(params))
