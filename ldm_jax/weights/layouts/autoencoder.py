"""The tensors of CompVis's `AutoencoderKL` and `VQModel`, and beside them those of the diffusers classes so named.

`up.0` is the highest resolution and runs last; diffusers' `up_blocks.0` is the lowest and runs first.
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.weights.layouts.parts import conv, norm, pointwise, table
from ldm_jax.weights.naming import Layout


def resnet_block(name: str, other: str, into: int, out: int) -> Layout:
    """Names of a residual block's tensors."""
    weights = norm(f"{name}.norm1", f"{other}.norm1", into)
    weights += conv(f"{name}.conv1", f"{other}.conv1", into, out)
    weights += norm(f"{name}.norm2", f"{other}.norm2", out)
    weights += conv(f"{name}.conv2", f"{other}.conv2", out, out)
    if into != out:
        weights += pointwise(f"{name}.nin_shortcut", f"{other}.conv_shortcut", into, out)
    return weights


def attn_block(name: str, other: str, width: int) -> Layout:
    """Names of an attention block's tensors."""
    weights = norm(f"{name}.norm", f"{other}.group_norm", width)
    for part in "qkv":
        weights += pointwise(f"{name}.{part}", f"{other}.to_{part}", width, width)
    return weights + pointwise(f"{name}.proj_out", f"{other}.to_out.0", width, width)


def attends(stage: Mapping[str, Any], level: int) -> bool:
    """Whether a level has attention: its nominal size, not the input's, is looked up in attn_resolutions."""
    if stage.get("attn_type", "vanilla") == "none":
        return False
    return stage["resolution"] // 2**level in tuple(stage["attn_resolutions"])


def _middle(stage: Mapping[str, Any], name: str, other: str, width: int) -> Layout:
    weights = resnet_block(f"{name}.block_1", f"{other}.resnets.0", width, width)
    if stage.get("attn_type", "vanilla") != "none" and stage.get("mid_attn", True):
        weights += attn_block(f"{name}.attn_1", f"{other}.attentions.0", width)
    return weights + resnet_block(f"{name}.block_2", f"{other}.resnets.1", width, width)


def encoder(stage: Mapping[str, Any], name: str, other: str) -> Layout:
    """Names of the encoder's tensors."""
    widths = [round(stage["ch"] * multiplier) for multiplier in stage["ch_mult"]]
    width = stage["ch"]
    weights = conv(f"{name}.conv_in", f"{other}.conv_in", stage["in_channels"], width)
    for level, out in enumerate(widths):
        down, down_block = f"{name}.down.{level}", f"{other}.down_blocks.{level}"
        for index in range(stage["num_res_blocks"]):
            weights += resnet_block(f"{down}.block.{index}", f"{down_block}.resnets.{index}", width, out)
            if attends(stage, level):
                weights += attn_block(f"{down}.attn.{index}", f"{down_block}.attentions.{index}", out)
            width = out
        if level < len(widths) - 1:
            weights += conv(f"{down}.downsample.conv", f"{down_block}.downsamplers.0.conv", width, width)
    weights += _middle(stage, f"{name}.mid", f"{other}.mid_block", width)
    weights += norm(f"{name}.norm_out", f"{other}.conv_norm_out", width)
    channels = stage["z_channels"] * (2 if stage["double_z"] else 1)
    return weights + conv(f"{name}.conv_out", f"{other}.conv_out", width, channels)


def decoder(stage: Mapping[str, Any], name: str, other: str) -> Layout:
    """Names of the decoder's tensors."""
    widths = [round(stage["ch"] * multiplier) for multiplier in stage["ch_mult"]]
    width = widths[-1]
    weights = conv(f"{name}.conv_in", f"{other}.conv_in", stage["z_channels"], width)
    weights += _middle(stage, f"{name}.mid", f"{other}.mid_block", width)
    for level in reversed(range(len(widths))):
        up, up_block = f"{name}.up.{level}", f"{other}.up_blocks.{len(widths) - 1 - level}"
        for index in range(stage["num_res_blocks"] + 1):
            weights += resnet_block(f"{up}.block.{index}", f"{up_block}.resnets.{index}", width, widths[level])
            width = widths[level]
            if attends(stage, level):
                weights += attn_block(f"{up}.attn.{index}", f"{up_block}.attentions.{index}", width)
        if level:
            weights += conv(f"{up}.upsample.conv", f"{up_block}.upsamplers.0.conv", width, width)
    weights += norm(f"{name}.norm_out", f"{other}.conv_norm_out", width)
    return weights + conv(f"{name}.conv_out", f"{other}.conv_out", width, stage["out_ch"])


def autoencoder(stage: Mapping[str, Any]) -> Layout:
    """All tensors of a first stage with these fields; `kind` is "kl" or "vq"."""
    z, e, both = stage["z_channels"], stage["embed_dim"], 2 if stage["double_z"] else 1
    weights = encoder(stage, "encoder", "encoder") + decoder(stage, "decoder", "decoder")
    if stage.get("use_quant_conv", True):
        weights += pointwise("quant_conv", "quant_conv", both * z, both * e)
    if stage.get("use_post_quant_conv", True):
        weights += pointwise("post_quant_conv", "post_quant_conv", e, z)
    if stage["kind"] == "vq":
        weights += table("quantize.embedding", "quantize.embedding", stage["n_embed"], e)
    return weights
