"""Writing a diffusers folder: configs, safetensors weights, tokenizer files, model_index.json."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_jax.weights import compvis_files, layouts, naming, safetensors_files
from ldm_jax.weights.descriptions import diffusers
from ldm_jax.weights.descriptions import diffusers_export as export
from ldm_jax.weights.diffusers_files import OWN_CONDITIONER


def write(folder: str | Path, description: Mapping, params: Mapping) -> None:
    """Writes the parts in `params` ({"network", "first_stage", "conditioner"}) as diffusers and transformers read them.

    A whole model becomes a pipeline folder; one part alone becomes a model folder. Leaves are read one at a time.
    Raises ValueError for what diffusers cannot express.
    """
    folder = Path(folder)
    whole = "network" in params and ("first_stage" in params or "diffusion" in description)
    if not whole:
        return _write_alone(folder, description, params)
    index: dict[str, Any] = {"_class_name": _pipeline(description), "_diffusers_version": export.VERSION}
    name, config = export.network(_sized(description))
    scheduler = _scheduler(description)
    stage = None
    if params.get("first_stage"):
        stage = export.first_stage(description["first_stage"], description["latents"])
        if description.get("conditioner", {}).get("kind") == "text":
            stage = ("vqvae", stage[1])
    index[name] = ["diffusers", config["_class_name"]]
    _component(folder / name, config, naming.to_diffusers(*_network(description["network"], params["network"])))
    if stage is not None:
        index[stage[0]] = ["diffusers", stage[1]["_class_name"]]
        _component(folder / stage[0], stage[1], _first_stage(description, params))
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    _json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index |= _conditioner(folder, description.get("conditioner", {"kind": "none"}), params.get("conditioner", {}))
    if index["_class_name"] == "StableDiffusionPipeline":
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
        index["requires_safety_checker"] = False
    _json(folder / "model_index.json", index)


def _write_alone(folder: Path, description: Mapping, params: Mapping) -> None:
    if "network" in params:
        _, config = export.network(description["network"])
        return _component(folder, config, naming.to_diffusers(*_network(description["network"], params["network"])))
    if "first_stage" in params:
        _, config = export.first_stage(description["first_stage"], description.get("latents", {"scale": 1.0}))
        return _component(folder, config, _first_stage(description, params))
    raise ValueError(f"nothing to write: params has the parts {', '.join(params)}; network or first_stage is needed")


def _scheduler(description: Mapping) -> dict:
    """The scheduler's config that the model came with, unless it has been trained otherwise since; or DDIM's."""
    came_with, diffusion = description.get("scheduler"), description["diffusion"]
    if came_with is not None:
        known = diffusers.scheduler(came_with, "scheduler")
        if all(diffusion.get(name) == value for name, value in known.items()):
            return dict(came_with)
    return export.scheduler(diffusion)


def _pipeline(description: Mapping) -> str:
    if description["network"]["kind"] == "dit":
        return "DiTPipeline"
    pipelines = {"clip_text": "StableDiffusionPipeline", "text": "LDMTextToImagePipeline"}
    pipelines["superres"] = "LDMSuperResolutionPipeline"
    return pipelines.get(description.get("conditioner", {}).get("kind"), "LDMPipeline")


def _sized(description: Mapping) -> dict:
    """The network's fields, with the size of latents that pipelines sample by default."""
    fields, stage = dict(description["network"]), description.get("first_stage", {"kind": "none"})
    if stage["kind"] != "none":
        fields.setdefault("image_size", stage["resolution"] // 2 ** (len(stage["ch_mult"]) - 1))
    return fields


def _network(fields: Mapping[str, Any], tree: Mapping) -> tuple[naming.Layout, dict]:
    layout = layouts.dit(fields) if fields["kind"] == "dit" else layouts.unet(fields)
    if fields.get("num_classes") == "sequential":
        layout = [_projection(weight) for weight in layout]
    return layout, naming.flattened(layout, tree, "network")


def _projection(weight: naming.Weight) -> naming.Weight:
    names = tuple(name.replace("add_embedding.", "class_embedding.", 1) for name in weight.diffusers)
    return naming.Weight(weight.name, weight.shape, weight.kind, names, weight.heads)


def _first_stage(description: Mapping, params: Mapping) -> dict:
    layout = layouts.autoencoder(description["first_stage"])
    tensors = naming.flattened(layout, params["first_stage"], "first stage")
    return naming.to_diffusers(layout, tensors)


def _conditioner(folder: Path, fields: Mapping[str, Any], tree: Mapping) -> dict[str, list[str]]:
    """Writes the conditioner; returns its entries of model_index.json."""
    if not tree:
        return {}
    layout = compvis_files.conditioner_layout(fields)
    tensors = naming.flattened(layout, tree, "conditioner")
    if fields["kind"] == "clip_text":
        if fields.get("layer", "last") != "last":
            fields, layout, tensors = _without_last_layer(fields, tensors)
        config = export.clip_text(fields)
        _component(folder / "text_encoder", config, naming.to_diffusers(layout, tensors), "model")
        entries = {"text_encoder": ["transformers", config["architectures"][0]]}
        return entries | _tokenizer(folder, fields, "CLIPTokenizer")
    if fields["kind"] == "text":
        _component(folder / "bert", export.ldm_bert(fields), naming.to_diffusers(layout, tensors), "model")
        entries = {"bert": ["latent_diffusion", "LDMBertModel"]}
        return entries | _tokenizer(folder, fields, "BertTokenizer")
    config = {"_class_name": "LatentDiffusionConditioner", **fields}
    _component(folder / OWN_CONDITIONER, config, tensors)
    return {}


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
    elif source.is_file():
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / "tokenizer" / "tokenizer.json")
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
