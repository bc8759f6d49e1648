"""Our description -> the JSON configs of a diffusers folder; the inverse of `descriptions.diffusers`.

What diffusers has no words for raises ValueError: the other format is CompVis's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.weights.descriptions.diffusers import CLIP_FIELDS, PREDICTIONS, PRIVATE, SCHEDULES, VERSION
from ldm_jax.weights.layouts.autoencoder import attends
from ldm_jax.weights.layouts.unet import heads_of, per_level


def network(fields: Mapping[str, Any], least_classes: int = 0) -> tuple[str, dict]:
    """The component's name in a pipeline, and its config; `least_classes`: see `dit`."""
    if fields["kind"] == "dit":
        return "transformer", dit(fields, least_classes)
    if fields["kind"] == "mmdit":
        return "transformer", mmdit(fields)
    return "unet", unet(fields)


def unet(fields: Mapping[str, Any]) -> dict:
    """A diffusers U-Net's config.json of our fields. ValueError for what it can't express."""
    widths = [round(fields["model_channels"] * multiplier) for multiplier in fields["channel_mult"]]
    levels = range(len(widths))
    attending = [2**level in tuple(fields["attention_resolutions"]) for level in levels]
    transformer, updown = fields.get("use_spatial_transformer", False), fields.get("resblock_updown", False)
    if not fields.get("conv_resample", True):
        raise _unable("conv_resample False")
    if fields.get("guidance_dim") and not transformer:
        raise _unable("guidance_dim without a spatial transformer")
    if transformer and updown:
        raise _unable("resblock_updown together with a spatial transformer")
    blocks = per_level(fields, "num_res_blocks", 0)
    if any(per_level(fields, "num_res_blocks", level) != blocks for level in levels):
        blocks = [per_level(fields, "num_res_blocks", level) for level in levels]
    config = {
        "_class_name": "UNet2DConditionModel" if transformer else "UNet2DModel",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "block_out_channels": widths,
        "center_input_sample": False,
        "down_block_types": [_block("Down", attends_, transformer, updown and i < len(widths) - 1)
                             for i, attends_ in enumerate(attending)],
        "downsample_padding": fields.get("downsample_padding", 1),
        "dropout": fields.get("dropout", 0.0),
        "flip_sin_to_cos": fields.get("flip_sin_to_cos", True),
        "freq_shift": fields.get("freq_shift", 0),
        "in_channels": fields["in_channels"],
        "layers_per_block": blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": fields.get("norm_eps", 1e-5),
        "norm_num_groups": fields.get("norm_num_groups", 32),
        "out_channels": fields["out_channels"],
        "resnet_time_scale_shift": "scale_shift" if fields.get("use_scale_shift_norm", False) else "default",
        "sample_size": fields.get("image_size", 32),
        "up_block_types": [_block("Up", attending[i], transformer, updown and i > 0) for i in reversed(levels)],
    }  # fmt: skip
    return (
        config | _classes(fields, transformer) | (_cross(fields, widths) if transformer else _plain(fields, widths, attending))
    )


def with_added_text(config: Mapping[str, Any], conditioner: Mapping[str, Any]) -> dict:
    """A U-Net's config.json whose vector is Stable Diffusion XL's: text and sizes, by the fields of that conditioner."""
    others = {name: value for name, value in config.items() if name != "class_embed_type"}
    return others | {"addition_embed_type": "text_time", "addition_time_embed_dim": conditioner["time_embed_dim"]}


def _block(way: str, attends: bool, transformer: bool, updown: bool) -> str:
    if attends:
        return f"{'CrossAttn' if transformer else 'Attn'}{way}Block2D"
    return f"Resnet{way}sampleBlock2D" if updown else f"{way}Block2D"


def _cross(fields: Mapping[str, Any], widths: list[int]) -> dict:
    levels = range(len(widths))
    depths = [per_level(fields, "transformer_depth", level, 1) for level in levels]
    middle = fields.get("transformer_depth_middle")
    if middle not in (None, depths[-1]):
        raise _unable(f"transformer_depth_middle {middle} other than the last level's {depths[-1]}")
    return {
        # The number of heads, whatever its name says.
        "attention_head_dim": [heads_of(fields, width, level) for level, width in enumerate(widths)],
        "cross_attention_dim": fields["context_dim"],
        "time_cond_proj_dim": fields.get("guidance_dim") or None,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "mid_block_only_cross_attention": fields.get("disable_middle_self_attn", False) or None,
        "only_cross_attention": [bool(per_level(fields, "disable_self_attentions", level, False)) for level in levels],
        "transformer_layers_per_block": depths,
        "use_linear_projection": False,
    }


