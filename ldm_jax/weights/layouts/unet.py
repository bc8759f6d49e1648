"""The tensors of CompVis's `UNetModel` and, beside them, of diffusers' `UNet2DModel` and `UNet2DConditionModel`.

The reference numbers its blocks through (`input_blocks.7.0`), diffusers by level (`down_blocks.2.resnets.0`); its
`up_blocks.0` is the lowest resolution, as the first of the reference's `output_blocks`.
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.weights.layouts.parts import conv, fused_qkv, linear, norm, pointwise, table
from ldm_jax.weights.naming import Layout, Weight


def per_level(network: Mapping[str, Any], field: str, level: int, default: Any = None) -> Any:
    """A field that is one value or one per level."""
    value = network.get(field, default)
    return value[level] if isinstance(value, list | tuple) else value


def heads_of(network: Mapping[str, Any], channels: int, level: int) -> int:
    """How many heads attention of this width has."""
    if network.get("num_head_channels", -1) != -1:
        return channels // network["num_head_channels"]
    return per_level(network, "num_heads", level, -1)


def res_block(name: str, other: str, into: int, out: int, emb: int, scale_shift: bool) -> Layout:
    """Names of a residual block's tensors."""
    weights = norm(f"{name}.in_layers.0", f"{other}.norm1", into)
    weights += conv(f"{name}.in_layers.2", f"{other}.conv1", into, out)
    weights += linear(f"{name}.emb_layers.1", f"{other}.time_emb_proj", emb, out * (2 if scale_shift else 1))
    weights += norm(f"{name}.out_layers.0", f"{other}.norm2", out)
    weights += conv(f"{name}.out_layers.3", f"{other}.conv2", out, out)
    if into != out:
        weights += pointwise(f"{name}.skip_connection", f"{other}.conv_shortcut", into, out)
    return weights


def attention_block(name: str, other: str, width: int, heads: int, normed: bool = True) -> Layout:
    """Names of a plain attention block's tensors."""
    weights = norm(f"{name}.norm", f"{other}.group_norm", width) if normed else []
    weights += fused_qkv(f"{name}.qkv", other, width, heads)
    return weights + linear(f"{name}.proj_out", f"{other}.to_out.0", width, width, window=(1,))


def spatial_transformer(
    name: str, other: str, width: int, depth: int, context: int, cross_only: bool, projections: Any = pointwise
) -> Layout:
    """Names of a transformer's tensors."""
    weights = norm(f"{name}.norm", f"{other}.norm", width)
    weights += projections(f"{name}.proj_in", f"{other}.proj_in", width, width)
    for index in range(depth):
        inner: Layout = []
        for attn, seen in (("attn1", context if cross_only else width), ("attn2", context)):
            inner += linear(f"{attn}.to_q", f"{attn}.to_q", width, width, bias=False)
            inner += linear(f"{attn}.to_k", f"{attn}.to_k", seen, width, bias=False)
            inner += linear(f"{attn}.to_v", f"{attn}.to_v", seen, width, bias=False)
            inner += linear(f"{attn}.to_out.0", f"{attn}.to_out.0", width, width)
        inner += linear("ff.net.0.proj", "ff.net.0.proj", width, 8 * width)
        inner += linear("ff.net.2", "ff.net.2", 4 * width, width)
        for number in (1, 2, 3):
            inner += norm(f"norm{number}", f"norm{number}", width)
        block = f"transformer_blocks.{index}"
        for weight in inner:
            spelled = f"{other}.{block}.{weight.name}"
            weights.append(Weight(f"{name}.{block}.{weight.name}", weight.shape, weight.kind, (spelled,)))
    return weights + projections(f"{name}.proj_out", f"{other}.proj_out", width, width)


