"""ControlNets (Zhang et al. 2023): a diffusers folder, or a single file under CompVis's names, for a U-Net that is known.

A ControlNet's way down is the one of the U-Net that it steers, so its fields are that network's; only how it is shown a picture
is its own, which the tensors' shapes tell.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_jax.primitives.files import place
from ldm_jax.weights import files, found_names, layouts, naming, safetensors_files
from ldm_jax.weights.descriptions import diffusers
from ldm_jax.weights.descriptions import diffusers_export as export
from ldm_jax.weights.stored import Stored

PREFIX = "control_model."  # in files that hold a whole model, or may
# what a U-Net's config.json says of a ControlNet too
_FIELDS = (
    "in_channels", "flip_sin_to_cos", "freq_shift", "down_block_types", "only_cross_attention", "block_out_channels",
    "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps",
    "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim", "use_linear_projection", "class_embed_type",
    "addition_embed_type", "addition_time_embed_dim", "num_class_embeds", "resnet_time_scale_shift",
    "projection_class_embeddings_input_dim",
)  # fmt: skip


def read(path: str | Path, network: Mapping[str, Any]) -> tuple[dict[str, Any], dict]:
    """Fields and parameters of the ControlNet at `path`, for a U-Net of the fields `network`.

    Raises ValueError if there is none, or one for another network: every tensor is accounted for."""
    own, notes = "ldm_jax.load(PATH) is the model that it steers, and ldm_jax.save_control(PATH, FOLDER) writes one", []
    if network.get("kind") != "unet":
        raise ValueError(f"{path}: ControlNets steer U-Nets, this network is a {network.get('kind')}")
    path = files.given(path, "a ControlNet", own)
    if path.is_dir():
        config = files.read_json(path / "config.json") if (path / "config.json").is_file() else {}
        if config.get("_class_name") != "ControlNetModel":
            raise ValueError(f"{path}: no config.json of a ControlNetModel in it")
        diffusers.check_control(config, str(path / "config.json"))
        tensors, _ = files.folder_tensors(path, notes)
    else:
        tensors = files.tensors(path, notes)
    tensors = naming.within(tensors, PREFIX) or {n.removeprefix("controlnet."): t for n, t in tensors.items()}
    spelled = any(name.startswith("controlnet_cond_embedding.") for name in tensors)
    fields = {**network, "in_channels": _into(tensors), "hint_channels": _hints(tensors, spelled, path)}
    layout = layouts.controlnet(fields)
    if spelled:
        tensors = {re.sub(r"^class_embedding\.(linear_[12]\.)", r"add_embedding.\1", n): t for n, t in tensors.items()}
        tensors = naming.from_diffusers(layout, tensors, str(path))
    known = {weight.name for weight in layout}
    found_names.left_out([n for n in tensors if n.startswith("lora") and n not in known], "a ControlNet", notes)
    return fields, naming.nested(layout, naming.match(layout, tensors, str(path)))


def _into(tensors: Mapping[str, Stored]) -> int:
    first = tensors.get("conv_in.weight", tensors.get("input_blocks.0.0.weight"))
    return 0 if first is None else first.shape[1]


def _hints(tensors: Mapping[str, Stored], spelled: bool, path: Path) -> tuple[int, ...]:
    """The widths of the encoder of what it is shown: of its first layer, and of every second one."""
    name = "controlnet_cond_embedding." if spelled else "input_hint_block."
    layers = [n for n in naming.within(tensors, name) if n.endswith(".weight") and not n.startswith("conv_out")]
    if not layers:
        raise ValueError(f"{path}: no ControlNet in it (input_hint_block.*, or controlnet_cond_embedding.*)")
    count = len(layers) - (0 if spelled else 1)  # the last one there has a number as well
    first = "conv_in" if spelled else "0"
    names = [f"blocks.{i}" for i in range(1, count - 1, 2)] if spelled else [str(2 * i) for i in range(2, count, 2)]
    return tuple(tensors[f"{name}{layer}.weight"].shape[0] for layer in (first, *names))


def write(path: str | Path, fields: Mapping[str, Any], conditioner: Mapping[str, Any], params: Mapping) -> None:
    """Writes a ControlNet, fields and parameters as `read` gives them, as a folder for diffusers. `conditioner`: of the model
    that it steers. ValueError if there is something at `path`, or diffusers can't express it."""
    path = place(path, "save_control")
    if path.exists():
        raise ValueError(f"{path} exists already; save somewhere else")
    config = export.unet({name: value for name, value in fields.items() if name != "hint_channels"})
    if conditioner.get("kind") == "sdxl":
        config = export.with_added_text(config, conditioner)
    if config["_class_name"] != "UNet2DConditionModel" or fields.get("guidance_dim") or fields.get("disable_middle_self_attn"):
        raise ValueError("diffusers' ControlNets are of U-Nets with a transformer at every level, told no guidance scale")
    depths = config["layers_per_block"]
    if not isinstance(depths, int):
        raise ValueError(f"config.network.num_res_blocks={depths}: diffusers' ControlNets have as many at every level")
    own = {name: config[name] for name in _FIELDS if name in config}
    own |= {"_class_name": "ControlNetModel", "_diffusers_version": export.VERSION, "conditioning_channels": 3}
    own["conditioning_embedding_out_channels"] = list(fields["hint_channels"])
    layout = layouts.controlnet(fields)
    tensors = naming.to_diffusers(layout, naming.flattened(layout, params, "ControlNet"))
    if "addition_embed_type" not in config:
        tensors = {re.sub(r"^add_embedding\.", "class_embedding.", name): tensor for name, tensor in tensors.items()}
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    safetensors_files.write(path / "diffusion_pytorch_model.safetensors", tensors)