def _plain(fields: Mapping[str, Any], widths: list[int], attending: list[bool]) -> dict:
    used = [(width, level) for level, width in enumerate(widths) if attending[level] or level == len(widths) - 1]
    heads = {heads_of(fields, width, level) for width, level in used}
    head_dims = {width // heads_of(fields, width, level) for width, level in used}
    if heads == {1}:
        head_dim = None
    elif len(head_dims) == 1:
        head_dim = head_dims.pop()
    else:
        raise _unable(f"attention heads of different widths {sorted(head_dims)} in an unconditional U-Net")
    resample = "resnet" if fields.get("resblock_updown", False) else "conv"
    return {
        "add_attention": True,
        "attention_head_dim": head_dim,
        "attn_norm_num_groups": _middle_groups(fields),
        "downsample_type": resample,
        "time_embedding_type": "positional",
        "upsample_type": resample,
    }


def _middle_groups(fields: Mapping[str, Any]) -> int | None:
    """Named where there is a norm, for None with scale_shift leaves it out."""
    groups = fields.get("middle_attention_groups")
    if groups == 0 and not fields.get("use_scale_shift_norm", False):
        raise _unable("middle_attention_groups 0 without use_scale_shift_norm")
    return groups or (None if groups == 0 else fields.get("norm_num_groups", 32))


def _classes(fields: Mapping[str, Any], transformer: bool) -> dict:
    classes = fields.get("num_classes")
    if classes is None:
        return {}
    if classes == "sequential" and transformer:
        size = fields["adm_in_channels"]
        return {"class_embed_type": "projection", "projection_class_embeddings_input_dim": size}
    if isinstance(classes, str):
        raise _unable(f"num_classes {classes!r} in this U-Net")
    return {"num_class_embeds": classes}


def dit(fields: Mapping[str, Any], least_classes: int = 0) -> dict:
    """A diffusers DiT's config.json of our fields, with a table of at least so many classes. ValueError for what it can't
    express."""
    if fields.get("freq_shift", 0.0) != 1.0 or fields.get("mlp_ratio", 4.0) != 4.0 or fields.get("num_classes") is None:
        raise _unable(
            "a DiT other than with freq_shift 1 (its frequencies of time; the published DiT has 0), mlp_ratio 4 and num_classes"
        )
    channels, own = fields["in_channels"], {}
    if fields.get("shared_embedder", True):
        own["shared_embedder"] = True  # every block is given a copy
    if fields["num_classes"] < least_classes:
        own["num_classes"] = fields["num_classes"]  # the table is filled up by copies of its last row, the empty class
    return ({PRIVATE: own} if own else {}) | {
        "_class_name": "DiTTransformer2DModel",
        "_diffusers_version": VERSION,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": fields["hidden_size"] // fields["num_heads"],
        "dropout": 0.0,
        "in_channels": channels,
        "norm_elementwise_affine": False,
        "norm_eps": fields.get("mlp_norm_eps", 1e-6),
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": fields["num_heads"],
        "num_embeds_ada_norm": max(fields["num_classes"], least_classes),
        "num_layers": fields["depth"],
        "out_channels": 2 * channels if fields.get("learn_sigma", True) else channels,
        "patch_size": fields["patch_size"],
        "sample_size": fields["input_size"],
        "upcast_attention": False,
    }


def mmdit(fields: Mapping[str, Any]) -> dict:
    """The config.json of Stable Diffusion 3's transformer of our fields. ValueError for what it can't express."""
    if not fields.get("position_table") or not fields.get("pooled_dim"):
        raise _unable("an MMDiT without a table of positions (position_table) or a pooled condition (pooled_dim)")
    return {
        "_class_name": "SD3Transformer2DModel",
        "_diffusers_version": VERSION,
        "attention_head_dim": fields["hidden_size"] // fields["num_heads"],
        "caption_projection_dim": fields["hidden_size"],
        "dual_attention_layers": list(fields.get("dual_attention_layers", ())),
        "in_channels": fields["in_channels"],
        "joint_attention_dim": fields["context_dim"],
        "num_attention_heads": fields["num_heads"],
        "num_layers": fields["depth"],
        "out_channels": fields["in_channels"],
        "patch_size": fields["patch_size"],
        "pooled_projection_dim": fields["pooled_dim"],
        "pos_embed_max_size": fields["position_table"],
        "qk_norm": "rms_norm" if fields.get("qk_norm") else None,
        "sample_size": fields["input_size"],
    }


def first_stage(fields: Mapping[str, Any], latents: Mapping[str, Any]) -> tuple[str, dict]:
    """The component's name in a pipeline, and its config."""
    kind, widths = fields["kind"], [round(fields["ch"] * multiplier) for multiplier in fields["ch_mult"]]
    if fields.get("unit_codes") or fields.get("fsq_levels"):
        raise ValueError(
            "no file of diffusers or CompVis holds a codebook of directions (unit_codes) or of fixed levels (fsq_levels): keep "
            "the working directory"
        )
    if kind == "kl" and fields["embed_dim"] != fields["z_channels"]:
        raise _unable(f"embed_dim {fields['embed_dim']} other than z_channels {fields['z_channels']} in AutoencoderKL")
    levels = range(len(widths))
    config: dict[str, Any] = {
        "_class_name": "AutoencoderKL" if kind == "kl" else "VQModel",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": [("Attn" if attends(fields, i) else "") + "DownEncoderBlock2D" for i in levels],
        "in_channels": fields["in_channels"],
        "latent_channels": fields["z_channels"],
        "layers_per_block": fields["num_res_blocks"],
        "mid_block_add_attention": fields.get("attn_type", "vanilla") != "none",
        "norm_num_groups": fields.get("norm_num_groups", 32),
        "out_channels": fields["out_ch"],
        "sample_size": fields["resolution"],
        "scaling_factor": latents["scale"],
        "up_block_types": [("Attn" if attends(fields, i) else "") + "UpDecoderBlock2D" for i in reversed(levels)],
    }
    if kind == "kl":
        config |= {name: fields.get(name, True) for name in ("use_quant_conv", "use_post_quant_conv")}
        config["force_upcast"] = fields.get("force_upcast", False)
        return "vae", config | {"shift_factor": latents.get("shift", 0.0) or None}
    if latents.get("shift", 0.0):
        raise _unable("a latent shift of a VQ model")
    return "vqvae", config | {"num_vq_embeddings": fields["n_embed"], "vq_embed_dim": fields["embed_dim"]}


def clip_text(fields: Mapping[str, Any]) -> dict:
    """A transformers CLIP text encoder's config.json of our fields."""
    projection = fields.get("projection_dim")
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        **{name: fields[name] for name in CLIP_FIELDS},
        "layer_norm_eps": fields.get("layer_norm_eps", 1e-5),
        "projection_dim": projection or fields["hidden_size"],
        "torch_dtype": "float32",
        **({"eos_token_id": fields["eos_token_id"]} if "eos_token_id" in fields else {}),
    }


