"""The JSON configs of diffusers folders <-> our description.

    UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, SD3Transformer2DModel   -> network
    AutoencoderKL, VQModel                                     -> first_stage, latents (scaling and shift factor)
    CLIPTextModel, T5EncoderModel, LDMBertModel                -> conditioner
    the scheduler                                              -> diffusion

Traps: `attention_head_dim` is the width of a head in UNet2DModel, but the number of heads in UNet2DConditionModel; the
attention of an autoencoder's level hides in its block types; scaling_factor has a default that is wrong for VQ models.
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.weights.descriptions import sd3
from ldm_jax.weights.descriptions.checks import check_fields

SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "squared_cosine",
    "sigmoid": "sigmoid",
}
NETWORKS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "Transformer2DModel", "SD3Transformer2DModel")
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
PRIVATE = "_ldm_jax"  # what a scheduler's config cannot say; diffusers skips fields that start with an underscore
VERSION = "0.30.0"  # of diffusers, the oldest that has all the fields written here

# Fields that must have one of these values, for others compute what our networks do not.
_UNET_FIXED: dict[str, tuple] = {
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "mid_block_scale_factor": (1, 1.0),
    "time_embedding_type": ("positional",),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    "add_attention": (True,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "resnet_out_scale_factor": (1, 1.0),
    "attention_type": ("default",),
    "upsample_type": ("conv", "resnet"),
    "downsample_type": ("conv", "resnet"),
    "addition_embed_type": (None, "text_time"),
    "class_embed_type": (None, "projection"),
}
_UNET_READ = {
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "down_block_types", "up_block_types",
    "dropout", "norm_num_groups", "norm_eps", "freq_shift", "flip_sin_to_cos", "downsample_padding",
    "attention_head_dim", "num_attention_heads", "cross_attention_dim", "transformer_layers_per_block",
    "only_cross_attention", "mid_block_only_cross_attention", "num_class_embeds", "attn_norm_num_groups",
    "projection_class_embeddings_input_dim", "time_embedding_dim", "time_cond_proj_dim",
    # of no influence on the function:
    "sample_size", "num_train_timesteps", "use_linear_projection", "upcast_attention",
    "addition_embed_type_num_heads", "addition_time_embed_dim",
}  # fmt: skip


def component(config: Mapping[str, Any], where: str) -> dict[str, dict]:
    """The part of a description that one component's config gives. Raises ValueError for unknown classes and fields."""
    name = config.get("_class_name") or (config.get("architectures") or [config.get("model_type", "")])[0]
    match name:
        case "UNet2DModel" | "UNet2DConditionModel":
            return {"network": unet(config, where)}
        case "DiTTransformer2DModel" | "Transformer2DModel":
            return {"network": dit(config, where)}
        case "SD3Transformer2DModel":
            return {"network": sd3.transformer(config, where)}
        case "AutoencoderKL" | "VQModel":
            scale = config.get("scaling_factor", 0.18215 if name == "AutoencoderKL" else 1.0)
            latents = {"scale": float(scale), "shift": float(config.get("shift_factor") or 0.0)}
            return {"first_stage": first_stage(config, where), "latents": latents}
        case "CLIPTextModel" | "CLIPTextModelWithProjection" | "clip_text_model":
            return {"conditioner": clip_text(config)}
        case "T5EncoderModel" | "t5":
            return {"conditioner": sd3.t5(config, where)}
        case "LDMBertModel" | "ldmbert":
            return {"conditioner": ldm_bert(config)}
        case "OpenAIGPTModel" if PRIVATE in config:  # a class table, written by us
            sizes = {"n_classes": int(config["vocab_size"]), "embed_dim": int(config["n_embd"])}
            return {"conditioner": {**config[PRIVATE], "kind": "class", **sizes}}
        case "ControlNetModel":
            raise ValueError(f"{where}: it is a ControlNet: ldm.with_control(path) on a model")
        case "LatentDiffusionConditioner":  # written by us, for kinds that diffusers lacks
            return {"conditioner": {key: value for key, value in config.items() if not key.startswith("_")}}
    raise ValueError(
        f"{where}: components of class {name!r} cannot be read; known are UNet2DModel, UNet2DConditionModel, "
        "DiTTransformer2DModel, SD3Transformer2DModel, AutoencoderKL, VQModel, CLIPTextModel, T5EncoderModel and LDMBertModel"
    )


