"""CompVis's YAML <-> our description.

model.params.unet_config         -> network        fields keep their names
model.params.first_stage_config  -> first_stage    ddconfig, embed_dim and n_embed side by side
model.params.cond_stage_config   -> conditioner    by the target's class
linear_start, linear_end, ...    -> diffusion      beta_schedule "linear" is our scaled_linear
scale_factor                     -> latents.scale  a buffer of the weights where scale_by_std
image_size                       -> latents.size
"""

from collections.abc import Mapping
from typing import Any

SCHEDULES = {"linear": "scaled_linear", "cosine": "squared_cosine", "sqrt_linear": "linear", "sqrt": "sqrt"}
PREDICTIONS = {"eps": "eps", "x0": "x0", "v": "v"}
_TABLE = {"given_betas": None, "cosine_s": 8e-3}  # other values make a table of betas that isn't known
UNCONDITIONAL = "__is_unconditional__"
FIRST_STAGE = "__is_first_stage__"

# Fields of UNetModel that decide what is computed, with the class's own defaults.
NETWORK = {
    "in_channels": None,
    "out_channels": None,
    "model_channels": None,
    "num_res_blocks": None,
    "attention_resolutions": None,
    "channel_mult": (1, 2, 4, 8),
    "num_heads": -1,
    "num_head_channels": -1,
    "use_spatial_transformer": False,
    "transformer_depth": 1,
    "context_dim": None,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "dropout": 0.0,
}
NETWORK_RARE = {
    "conv_resample": True,
    "use_new_attention_order": False,
    "num_classes": None,
    "adm_in_channels": None,
    "transformer_depth_middle": None,
    "disable_self_attentions": False,
    "disable_middle_self_attn": False,
}
_NETWORK_IGNORED = {
    "image_size", "use_checkpoint", "use_fp16", "use_bf16", "legacy", "spatial_transformer_attn_type",
    "use_linear_in_transformer",
}  # fmt: skip
_NETWORK_FIXED = {"dims": 2, "n_embed": None, "num_heads_upsample": -1, "num_attention_blocks": None}

STAGE = {
    "in_channels": 3,
    "out_ch": 3,
    "resolution": 256,
    "ch": None,
    "ch_mult": None,
    "num_res_blocks": None,
    "attn_resolutions": (),
    "attn_type": "vanilla",
    "z_channels": None,
    "double_z": True,
    "dropout": 0.0,
}
_STAGE_FIXED = {"tanh_out": False, "give_pre_end": False, "use_linear_attn": False, "resamp_with_conv": True}


def parse(config: Mapping[str, Any], where: str) -> dict[str, dict]:
    """The description in an LDM YAML (already read), of a whole model or of a first stage alone.

    Raises ValueError for parts that this library does not have. `latents.scale` is 0 where the weights hold it.
    """
    model = _mapping(config, "model", where)
    target, params = _target(model, where), model.get("params") or {}
    if "first_stage_config" not in params and "unet_config" not in params:
        return {"first_stage": first_stage(model, where), "latents": {"scale": 1.0, "shift": 0.0}}
    if "unet_config" not in params:
        raise ValueError(f"{where}: model {target} has no unet_config; a LatentDiffusion model is expected")
    scale = 0.0 if params.get("scale_by_std", False) else float(params.get("scale_factor", 1.0))
    description = {"network": network(params["unet_config"], where)}
    if "first_stage_config" in params:
        description["first_stage"] = first_stage(params["first_stage_config"], where)
    description["conditioner"] = conditioner(params, where)
    description["diffusion"] = diffusion(params, where)
    description["latents"] = {"scale": scale, "shift": 0.0}
    if (side := params.get("image_size")) is not None:  # of the latents that it is trained for and samples
        description["latents"]["size"] = (side, side) if isinstance(side, int) else tuple(side)
    return description


def network(config: Mapping[str, Any], where: str) -> dict:
    """The U-Net's fields of a CompVis configuration."""
    fields = dict(config.get("params") or {})
    if _target(config, where).rsplit(".", 1)[-1] != "UNetModel":
        raise ValueError(f"{where}: unet_config.target {config['target']}: only UNetModel is known")
    if fields.get("num_heads_upsample") == fields.get("num_heads"):
        fields.pop("num_heads_upsample", None)
    result = {"kind": "unet"}
    for name, default in (NETWORK | NETWORK_RARE).items():
        value = _plain(fields.pop(name, default))
        if name in NETWORK or value != default:
            result[name] = value
    _refuse_rest(fields, _NETWORK_FIXED, _NETWORK_IGNORED, f"{where}: unet_config.params")
    missing = [name for name, value in result.items() if value is None and name != "context_dim"]
    if missing:
        raise ValueError(f"{where}: unet_config.params lacks {', '.join(missing)}")
    if result["num_heads"] == result["num_head_channels"] == -1:
        raise ValueError(f"{where}: unet_config.params needs num_heads or num_head_channels")
    return result


