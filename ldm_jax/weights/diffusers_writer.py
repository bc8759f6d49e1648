"""Writing a diffusers folder: configs, safetensors weights, tokenizer files, model_index.json."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.weights import (
    compvis_files,
    files,
    layouts,
    naming,
    pipelines,
    safetensors_files,
    tokenizer_files,
    towers,
)
from ldm_jax.weights.descriptions import diffusers
from ldm_jax.weights.descriptions import diffusers_export as export
from ldm_jax.weights.diffusers_files import OWN_CONDITIONER

_WITHOUT_ENCODER = ("retrieval",)  # their description is kept all the same


def write(folder: str | Path, description: Mapping, params: Mapping) -> None:
    """Writes the parts in `params` ({"network", "first_stage", "conditioner"}) as diffusers and transformers read them.

    A whole model becomes the folder of the pipeline that draws with it (`pipelines`); one part alone becomes a model folder.
    Leaves are read one at a time. Raises ValueError, before anything is written, for what diffusers cannot express.
    """
    folder = Path(folder)
    if "network" not in params or not ("first_stage" in params or "diffusion" in description):
        return _write_alone(folder, description, params)
    description = {"first_stage": {"kind": "none"}, "latents": {"scale": 1.0}, "conditioner": {"kind": "none"}, **description}
    pipeline = pipelines.pipeline_of(description)
    index: dict[str, Any] = {"_class_name": pipeline.name, "_diffusers_version": export.VERSION}
    fields = {**description["network"], "image_size": pipelines.latent_size(description)}
    name, config = export.network(fields, pipelines.DIT_CLASSES)
    if description["conditioner"]["kind"] == "sdxl":
        config = export.with_added_text(config, description["conditioner"])
    scheduler = _scheduler(description, pipeline.name)
    stage = pipeline.stage and export.first_stage(description["first_stage"], description["latents"])[1]
    index[name] = ["diffusers", config["_class_name"]]
    _component(folder / name, config, _network_tensors(fields, params["network"], config))
    if stage:
        index[pipeline.stage] = ["diffusers", stage["_class_name"]]
        _component(folder / pipeline.stage, stage, _first_stage(description, params))
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    _json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index |= _conditioner(folder, pipeline, description["conditioner"], params.get("conditioner", {}))
    if "towers" in description["conditioner"]:
        index |= towers.index(description["conditioner"])
    elif pipeline.name.startswith("StableDiffusion"):
        index = {"text_encoder": [None, None], "tokenizer": [None, None]} | index
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
        index["requires_safety_checker"] = False
    if pipeline.name == "DiTPipeline" and description["conditioner"].get("class_names"):
        index["id2label"] = {str(i): name for i, name in enumerate(description["conditioner"]["class_names"])}
    _json(folder / "model_index.json", index)


def _write_alone(folder: Path, description: Mapping, params: Mapping) -> None:
    if "network" in params:
        _, config = export.network(description["network"])
        return _component(folder, config, _network_tensors(description["network"], params["network"], config))
    if "first_stage" in params:
        _, config = export.first_stage(description["first_stage"], description.get("latents", {"scale": 1.0}))
        return _component(folder, config, _first_stage(description, params))
    raise ValueError(f"nothing to write: params has the parts {', '.join(params)}; network or first_stage is needed")


def _scheduler(description: Mapping, pipeline: str) -> dict:
    """The scheduler's config that the model came with, unless it has been trained otherwise since; or the one that draws what
    config.sampling draws, where there is one; or DDIM's."""
    came_with, diffusion = description.get("scheduler"), description["diffusion"]
    flow_match = description["network"]["kind"] == "mmdit"  # whose pipeline takes no other
    if came_with is not None and came_with["_class_name"].startswith("FlowMatch") == flow_match:
        known = diffusers.scheduler(came_with, "scheduler")
        if all(diffusion.get(name) == value for name, value in known.items()):
            return dict(came_with)
    if flow_match:
        return export.flow_match(diffusion)
    sampling = description.get("sampling")
    if sampling and pipeline.startswith("StableDiffusion") and (found := export.solver(diffusion, sampling)):
        return found
    return export.scheduler(diffusion, sampling)


def _network_tensors(fields: Mapping[str, Any], tree: Mapping, config: Mapping) -> dict:
    """A network's tensors under diffusers' names."""
    layout = layouts.network(fields)
    if fields.get("num_classes") == "sequential" and "addition_embed_type" not in config:
        layout = [_projection(weight) for weight in layout]
    tensors = naming.to_diffusers(layout, naming.flattened(layout, tree, "network"))
    if fields["kind"] == "mmdit":
        return layouts.mmdit_swapped(tensors, fields)
    return layouts.dit_of_diffusers(tensors, fields, config["num_embeds_ada_norm"]) if fields["kind"] == "dit" else tensors


def _projection(weight: naming.Weight) -> naming.Weight:
    names = tuple(name.replace("add_embedding.", "class_embedding.", 1) for name in weight.diffusers)
    return naming.Weight(weight.name, weight.shape, weight.kind, names, weight.heads)