def t5(fields: Mapping[str, Any]) -> dict:
    """A transformers T5's config.json of our fields."""
    sizes = {name: value for name, value in fields.items() if name not in ("kind", "tokenizer")}
    decoder = {"is_encoder_decoder": False, "use_cache": False, "tie_word_embeddings": False, "dropout_rate": 0.0}
    return {"architectures": ["T5EncoderModel"], "model_type": "t5", **sizes, **decoder, "torch_dtype": "float32"}


def class_table(fields: Mapping[str, Any]) -> dict:
    """A table of classes as a model of transformers that a pipeline takes for a text encoder: OpenAI's GPT without a layer is
    the sum of the table's row and a position, which is 0."""
    return {
        "architectures": ["OpenAIGPTModel"],
        "model_type": "openai-gpt",
        "vocab_size": fields["n_classes"],
        "n_positions": 1,
        "n_embd": fields["embed_dim"],
        "n_layer": 0,
        "n_head": 1,
        "torch_dtype": "float32",
        PRIVATE: dict(fields),
    }


def ldm_bert(fields: Mapping[str, Any]) -> dict:
    """An LDMBert's config.json of our fields."""
    return {
        "architectures": ["LDMBertModel"],
        "model_type": "ldmbert",
        "activation_function": "gelu",
        "d_model": fields["n_embed"],
        "encoder_attention_heads": fields.get("heads", 8),
        "encoder_ffn_dim": 4 * fields["n_embed"],
        "encoder_layers": fields["n_layer"],
        "head_dim": fields.get("dim_head", 64),
        "max_position_embeddings": fields["max_seq_len"],
        "pad_token_id": 0,
        "vocab_size": fields["vocab_size"],
    }