def unet(config: Mapping[str, Any], where: str) -> dict:
    """Our fields of a diffusers U-Net's config.json."""
    conditional = config["_class_name"] == "UNet2DConditionModel"
    check_fields(config, _UNET_FIXED, _UNET_READ, where)
    widths = [int(width) for width in config["block_out_channels"]]
    levels = range(len(widths))
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    attending = "CrossAttn" if conditional else "Attn"
    known = ("DownBlock2D", f"{attending}DownBlock2D", "ResnetDownsampleBlock2D")
    _block_types(down, up, known, where)
    if config.get("time_embedding_dim") not in (None, 4 * widths[0]):
        raise ValueError(f"{where}: time_embedding_dim {config['time_embedding_dim']}, only {4 * widths[0]} is possible")
    groups = config.get("norm_num_groups") or 32
    # None, the default, means norm_num_groups; with scale_shift, that the middle's attention of a UNet2DModel has no norm.
    middle = config.get("attn_norm_num_groups")
    if middle is None:
        middle = 0 if not conditional and config.get("resnet_time_scale_shift") == "scale_shift" else groups
    result = {
        "kind": "unet",
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "num_res_blocks": _one(config["layers_per_block"]),
        "attention_resolutions": tuple(2**i for i in levels if "Attn" in down[i]),
        "channel_mult": tuple(_ratio(width, widths[0]) for width in widths),
        "num_heads": -1,
        "num_head_channels": -1,
        "use_spatial_transformer": conditional,
        "transformer_depth": 1,
        "context_dim": None,
        "use_scale_shift_norm": config.get("resnet_time_scale_shift", "default") == "scale_shift",
        "resblock_updown": _updown(down, config.get("downsample_type", "conv"), where),
        "dropout": float(config.get("dropout") or 0.0),
    }
    if result["resblock_updown"] != _updown(up, config.get("upsample_type", "conv"), where):
        raise ValueError(f"{where}: {down} and {up} change the resolution in different ways")
    if conditional:
        result |= _cross_attention(config, levels, where)
    elif (head_dim := config.get("attention_head_dim", 8)) is None:
        result["num_heads"] = 1
    else:
        result["num_head_channels"] = head_dim
    if config.get("addition_embed_type") == "text_time" or config.get("class_embed_type") == "projection":
        result |= {"num_classes": "sequential", "adm_in_channels": config["projection_class_embeddings_input_dim"]}
    elif config.get("num_class_embeds") is not None:
        result["num_classes"] = config["num_class_embeds"]
    if config.get("time_cond_proj_dim"):
        result["guidance_dim"] = int(config["time_cond_proj_dim"])
    usual = {"norm_num_groups": (groups, 32), "norm_eps": (config.get("norm_eps", 1e-5), 1e-5)}
    usual["flip_sin_to_cos"] = (config.get("flip_sin_to_cos", True), True)
    usual["freq_shift"] = (config.get("freq_shift", 0), 0)
    usual["middle_attention_groups"] = (middle, groups)
    usual["downsample_padding"] = (config.get("downsample_padding", 1), 1)
    return result | {name: value for name, (value, default) in usual.items() if value != default}


_CONTROL = {
    "conditioning_channels": (3,),
    "controlnet_conditioning_channel_order": ("rgb",),
    "global_pool_conditions": (False,),
}


def check_control(config: Mapping[str, Any], where: str) -> None:
    """ValueError for what a ControlNet's config.json says that ours would not compute."""
    read = _UNET_READ | {"conditioning_embedding_out_channels"}
    check_fields(config, _UNET_FIXED | _CONTROL, read, where)


def _cross_attention(config: Mapping[str, Any], levels: range, where: str) -> dict:
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    context, only = config.get("cross_attention_dim", 1280), config.get("only_cross_attention", False)
    depth = config.get("transformer_layers_per_block", 1)
    if isinstance(depth, list | tuple) and any(isinstance(entry, list | tuple) for entry in depth):
        raise ValueError(f"{where}: transformer_layers_per_block {depth} differs within a level")
    if isinstance(context, list | tuple):
        if len(set(context)) > 1:
            raise ValueError(f"{where}: cross_attention_dim {context} differs between levels")
        context = context[0]
    middle = config.get("mid_block_only_cross_attention")
    if middle is None:
        middle = only if isinstance(only, bool) else False
    result = _heads(config, heads) | {"transformer_depth": _one(depth), "context_dim": context}
    if _one(only):
        result["disable_self_attentions"] = _one(only)
    if middle:
        result["disable_middle_self_attn"] = True
    return result


