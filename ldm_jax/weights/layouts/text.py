"""The tensors of the conditioners: CLIP's towers, the paper's transformer and class table, the map rescaler.

CLIP is spelled as in transformers, without the `text_model.` prefix, which old releases have and new ones do not.
OpenCLIP (Stable Diffusion 2) names the same text tower differently and fuses q, k and v: `from_openclip`, `to_openclip`.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.weights.layouts.parts import linear, norm, pointwise, table
from ldm_jax.weights.naming import Layout, Weight
from ldm_jax.weights.stored import Stored


def class_embedder(fields: Mapping[str, Any]) -> Layout:
    """Names of a class table's tensors."""
    return table("embedding", "embedding", fields["n_classes"], fields["embed_dim"])


def spatial_rescaler(fields: Mapping[str, Any]) -> Layout:
    """Names of a rescaler's tensors."""
    if fields.get("out_channels") is None:
        return []
    into, out = fields["in_channels"], fields["out_channels"]
    return pointwise("channel_mapper", "channel_mapper", into, out, fields.get("bias", False))


def bert(fields: Mapping[str, Any]) -> Layout:
    """The paper's BERTEmbedder: pre-norm, 8 heads of width 64, no biases on q, k and v. Diffusers: LDMBertModel."""
    width, inner = fields["n_embed"], fields.get("heads", 8) * fields.get("dim_head", 64)
    weights = table("transformer.token_emb", "model.embed_tokens", fields["vocab_size"], width)
    weights += table("transformer.pos_emb.emb", "model.embed_positions", fields["max_seq_len"], width)
    for index in range(fields["n_layer"]):
        attention = f"transformer.attn_layers.layers.{2 * index}"
        feed_forward = f"transformer.attn_layers.layers.{2 * index + 1}"
        other = f"model.layers.{index}"
        weights += norm(f"{attention}.0", f"{other}.self_attn_layer_norm", width)
        for part in "qkv":
            weights += linear(f"{attention}.1.to_{part}", f"{other}.self_attn.{part}_proj", width, inner, bias=False)
        weights += linear(f"{attention}.1.to_out", f"{other}.self_attn.out_proj", inner, width)
        weights += norm(f"{feed_forward}.0", f"{other}.final_layer_norm", width)
        weights += linear(f"{feed_forward}.1.net.0.0", f"{other}.fc1", width, 4 * width)
        weights += linear(f"{feed_forward}.1.net.2", f"{other}.fc2", 4 * width, width)
    weights += norm("transformer.norm", "model.layer_norm", width)
    return weights + linear("transformer.to_logits", "to_logits", width, fields["vocab_size"])


def _clip_encoder(fields: Mapping[str, Any], prefix: str) -> Layout:
    weights: Layout = []
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    for index in range(fields["num_hidden_layers"]):
        name = f"encoder.layers.{index}"
        other = prefix + name
        weights += norm(f"{name}.layer_norm1", f"{other}.layer_norm1", width)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights += linear(f"{name}.self_attn.{part}", f"{other}.self_attn.{part}", width, width)
        weights += norm(f"{name}.layer_norm2", f"{other}.layer_norm2", width)
        weights += linear(f"{name}.mlp.fc1", f"{other}.mlp.fc1", width, inner)
        weights += linear(f"{name}.mlp.fc2", f"{other}.mlp.fc2", inner, width)
    return weights


def clip_text(fields: Mapping[str, Any]) -> Layout:
    """Names of CLIP's text tower."""
    width, prefix = fields["hidden_size"], "text_model."
    weights = table("embeddings.token_embedding", f"{prefix}embeddings.token_embedding", fields["vocab_size"], width)
    positions = fields["max_position_embeddings"]
    weights += table("embeddings.position_embedding", f"{prefix}embeddings.position_embedding", positions, width)
    weights += _clip_encoder(fields, prefix)
    weights += norm("final_layer_norm", f"{prefix}final_layer_norm", width)
    if fields.get("projection_dim"):
        weights += linear("text_projection", "text_projection", width, fields["projection_dim"], bias=False)
    return weights


def t5(fields: Mapping[str, Any]) -> Layout:
    """Names of T5's encoder."""
    width, inner, heads = fields["d_model"], fields["num_heads"] * fields["d_kv"], fields["num_heads"]

    def scale(name: str) -> Layout:
        return [Weight(f"{name}.weight", (width,), "scale", (f"{name}.weight",))]

    weights = table("shared", "shared", fields["vocab_size"], width)
    for i in range(fields["num_layers"]):
        first, second = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        attention = f"{first}.SelfAttention"
        for part in "qkv":
            weights += linear(f"{attention}.{part}", f"{attention}.{part}", width, inner, bias=False)
        weights += linear(f"{attention}.o", f"{attention}.o", inner, width, bias=False)
        if i == 0:
            name = f"{attention}.relative_attention_bias"
            weights += table(name, name, fields["relative_attention_num_buckets"], heads)
        weights += scale(f"{first}.layer_norm")
        for name in ("wi",) if fields["feed_forward_proj"] == "relu" else ("wi_0", "wi_1"):
            name = f"{second}.DenseReluDense.{name}"
            weights += linear(name, name, width, fields["d_ff"], bias=False)
        name = f"{second}.DenseReluDense.wo"
        weights += linear(name, name, fields["d_ff"], width, bias=False) + scale(f"{second}.layer_norm")
    return weights + scale("encoder.final_layer_norm")


