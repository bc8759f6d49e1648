"""Trained models that config.diffusion_train.start_from names, for the three things that a training may do with one: go on from
it, adapt it without changing it, or learn from it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import api, build, models

PyTree = Any
TIME_SCALE = 1000.0  # times that a network is told end there, where the config has no other


def pretrained(config: Mapping[str, Any], params: PyTree) -> PyTree:
    """Network and conditioner to go on from, of anything that `load` reads; embeddings of inputs that it doesn't have
    (`models.ADDED_INPUTS`) stay what they are in `params`, which is nothing yet.

    Raises:
      ValueError: unless shaped as `params`, and told times in the same units.
    """
    path = config["diffusion_train"]["start_from"]
    ldm = api.load_whole(path)
    ours, theirs = (of.get("diffusion", {}).get("time_scale", TIME_SCALE) for of in (config, ldm.config))
    if ours != theirs:
        raise ValueError(
            f"config.diffusion.time_scale={ours}: the model to start from, {path}, is told times up to {theirs}; set it to that"
        )
    found = {name: ldm.params.get(name, part) for name, part in params.items()}
    if "network" in params:
        fresh = {name: part for name, part in params["network"].items() if name in models.ADDED_INPUTS}
        found["network"] = fresh | found["network"]
    check_shapes(path, found, params)
    return found


def base(config: Mapping[str, Any], shapes: PyTree, latents: tuple[Any, Any]) -> PyTree:
    """Network and conditioner that are adapted and stay as they are, in the arithmetic's type.

    Args:
      latents: their scale and shift. The network knows no others.

    Raises:
      ValueError: unless shaped as `shapes`, and with latents alike.
    """
    path = config["diffusion_train"]["start_from"]
    ldm = api.load_whole(path, dtype=build.compute_dtype(config))
    spec = ldm.specification
    if not all(np.allclose(there, here, rtol=1e-3, atol=1e-6) for there, here in zip((spec.scale, spec.shift), latents)):
        raise ValueError(
            f"config.latents: scale {latents[0]} and shift {latents[1]}, where the model that is adapted ({path}) has "
            f"{spec.scale} and {spec.shift}: leave config.latents.scale at 0"
        )
    found = {name: ldm.params.get(name, {}) for name in shapes}
    check_shapes(path, found, shapes)
    return found


def teacher(config: Mapping[str, Any], shapes: PyTree, scale: Any) -> PyTree:
    """Network and conditioner of the frozen model that training learns from.

    Raises:
      ValueError: one of other shapes or another process, or whose latents are scaled otherwise.
    """
    path = config["diffusion_train"]["start_from"]
    ldm = api.load_whole(path)
    ours, theirs = ({"time_scale": TIME_SCALE, **of.get("diffusion", {})} for of in (config, ldm.config))
    for name in ("schedule", "prediction", *build.SCHEDULE_OPTIONS):
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"config.diffusion.{name}={ours.get(name)!r}: the model that is learnt from, {path}, has {theirs.get(name)!r}; "
                "give both the same process"
            )
    if not np.allclose(ldm.specification.scale, scale, rtol=0.02):
        raise ValueError(
            f"config.diffusion_train.start_from={path!r}: its latents are scaled by {ldm.specification.scale}, these by "
            f"{np.asarray(scale)}; set config.first_stage.path to the first stage that it was trained with"
        )
    found = {name: ldm.params[name] for name in shapes}
    check_shapes(path, found, shapes)
    return jax.tree.map(lambda x, shape: jnp.asarray(x, shape.dtype), found, shapes)


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
