"""The stage that trains the diffusion model."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import api, build, models
from ldm_jax.data.pipeline import eval_batches, in_memory
from ldm_jax.data.source import Spread
from ldm_jax.experiment.latents import open_cache
from ldm_jax.experiment.pictures import draw, held_out, side_by_side
from ldm_jax.experiment.stage import Experiment
from ldm_jax.training import sharding
from ldm_jax.training.loop import Hook, Report
from ldm_jax.training.metrics import image_grid
from ldm_jax.training.program import Program
from ldm_jax.training.state import Step, TrainState

PyTree = Any
TIME_SCALE = 1000.0  # times that a network is told end there, where the config has no other


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
    if condition.frozen:
        constants["conditioner"] = api.load_conditioner(config, build.compute_dtype(config))
    if build.TEACHER in program.constants:
        constants[build.TEACHER] = teacher(config, program.constants[build.TEACHER], scale)
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
        validate = make_validation(experiment, constants)
        shown = held_out(experiment, 16)

        def show(state: TrainState) -> Report:
            fixed = {name: part for name, part in constants.items() if name not in ("latents", build.TEACHER)}
            params = {**fixed, **state.averaged}
            params = sharding.replicate(experiment.mesh, params)
            images = draw(spec, params, shown.inputs, len(shown.words), config["evaluation"]["batch_size"], experiment.mesh)
            return Report(images={"samples": (image_grid(*side_by_side(images, shown)), "\n".join(shown.words))})

        return [Hook(config["log"]["validation_every"], validate), Hook(config["log"]["images_every"], show)]

    def start(params: PyTree) -> PyTree:
        return pretrained(section["start_from"], params, config["diffusion"]) if section["start_from"] else params

    experiment.train("diffusion", program, make_batches, make_hooks, constants, start)


def make_validation(experiment: Experiment, constants: PyTree):
    """The hook that takes the loss of held-out images, with the same noise and times at every validation: only the weights
    differ. Every process loads its share of them."""
    config, condition, mesh = experiment.config, experiment.condition, experiment.mesh
    batch_size = config["diffusion_train"]["batch_size"]
    program: Program = build.make_diffusion_program(config, condition, cached=False)
    transform = build.make_transform(config, condition)
    source = Spread(experiment.sources["validation"], config["log"]["validation_images"])
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def loss_of(params: PyTree, batch: PyTree, key: jax.Array) -> jax.Array:
        step = Step(jnp.zeros((), jnp.int32), {}, jnp.arange(batch_size, dtype=jnp.int32), batch_size)
        return program.loss(params, batch, key, step)[1]["loss_simple"]

    def validate(state: TrainState) -> Report:
        params, losses = {**sharding.replicate(mesh, constants), **state.averaged}, []
        for name in program.not_averaged:  # an empty history of losses: all times count alike at every validation
            params[name] = jax.tree.map(jnp.zeros_like, params[name])
        for i, batch in enumerate(eval_batches(source, transform, batch_size, **share)):
            found = {"image": batch["image"], "inputs": condition.from_batch(batch)}
            with jax.set_mesh(mesh):
                losses.append(loss_of(params, sharding.to_device(mesh, found), jax.random.key(i)))
        loss = float(np.mean(jax.device_get(losses)))  # the host waits once, not for every batch
        return Report({"validation/loss": loss}, score=loss)

    return validate


def teacher(config: Mapping[str, Any], shapes: PyTree, scale: Any) -> PyTree:
    """Network and conditioner of config.diffusion_train.start_from, as the frozen model that training learns from. ValueError
    for one of other shapes or another process, or whose latents are scaled otherwise."""
    path = config["diffusion_train"]["start_from"]
    loaded = api.load(path)
    ours, theirs = ({"time_scale": TIME_SCALE, **of.get("diffusion", {})} for of in (config, loaded.config))
    for name in ("schedule", "prediction", *build.SCHEDULE_OPTIONS):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"config.diffusion.{name}={ours.get(name)!r}: the model that is learnt from, {path}, has {theirs.get(name)!r}; "
                "give both the same process"
            )
    if not np.allclose(loaded.specification.scale, scale, rtol=0.02):
        raise ValueError(
            f"config.diffusion_train.start_from={path!r}: its latents are scaled by {loaded.specification.scale}, these by "
            f"{np.asarray(scale)}; set config.first_stage.path to the first stage that it was trained with"
        )
    found = {name: loaded.params[name] for name in shapes}
    check_shapes(path, found, shapes)
    return jax.tree.map(lambda x, shape: jnp.asarray(x, shape.dtype), found, shapes)


def pretrained(path: str, params: PyTree, process: Mapping[str, Any]) -> PyTree:
    """Network and conditioner of the model at `path`, anything that `load` reads; the embedding of a step's length, where that
    model has none, stays what it is, which is nothing yet. ValueError unless shaped as `params`, and told times in the units of
    `process`, config.diffusion."""
    ldm = api.load(path)
    ours, theirs = (of.get("time_scale", TIME_SCALE) for of in (process, ldm.config.get("diffusion", {})))
    if ours != theirs:
        raise ValueError(
            f"config.diffusion.time_scale={ours}: the model to start from, {path}, is told times up to {theirs}; set it to that"
        )
    loaded = ldm.params
    found = {name: loaded.get(name, part) for name, part in params.items()}
    if "network" in params:
        fresh = {name: part for name, part in params["network"].items() if name in models.STEP_EMBEDDINGS}
        found["network"] = fresh | found["network"]
    check_shapes(path, found, params)
    return found


def check_shapes(path: str, found: PyTree, params: PyTree) -> None:
    """ValueError, naming the first leaf that differs, unless both are shaped alike."""
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