def first_stage(config: Mapping[str, Any], where: str) -> dict:
    """The autoencoder's fields of a CompVis configuration."""
    target, params = _target(config, where), dict(config.get("params") or {})
    name = target.rsplit(".", 1)[-1]
    if name == "IdentityFirstStage":
        return {"kind": "none", "path": ""}
    kinds = {"AutoencoderKL": "kl", "VQModelInterface": "vq", "VQModel": "vq"}
    if name not in kinds:
        raise ValueError(f"{where}: first stage {target}: known are {', '.join(kinds)} and IdentityFirstStage")
    fields = dict(_mapping(params, "ddconfig", where))
    result: dict[str, Any] = {"kind": kinds[name], "path": ""}
    for field, default in STAGE.items():
        if field == "double_z":
            default = result["kind"] == "kl"
        result[field] = _plain(fields.pop(field, default))
    if str(result["attn_type"]).startswith("vanilla"):  # "vanilla-xformers": the same function, computed otherwise
        result["attn_type"] = "vanilla"
    _refuse_rest(fields, _STAGE_FIXED, set(), f"{where}: ddconfig")
    result["embed_dim"] = params.get("embed_dim", result["z_channels"])
    result["n_embed"] = params["n_embed"] if result["kind"] == "vq" else 0
    missing = [field for field, value in result.items() if value is None]
    if missing:
        raise ValueError(f"{where}: ddconfig lacks {', '.join(missing)}")
    return result


def conditioner(params: Mapping[str, Any], where: str) -> dict:
    """The conditioner's fields of a CompVis configuration."""
    config = params.get("cond_stage_config", UNCONDITIONAL)
    key = params.get("conditioning_key") or ("concat" if params.get("concat_mode", True) else "crossattn")
    if config == UNCONDITIONAL or config is None:
        return {"kind": "none"}
    if config == FIRST_STAGE:
        return {"kind": "inpaint"}
    target, fields = _target(config, where), dict(config.get("params") or {})
    match target.rsplit(".", 1)[-1]:
        case "Identity":
            return {"kind": "superres" if key == "concat" else "retrieval"}
        case "ClassEmbedder":
            classes = fields.get("n_classes", 1000)
            # 1000 rows are ImageNet's classes and nothing else; one more than the classes is the null of guidance.
            null = -1 if classes == 1000 else classes - 1
            return {"kind": "class", "n_classes": classes, "embed_dim": fields["embed_dim"], "null_label": null}
        case "BERTEmbedder" | "TransformerEmbedder" as name:
            tokenizer = name == "BERTEmbedder" and fields.get("use_tokenizer", True)
            result = {
                "kind": "text" if tokenizer else "layout",
                "n_embed": fields["n_embed"],
                "n_layer": fields["n_layer"],
                "vocab_size": fields.get("vocab_size", 30522),
                "max_seq_len": fields.get("max_seq_len", 77),
            }
            return result | ({"tokenizer": "bert-base-uncased"} if tokenizer else {})
        case "SpatialRescaler":
            return {
                "kind": "semantic",
                "n_stages": fields.get("n_stages", 1),
                "method": fields.get("method", "bilinear"),
                "multiplier": fields.get("multiplier", 0.5),
                "in_channels": fields.get("in_channels", 3),
                "out_channels": fields.get("out_channels"),
                "bias": fields.get("bias", False),
            }
        case "FrozenCLIPEmbedder":
            return {"kind": "clip_text", "hidden_act": "quick_gelu", "layer": _layer(fields, ("last",), where)}
        case "FrozenOpenCLIPEmbedder":
            layer = _layer(fields, ("last", "penultimate"), where)
            return {"kind": "clip_text", "hidden_act": "gelu", "layer": layer, "pad_token_id": 0}
    raise ValueError(f"{where}: cond_stage_config.target {target} is not known")


def _layer(fields: Mapping[str, Any], known: tuple[str, ...], where: str) -> str:
    """Which of a text encoder's layers is read."""
    if (layer := fields.get("layer", "last")) not in known:
        raise ValueError(f"{where}: cond_stage_config.params.layer {layer!r}: known are {', '.join(known)}")
    return layer


