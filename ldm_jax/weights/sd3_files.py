"""Single files of Stable Diffusion 3 and 3.5 as Stability AI publishes them: what they are, by names and shapes.

    model.diffusion_model.*                 the transformer
    first_stage_model.*                     the autoencoder
    text_encoders.clip_l.transformer.*      text encoders under transformers' names, and clip_g, t5xxl; which the file may lack

Encoders that the file lacks are files of their own, clip_l.safetensors, clip_g.safetensors and t5xxl.safetensors (or
t5xxl_fp16, ...), beside it or in a folder `text_encoders` there. T5 may be missing.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.weights import files, naming, structure, towers
from ldm_jax.weights.descriptions import diffusers, published
from ldm_jax.weights.layouts import text
from ldm_jax.weights.recognise import FIRST_STAGE, NETWORK, Tensors
from ldm_jax.weights.stored import Stored

MARK = f"{NETWORK}joint_blocks.0."
PREFIX = "text_encoders."
ENCODERS = dict(zip((*towers.TOWERS, towers.THIRD), ("clip_l", "clip_g", "t5xxl")))  # what each is called in files
_ACT = {"clip_l": "quick_gelu", "clip_g": "gelu"}


def is_one(tensors: Tensors) -> bool:
    """Whether these tensors are of a whole model of this kind, but perhaps for its text encoders."""
    return any(name.startswith(MARK) for name in tensors)


def describe(path: Path, tensors: Tensors, notes: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Stored]]]:
    """The description of a file, and the tensors of its text encoders, by tower. ValueError that says what is missing."""
    stage = naming.within(tensors, FIRST_STAGE)
    if not stage:
        raise ValueError(f"{path}: it holds the transformer of Stable Diffusion 3 without a first stage ({FIRST_STAGE}*)")
    facts = published.STABLE_DIFFUSION_3
    network = structure.mmdit(naming.within(tensors, NETWORK))
    side, scheduler = facts["size"] // 8, dict(published.SCHEDULERS["Stable Diffusion 3"])
    found: dict[str, dict[str, Any]] = {}
    encoders: dict[str, dict[str, Stored]] = {}
    for tower, name in ENCODERS.items():
        own = _encoder(path, tensors, name, notes)
        if own:
            found[tower], encoders[tower] = _fields(name, own, f"{path}: {name}")
    if missing := [ENCODERS[tower] for tower in towers.TOWERS if tower not in found]:
        wanted = ", ".join(f"{name}.safetensors" for name in missing)
        raise ValueError(
            f"{path}: it lacks its text encoders {' and '.join(missing)}; put {wanted} (and "
            f"t5xxl.safetensors, for T5) beside it or into {path.parent / 'text_encoders'}, or take a file that has them"
        )
    if towers.THIRD not in found:
        notes.append("no T5 (t5xxl): prompts go through the two CLIP towers alone")
    description = {
        "network": network | {"input_size": side},
        "first_stage": structure.autoencoder(stage, facts["size"]),
        "conditioner": towers.of_three(found, network, str(path)),
        "diffusion": diffusers.scheduler(scheduler, str(path)),
        "latents": {"scale": facts["scale"], "shift": facts["shift"], "size": (side, side)},
        "scheduler": scheduler,
    }
    notes.append(f"no YAML: taken for a Stable Diffusion 3, with {network['num_heads']} heads, {facts['size']} pixels")
    return description, encoders


def _encoder(path: Path, tensors: Tensors, name: str, notes: list[str]) -> dict[str, Stored]:
    """The tensors of a text encoder under transformers' names, of the file or of one beside it; {} if there is neither."""
    if own := naming.within(tensors, f"{PREFIX}{name}."):
        return naming.within(own, "transformer.") or own
    named = re.compile(rf"{name}([._-].*)?\.safetensors")  # t5xxl_fp16, ...
    for folder in (path.parent, path.parent / "text_encoders"):
        found = [file for file in sorted(folder.glob("*.safetensors")) if named.fullmatch(file.name)]
        if found:
            best = min(found, key=lambda file: ("scaled" in file.name, "fp8" in file.name))
            notes.append(f"{name} from {best.name}")
            return files.tensors(best, notes)
    return {}


def _fields(name: str, tensors: Tensors, where: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """A text encoder's fields, and its tensors as its layout names them."""
    if name not in _ACT:  # its table of words may be there twice
        kept = {key: tensor for key, tensor in tensors.items() if key != "encoder.embed_tokens.weight"}
        return {"kind": "t5"} | text.t5_sizes(kept, where), kept
    kept = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    kept = {key: tensor for key, tensor in kept.items() if not key.endswith(("position_ids", "logit_scale"))}
    if name == "clip_l" and "text_projection.weight" not in kept:  # it is published without one, and pooled as it is
        width = text.clip_sizes(kept, where)["hidden_size"]
        kept["text_projection.weight"] = Stored((width, width), np.dtype(np.float32), lambda: np.eye(width, dtype=np.float32))
    fields = {"kind": "clip_text", "hidden_act": _ACT[name], **text.clip_sizes(kept, where)}
    return fields | ({"pad_token_id": towers.OPENCLIP_PAD} if name == "clip_g" else {}), kept
