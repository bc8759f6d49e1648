"""ControlNets (Zhang et al. 2023) on a loaded model: pictures that say where things are, beside its own condition.

    steered = ldm.with_control("control_canny.safetensors")
    cond = steered.embed(steered.params, ["a red bird"]) | steered.control(edges, scale=0.8)
    images = steered.sample(steered.params, key, cond)
"""

import copy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, weights
from ldm_jax.api.pretrained import on_device
from ldm_jax.api.specification import Specification
from ldm_jax.conditioning.pictures import check_range

PyTree = Any


def with_control(spec: Specification, params: PyTree, path: str | Path) -> tuple[Specification, PyTree]:
    """A specification with the ControlNet of a diffusers folder or a single file, and `params` with its own as the part
    "control", of the network's type. ValueError if it is for another network, or this model has one already."""
    if spec.control is not None:
        raise ValueError(
            f"{path}: this model has a ControlNet already, and one steers at a time: give it to the model that has none"
        )
    fields, found = weights.read_control(path, spec.config["network"])
    if (halved := 2 ** (len(fields["hint_channels"]) - 1)) != spec.first_stage.factor:
        raise ValueError(f"{path}: shrinks its pictures {halved} times, this model {spec.first_stage.factor} times")
    dtype = jax.tree.leaves(params["network"])[0].dtype
    steered = copy.copy(spec)
    steered.control = build.make_network({**spec.config, "network": fields})
    return steered, params | {"control": on_device(found, dtype)}


def control(spec: Specification, images: jax.Array, scale: float | jax.Array = 1.0) -> dict[str, jax.Array]:
    """What joins a cond: pictures [B, H, W, 3] in [-1, 1] for the ControlNet to see, of the size to draw, and by how much its
    answer counts, a number or [B]; traced."""
    if spec.control is None:
        raise ValueError("this model has no ControlNet: ldm.with_control(path) gives it one")
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    factor = spec.first_stage.factor
    fits = images.ndim == 4 and images.shape[-1] == 3 and not any(side % factor for side in images.shape[1:-1])
    if not fits or not jnp.issubdtype(images.dtype, jnp.floating):
        kind = f"{images.dtype.name} {list(images.shape)}"
        raise ValueError(f"pictures for a ControlNet are float [B, H, W, 3], sides multiples of {factor}; got {kind}")
    check_range(images, "images")
    strength = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), (len(images),))
    return {"hint": (jnp.asarray(images, jnp.float32) + 1) / 2, "hint_scale": strength}