def _heads(config: Mapping[str, Any], heads: Any) -> dict:
    """num_heads if all levels have as many, num_head_channels if all heads are as wide, else num_heads of every level."""
    widths, down = config["block_out_channels"], config["down_block_types"]
    heads = list(heads) if isinstance(heads, list | tuple) else [heads] * len(widths)
    used = [i for i, name in enumerate(down) if "Attn" in name or i == len(down) - 1]  # the middle is as the last level
    if len({heads[i] for i in used}) == 1:
        return {"num_heads": heads[used[0]]}
    if len({widths[i] / heads[i] for i in used}) == 1:
        return {"num_head_channels": widths[used[0]] // heads[used[0]]}
    return {"num_heads": tuple(heads)}


def _updown(blocks: list[str], attention_type: str, where: str) -> bool:
    """Whether residual blocks change the resolution: all levels but the last must agree."""
    kinds = {name.startswith("Resnet") or ("Attn" in name and attention_type == "resnet") for name in blocks[:-1]}
    if len(kinds) > 1:
        raise ValueError(f"{where}: {blocks} change the resolution in different ways")
    return kinds == {True}


def _block_types(down: list[str], up: list[str], known: tuple[str, ...], where: str) -> None:
    unknown = [name for name in down if name not in known]
    if unknown:
        raise ValueError(f"{where}: down_block_types {unknown}: known are {', '.join(known)}")
    if ["Attn" in name for name in reversed(down)] != ["Attn" in name for name in up]:
        raise ValueError(f"{where}: up_block_types {up} do not mirror down_block_types {down}")


def dit(config: Mapping[str, Any], where: str) -> dict:
    """Our fields of a diffusers DiT's config.json."""
    fixed = {
        "activation_fn": ("gelu-approximate",),
        "norm_type": ("ada_norm_zero",),
        "norm_elementwise_affine": (False,),
        "attention_bias": (True,),
    }
    read = {
        "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "sample_size",
        "patch_size", "num_embeds_ada_norm", "norm_eps", "dropout", "norm_num_groups", "upcast_attention",
    }  # fmt: skip
    check_fields(config, fixed, read, where)
    channels, out = config["in_channels"], config.get("out_channels") or config["in_channels"]
    if out not in (channels, 2 * channels):
        raise ValueError(f"{where}: out_channels {out} should be in_channels {channels} or, with variances, twice as many")
    eps, own = config.get("norm_eps", 1e-5), config.get(PRIVATE, {})
    return {
        "kind": "dit",
        "depth": config["num_layers"],
        "hidden_size": config["num_attention_heads"] * config["attention_head_dim"],
        "num_heads": config["num_attention_heads"],
        "patch_size": config["patch_size"],
        "input_size": config["sample_size"],
        "in_channels": channels,
        "mlp_ratio": 4.0,
        "num_classes": own.get("num_classes", config["num_embeds_ada_norm"]),
        "learn_sigma": out == 2 * channels,
        "shared_embedder": own.get("shared_embedder", False),
        "freq_shift": 1.0,
        **({"mlp_norm_eps": eps} if eps != 1e-6 else {}),
    }


def first_stage(config: Mapping[str, Any], where: str) -> dict:
    """Our fields of a diffusers autoencoder's config.json."""
    kind = "kl" if config["_class_name"] == "AutoencoderKL" else "vq"
    fixed = {
        "act_fn": ("silu", "swish"),
        "norm_type": ("group",),
        "latents_mean": (None,),
        "latents_std": (None,),
        "lookup_from_codebook": (False,),
    }
    read = {
        "in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
        "sample_size", "scaling_factor", "shift_factor", "down_block_types", "up_block_types", "force_upcast",
        "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv", "num_vq_embeddings", "vq_embed_dim",
    }  # fmt: skip
    neutral = {"latents_mean": 0, "latents_std": 1}  # for every channel
    config = {name: None if _one(value) == neutral.get(name, "") else value for name, value in config.items()}
    check_fields(config, fixed, read, where)
    widths = [int(width) for width in config["block_out_channels"]]
    down = list(config["down_block_types"])
    _block_types(down, list(config["up_block_types"]), ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), where)
    size = config.get("sample_size", 32)
    resolution = max(int(size[0] if isinstance(size, list | tuple) else size or 32), 2 ** (len(widths) - 1))
    attention = tuple(resolution // 2**level for level, name in enumerate(down) if "Attn" in name)
    middle = config.get("mid_block_add_attention", True)
    if attention and not middle:
        raise ValueError(f"{where}: attention in the blocks {down} but not in the middle cannot be expressed")
    z = config["latent_channels"]
    result = {
        "kind": kind,
        "path": "",
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "resolution": resolution,
        "ch": widths[0],
        "ch_mult": tuple(_ratio(width, widths[0]) for width in widths),
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": attention,
        "attn_type": "vanilla" if middle else "none",
        "z_channels": z,
        "double_z": kind == "kl",
        "dropout": 0.0,
        "embed_dim": (config.get("vq_embed_dim") or z) if kind == "vq" else z,
        "n_embed": config["num_vq_embeddings"] if kind == "vq" else 0,
    }
    for name in ("use_quant_conv", "use_post_quant_conv"):
        if not config.get(name, True):
            result[name] = False
    if config.get("force_upcast"):  # where it is said: autoencoders of float32, whatever the network computes in
        result["force_upcast"] = True
    groups = config.get("norm_num_groups", 32)
    return result | ({"norm_num_groups": groups} if groups != 32 else {})


CLIP_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
)


