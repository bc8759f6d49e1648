"""Diffusers folders: a model_index.json, and a folder for each component with its config and weights.

Old files name the attention of autoencoders and unconditional U-Nets query, key, value, proj_attn; CLIP has its
`text_model.` prefix or not; the orphaned flax files have flax's names and axis order. All become one spelling here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.weights import compvis_files, files, found_names, layouts, naming, pipelines, towers
from ldm_jax.weights.descriptions import diffusers
from ldm_jax.weights.stored import Stored

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))")
OWN_CONDITIONER = "conditioner"  # a folder for conditioners that diffusers lacks; its pipelines pass it by
_READ_ELSEWHERE = ("tokenizer", "scheduler")
# The parts that sampling needs. Others (safety_checker, feature_extractor, image_encoder, ...) are left out with a note.
_NEEDED = ("unet", "transformer", "vae", "vqvae", "text_encoder", "bert")
_LATENT = ("StableDiffusion", "LDM", "DiT")  # how the names of pipelines begin that draw latents
# Parts without which a pipeline of these names is another model than the one that would be read.
_TOWERS = ("text_encoder_2", "text_encoder_3", "tokenizer_2", "prior", "controlnet", "low_res_scheduler", "transformer_2")


def read_pipeline(folder: Path, notes: list[str]) -> tuple[dict, dict]:
    """The description and the parameters of a whole pipeline."""
    index = files.read_json(folder / "model_index.json")
    pipeline = index.get("_class_name", "")
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and entry and entry[0]}
    description: dict[str, dict] = {}
    params: dict[str, dict] = {}
    size = None  # of the latents that the network was trained for
    several = towers.of_pipeline(pipeline)  # which are read together
    together = {*several, *map(towers.tokenizer, several)}
    if unread := [name for name in _TOWERS if name in parts and name not in together]:
        raise ValueError(f"{folder}: a {pipeline} needs its {unread[0]}, which is not read; such models are not supported")
    read = (*_NEEDED, *_READ_ELSEWHERE, *together)
    unused = [name for name in parts if name not in read and not _is_network(folder / name)]
    found_names.left_out(unused, "sampling", notes)
    for name in parts:
        if name in unused or name in _READ_ELSEWHERE or name in together:
            continue
        part, tree = read_component(folder / name, notes)
        twice = [key for key in part if key in description]
        if twice:
            raise ValueError(f"{folder}: {pipeline} has two parts that are a {twice[0]}; such pipelines are not supported")
        description |= part
        params |= tree
        if "network" in part and isinstance(side := _json(folder / name / "config.json").get("sample_size"), int | list):
            size = (side, side) if isinstance(side, int) else tuple(side)
    if (folder / OWN_CONDITIONER / "config.json").is_file() and "conditioner" not in description:
        part, tree = read_component(folder / OWN_CONDITIONER, notes)
        description, params = description | part, params | tree
    if "scheduler" in parts:
        path = folder / "scheduler" / "scheduler_config.json"
        description["scheduler"] = pipelines.scheduler_of(pipeline, _json(path))
        description["diffusion"] = diffusers.scheduler(description["scheduler"], str(path))
    if "network" not in description:
        raise ValueError(f"{folder}: {pipeline} has no U-Net or transformer among its parts {', '.join(parts)}")
    if several:
        description["conditioner"], params["conditioner"] = _towers(folder, index, parts, description["network"], notes)
    params.setdefault("conditioner", {})
    if "first_stage" not in description and pipeline.startswith(_LATENT):
        raise ValueError(f"{folder}: a {pipeline} without its first stage (vae or vqvae), whose latents it draws; copy it")
    if "first_stage" not in description:
        description |= {"first_stage": {"kind": "none", "path": ""}, "latents": {"scale": 1.0, "shift": 0.0}}
    if "SuperResolution" in pipeline:  # it ignores the autoencoder's scaling_factor
        description["latents"] = {"scale": 1.0, "shift": 0.0}
    if (folder / "tokenizer").is_dir() and description.get("conditioner", {}).get("kind") in ("text", "clip_text"):
        description["conditioner"]["tokenizer"] = str(folder / "tokenizer")
    description["conditioner"] = pipelines.told(pipeline, description, str(folder))
    if description["conditioner"]["kind"] == "none" and (width := description["network"].get("context_dim")):
        raise ValueError(
            f"{folder}: the network of this {pipeline} is told {width} numbers a word, and none of its parts that are read "
            f"makes them ({', '.join(parts)}): it was saved without its text_encoder, or is told something else"
        )
    if description["conditioner"]["kind"] == "combined" and params["conditioner"]:
        params["conditioner"] = {"prompt": params["conditioner"]}
    if names := index.get("id2label"):
        description["conditioner"]["class_names"] = [str(names[key]) for key in sorted(names, key=int)]
    if size is not None:
        description["latents"]["size"] = size
    return description, params


def _towers(folder: Path, index: Mapping, parts: Mapping, network: Mapping, notes: list[str]) -> tuple[dict, dict]:
    """The conditioner of a Stable Diffusion XL or 3, and its parameters."""
    fields, trees, several = {}, {}, towers.of_pipeline(index["_class_name"])
    for name in (name for name in several if name in parts):
        part, tree = read_component(folder / name, notes)
        fields[name], trees[name] = part["conditioner"], tree["conditioner"]
    if not fields:
        raise ValueError(f"{folder}: {index['_class_name']} has none of its parts {', '.join(several)}")
    if towers.THIRD in several:
        found = towers.of_three(fields, network, str(folder))
    else:
        zero_empty = bool(index.get("force_zeros_for_empty_prompt", True))
        found = towers.conditioner(fields, network, zero_empty, str(folder))
    tokenizers = [folder / towers.tokenizer(name) for name in fields]
    if all(path.is_dir() for path in tokenizers):
        found["tokenizer"] = [str(path) for path in tokenizers]
    return found, trees


def _is_network(folder: Path) -> bool:
    """Whether a part of another name than the usual ones is a network that denoises."""
    path = folder / "config.json"
    return path.is_file() and str(files.read_json(path).get("_class_name")) in diffusers.NETWORKS


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the whole folder")
    return files.read_json(path)


def read_component(folder: Path, notes: list[str]) -> tuple[dict, dict]:
    """The part of the description and the parameters in one model folder."""
    config = _json(folder / "config.json")
    description = diffusers.component(config, str(folder / "config.json"))
    part = next(key for key in description if key != "latents")
    fields = description[part]
    tensors, flax = files.folder_tensors(folder, notes)
    if part == "conditioner" and fields["kind"] == "clip_text":
        return description, {part: _clip(fields, tensors, flax, str(folder))}
    if part == "conditioner" and fields["kind"] == "t5":  # the table of words is in the file twice
        tensors = {name: tensor for name, tensor in tensors.items() if name != "encoder.embed_tokens.weight"}
        layout = layouts.t5(fields)
        return description, {part: naming.nested(layout, naming.match(layout, tensors, str(folder)))}
    layout = compvis_files.conditioner_layout(fields) if part == "conditioner" else _layout(part, fields)
    if part == "conditioner" and fields["kind"] == "class" and "tokens_embed.weight" in tensors:
        tensors = {"embedding.weight": tensors["tokens_embed.weight"]}
    if part == "conditioner" and fields["kind"] != "text":
        return description, {part: naming.nested(layout, naming.match(layout, tensors, str(folder)))}
    tensors = _from_flax(layout, tensors) if flax else _modern(tensors)
    if part == "network" and fields["kind"] == "unet":
        tensors = {_vector_embedding(name): tensor for name, tensor in tensors.items()}
    if part == "network" and fields["kind"] == "dit" and diffusers.PRIVATE in config:
        tensors = layouts.dit_from_diffusers(tensors, fields)
    if part == "network" and fields["kind"] == "mmdit":
        tensors = layouts.mmdit_swapped(tensors, fields)
    canonical = naming.from_diffusers(layout, tensors, str(folder))
    return description, {part: naming.nested(layout, naming.match(layout, canonical, str(folder)))}


def _layout(part: str, fields: Mapping[str, Any]) -> naming.Layout:
    if part == "first_stage":
        return layouts.autoencoder(fields)
    return layouts.network(fields)


def _clip(fields: dict, tensors: Mapping[str, Stored], flax: bool, where: str) -> dict:
    if flax:
        tensors = _from_flax(layouts.clip_text(fields), tensors)
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    if "text_projection.weight" in tensors:
        fields["projection_dim"] = tensors["text_projection.weight"].shape[0]
    layout = layouts.clip_text(fields)
    return naming.nested(layout, naming.match(layout, tensors, where))


def _modern(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors with the attention names of today."""
    result = {}
    for name, tensor in tensors.items():
        found = _OLD_NAME.fullmatch(name)
        result[found[1] + _OLD_ATTENTION[found[2]] + found[3] if found else name] = tensor
    return result


def _vector_embedding(name: str) -> str:
    """class_embed_type "projection" and addition_embed_type "text_time" are the same two layers."""
    return re.sub(r"^class_embedding\.(linear_[12]\.)", r"add_embedding.\1", name)


def _from_flax(layout: naming.Layout, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Flax's arrays under diffusers' torch names, in torch's axis order; names that match none stay as they are."""
    spelled = {"/".join(naming.Weight(name, (), weight.kind, ()).path): name for weight in layout for name in weight.diffusers}
    result = {}
    for name, tensor in tensors.items():
        for old, new in _OLD_ATTENTION.items():
            name = re.sub(rf"(attentions_\d+\.){old}\.", rf"\g<1>{new}.", name)
        key = "/".join(naming.Weight(name, (), "raw", ()).path)
        if key.endswith("/kernel"):
            axes = (1, 0) if tensor.ndim == 2 else (3, 2, 0, 1)
            shape = tuple(tensor.shape[axis] for axis in axes)
            tensor = tensor.map(lambda a, axes=axes: np.transpose(a, axes), shape)
        result[spelled.get(key, name)] = tensor
    return result
