"""Single files without a YAML: their description, from names and shapes alone and from what is published of such models.

    file -> parts by prefix -> structure of each (`structure`) -> family (`descriptions.published`) -> description

`compvis_files` then matches every tensor with it, as with a description from a YAML.
"""

import re
from collections.abc import Mapping
from typing import Any

from ldm_jax.weights import naming, structure, towers
from ldm_jax.weights.descriptions import published
from ldm_jax.weights.stored import Stored

Tensors = Mapping[str, Stored]
NETWORK, AVERAGE = "model.diffusion_model.", "model_ema.diffusion_model"
FIRST_STAGE, CONDITIONER, EMBEDDERS = "first_stage_model.", "cond_stage_model.", "conditioner.embedders."
CLIP = {"kind": "clip_text", "hidden_act": "quick_gelu"}
OPENCLIP = {"kind": "clip_text", "hidden_act": "gelu", "pad_token_id": towers.OPENCLIP_PAD}
# Marks of models that look like a known one, and are told or scaled otherwise.
OTHERS = {
    "edm_mean": "a Playground 2.5, whose latents are standardised for EDM's process",
    "depth_model.model.pretrained.cls_token": "a Stable Diffusion 2 told depths",
    "low_scale_model.betas": "a Stable Diffusion upscaler",
    "noise_augmentor.betas": "a Stable Diffusion unCLIP, told a picture",
    "embedder.model.visual.class_embedding": "a Stable Diffusion unCLIP, told a picture",
}

# Transformers whose single files are not read, by how the names of their blocks begin after any prefix.
TRANSFORMERS = {
    "joint_blocks.0.": "Stable Diffusion 3 alone",  # a whole model's was known before
    "double_blocks.0.": "FLUX",
    "cap_embedder.": "Lumina",
    "y_embedder.y_proj.": "PixArt or Sana",
}

# What is no model by itself, or lacks the config.json beside it, by its names, and how it is used.
PARTS = {
    r"lora_(down|up|[AB])\.|\.(hada|lokr)_|_lora\.(down|up)\.": "an adapter (LoRA or its like): ldm.with_lora(path) on a model",
    r"input_hint_block\.|controlnet_cond_embedding\.|lora_controlnet": "a ControlNet: ldm.with_control(path) on a model",
    r"^emb_params$|^string_to_param\.": "the vectors of a word: ldm.with_embedding(path) on a model",
    r"^(encoder\.down|decoder\.up)_blocks\.": "a first stage under diffusers' names: load its folder, with config.json",
    r"^(down|up)_blocks\.": "a network under diffusers' names: load the pipeline's folder",
}  # fmt: skip


def part_of(tensors: Tensors) -> str | None:
    """What a file holds in place of a model, and how it is used; None where its names don't say."""
    return next((what for mark, what in PARTS.items() if any(map(re.compile(mark).search, tensors))), None)


def check_transformers(tensors: Tensors, where: str) -> None:
    """ValueError for the transformers among the world's models whose single files are not read."""
    for mark, what in TRANSFORMERS.items():
        if any(name.startswith(mark) or f".{mark}" in name for name in tensors):
            raise ValueError(f"{where}: it holds the transformer of {what}, of which single files are not read")


