"""What the diffusion model of a working directory was trained on and does not hold itself: the model that it adapts, and a
first stage. Both may lie elsewhere and be others by now, of the same shapes."""

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build
from ldm_jax.data.latent_cache import hash_arrays
from ldm_jax.primitives.files import read_json, write_json

PyTree = Any
MODEL = "start_from.json"  # in the working directory
# how what was learnt is put onto another model, by its part
ELSEWHERE = {
    "lora": "ldm_jax.load({path!r}).with_lora(ldm_jax.load_lora({workdir!r}))",
    "control": "ldm_jax.save_control({workdir!r}, FOLDER), then ldm_jax.load({path!r}).with_control(FOLDER)",
    "word": "ldm_jax.save_embedding({workdir!r}, FILE), then ldm_jax.load({path!r}).with_embedding(FILE)",
}


def digest(params: PyTree) -> str:
    """16 hexadecimal digits that other weights change, of whatever floating-point type: SHA-256 of the parameters with one axis
    (biases, scales of norms, which every training moves) as bfloat16."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        if leaf.ndim <= 1:
            found.update(np.asarray(leaf).astype(jnp.bfloat16).tobytes())
    return found.hexdigest()[:16]


def hash_of(params: PyTree) -> str:
    """What tells one first stage from another."""
    return hash_arrays([(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)])


def is_that(workdir: Path, params: PyTree) -> bool:
    """Whether network and conditioner are of the model that a working directory has learnt from, as far as it says so."""
    path = workdir / MODEL
    return not path.is_file() or read_json(path).get("weights") == digest(params)


def remember(workdir: Path, params: PyTree) -> None:
    """Writes down the model that a training learns from."""
    write_json(workdir / MODEL, {"weights": digest(params)})


def check_model(config: Mapping[str, Any], workdir: Path, params: PyTree) -> None:
    """ValueError where the model that a working directory adapts, with `params` now, has other weights than it was adapted
    with."""
    if is_that(workdir, params):
        return
    path = config["diffusion_train"]["start_from"]
    way_out = ELSEWHERE[build.adapts(config)].format(path=str(path), workdir=str(workdir))
    raise ValueError(
        f"{workdir} adapts the model in {path}, which has other weights now than it was trained with: give those back, or put "
        f"what it learnt on these all the same: {way_out}"
    )


def look_at_first_stage(config: Mapping[str, Any], workdir: Path, params: PyTree) -> None:
    """A warning where a first stage is another than the one whose latents were measured: pictures are others."""
    path = workdir / "latents.json"
    known = read_json(path).get("first_stage") if path.is_file() else None
    if known is None:
        return
    dtype = build.first_stage_dtype(config)
    if hash_of(jax.tree.map(lambda x: np.asarray(x, dtype), params)) != known:
        there = config["first_stage"].get("path") or workdir
        warnings.warn(
            f"the first stage in {there} has changed since the diffusion model in {workdir} learnt its latents: pictures are "
            "others than those of the training",
            stacklevel=4,
        )
