"""The stage that trains the diffusion model."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from ldm_jax import api, build
from ldm_jax.build import PRIOR
from ldm_jax.data.pipeline import in_memory
from ldm_jax.data.tokenizer import caption_texts
from ldm_jax.experiment import evaluators, starting
from ldm_jax.experiment.latents import measured_of, open_cache
from ldm_jax.experiment.prior import prior_source
from ldm_jax.experiment.stage import Experiment
from ldm_jax.training import sharding
from ldm_jax.training.loop import Hook

PyTree = Any


def train_diffusion(experiment: Experiment) -> None:
    """Trains the diffusion model on latents, from the cache or encoded on the way."""
    config, condition = experiment.config, experiment.condition
    section, stage = config["diffusion_train"], build.make_first_stage(config)
    if not (experiment.workdir / "latents.json").is_file():
        raise ValueError("config.stages: 'diffusion' needs 'latents' before it, which finds the latents' scale")
    first_stage, words = experiment.first_stage_params(), condition.setting.tokenizer
    if not measured_of(experiment, first_stage):
        raise ValueError("the first stage has changed since its latents were measured: config.stages needs 'latents' once more")
    scale, shift = api.load_scale(experiment.workdir)
    program = build.make_diffusion_program(config, condition)
    constants = {"first_stage": first_stage, "latents": {
        name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (stage.channels,)) for name, value in
        (("scale", scale), ("shift", shift))
    }}  # fmt: skip
    if adapts := build.adapts(config):
        shapes = {name: program.constants[name] for name in ("network", "conditioner")}
        constants |= (base := starting.base(config, shapes, (scale, shift), words))
        starting.remember(experiment, base)
    if adapts == "word":  # now, as it says what can't work
        vectors = starting.word(config, condition, constants["conditioner"], caption_texts(experiment.sources["train"]))
    if condition.frozen and not adapts:
        constants["conditioner"] = api.load_conditioner(config, build.compute_dtype(config))
    if build.TEACHER in program.constants:
        constants[build.TEACHER] = starting.teacher(config, program.constants[build.TEACHER], scale, words)
        starting.remember(experiment, constants[build.TEACHER])
    spec = api.Specification(config, condition, scale, shift)  # one for the whole run: compiled functions belong to it
    cached = "image" not in program.batch
    source = experiment.sources["train"]
    if cached:
        source = open_cache(experiment, stage, first_stage)
        source = in_memory(source, lambda row: row) if config["data"]["in_memory"] else source
    prior = None
    if PRIOR in program.batch:
        prior = prior_source(experiment)
        prior = open_cache(experiment, stage, first_stage, prior, f"{PRIOR}_latents") if cached else prior

    def to_batch(batch: dict[str, np.ndarray]) -> PyTree:
        """What `program.batch` describes, over all devices."""
        if "image" in program.batch:
            found = {"image": batch["image"]}
        else:
            found = {"latents" if "latents" in program.batch else "moments": batch["moments"]}
        found |= {name: batch[name] for name in ("augment",) if name in program.batch}
        return sharding.to_device(experiment.mesh, found | {"inputs": condition.from_batch(batch)})

    def make_batches(start: int) -> Iterator[PyTree]:
        transform = build.make_latent_transform(config, condition) if cached else experiment.transform(condition)
        batches = map(to_batch, experiment.batches(source, transform, section["batch_size"], start))
        if prior is None:
            return batches
        others = map(to_batch, experiment.batches(prior, transform, section["batch_size"], start))
        return (batch | {PRIOR: other} for batch, other in zip(batches, others))

    def make_hooks() -> list[Hook]:
        return evaluators.hooks(evaluators.Model(experiment, spec, constants))

    def start(params: PyTree) -> PyTree:
        if adapts == "word":
            return params | {"word": vectors}
        if adapts == "control":
            return params | {"control": starting.control(config, params["control"], experiment.say)}
        if not section["start_from"] or adapts:
            return params
        return starting.pretrained(config, params, words, (scale, shift), experiment.say)

    experiment.train("diffusion", program, make_batches, make_hooks, constants, start)