def clip_vision(fields: Mapping[str, Any]) -> Layout:
    """Names of CLIP's picture tower."""
    width, size, prefix = fields["hidden_size"], fields["patch_size"], "vision_model."
    weights = [
        Weight("embeddings.class_embedding", (width,), "raw", (f"{prefix}embeddings.class_embedding",)),
        Weight(
            "embeddings.patch_embedding.weight",
            (width, fields.get("num_channels", 3), size, size),
            "kernel",
            (f"{prefix}embeddings.patch_embedding.weight",),
        ),
    ]
    positions = (fields["image_size"] // size) ** 2 + 1
    weights += table("embeddings.position_embedding", f"{prefix}embeddings.position_embedding", positions, width)
    weights += norm("pre_layrnorm", f"{prefix}pre_layrnorm", width)
    weights += _clip_encoder(fields, prefix)
    weights += norm("post_layernorm", f"{prefix}post_layernorm", width)
    if fields.get("projection_dim"):
        weights += linear("visual_projection", "visual_projection", width, fields["projection_dim"], bias=False)
    return weights


_OPENCLIP = (
    ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final.", "final_layer_norm."),
)
_OPENCLIP_LAYER = (
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.*)")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.*)")


def from_openclip(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """OpenCLIP's text tower under the names of `clip_text`; `logit_scale` and `attn_mask` are not weights of it."""
    result: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if name in ("logit_scale", "attn_mask"):
            continue
        if name == "text_projection":
            result["text_projection.weight"] = tensor.map(np.transpose, tensor.shape[::-1])
        elif found := _RESBLOCK.fullmatch(name):
            layer, rest = f"encoder.layers.{found[1]}.", found[2]
            if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
                width, leaf = tensor.shape[0] // 3, rest.removeprefix("attn.in_proj_")
                for index, part in enumerate("qkv"):
                    rows = slice(index * width, (index + 1) * width)
                    piece = tensor.map(lambda a, rows=rows: a[rows], (width, *tensor.shape[1:]))
                    result[f"{layer}self_attn.{part}_proj.{leaf}"] = piece
            else:
                result[layer + _renamed(rest, _OPENCLIP_LAYER)] = tensor
        else:
            result[_renamed(name, _OPENCLIP)] = tensor
    return result


def to_openclip(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The inverse of `from_openclip`."""
    result: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if name == "text_projection.weight":
            result["text_projection"] = tensor.map(np.transpose, tensor.shape[::-1])
        elif found := _LAYER.fullmatch(name):
            layer, rest = f"transformer.resblocks.{found[1]}.", found[2]
            part = re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", rest)
            if part is None:
                result[layer + _renamed(rest, [(new, old) for old, new in _OPENCLIP_LAYER])] = tensor
            elif part[1] == "q":
                parts = [tensors[f"encoder.layers.{found[1]}.self_attn.{p}_proj.{part[2]}"] for p in "qkv"]
                result[f"{layer}attn.in_proj_{part[2]}"] = Stored(
                    (3 * tensor.shape[0], *tensor.shape[1:]),
                    tensor.dtype,
                    lambda parts=parts: np.concatenate([p.view() for p in parts]),
                    tensor.name,
                )
        else:
            result[_renamed(name, [(new, old) for old, new in _OPENCLIP])] = tensor
    return result


def _renamed(name: str, table: Any) -> str:
    for old, new in table:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def clip_sizes(tensors: Mapping[str, Stored], where: str) -> dict[str, int]:
    """The fields of a CLIP text tower that its tensors tell; all released ones have heads of width 64."""
    try:
        vocabulary, width = tensors["embeddings.token_embedding.weight"].shape
        positions = tensors["embeddings.position_embedding.weight"].shape[0]
        inner = tensors["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"{where}: no {error.args[0]}; these are not the weights of a CLIP text model") from error
    layers = {found[1] for name in tensors if (found := _LAYER.fullmatch(name))}
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": positions,
    }
    if "text_projection.weight" in tensors:
        sizes["projection_dim"] = tensors["text_projection.weight"].shape[0]
    return sizes


def t5_sizes(tensors: Mapping[str, Stored], where: str) -> dict[str, Any]:
    """The fields of T5's encoder that its tensors tell, and what all released ones have besides."""
    first = "encoder.block.0.layer."
    try:
        vocabulary, width = tensors["shared.weight"].shape
        inner = tensors[f"{first}0.SelfAttention.q.weight"].shape[0]
        buckets, heads = tensors[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
        outer = tensors[f"{first}1.DenseReluDense.wo.weight"].shape[1]
    except KeyError as error:
        raise ValueError(f"{where}: no {error.args[0]}; these are not the weights of T5's encoder") from error
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": outer,
        "num_layers": len({found[1] for name in tensors if (found := re.match(r"encoder\.block\.(\d+)\.", name))}),
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu" if f"{first}1.DenseReluDense.wi_0.weight" in tensors else "relu",
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
    }
