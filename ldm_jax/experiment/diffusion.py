"""The stage that trains the diffusion model."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax import api, build
from ldm_jax.conditioning import encoded
from ldm_jax.data.pipeline import eval_batches, in_memory
from ldm_jax.data.source import Spread
from ldm_jax.data.transform import LatentTransform
from ldm_jax.experiment.latents import open_cache
from ldm_jax.experiment.pictures import draw, held_out, side_by_side
from ldm_jax.experiment.stage import Experiment
from ldm_jax.training import sharding
from ldm_jax.training.loop import Hook, Report
from ldm_jax.training.metrics import image_grid
from ldm_jax.training.state import TrainState, from_loss

PyTree = Any


def train_diffusion(experiment: Experiment) -> None:
    """Trains the diffusion model on latents, from the cache or encoded on the way."""
    config, conditioning = experiment.config, experiment.conditioning
    section, stage = config["diffusion_train"], build.make_first_stage(config)
    batch_size = section["batch_size"]
    if not (experiment.workdir / "latents.json").is_file():
        raise ValueError("config.stages: 'diffusion' needs 'latents' before it, which finds the latents' scale")
    scale = json.loads((experiment.workdir / "latents.json").read_text())
    first_stage_params = experiment.first_stage_params()
    cached = config["latents"]["cache"] and stage.module is not None
    task = build.make_task(config)
    # a conditioner that is not trained; its parameters are not part of the state
    frozen = {"conditioner": found} if (found := api.load_conditioner(config)) else {}
    # one object for the whole run: its compiled functions belong to it
    ldm = api.LatentDiffusion(config, {}, conditioning, scale["scale"], scale["shift"])

    @jax.jit
    def to_inputs(params: PyTree, inputs: PyTree) -> PyTree:
        return encoded(conditioning, inputs, lambda images: ldm.encode({"first_stage": params}, images))

    null = to_inputs(first_stage_params, conditioning.null)
    loss_fn = build.make_diffusion_loss(config, dataclasses.replace(conditioning, null=null), scale["scale"], scale["shift"])

    @jax.jit
    def encode(params: PyTree, batch: PyTree) -> PyTree:
        known = {name: batch[name] for name in ("moments", "latents") if name in batch}
        return {**(known or stage.encode(params, batch["image"])), "inputs": to_inputs(params, conditioning.from_batch(batch))}

    def latent_batch(batch: Mapping[str, np.ndarray]) -> PyTree:
        return encode(first_stage_params, sharding.to_device(experiment.mesh, dict(batch)))

    def make_batches(start: int) -> Iterator[PyTree]:
        if cached:
            source = open_cache(experiment, stage, first_stage_params)
            if config["data"]["in_memory"]:
                source = in_memory(source, lambda row: row)
            transform = LatentTransform(config["data"]["flip"], conditioning.tokenize, task=task)
        else:
            source, transform = experiment.sources["train"], build.make_transform(config, conditioning.tokenize, task)
        return map(latent_batch, experiment.batches(source, transform, batch_size, start))

    def make_hooks() -> list[Hook]:
        validation_loss = jax.jit(lambda params, batch, key: loss_fn({**frozen, **params}, batch, key)[1]["loss_simple"])
        transform = build.make_transform(config, conditioning.tokenize, task)
        validation = Spread(experiment.sources["validation"], config["log"]["validation_images"])
        shown = held_out(experiment, 16)

        def validate(state: TrainState) -> Report:
            losses = []
            for i, batch in enumerate(eval_batches(validation, transform, batch_size)):
                batch.pop("mask")  # the last batch is filled up with its last row
                # the same noise and times at every validation: only the weights differ
                losses.append(float(validation_loss(state.averaged, latent_batch(batch), jax.random.key(i))))
            return Report({"validation/loss": float(np.mean(losses))}, score=float(np.mean(losses)))

        def show(state: TrainState) -> Report:
            params = {"first_stage": first_stage_params, **frozen, **state.averaged}
            images = draw(ldm, params, shown.inputs, len(shown.words), config["evaluation"]["batch_size"])
            return Report(images={"samples": (image_grid(*side_by_side(images, shown)), "\n".join(shown.words))})

        return [Hook(config["log"]["validation_every"], validate), Hook(config["log"]["images_every"], show)]

    def start(params: PyTree) -> PyTree:
        return pretrained(section["start_from"], params) if section["start_from"] else params

    init = build.make_diffusion_init(config, conditioning)
    experiment.train(
        "diffusion",
        lambda key: {name: part for name, part in init(key).items() if name not in frozen},
        from_loss(loss_fn, frozen),
        build.make_stage_optimizer(section),
        make_batches,
        make_hooks,
        constants=frozen,
        prepare=start,
    )


def pretrained(path: str, params: PyTree) -> PyTree:
    """Network and conditioner of the model at `path`, anything that `load` reads. ValueError unless shaped as `params`."""
    loaded = api.load(path).params
    found = {name: loaded[name] for name in params}
    there, here = (
        {jax.tree_util.keystr(at, simple=True, separator="/"): x.shape for at, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (found, params)
    )
    for name in {**there, **here}:
        if there.get(name) != here.get(name):
            raise ValueError(
                f"config.diffusion_train.start_from={path!r} is another model: {name} is {there.get(name)} there, "
                f"{here.get(name)} here"
            )
    return found