def clip_text(config: Mapping[str, Any]) -> dict:
    """Our fields of a transformers CLIP text encoder's config.json."""
    defaults = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    defaults |= {"num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}
    result: dict[str, Any] = {"kind": "clip_text"}
    result |= {name: config.get(name, defaults[name]) for name in CLIP_FIELDS}
    if config.get("layer_norm_eps", 1e-5) != 1e-5:
        result["layer_norm_eps"] = config["layer_norm_eps"]
    if config.get("eos_token_id") is not None:
        result["eos_token_id"] = config["eos_token_id"]
    return result | {"layer": "last"}


def ldm_bert(config: Mapping[str, Any]) -> dict:
    """Our fields of an LDMBert's config.json."""
    heads = {"heads": config.get("encoder_attention_heads", 8), "dim_head": config.get("head_dim", 64)}
    return {
        "kind": "text",
        **(heads if heads != {"heads": 8, "dim_head": 64} else {}),
        "n_embed": config.get("d_model", 1280),
        "n_layer": config.get("encoder_layers", 32),
        "vocab_size": config.get("vocab_size", 30522),
        "max_seq_len": config.get("max_position_embeddings", 77),
        "tokenizer": "bert-base-uncased",
    }


def scheduler(config: Mapping[str, Any], where: str) -> dict:
    """The diffusion part, from any scheduler's config: what it was trained with, not how it samples."""
    if config.get("_class_name", "").startswith("FlowMatch"):
        return {"schedule": "flow", "shift": float(config.get("shift", 1.0)), "prediction": "flow"}
    if PRIVATE in config:
        return dict(config[PRIVATE])
    if config.get("use_flow_sigmas"):
        return {"schedule": "flow", "shift": float(config.get("flow_shift", 1.0)), "prediction": "flow"}
    schedule, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    if config.get("trained_betas") is not None:
        raise ValueError(f"{where}: trained_betas is a schedule of its own; known are {', '.join(SCHEDULES)}")
    if schedule not in SCHEDULES or prediction not in PREDICTIONS:
        raise ValueError(f"{where}: beta_schedule {schedule!r} with prediction_type {prediction!r} is not known")
    result = {
        "schedule": SCHEDULES[schedule],
        "linear_start": float(config.get("beta_start", 1e-4)),
        "linear_end": float(config.get("beta_end", 2e-2)),
        "timesteps": int(config.get("num_train_timesteps", 1000)),
        "prediction": PREDICTIONS[prediction],
    }
    return result | ({"zero_terminal_snr": True} if config.get("rescale_betas_zero_snr") else {})


def _one(value: Any) -> Any:
    """A list of equal values as that value."""
    if isinstance(value, list | tuple):
        return value[0] if value and all(each == value[0] for each in value) else tuple(value)
    return value


def _ratio(width: int, base: int) -> int | float:
    return width // base if width % base == 0 else width / base
