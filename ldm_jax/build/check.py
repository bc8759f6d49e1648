"""What can be said of a config before anything compiles: how large it is, and whether it can work."""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from ldm_jax import diffusion, models
from ldm_jax.build.conditioner import KINDS, make_conditioning
from ldm_jax.build.diffusion import example_inputs, make_network, make_objective, make_recipe
from ldm_jax.build.first_stage import make_first_stage, make_first_stage_training
from ldm_jax.build.options import choose, make_stage_optimizer

TRAINABLE = ("none", "class", "label", "text")


def parameter_counts(config: Mapping[str, Any]) -> dict[str, int]:
    """How many parameters each network has ("unet" or "dit", "conditioner", "encoder", "decoder", "first_stage"), without
    allocating any. What a config does not have is left out."""
    counts = {}
    stage = make_first_stage(config)
    if stage.module is not None:
        shapes = jax.eval_shape(stage.init, jax.random.key(0))
        counts |= {name: models.count(shapes[name]) for name in ("encoder", "decoder")}
        counts["first_stage"] = models.count(shapes)
    if "network" in config and config["network"].get("kind"):
        counts[config["network"]["kind"]] = models.count(models.shapes(make_network(config), *example_inputs(config)))
        conditioner = jax.eval_shape(make_conditioning(config).init, jax.random.key(0))
        if conditioner:
            counts["conditioner"] = models.count(conditioner)
    return counts


def check(config: Mapping[str, Any]) -> None:
    """Raises ValueError for what can't work, before any data are read or anything compiles."""
    stages = ("first_stage", "latents", "diffusion", "evaluation")
    for name in config["stages"]:
        choose(dict.fromkeys(stages), name, "config.stages")
    stage = make_first_stage(config)
    size = config["data"]["image_size"]
    stage.latent_shape(size, size)
    if "first_stage" in config["stages"] and not config["first_stage"]["path"]:
        if stage.module is not None:
            make_first_stage_training(config)
    if "diffusion" in config["stages"]:
        network, section = make_network(config), config["diffusion"]
        if choose(KINDS, config["conditioner"]["kind"], "config.conditioner.kind") not in TRAINABLE:
            raise ValueError(
                f"config.conditioner.kind={config['conditioner']['kind']!r}: there is no training pipeline for it; models "
                f"of this kind can be loaded and sampled. Trained here: {', '.join(TRAINABLE)}"
            )
        if network.out_channels != stage.channels:
            raise ValueError(
                f"config.network.out_channels={network.out_channels}: the first stage's latents have {stage.channels} channels"
            )
        make_objective(config)
        make_stage_optimizer(config["diffusion_train"])
        diffusion.parameterization.coefficients(section["prediction"], diffusion.Level(0.0, 1.0, 0.5))
        jax.eval_shape(functools.partial(models.initialize, network), jax.random.key(0), *example_inputs(config))
        make_recipe(config).grid(config["sampling"]["steps"])
