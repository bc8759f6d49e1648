"""The stage that trains the diffusion model."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import api, build
from ldm_jax.data.pipeline import in_memory
from ldm_jax.experiment import evaluators
from ldm_jax.experiment.latents import open_cache
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
    scale, shift = api.load_scale(experiment.workdir)
    program = build.make_diffusion_program(config, condition)
    first_stage = experiment.first_stage_params()
    constants = {"first_stage": first_stage, "latents": {
        name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (stage.channels,)) for name, value in
        (("scale", scale), ("shift", shift))
    }}  # fmt: skip
    if adapts := "network" in program.constants:
        shapes = {name: program.constants[name] for name in ("network", "conditioner")}
        constants |= pretrained(section["start_from"], shapes, build.compute_dtype(config), (scale, shift))
    elif condition.frozen:
        constants["conditioner"] = api.load_conditioner(config, build.compute_dtype(config))
    spec = api.Specification(config, condition, scale, shift)  # one for the whole run: compiled functions belong to it
    cached = "image" not in program.batch
    source = experiment.sources["train"]
    if cached:
        source = open_cache(experiment, stage, first_stage)
        source = in_memory(source, lambda row: row) if config["data"]["in_memory"] else source

    def to_batch(batch: dict[str, np.ndarray]) -> PyTree:
        """What `program.batch` describes, over all devices."""
        if "image" in program.batch:
            found = {"image": batch["image"]}
        else:
            found = {"latents" if "latents" in program.batch else "moments": batch["moments"]}
        return sharding.to_device(experiment.mesh, found | {"inputs": condition.from_batch(batch)})

    def make_batches(start: int) -> Iterator[PyTree]:
        transform = (build.make_latent_transform if cached else build.make_transform)(config, condition)
        return map(to_batch, experiment.batches(source, transform, section["batch_size"], start))

    def make_hooks() -> list[Hook]:
        return evaluators.hooks(evaluators.Model(experiment, spec, constants))

    def start(params: PyTree) -> PyTree:
        return pretrained(section["start_from"], params) if section["start_from"] and not adapts else params

    experiment.train("diffusion", program, make_batches, make_hooks, constants, start)


def pretrained(path: str, params: PyTree, dtype: Any = None, latents: tuple[Any, Any] | None = None) -> PyTree:
    """Network and conditioner of the model at `path`, anything that `load` reads. ValueError unless shaped as `params`, and
    with latents of this scale and shift where they are given: a network that is only adapted knows no others."""
    ldm = api.load_whole(path, dtype=dtype)
    loaded, spec = ldm.params, ldm.specification
    if latents is not None and not all(
        np.allclose(there, here, rtol=1e-3, atol=1e-6) for there, here in zip((spec.scale, spec.shift), latents)
    ):
        raise ValueError(
            f"config.latents: scale {latents[0]} and shift {latents[1]}, where the model that is adapted ({path}) has "
            f"{spec.scale} and {spec.shift}: leave config.latents.scale at 0"
        )
    found = {name: loaded.get(name, part) for name, part in params.items()}
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