def diffusion(params: Mapping[str, Any], where: str) -> dict:
    """The process's fields of a CompVis configuration."""
    schedule, prediction = params.get("beta_schedule", "linear"), params.get("parameterization", "eps")
    if schedule not in SCHEDULES:
        raise ValueError(f"{where}: beta_schedule {schedule!r}: known are {', '.join(SCHEDULES)}")
    given = {name: params[name] for name, usual in _TABLE.items() if params.get(name, usual) != usual}
    if given:
        raise ValueError(f"{where}: {', '.join(f'{name} {value}' for name, value in given.items())}: a schedule of its own")
    if prediction not in PREDICTIONS:
        raise ValueError(f"{where}: parameterization {prediction!r}: known are {', '.join(PREDICTIONS)}")
    return {
        "schedule": SCHEDULES[schedule],
        "linear_start": float(params.get("linear_start", 1e-4)),
        "linear_end": float(params.get("linear_end", 2e-2)),
        "timesteps": int(params.get("timesteps", 1000)),
        "prediction": PREDICTIONS[prediction],
        "loss": params.get("loss_type", "l2"),
    }


def compose(description: Mapping[str, Mapping]) -> dict:
    """The YAML (as dicts) that a description would be parsed from. Raises ValueError where CompVis has no words for it."""
    stage = description.get("first_stage")
    if "network" not in description:
        return {"model": _compose_first_stage(stage)}
    if "diffusion" not in description:
        raise ValueError('a CompVis checkpoint holds a schedule, but this is a network alone; use format="diffusers"')
    network, diffusion = description["network"], description["diffusion"]
    schedules = {ours: name for name, ours in SCHEDULES.items()}
    if network["kind"] != "unet":
        raise ValueError(f'network kind {network["kind"]!r} does not exist in CompVis checkpoints; use format="diffusers"')
    if diffusion["schedule"] not in schedules or diffusion["prediction"] not in PREDICTIONS.values():
        raise ValueError(f"CompVis has no schedule {diffusion['schedule']} with prediction {diffusion['prediction']}")
    unusual = _unusual(network)
    if unusual:
        raise ValueError(f'CompVis\'s UNetModel has no field for {unusual}; use format="diffusers"')
    _check_process(diffusion)
    _check_conditioner(description.get("conditioner", {"kind": "none"}), stage or {"kind": "none"})
    fields = {name: value for name, value in network.items() if name in NETWORK | NETWORK_RARE}
    cond, key = _compose_conditioner(description.get("conditioner", {"kind": "none"}))
    params = {
        "linear_start": diffusion["linear_start"],
        "linear_end": diffusion["linear_end"],
        "timesteps": diffusion["timesteps"],
        "beta_schedule": schedules[diffusion["schedule"]],
        "parameterization": diffusion["prediction"],
        "loss_type": diffusion.get("loss", "l2"),
        "channels": network["out_channels"],
        "scale_factor": description["latents"]["scale"],
        "use_ema": False,
        "conditioning_key": key,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {"image_size": 32, **_lists(fields)},
        },
        "first_stage_config": _compose_first_stage(stage or {"kind": "none"}),
        "cond_stage_config": cond,
    }
    if size := description["latents"].get("size"):
        params["image_size"] = size[0] if len(set(size)) == 1 else list(size)
    if description["latents"].get("shift", 0.0):
        raise ValueError('CompVis has no latent shift; use format="diffusers"')
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def _check_process(diffusion: Mapping[str, Any]) -> None:
    """ValueError for what the YAML can't say of the process: the weights would be read as of another."""
    for name, usual in (("time_scale", 1000.0), ("learned_variance", False)):
        if (value := diffusion.get(name, usual)) != usual:
            raise ValueError(f"config.diffusion.{name}={value}: CompVis's YAML has no word for it; keep the working directory")