def describe(
    tensors: Tensors, prediction: str | None, metadata: Mapping[str, str], notes: list[str]
) -> dict[str, dict[str, Any]]:
    """The description of a whole model of `FAMILIES`. What was found is said in `notes`. ValueError that says what can't be
    known."""
    if other := next((what for name, what in OTHERS.items() if name in tensors), None):
        raise ValueError(f"it is {other}, which single files are not read of")
    network = naming.within(tensors, NETWORK) or structure.of_average(naming.within(tensors, AVERAGE))
    fields = structure.unet(network)
    stage = naming.within(tensors, FIRST_STAGE)
    told, conditioner = _told(tensors, fields)
    name = published.family(told, fields)
    facts = published.FAMILIES[name]
    predicted = published.predicts(name, prediction, metadata, "v_pred" in tensors)
    fields |= facts["heads"]
    _check_heads(fields, name)
    size = facts["size"] if isinstance(facts["size"], int) else facts["size"][predicted]
    description: dict[str, dict[str, Any]] = {"network": fields}
    if stage:
        description["first_stage"] = structure.autoencoder(stage, size)
        if facts.get("force_upcast"):
            description["first_stage"]["force_upcast"] = True
    description["conditioner"] = dict(facts.get("conditioner", conditioner))
    description["diffusion"] = published.diffusion(name, predicted)
    description["latents"] = {"scale": facts["scale"], "shift": 0.0}
    if name in published.SCHEDULERS:
        said = {"eps": "epsilon", "v": "v_prediction"}[predicted]
        description["scheduler"] = published.SCHEDULERS[name] | {"prediction_type": said}
    notes.append(f"no YAML: taken for {name} by its tensors, with {_heads(fields)}, {predicted} predicted, {size} pixels")
    return description


def _told(tensors: Tensors, network: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """How the model is told what to draw, and its conditioner as far as names say; sizes are found with the weights."""
    if any(name.startswith(EMBEDDERS) for name in tensors):
        return "xl", {"kind": "sdxl"}
    own = naming.within(tensors, CONDITIONER)
    if any(name.startswith(("transformer.text_model.", "transformer.encoder.layers.")) for name in own):
        return "clip", CLIP | {"layer": "last"}
    if "model.positional_embedding" in own:
        return "openclip", OPENCLIP | {"layer": "penultimate"}
    if "transformer.token_emb.weight" in own:
        return _bert(own)
    if set(own) == {"embedding.weight"}:
        classes, width = own["embedding.weight"].shape
        null = -1 if classes == 1000 else classes - 1  # ImageNet's classes and nothing else, or the empty one besides
        return "class", {"kind": "class", "n_classes": classes, "embed_dim": width, "null_label": null}
    if "channel_mapper.weight" in own:
        out, into = own["channel_mapper.weight"].shape[:2]
        fields = {"n_stages": 2, "method": "bilinear", "multiplier": 0.5, "in_channels": into, "out_channels": out}
        return "semantic", {"kind": "semantic", **fields, "bias": "channel_mapper.bias" in own}
    if network["in_channels"] > network["out_channels"]:
        return "beside", {}
    return ("none", {"kind": "none"}) if network["context_dim"] is None else ("retrieval", {"kind": "retrieval"})


def _bert(own: Tensors) -> tuple[str, dict[str, Any]]:
    vocabulary, width = own["transformer.token_emb.weight"].shape
    layers = {found[1] for name in own if (found := re.match(r"transformer\.attn_layers\.layers\.(\d+)\.", name))}
    kind = "text" if vocabulary == published.BERT_VOCABULARY else "layout"
    fields = {"n_embed": width, "n_layer": len(layers) // 2, "vocab_size": vocabulary}
    fields["max_seq_len"] = own["transformer.pos_emb.emb.weight"].shape[0]
    return kind, {"kind": kind, **fields} | ({"tokenizer": "bert-base-uncased"} if kind == "text" else {})


def _check_heads(network: Mapping[str, Any], name: str) -> None:
    """ValueError where the family's heads don't divide the network's widths: then it is another model."""
    for multiplier in network["channel_mult"]:
        width = round(network["model_channels"] * multiplier)
        if network["attention_resolutions"] and width % max(network["num_heads"], network["num_head_channels"]):
            raise ValueError(f"it is told as {name} is, but widths of {width} channels can't have {_heads(network)}")


def _heads(network: Mapping[str, Any]) -> str:
    return f"{network['num_heads']} heads" if network["num_heads"] > 0 else f"heads of {network['num_head_channels']}"