def unet(network: Mapping[str, Any]) -> Layout:
    """All tensors of a U-Net with these constructor fields."""
    channels, multipliers = network["model_channels"], network["channel_mult"]
    widths = [round(channels * multiplier) for multiplier in multipliers]
    levels, emb = len(widths), 4 * channels
    transformer = network.get("use_spatial_transformer", False)
    context = network.get("context_dim") or 0
    projections = linear if network.get("use_linear_in_transformer", False) else pointwise

    def res(name: str, other: str, into: int, out: int) -> Layout:
        return res_block(name, other, into, out, emb, network.get("use_scale_shift_norm", False))

    def attend(name: str, other: str, width: int, level: int, middle: bool = False) -> Layout:
        if not transformer:
            normed = not middle or network.get("middle_attention_groups") != 0
            # in the new order q, k and v are whole, as those of one head
            heads = 1 if network.get("use_new_attention_order") else heads_of(network, width, level)
            return attention_block(name, other, width, heads, normed)
        depth = per_level(network, "transformer_depth", level, 1)
        cross_only = per_level(network, "disable_self_attentions", level, False)
        if middle:
            middle_depth = network.get("transformer_depth_middle")
            depth = depth if middle_depth is None else middle_depth
            cross_only = network.get("disable_middle_self_attn", False)
        return spatial_transformer(name, other, width, depth, context, bool(cross_only), projections)

    def attends(level: int) -> bool:
        return 2**level in tuple(network["attention_resolutions"])

    weights = linear("time_embed.0", "time_embedding.linear_1", channels, emb)
    if network.get("guidance_dim"):
        weights += linear("time_embed_cond_proj", "time_embedding.cond_proj", network["guidance_dim"], channels, bias=False)
    weights += linear("time_embed.2", "time_embedding.linear_2", emb, emb)
    weights += _label_embedding(network, emb)
    weights += conv("input_blocks.0.0", "conv_in", network["in_channels"], channels)

    width, skips, block = channels, [channels], 1
    for level, out in enumerate(widths):
        for index in range(per_level(network, "num_res_blocks", level)):
            name, other = f"input_blocks.{block}", f"down_blocks.{level}"
            weights += res(f"{name}.0", f"{other}.resnets.{index}", width, out)
            if attends(level):
                weights += attend(f"{name}.1", f"{other}.attentions.{index}", out, level)
            width, block = out, block + 1
            skips.append(width)
        if level < levels - 1:
            name, other = f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0"
            if network.get("resblock_updown", False):
                weights += res(name, other, width, width)
            elif network.get("conv_resample", True):
                weights += conv(f"{name}.op", f"{other}.conv", width, width)
            block += 1
            skips.append(width)

    weights += res("middle_block.0", "mid_block.resnets.0", width, width)
    weights += attend("middle_block.1", "mid_block.attentions.0", width, levels - 1, middle=True)
    weights += res("middle_block.2", "mid_block.resnets.1", width, width)

    block = 0
    for level in reversed(range(levels)):
        count = per_level(network, "num_res_blocks", level) + 1
        for index in range(count):
            name, other = f"output_blocks.{block}", f"up_blocks.{levels - 1 - level}"
            weights += res(f"{name}.0", f"{other}.resnets.{index}", width + skips.pop(), widths[level])
            width, inner = widths[level], 1
            if attends(level):
                weights += attend(f"{name}.1", f"{other}.attentions.{index}", width, level)
                inner = 2
            if level and index == count - 1:
                other = f"{other}.upsamplers.0"
                if network.get("resblock_updown", False):
                    weights += res(f"{name}.{inner}", other, width, width)
                elif network.get("conv_resample", True):
                    weights += conv(f"{name}.{inner}.conv", f"{other}.conv", width, width)
            block += 1

    weights += norm("out.0", "conv_norm_out", width)
    return weights + conv("out.2", "conv_out", width, network["out_channels"])


def controlnet(network: Mapping[str, Any]) -> Layout:
    """All tensors of a ControlNet: a U-Net's way down, a small encoder of what it is shown, and a layer for every skip."""
    weights = [weight for weight in unet(network) if not weight.name.startswith(("output_blocks.", "out."))]
    hints, other = list(network["hint_channels"]), "controlnet_cond_embedding"
    pairs = [(3, hints[0])] + [pair for a, b in zip(hints, hints[1:]) for pair in ((a, a), (a, b))]
    for i, (into, out) in enumerate([*pairs, (hints[-1], network["model_channels"])]):
        name = "conv_in" if i == 0 else "conv_out" if i == len(pairs) else f"blocks.{i - 1}"
        weights += conv(f"input_hint_block.{2 * i}", f"{other}.{name}", into, out)
    widths = [round(network["model_channels"] * multiplier) for multiplier in network["channel_mult"]]
    skips = [network["model_channels"]]
    for level, width in enumerate(widths):
        skips += [width] * (per_level(network, "num_res_blocks", level) + (level < len(widths) - 1))
    for i, width in enumerate(skips):
        weights += pointwise(f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}", width, width)
    return weights + pointwise("middle_block_out.0", "controlnet_mid_block", widths[-1], widths[-1])


def _label_embedding(network: Mapping[str, Any], emb: int) -> Layout:
    classes = network.get("num_classes")
    if classes is None:
        return []
    if classes == "sequential":  # diffusers: SDXL's sizes and pooled text
        weights = linear("label_emb.0.0", "add_embedding.linear_1", network["adm_in_channels"], emb)
        return weights + linear("label_emb.0.2", "add_embedding.linear_2", emb, emb)
    if classes == "continuous":
        return linear("label_emb", "class_embedding", 1, emb)
    return table("label_emb", "class_embedding", classes, emb)
