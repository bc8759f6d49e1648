"""The JSON configs of Stable Diffusion 3's parts <-> our description: SD3Transformer2DModel, T5EncoderModel."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.weights.descriptions.checks import check_fields


def transformer(config: Mapping[str, Any], where: str) -> dict:
    """Our fields of the config.json of Stable Diffusion 3's transformer."""
    read = {
        "sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads", "out_channels",
        "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size", "dual_attention_layers",
        "qk_norm",
    }  # fmt: skip
    check_fields(config, {}, read, where)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    channels, norm = config["in_channels"], config.get("qk_norm")
    out = config.get("out_channels") or channels
    if out != channels or config.get("caption_projection_dim", width) != width or norm not in (None, "rms_norm"):
        raise ValueError(
            f"{where}: out_channels {out} must be in_channels {channels}, caption_projection_dim "
            f"{config.get('caption_projection_dim')} the transformer's width {width}, and qk_norm {norm!r} None or 'rms_norm'"
        )
    result = {
        "kind": "mmdit",
        "depth": config["num_layers"],
        "hidden_size": width,
        "num_heads": config["num_attention_heads"],
        "context_dim": config["joint_attention_dim"],
        "patch_size": config["patch_size"],
        "input_size": config["sample_size"],
        "in_channels": channels,
        "pooled_dim": config["pooled_projection_dim"],
        "position_table": config.get("pos_embed_max_size") or 0,
    }
    dual = tuple(config.get("dual_attention_layers") or ())
    return result | ({"qk_norm": True} if norm else {}) | ({"dual_attention_layers": dual} if dual else {})


def t5(config: Mapping[str, Any], where: str) -> dict:
    """Our fields of a transformers T5's config.json."""
    defaults = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
    defaults |= {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6}
    how = config.get("feed_forward_proj", "relu")
    if how not in ("relu", "gated-gelu"):
        raise ValueError(f"{where}: feed_forward_proj {how!r} is not supported, only 'relu' and 'gated-gelu'")
    return {"kind": "t5"} | {name: config.get(name, default) for name, default in defaults.items()} | {"feed_forward_proj": how}
