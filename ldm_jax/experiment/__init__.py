"""An experiment: the stages a config lists, run in a working directory, each resumable.

first_stage   images -> autoencoder
latents       the scale of its latents, and (if asked) the posterior moments of the training set, encoded once
diffusion     latents, conditions -> network and conditioner, jointly
evaluation    pictures from the averaged weights, and what can be measured of them

WORKDIR/config.json, versions.json      what ran
WORKDIR/first_stage, WORKDIR/diffusion  checkpoints/, metrics.jsonl, TensorBoard events, images/
WORKDIR/prior                           pictures of the class, where a model is taught one thing of it
WORKDIR/start_from.json                 by what the model that is adapted, or learnt from, is known
WORKDIR/latents.json, WORKDIR/latents/  scale and statistics; the cache
WORKDIR/evaluation/0000                 pictures with their prompts, and results.json
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_jax import build, scoring
from ldm_jax.api.load import resolve
from ldm_jax.experiment import evaluators, starting, unsaid
from ldm_jax.experiment.diffusion import train_diffusion
from ldm_jax.experiment.evaluation import evaluate
from ldm_jax.experiment.first_stage import check_judge, train_first_stage
from ldm_jax.experiment.latents import measure_latents
from ldm_jax.experiment.stage import Experiment
from ldm_jax.primitives.files import HUB, folder_place, is_address, of_this_machine
from ldm_jax.training import distributed
from ldm_jax.training.bucket import stage_folder
from ldm_jax.training.metrics import clock
from ldm_jax.workdir import flatten, is_path, summary

MODELS = ("first_stage.path", "first_stage_train.start_from", "diffusion_train.start_from")
STAGES = {"first_stage": train_first_stage, "latents": measure_latents, "diffusion": train_diffusion, "evaluation": evaluate}


def run(config: Mapping[str, Any], workdir: Path, script: str = "") -> None:
    """Runs the stages of `config`; those already finished in `workdir` are passed over. `script`: the text of a file that gives
    this config, kept as WORKDIR/config.py.

    Raises:
      ValueError: a config that can't work, a working directory of another config, data that don't fit; before any compile.
      training.loop.Interrupted: asked to stop; the same call goes on from there.
      OSError: something can't be written; once it can, the same call goes on.
    """
    began = time.monotonic()
    logging.getLogger("absl").setLevel(logging.ERROR)  # where TFDS reports its routine; Orbax: see `Checkpoints`
    check(config, Path(workdir))
    try:
        with Experiment(config, Path(workdir), script) as experiment:
            for name in config["stages"]:
                STAGES[name](experiment)
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(workdir)  # a disk that is full doesn't say where
        raise
    took = clock(time.monotonic() - began)
    distributed.on_first(  # which alone writes
        "summary", lambda: experiment.say(f"\nFinished in {took}. {summary(experiment.workdir, experiment.example())}")
    )


def check(config: Mapping[str, Any], workdir: Path) -> None:
    """ValueError for a config that can't work in this working directory, before any data are read or anything compiles."""
    build.check(config)
    check_places(config, workdir)
    check_start(config, workdir)


def check_places(config: Mapping[str, Any], workdir: Path) -> None:
    """ValueError or FileNotFoundError where the working directory or a path of the config is an address, and for a first stage
    to be used that isn't there; OSError where the working directory can't be made or written into."""
    folder_place(workdir, "--workdir")
    for name, value in flatten(config).items():
        # TFDS reads from buckets itself, and models are fetched
        itself = (name, config["data"]["source"]) == ("data.path", "tfds") or (name in MODELS and is_address(value))
        for path in value if isinstance(value, list | tuple) else [value]:  # of a tokenizer for each text encoder
            if is_path(name) and path and not itself:
                of_this_machine(path, f"config.{name}")
    if (path := config["first_stage"]["path"]) and config["first_stage"]["kind"] != "none":
        resolve(path, workdir, "config.first_stage.path")
    if build.is_told(config):
        build.make_condition(config).check_files(workdir)


def check_start(config: Mapping[str, Any], workdir: Path) -> None:
    """ValueError for what a later stage needs and isn't there, before an earlier one is trained: the model that a stage which
    has not begun is to start from, the networks that look at pictures, and the numbers that are to judge."""
    for stage in (name for name in ("first_stage", "diffusion") if name in config["stages"]):
        path = config[f"{stage}_train"]["start_from"]
        kind = build.few_steps_kind(config) if stage == "diffusion" else None
        begun = stage_folder(workdir, stage).exists() and not (kind and kind.teacher)  # a teacher is needed all along
        there = path.startswith(HUB) or is_address(path) or Path(path).expanduser().exists()
        if path and not path.startswith(HUB) and Path(path).expanduser().resolve() == workdir.resolve():
            raise ValueError(
                f"config.{stage}_train.start_from={path!r} is the working directory itself: without it the same command goes "
                "on there; to start from what is trained there, give another --workdir"
            )
        if path and not begun and not there:
            raise ValueError(
                f"config.{stage}_train.start_from={path!r}: there is no such file or folder; train that first, or start from "
                f"nothing with --config.{stage}_train.start_from="
            )
    if "first_stage" in config["stages"]:
        check_judge(config)
    if "diffusion" in config["stages"]:
        evaluators.check(config, workdir)
        if not stage_folder(workdir, "diffusion").exists():
            unsaid.check(config, workdir)
        starting.check_moved(config, workdir)
    measured = config["evaluation"]
    if "evaluation" in config["stages"] and measured.get("num", 0):
        try:
            scoring.check(measured["features"], build.with_lists(config), workdir / "evaluation")
        except (ValueError, FileNotFoundError) as error:
            said = str(error).rstrip(".")
            raise type(error)(f"config.evaluation: {said}; config.evaluation.num=0 measures nothing") from None
