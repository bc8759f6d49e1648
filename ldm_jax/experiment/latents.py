"""The stage between: the scale of the latents, and their cache."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ldm_jax import api, build, models
from ldm_jax.api.trained_on import hash_of
from ldm_jax.data.latent_cache import LatentCache, latent_cache
from ldm_jax.experiment.stage import Experiment
from ldm_jax.first_stage import FirstStage, latents, learnt
from ldm_jax.primitives.arrays import key_of
from ldm_jax.primitives.files import read_json, write_json
from ldm_jax.training import distributed, sharding
from ldm_jax.training.bucket import stage_folder
from ldm_jax.training.checkpoint_reader import steps_in

PyTree = Any


def measure_latents(experiment: Experiment) -> None:
    """Estimates scale and statistics over many batches; encodes the training set if config.latents.cache."""
    config, section = experiment.config, experiment.config["latents"]
    path = experiment.workdir / "latents.json"
    stage, params = build.make_first_stage(config), experiment.first_stage_params()
    # a network that is only adapted knows no other latents, nor would a class that it drew keep it
    adapts = build.adapts(config) or config["diffusion_train"].get("dreambooth", {}).get("prior_weight")
    if adapts and section["scale"]:
        there = api.scale_of(config["diffusion_train"]["start_from"])
        if not np.allclose(there[0], section["scale"], rtol=1e-3) or not np.allclose(there[1], section["shift"], atol=1e-6):
            raise ValueError(
                f"config.latents.scale={section['scale']}, shift={section['shift']}: the model that is adapted has {there[0]} "
                f"and {there[1]}; leave config.latents.scale at 0"
            )
    if not measured_of(experiment, params):
        found = latents.measure(draws(experiment, stage, params))
        scale, shift = section["scale"] or found.scale, section["shift"]
        if section.get("standardise"):
            scale, shift = [1 / deviation for deviation in found.std], list(found.mean)
        known = adapts or not section["scale"] and distributed.agreed(_starts_on_the_same(config, params))
        if known:
            scale, shift = api.scale_of(config["diffusion_train"]["start_from"])
        statistics = {"scale": scale, "shift": shift, "count": found.count, "mean": found.mean, "std": found.std}
        statistics |= {"first_stage": hash_of(params)}
        distributed.on_first("working directory", experiment.check_place)
        distributed.on_first("latents.json", lambda: write_json(path, statistics))
        said = "one a channel" if isinstance(scale, list) else f"{scale:.5f}"
        said += " (of the model to start from)" if known else " (config)" if section["scale"] else ""
        experiment.say(f"latents: scale {said} from {found.count} images")
    if section["cache"] and stage.module is not None:
        cache = open_cache(experiment, stage, params)
        experiment.say(f"latents: {len(cache)} in {experiment.workdir / 'latents'}")


def _starts_on_the_same(config: Any, params: PyTree) -> bool:
    """Whether the model that a training starts from has this first stage, or that of pictures which this is of films: then its
    network knows the latents by its scale."""
    if not config["diffusion_train"]["start_from"]:
        return False
    theirs = models.inflated(api.first_stage_of(config["diffusion_train"]["start_from"]), params)
    if jax.tree.map(np.shape, theirs) != jax.tree.map(np.shape, params):
        return False
    return hash_of(jax.tree.map(lambda there, here: np.asarray(there, here.dtype), theirs, params)) == hash_of(params)


def measured_of(experiment: Experiment, params: PyTree) -> bool:
    """Whether latents.json is there and of this first stage; one of an earlier version doesn't say. ValueError where it is of
    another, and a diffusion model has begun to learn that one's latents."""
    path, workdir = experiment.workdir / "latents.json", experiment.workdir
    if not distributed.agreed(path.is_file()):
        return False
    api.load_scale(workdir)  # a damaged file is named now
    found = hash_of(params)
    same = distributed.agreed(read_json(path).get("first_stage", found) == found)
    if not same and distributed.agreed(bool(steps_in(stage_folder(workdir, "diffusion")))):
        raise ValueError(
            f"the first stage has changed since {path} was measured, and the diffusion model beside it has learnt the latents "
            "of the one before: give that one back (config.first_stage), or train in another --workdir"
        )
    return same


def encoder(experiment: Experiment, encode: Callable, params: PyTree) -> Callable[[np.ndarray], np.ndarray]:
    """`encode(params, images)` for this process's images [b, H, W, 3], run on its own devices, as many rows on each."""
    mesh = sharding.make_mesh(devices=jax.local_devices())
    compiled = jax.jit(encode, in_shardings=(sharding.replicated(mesh), sharding.batch_sharding(mesh)))
    params = sharding.replicate(mesh, params)

    def run(images: np.ndarray) -> np.ndarray:
        distributed.stop_point()  # all processes encode as many batches
        rows = len(images)
        full = np.concatenate([images, np.repeat(images[-1:], -rows % mesh.size, 0)])
        return np.asarray(compiled(params, jax.device_put(full, sharding.batch_sharding(mesh))))[:rows]

    return run


def draws(experiment: Experiment, stage: FirstStage, params: PyTree):
    """Raw latents of config.latents.scale_batches batches of the training set, of all processes together."""
    config = experiment.config
    batch_size, key = config["diffusion_train"]["batch_size"], key_of(config["seed"])
    numbers = sharding.local_rows(experiment.mesh, batch_size)
    batches = experiment.batches(experiment.sources["train"], experiment.transform(), batch_size, 0)

    def encode(params: PyTree, batch: PyTree) -> jax.Array:
        images, rows, number = batch["image"], batch["row"], batch["number"][0]
        return learnt(stage, stage.encode(params, images), jax.random.fold_in(key, number), rows)

    compiled = jax.jit(encode, out_shardings=sharding.replicated(experiment.mesh))
    params = sharding.replicate(experiment.mesh, params)
    for i, batch in enumerate(itertools.islice(batches, config["latents"]["scale_batches"])):
        distributed.stop_point()
        found = {"image": batch["image"], "row": numbers.astype(np.int32), "number": np.full(len(numbers), i, np.int32)}
        yield np.asarray(compiled(params, sharding.to_device(experiment.mesh, found)))


def open_cache(
    experiment: Experiment, stage: FirstStage, params: PyTree, source: Any = None, name: str = "latents"
) -> LatentCache:
    """The latent cache of the working directory, written by all processes unless it is there: of the training set, or of
    another source under a name of its own."""
    distributed.on_first("latents", experiment.check_place)
    began = time.monotonic()

    def report(done: int, total: int):
        if done == total:
            experiment.say(f"latents: {total} images encoded in {time.monotonic() - began:.0f} s")

    return latent_cache(
        experiment.workdir / name,
        experiment.sources["train"] if source is None else source,
        experiment.transform(),
        encoder(experiment, lambda params, images: next(iter(stage.encode(params, images).values())), params),
        {"first_stage": hash_of(params)},
        on_error=experiment.config["data"]["on_error"],
        report=report,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        barrier=distributed.barrier,
        own_disks=distributed.own_disks(),
    )
