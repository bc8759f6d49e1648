"""The stage between: the scale of the latents, and their cache."""

import functools
import itertools
import json
import time
from typing import Any

import jax

from ldm_jax import build, latents
from ldm_jax.data.latent_cache import hash_arrays, latent_cache
from ldm_jax.data.pipeline import batches
from ldm_jax.experiment.stage import Experiment

PyTree = Any


def measure_latents(experiment: Experiment) -> None:
    """Estimates scale and statistics over many batches; encodes the training set if config.latents.cache."""
    config, section = experiment.config, experiment.config["latents"]
    path = experiment.workdir / "latents.json"
    stage, params = build.make_first_stage(config), experiment.first_stage_params()
    if not path.is_file():
        key = jax.random.key(config["seed"])
        batch_size = config["diffusion_train"]["batch_size"]

        @jax.jit
        def encode(params, images, key):
            encoded = stage.encode(params, images)
            return latents.sample_posterior(encoded["moments"], key) if "moments" in encoded else encoded["latents"]

        def draws():
            source, transform = experiment.sources["train"], build.make_transform(config)
            numbered = enumerate(batches(source, transform, batch_size, config["seed"]))
            for i, batch in itertools.islice(numbered, section["scale_batches"]):
                yield jax.device_get(encode(params, batch["image"], jax.random.fold_in(key, i)))

        found = latents.measure(draws())
        scale = section["scale"] or found.scale
        path.write_text(
            json.dumps({"scale": scale, "shift": section["shift"], "count": found.count, "mean": found.mean, "std": found.std})
        )
        experiment.say(f"latents: scale {scale:.5f} from {found.count} images" + (" (config)" if section["scale"] else ""))
    if section["cache"] and stage.module is not None:
        cache = open_cache(experiment, stage, params)
        experiment.say(f"latents: {len(cache)} in {experiment.workdir / 'latents'}")


def open_cache(experiment: Experiment, stage: build.FirstStage, params: PyTree):
    if jax.process_count() > 1:
        raise ValueError("config.latents.cache=True is for one process; make the cache with one, or set it to False")
    encode = jax.jit(lambda params, images: next(iter(stage.encode(params, images).values())))
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    began = time.monotonic()

    def report(done: int, total: int):
        if done == total:
            experiment.say(f"latents: {total} images encoded in {time.monotonic() - began:.0f} s")

    return latent_cache(
        experiment.workdir / "latents",
        experiment.sources["train"],
        build.make_transform(experiment.config),
        functools.partial(encode, params),
        {"first_stage": hash_arrays(named)},
        report=report,
    )