def _first_stage(description: Mapping, params: Mapping) -> dict:
    layout = layouts.autoencoder(description["first_stage"])
    tensors = naming.flattened(layout, params["first_stage"], "first stage")
    return naming.to_diffusers(layout, tensors)


def _conditioner(folder: Path, pipeline: pipelines.Pipeline, fields: Mapping[str, Any], tree: Mapping) -> dict[str, list[str]]:
    """Writes the conditioner; returns its entries of model_index.json."""
    if fields["kind"] == "combined":  # of a prompt and of pictures, which have no weights
        name, fields = next((name, part) for name, part in fields["parts"].items() if part["kind"] == "clip_text")
        tree = tree[name]
    if not tree and fields["kind"] not in _WITHOUT_ENCODER:
        return {}
    if "towers" in fields:
        return _towers(folder, fields, tree)
    layout = compvis_files.conditioner_layout(fields)
    tensors = naming.flattened(layout, tree, "conditioner")
    encoder = folder / (pipeline.encoder or OWN_CONDITIONER)
    if fields["kind"] == "clip_text":
        if fields.get("layer", "last") != "last":
            fields, layout, tensors = _without_last_layer(fields, tensors)
        config = export.clip_text(fields)
        _component(encoder, config, naming.to_diffusers(layout, tensors), "model")
        entries = {pipeline.encoder: ["transformers", config["architectures"][0]]}
        return entries | _tokenizer(folder, fields, "CLIPTokenizer")
    if fields["kind"] == "text":
        _component(encoder, export.ldm_bert(fields), naming.to_diffusers(layout, tensors), "model")
        entries = {pipeline.encoder: ["latent_diffusion", "LDMBertModel"]}
        return entries | _tokenizer(folder, fields, "BertTokenizer")
    if fields["kind"] == "class":
        zero = np.zeros((1, fields["embed_dim"]), np.float32)
        table = {"tokens_embed.weight": tensors["embedding.weight"], "positions_embed.weight": zero}
        _component(encoder, export.class_table(fields), table, "model")
        _json(folder / "tokenizer" / "tokenizer.json", tokenizer_files.of_classes(fields))
        _json(folder / "tokenizer" / "tokenizer_config.json", tokenizer_files.SETTINGS)
        return {pipeline.encoder: ["transformers", "OpenAIGPTModel"], "tokenizer": ["transformers", tokenizer_files.CLASS]}
    _component(encoder, {"_class_name": "LatentDiffusionConditioner", **fields}, tensors)
    return {}


def _towers(folder: Path, fields: Mapping[str, Any], tree: Mapping) -> dict[str, list[str]]:
    """The text encoders of Stable Diffusion XL or 3, each with its tokenizer."""
    entries: dict[str, list[str]] = {}
    paths = fields.get("tokenizer") or [None] * len(fields["towers"])
    for (name, tower), path in zip(fields["towers"].items(), paths):
        layout, of_t5 = layouts.tower(tower), name == towers.THIRD
        config = export.t5(tower) if of_t5 else export.clip_text(tower)
        tensors = naming.flattened(layout, tree[name], name)
        _component(folder / name, config, naming.to_diffusers(layout, tensors), "model")
        entries[name] = ["transformers", config["architectures"][0]]
        if path:
            own = towers.tokenizer(name)
            shutil.copytree(path, folder / own, dirs_exist_ok=True)
            entries[own] = ["transformers", "T5TokenizerFast" if of_t5 else "CLIPTokenizer"]
    return entries


def _without_last_layer(fields: Mapping[str, Any], tensors: Mapping) -> tuple[dict, naming.Layout, dict]:
    """CLIP read at its last but one layer is CLIP without its last layer, which is how diffusers has it."""
    fields = {**fields, "num_hidden_layers": fields["num_hidden_layers"] - 1, "layer": "last"}
    layout = layouts.clip_text(fields)
    return fields, layout, {weight.name: tensors[weight.name] for weight in layout}


def _tokenizer(folder: Path, fields: Mapping[str, Any], name: str) -> dict[str, list[str]]:
    """Copies the tokenizer's files, if they are on this machine."""
    if not fields.get("tokenizer"):
        return {}
    source = Path(fields["tokenizer"])
    if source.is_dir():
        shutil.copytree(source, folder / "tokenizer", dirs_exist_ok=True)
        settings = source / "tokenizer_config.json"
        name = files.read_json(settings).get("tokenizer_class", name) if settings.is_file() else name
    elif source.is_file():
        _json(folder / "tokenizer" / "tokenizer.json", tokenizer_files.with_ends(files.read_json(source)))
        name = "PreTrainedTokenizerFast"
        config = {"tokenizer_class": name, "model_max_length": fields.get("max_seq_len", 77), "pad_token": "[PAD]"}
        _json(folder / "tokenizer" / "tokenizer_config.json", config)
    else:
        return {}
    return {"tokenizer": ["transformers", name]}


def _component(folder: Path, config: Mapping, tensors: Mapping, stem: str = "diffusion_pytorch_model") -> None:
    _json(folder / "config.json", config)
    safetensors_files.write(folder / f"{stem}.safetensors", dict(tensors))


def _json(path: Path, content: Mapping) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
