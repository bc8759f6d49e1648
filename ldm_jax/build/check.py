"""What can be said of a config before anything compiles: how large it is, and whether it can work."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ldm_jax import diffusion, models
from ldm_jax.build.conditioner import make_conditioning
from ldm_jax.build.data import make_task
from ldm_jax.build.diffusion import example_inputs, make_network, make_objective, make_recipe
from ldm_jax.build.first_stage import make_first_stage, make_first_stage_training
from ldm_jax.build.options import choose, make_stage_optimizer


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
    inception = config["evaluation"].get("inception_path", "")
    if inception and not Path(inception).exists():
        raise ValueError(
            f"config.evaluation.inception_path={inception!r}: no such file. The one to have is pytorch-fid's, "
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
        )
    if "first_stage" in config["stages"] and not config["first_stage"]["path"]:
        if stage.module is not None:
            make_first_stage_training(config)
            jax.eval_shape(stage.init, jax.random.key(0))
    if "diffusion" in config["stages"]:
        network, section = make_network(config), config["diffusion"]
        if network.out_channels != stage.channels:
            raise ValueError(
                f"config.network.out_channels={network.out_channels}: the first stage's latents have {stage.channels} channels"
            )
        check_condition(config)
        make_objective(config)
        make_stage_optimizer(config["diffusion_train"])
        diffusion.parameterization.coefficients(section["prediction"], diffusion.Level(0.0, 1.0, 0.5))
        jax.eval_shape(functools.partial(models.initialize, network), jax.random.key(0), *example_inputs(config))
        make_recipe(config).grid(config["sampling"]["steps"])


NEEDED = {
    "clip_text": ("path", "tokenizer"),
    "superres": ("scale", "degradation", "noise_levels"),
    "inpaint": ("masks", "mask_area"),
    "retrieval": ("neighbours", "database"),
}


def check_condition(config: Mapping[str, Any]) -> None:
    """Raises ValueError where config.conditioner doesn't fit the data, the first stage or the network."""
    section, network, stage = config["conditioner"], make_network(config), make_first_stage(config)
    kind, side = section["kind"], config["data"]["image_size"]
    if missing := [name for name in NEEDED.get(kind, ()) if name not in section]:
        raise ValueError(f"config.conditioner lacks {', '.join(missing)}, which training kind={kind!r} needs")
    make_task(config)
    if kind in ("superres", "inpaint") and config["latents"]["cache"] and stage.module is not None:
        raise ValueError(f"config.latents.cache=True: kind={kind!r} makes its condition of the pictures; set it to False")
    if kind == "superres" and side % section["scale"]:
        raise ValueError(f"config.conditioner.scale={section['scale']} does not divide config.data.image_size={side}")
    labels = {"label": section.get("n_classes", 0) + 1, "superres": section.get("noise_levels", 0)}.get(kind, 0)
    found = network.num_classes if isinstance(getattr(network, "num_classes", None), int) else 0
    if config["network"]["kind"] == "unet" and (found < labels or bool(found) != bool(labels)):
        told = "the classes and the empty one" if kind == "label" else "the noise levels"
        raise ValueError(f"config.network.num_classes={found or None}: must be {labels or None}, {told} of config.conditioner")
    x, _, _ = example_inputs(config)
    if x.shape[-1] != stage.channels:
        raise ValueError(
            f"config.network.in_channels={network.in_channels}: must be {network.in_channels - x.shape[-1] + stage.channels}, "
            f"{stage.channels} of the latents and {network.in_channels - x.shape[-1]} of the condition"
        )