def _check_conditioner(fields: Mapping[str, Any], stage: Mapping[str, Any]) -> None:
    """ValueError for fields of a condition that the YAML has no word for: the weights would be read as with the usual ones."""
    kind, classes = fields["kind"], fields.get("n_classes")
    factor = 1 if stage["kind"] == "none" else 2 ** (len(stage["ch_mult"]) - 1)
    usual: dict[str, Any] = {
        "text": {"heads": 8, "dim_head": 64}, "layout": {"heads": 8, "dim_head": 64},
        "class": {"null_label": -1 if classes == 1000 else (classes or 0) - 1},
        "clip_text": {"layer_norm_eps": 1e-5, "num_attention_heads": max(1, fields.get("hidden_size", 0) // 64)},
        "superres": {"scale": factor, "noise_levels": 0}, "inpaint": {"convention": "paper"},
    }.get(kind, {})  # fmt: skip
    if kind == "clip_text":
        usual |= {"layer": "last"} if fields["hidden_act"] == "quick_gelu" else {"pad_token_id": 0}
    for name, value in usual.items():
        if (found := fields.get(name, value)) != value:
            raise ValueError(
                f"config.conditioner.{name}={found!r}: CompVis's YAML has no word for it, and means {value!r}; use "
                'format="diffusers" where it draws such a model, or keep the working directory'
            )


def _unusual(network: Mapping[str, Any]) -> dict:
    """Fields that only diffusers can express and that differ from what CompVis does."""
    usual = {"norm_num_groups": 32, "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1}
    usual["middle_attention_groups"] = None
    unusual = {name: network[name] for name, value in usual.items() if network.get(name, value) != value}
    for name in ("num_heads", "transformer_depth"):
        if isinstance(network.get(name), list | tuple):
            unusual[name] = network[name]
    return unusual


def _compose_first_stage(stage: Mapping[str, Any]) -> dict:
    if stage["kind"] == "none":
        return {"target": "ldm.models.autoencoder.IdentityFirstStage", "params": {}}
    unusual = {
        name: stage[name]
        for name, value in {"use_quant_conv": True, "use_post_quant_conv": True, "norm_num_groups": 32}.items()
        if stage.get(name, value) != value
    }
    if stage.get("unit_codes") or stage.get("fsq_levels"):
        raise ValueError(
            "no file of CompVis or diffusers holds a codebook of directions (unit_codes) or of fixed levels (fsq_levels): keep "
            "the working directory"
        )
    if unusual:
        raise ValueError(f'CompVis\'s autoencoders have no field for {unusual}; use format="diffusers"')
    params = {
        "embed_dim": stage["embed_dim"],
        "ddconfig": _lists({name: stage[name] for name in STAGE if name in stage}),
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    if stage["kind"] == "vq":
        params["n_embed"] = stage["n_embed"]
    name = "AutoencoderKL" if stage["kind"] == "kl" else "VQModelInterface"
    return {"target": f"ldm.models.autoencoder.{name}", "params": params}


def _compose_conditioner(conditioner: Mapping[str, Any]) -> tuple[str | dict, str | None]:
    encoders = "ldm.modules.encoders.modules"
    fields = {name: value for name, value in conditioner.items() if name != "kind"}

    def of(target: str, *names: str, **more: Any) -> dict:
        return {"target": target, "params": {name: fields[name] for name in names if name in fields} | more}

    match conditioner["kind"]:
        case "none":
            return UNCONDITIONAL, None
        case "inpaint":
            return FIRST_STAGE, "concat"
        case "superres":
            return of("torch.nn.Identity"), "concat"
        case "retrieval":
            return of("torch.nn.Identity"), "crossattn"
        case "class":
            return of(f"{encoders}.ClassEmbedder", "n_classes", "embed_dim", key="class_label"), "crossattn"
        case "text" | "layout" as kind:
            names = ("n_embed", "n_layer", "vocab_size", "max_seq_len")
            return of(f"{encoders}.BERTEmbedder", *names, use_tokenizer=kind == "text"), "crossattn"
        case "semantic":
            names = ("n_stages", "method", "multiplier", "in_channels", "out_channels", "bias")
            return of(f"{encoders}.SpatialRescaler", *names), "concat"
        case "clip_text" if conditioner["hidden_act"] == "quick_gelu":
            return of(f"{encoders}.FrozenCLIPEmbedder"), "crossattn"
        case "clip_text":
            return of(f"{encoders}.FrozenOpenCLIPEmbedder", "layer", freeze=True), "crossattn"
    raise ValueError(f"conditioner kind {conditioner['kind']!r} has no CompVis counterpart")


def _refuse_rest(fields: Mapping[str, Any], fixed: Mapping[str, Any], ignored: set[str], where: str) -> None:
    rest = {name: value for name, value in fields.items() if name not in ignored and fixed.get(name, object()) != value}
    if rest:
        raise ValueError(f"{where}: {rest} is not supported; it would change what the network computes")


def _mapping(config: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    if not isinstance(config, Mapping) or not isinstance(config.get(key), Mapping):
        raise ValueError(f"{where}: no section {key!r}; is it the YAML of a CompVis model?")
    return config[key]


def _target(config: Mapping[str, Any], where: str) -> str:
    if not isinstance(config, Mapping) or not isinstance(config.get("target"), str):
        raise ValueError(f"{where}: a section without target: {str(config)[:100]}")
    return config["target"]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _lists(fields: Mapping[str, Any]) -> dict:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