def flow_match(diffusion: Mapping[str, Any]) -> dict:
    """The scheduler of Stable Diffusion 3. ValueError for what isn't rectified flow."""
    if (diffusion["schedule"], diffusion["prediction"]) != ("flow", "flow"):
        raise _unable(f"schedule {diffusion['schedule']!r} and prediction {diffusion['prediction']!r} of an MMDiT, only 'flow'")
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": VERSION, "num_train_timesteps": 1000}
    return config | {"shift": diffusion.get("shift", 1.0)}


SOLVERS = {"dpmpp_2m": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}  # order 2, as ours by these names


def scheduler(diffusion: Mapping[str, Any], sampling: Mapping[str, Any] | None = None) -> dict:
    """A DDIMScheduler as the paper samples, or, of a table, with the grid and the end of a `sampling` by DDIM. A schedule in
    continuous time becomes its table of betas at whole steps."""
    predictions = {ours: name for name, ours in PREDICTIONS.items()}
    if diffusion["prediction"] not in predictions:
        raise _unable(f"prediction {diffusion['prediction']!r}")
    if diffusion["schedule"] == "flow":
        # FlowMatchEulerDiscreteScheduler lacks what the pipelines that are written here call
        config = {"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": VERSION, "num_train_timesteps": 1000}
        config |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": diffusion.get("shift", 1.0)}
        return config | {"final_sigmas_type": "zero", "solver_order": 2}
    schedules = {ours: name for name, ours in SCHEDULES.items()}
    config = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "clip_sample": False,
        "num_train_timesteps": diffusion.get("timesteps", 1000),
        "prediction_type": predictions[diffusion["prediction"]],
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    if diffusion["schedule"] in schedules:
        config |= {"beta_schedule": schedules[diffusion["schedule"]]}
        if diffusion["schedule"] != "squared_cosine":
            config |= {"beta_start": diffusion["linear_start"], "beta_end": diffusion["linear_end"]}
        if sampling and sampling["sampler"] == "ddim" and sampling.get("grid") in ("leading", "trailing"):
            to_clean = sampling.get("end", "clean") == "clean"
            config |= {"timestep_spacing": sampling["grid"], "set_alpha_to_one": to_clean}
        if diffusion.get("zero_terminal_snr"):  # the last entry, pure noise, must be visited
            config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "steps_offset": 1}
        return config
    if diffusion["schedule"] == "cosine":
        return config | {"trained_betas": _cosine_betas(diffusion), PRIVATE: dict(diffusion)}
    raise _unable(f"schedule {diffusion['schedule']!r}")


def solver(diffusion: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict | None:
    """The settings of the multistep scheduler that draws what a `sampling` draws, in any number of steps; None where there is
    none but DDIM's."""
    name = SOLVERS.get(sampling["sampler"])
    way = sampling.get("grid"), sampling.get("end", "clean")
    table = diffusion["schedule"] in ("linear", "scaled_linear") and not diffusion.get("zero_terminal_snr")
    if name is None or way != ("trailing", "clean") or not table:
        return None
    config = scheduler(diffusion) | {"_class_name": name, "timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    return {key: value for key, value in config.items() if key not in ("clip_sample", "set_alpha_to_one")}


def _cosine_betas(diffusion: Mapping[str, Any]) -> list[float]:
    """log_snr = -2 log tan(pi t / 2) + 2 log(scale) at t = i / 1000, within +-15, as betas."""
    size = diffusion.get("timesteps", 1000)
    times = np.arange(size) / size
    with np.errstate(divide="ignore"):
        log_snr = np.clip(-2 * np.log(np.tan(times * np.pi / 2)) + 2 * np.log(diffusion.get("scale", 1.0)), -15, 15)
    bar = 1 / (1 + np.exp(-log_snr))
    return (1 - bar / np.append(1.0, bar[:-1])).tolist()


def _unable(what: str) -> ValueError:
    return ValueError(f'diffusers cannot express {what}; use format="compvis"')
