"""What the names and shapes of a single file's tensors say of its networks, without a configuration.

Everything but the number of attention heads, which no shape shows, and the sizes for which levels have attention, which are
relative to a picture's.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from ldm_jax.weights.stored import Stored

Tensors = Mapping[str, Stored]
_HEAD = 64  # numbers of a head, in all of Stability AI's transformers
_EMA = (  # where the dots were that a name in `model_ema.` has lost
    (re.compile(r"^(input_blocks|output_blocks)(\d+)(\d)(?=\D)"), r"\1.\2.\3."),
    (re.compile(r"^(middle_block|time_embed|out)(\d)(?=\D)"), r"\1.\2."),
    (re.compile(r"^label_emb(\d)(\d)(?=\D)"), r"label_emb.\1.\2."),
    (re.compile(r"^label_emb(?=[a-z])"), "label_emb."),
    (re.compile(r"transformer_blocks(\d+)"), r"transformer_blocks.\1."),
    (re.compile(r"(in_layers|emb_layers|out_layers|to_out)(\d)"), r"\1.\2."),
    (re.compile(r"ffnet(\d)(proj)?"), lambda m: f"ff.net.{m[1]}." + ("proj." if m[2] else "")),
    (re.compile(r"\.(attn\d|norm\d|to_[qkv]|op|conv|norm|qkv|proj_in|proj_out|skip_connection)(?=[a-z])"), r".\1."),
    (re.compile(r"\.(attn\d)\.?(to_[qkv])(?=weight)"), r".\1.\2."),
)


def of_average(tensors: Tensors) -> dict[str, Stored]:
    """Averaged weights of a U-Net, whose names have lost their dots, under those that the raw ones would have."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, dotted in _EMA:
            name = pattern.sub(dotted, name)
        found[name] = tensor
    return found


def unet(tensors: Tensors) -> dict[str, Any]:
    """The fields of a U-Net with tensors `input_blocks.0.0.weight` and so on, all but its heads. ValueError if they are not
    of one as CompVis builds them."""
    try:
        return _unet(tensors)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"its U-Net is not built as CompVis's ({type(error).__name__}: {str(error)[:100]})") from None


