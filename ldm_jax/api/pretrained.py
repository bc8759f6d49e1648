"""Checkpoints of the world, whole: from a file or folder to a config, parameters and conditioning, and back."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, weights
from ldm_jax.api.specification import Specification
from ldm_jax.conditioning import Condition, kind_of
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.data.tokenizer import Tokenizer, Tokenizers
from ldm_jax.primitives.choices import choose

PyTree = Any
PARTS = ("network", "first_stage", "conditioner", "diffusion", "scheduler")
TEXT = ("text", "clip_text", "sdxl")


def load(
    path: Path, *, ema: bool, config: str | Path | None, dtype: Any = None, prediction: str | None = None
) -> tuple[Specification, PyTree]:
    """A whole model: its specification and parameters, float32 or `dtype`."""
    checkpoint = weights.read(path, ema=ema, config=config, prediction=prediction)
    description = checkpoint.description
    if missing := [part for part in ("network", "first_stage", "diffusion") if part not in description]:
        raise ValueError(f"{path} holds {', '.join(description)} but no {' and no '.join(missing)}: not a whole model")
    complete = completed(description, path.stem)
    tokenizer = None
    if complete["conditioner"]["kind"] in TEXT:
        tokenizer = find_tokenizer(path, complete["conditioner"])
    if dtype is not None:
        complete["dtype"] = np.dtype(dtype).name
    condition = build.make_condition(complete, complete["conditioner"].get("class_names"), tokenizer)
    init = build.make_diffusion_init(complete, condition)
    expected = jax.eval_shape(
        lambda key: {"first_stage": build.make_first_stage(complete).init(key), **init(key)}, jax.random.key(0)
    )
    params = {name: checkpoint.params.get(name, {}) for name in expected}
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        raise ValueError(f"{path}: its arrays don't have the shapes that its configuration describes")
    stage_dtype = np.float32 if dtype is None else build.first_stage_dtype(complete)
    params = {
        name: on_device(part, stage_dtype if name == "first_stage" else dtype or np.float32) for name, part in params.items()
    }
    latents = description.get("latents", {})
    return Specification(complete, condition, latents.get("scale", 1.0), latents.get("shift", 0.0)), params


def on_device(params: PyTree, dtype: Any) -> PyTree:
    """Leaves that may still be in their files, on the default device; one at a time, and each in `dtype` from the start."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, dtype)), params)


def completed(description: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A checkpoint's description with what sampling needs besides: what the scheduler in its folder says, or CompVis's 50
    steps of DDIM."""
    parts = {part: dict(fields) for part, fields in description.items()}
    conditioner = parts.setdefault("conditioner", {"kind": "none"})
    scale = kind_of(conditioner).guidance_scale  # of the published models' own scripts
    if conditioner["kind"] == "class" and conditioner["null_label"] < 0:
        scale = 1.0
    sampling = {"sampler": "ddim", "grid": "leading", "end": "first", "steps": 50, "guidance_scale": scale}
    if "scheduler" in parts:
        sampling = {"sampler": parts["scheduler"]["_class_name"], "steps": 50, "guidance_scale": scale}
    data = {"image_size": parts["first_stage"].get("resolution", 256)}
    return {"name": name, "data": data, "sampling": sampling, **parts}


def find_tokenizer(path: Path, conditioner: dict[str, Any]) -> Tokenizer | Tokenizers | None:
    """The tokenizer that the description names, or of the folder `tokenizer` in the model's folder, or of the folder itself;
    None if there is none of the model's kind. Of models with several towers one for each, which a tower alike may share. Writes
    into `conditioner` where it was."""
    folder = path if path.is_dir() else path.parent
    if conditioner["kind"] == "sdxl":
        return find_tokenizers(folder, conditioner)
    named = [Path(conditioner["tokenizer"])] if conditioner.get("tokenizer") else []
    for place in (*named, *(folder / name for name in named), folder / "tokenizer", folder):
        if not checkpoint_tokenizers.found_in(place):
            continue
        tokenizer = checkpoint_tokenizers.load(place, conditioner.get("pad_token_id"))
        if tokenizer.is_clip == (conditioner["kind"] == "clip_text"):
            conditioner["tokenizer"] = str(place.absolute())
            return tokenizer
    conditioner.pop("tokenizer", None)
    return None


def find_tokenizers(folder: Path, conditioner: dict[str, Any]) -> Tokenizers | None:
    """CLIP's, one for each tower: where the description says, or in `tokenizer` and `tokenizer_2`, or the one that there is."""
    names, found = conditioner.pop("tokenizer", None), []
    for i, (tower, fields) in enumerate(conditioner["towers"].items()):
        own = [Path(names[i])] if names else []
        for place in (*own, folder / tower.replace("text_encoder", "tokenizer"), folder / "tokenizer", folder):
            if checkpoint_tokenizers.found_in(place):
                found.append((str(place.absolute()), checkpoint_tokenizers.load(place, fields.get("pad_token_id"))))
                break
    if len(found) < len(conditioner["towers"]) or not all(tokenizer.is_clip for _, tokenizer in found):
        return None
    conditioner["tokenizer"] = [place for place, _ in found]
    return Tokenizers(tuple(tokenizer for _, tokenizer in found))


def save(
    path: str | Path, format: str, config: Mapping, params: PyTree, scale: float, shift: float, condition: Condition
) -> None:
    """Writes the model of `config` to `path`. All of it is made beside `path` first, so that there is never half a model."""
    path = Path(path)
    writers = {"diffusers": weights.write_diffusers, "compvis": weights.write_compvis}
    write = choose(writers, format, "format")
    if format == "compvis" and path.suffix != ".ckpt":
        raise ValueError(f"path={str(path)!r}: CompVis's files are named .ckpt")
    if path.exists():
        raise ValueError(f"{path} exists already; save somewhere else")
    description = {part: dict(config[part]) for part in PARTS if part in config}
    description["latents"] = {"scale": scale, "shift": shift}
    conditioner = description["conditioner"]
    if condition.setting.class_names:
        conditioner["class_names"] = list(condition.setting.class_names)
    tokenizer = conditioner.get("tokenizer") if conditioner["kind"] in TEXT else None
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        if tokenizer:
            copied = (made if format == "compvis" else Path(scratch)) / "tokenizer"
            conditioner["tokenizer"] = str(checkpoint_tokenizers.copy(tokenizer, copied, conditioner.get("pad_token_id")))
        write(made / path.name, description, params)
        files = sorted(made.iterdir())
        if taken := [str(path.parent / file.name) for file in files if (path.parent / file.name).exists()]:
            raise ValueError(f"{', '.join(taken)} exists already; save somewhere else")
        for file in files:
            os.rename(file, path.parent / file.name)