def _unet(tensors: Tensors) -> dict[str, Any]:
    channels, into = tensors["input_blocks.0.0.weight"].shape[:2]
    outputs = _count(tensors, r"output_blocks\.(\d+)\.0\.in_layers\.0\.weight")
    resized = [
        [f for f in (r"conv.weight", r"in_layers.0.weight") for j in (1, 2) if f"output_blocks.{i}.{j}.{f}" in tensors]
        for i in range(outputs)
    ]
    levels = 1 + sum(map(bool, resized))
    if outputs % levels:
        raise ValueError(f"{outputs} blocks on the way up for {levels} levels")
    blocks = outputs // levels - 1
    updown = any("in_layers.0.weight" in found for found in resized)
    starts = [1 + level * (blocks + 1) for level in range(levels)]  # of each level's input blocks
    widths = [tensors[f"input_blocks.{start}.0.out_layers.3.weight"].shape[0] for start in starts]
    depths = [_depth(tensors, f"input_blocks.{start}.1") for start in starts]
    middle = _depth(tensors, "middle_block.1")
    attending = [f"input_blocks.{start}.1.norm.weight" in tensors for start in starts]
    transformer = middle > 0
    fields: dict[str, Any] = {
        "kind": "unet",
        "in_channels": into,
        "out_channels": tensors["out.2.weight"].shape[0],
        "model_channels": channels,
        "num_res_blocks": blocks,
        "attention_resolutions": tuple(2**level for level in range(levels) if attending[level]),
        "channel_mult": tuple(width // channels if width % channels == 0 else width / channels for width in widths),
        "num_heads": -1,
        "num_head_channels": -1,
        "use_spatial_transformer": transformer,
        "transformer_depth": 1,
        "context_dim": None,
        "use_scale_shift_norm": tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[0],
        "resblock_updown": updown,
        "dropout": 0.0,
    }
    if transformer:
        known = [depth if attends else middle for depth, attends in zip(depths, attending)]
        fields["transformer_depth"] = known[0] if len({*known}) == 1 else tuple(known)
        if middle != known[-1]:
            fields["transformer_depth_middle"] = middle
        fields["context_dim"] = tensors["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
        crossing = [
            attends and tensors[f"input_blocks.{start}.1.transformer_blocks.0.attn1.to_k.weight"].shape[1] != width
            for start, attends, width in zip(starts, attending, widths)
        ]
        if any(crossing):
            fields["disable_self_attentions"] = True if all(c == a for c, a in zip(crossing, attending)) else tuple(crossing)
    if "label_emb.0.0.weight" in tensors:
        fields |= {"num_classes": "sequential", "adm_in_channels": tensors["label_emb.0.0.weight"].shape[1]}
    elif "label_emb.weight" in tensors:
        fields["num_classes"] = tensors["label_emb.weight"].shape[0]
    return fields


def mmdit(tensors: Tensors) -> dict[str, Any]:
    """The fields of a transformer of Stable Diffusion 3 with tensors `joint_blocks.0.x_block.attn.qkv.weight` and so on, but
    for the size of its training. Heads are as wide as the norms of their queries; without any they are 64 wide, as published.
    ValueError if they are not of one."""
    try:
        width, channels, patch = tensors["x_embedder.proj.weight"].shape[:3]
        depth = _count(tensors, r"joint_blocks\.(\d+)\.x_block\.attn\.qkv\.weight")
        norm = tensors.get("joint_blocks.0.x_block.attn.ln_q.weight")
        head, places = _HEAD if norm is None else norm.shape[0], tensors["pos_embed"].shape[1]
        fields: dict[str, Any] = {
            "kind": "mmdit",
            "depth": depth,
            "hidden_size": width,
            "num_heads": width // head,
            "context_dim": tensors["context_embedder.weight"].shape[1],
            "patch_size": patch,
            "in_channels": channels,
            "pooled_dim": tensors["y_embedder.mlp.0.weight"].shape[1],
            "position_table": math.isqrt(places),
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        problem = f"{type(error).__name__}: {str(error)[:100]}"
        raise ValueError(f"its transformer is not built as Stability AI's ({problem})") from None
    if width % head:
        raise ValueError(f"its transformer is {width} wide, no multiple of its heads, {head}")
    if fields["position_table"] ** 2 != places:
        raise ValueError(f"its transformer's table has {places} places, which are no square")
    dual = tuple(i for i in range(depth) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in tensors)
    return fields | ({"qk_norm": True} if norm is not None else {}) | ({"dual_attention_layers": dual} if dual else {})


def autoencoder(tensors: Tensors, resolution: int) -> dict[str, Any]:
    """The fields of a first stage with tensors `encoder.conv_in.weight` and so on, for pictures of so many pixels."""
    try:
        return _autoencoder(tensors, resolution)
    except (KeyError, ZeroDivisionError) as error:
        raise ValueError(f"its first stage is not built as CompVis's (no {error})") from None


def _autoencoder(tensors: Tensors, resolution: int) -> dict[str, Any]:
    ch, colours = tensors["encoder.conv_in.weight"].shape[:2]
    levels = _count(tensors, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    widths = [tensors[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
    attends = [f"encoder.down.{level}.attn.0.q.weight" in tensors for level in range(levels)]
    z, moments = tensors["decoder.conv_in.weight"].shape[1], tensors["encoder.conv_out.weight"].shape[0]
    codes = tensors.get("quantize.embedding.weight")
    embed = z if "post_quant_conv.weight" not in tensors else tensors["post_quant_conv.weight"].shape[1]
    fields = {
        "kind": "kl" if codes is None else "vq",
        "path": "",
        "in_channels": colours,
        "out_ch": tensors["decoder.conv_out.weight"].shape[0],
        "resolution": resolution,
        "ch": ch,
        "ch_mult": tuple(width // ch if width % ch == 0 else width / ch for width in widths),
        "num_res_blocks": _count(tensors, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight"),
        "attn_resolutions": tuple(resolution // 2**level for level in range(levels) if attends[level]),
        "attn_type": "vanilla" if "encoder.mid.attn_1.q.weight" in tensors else "none",
        "z_channels": z,
        "double_z": moments == 2 * z,
        "dropout": 0.0,
        "embed_dim": embed,
        "n_embed": 0 if codes is None else codes.shape[0],
    }
    for name in ("quant_conv", "post_quant_conv"):
        if f"{name}.weight" not in tensors:
            fields[f"use_{name}"] = False
    return fields


def _count(tensors: Tensors, pattern: str) -> int:
    """One more than the largest number that a name has in the pattern's place."""
    return 1 + max((int(found[1]) for name in tensors if (found := re.fullmatch(pattern, name))), default=-1)


def _depth(tensors: Tensors, block: str) -> int:
    return _count(tensors, re.escape(block) + r"\.transformer_blocks\.(\d+)\.norm1\.weight")
