"""The tensors of Stable Diffusion 3's transformer: Stability-AI/sd3.5 `mmditx.py`, and diffusers' `SD3Transformer2DModel`.

Where a norm is modulated by two numbers, diffusers has the scale before the shift, the reference after it: `mmdit_swapped`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.weights.layouts.parts import conv, linear
from ldm_jax.weights.naming import Layout, Weight
from ldm_jax.weights.stored import Stored


def mmdit(fields: Mapping[str, Any]) -> Layout:
    """Names of an MMDiT's tensors."""
    width, patch, depth = fields["hidden_size"], fields["patch_size"], fields["depth"]
    weights = conv("x_embedder.proj", "pos_embed.proj", fields["in_channels"], width, patch)
    if side := fields.get("position_table", 0):
        weights.append(Weight("pos_embed", (1, side * side, width), "raw", ("pos_embed.pos_embed",)))
    weights += linear("context_embedder", "context_embedder", fields["context_dim"], width)
    told = [("t_embedder", "timestep_embedder", 256)]
    told += [("y_embedder", "text_embedder", fields["pooled_dim"])] if fields.get("pooled_dim") else []
    for name, other, into in told:
        weights += linear(f"{name}.mlp.0", f"time_text_embed.{other}.linear_1", into, width)
        weights += linear(f"{name}.mlp.2", f"time_text_embed.{other}.linear_2", width, width)
    for i in range(depth):
        dual, last = i in tuple(fields.get("dual_attention_layers", ())), i == depth - 1
        weights += _stream(fields, f"joint_blocks.{i}.x_block", f"transformer_blocks.{i}", "", dual=dual)
        weights += _stream(fields, f"joint_blocks.{i}.context_block", f"transformer_blocks.{i}", "_context", last=last)
    weights += linear("final_layer.adaLN_modulation.1", "norm_out.linear", width, 2 * width)
    return weights + linear("final_layer.linear", "proj_out", width, patch * patch * fields["in_channels"])


def _stream(fields: Mapping[str, Any], name: str, other: str, of: str, dual: bool = False, last: bool = False) -> Layout:
    """What picture (`of` "") or text ("_context") has of its own in a block."""
    width = fields["hidden_size"]
    text = of != ""
    parts = 2 if last else 9 if dual else 6
    weights = linear(f"{name}.adaLN_modulation.1", f"{other}.norm1{of}.linear", width, parts * width)
    weights += _heads(fields, f"{name}.attn", f"{other}.attn", text, not last)
    if dual:
        weights += _heads(fields, f"{name}.attn2", f"{other}.attn2", False, True)
    if not last:
        weights += linear(f"{name}.mlp.fc1", f"{other}.ff{of}.net.0.proj", width, 4 * width)
        weights += linear(f"{name}.mlp.fc2", f"{other}.ff{of}.net.2", 4 * width, width)
    return weights


def _heads(fields: Mapping[str, Any], name: str, other: str, text: bool, projects: bool) -> Layout:
    width, each = fields["hidden_size"], fields["hidden_size"] // fields["num_heads"]
    names = [f"{other}.add_{part}_proj" if text else f"{other}.to_{part}" for part in "qkv"]
    weights = [
        Weight(f"{name}.qkv.weight", (3 * width, width), "kernel", tuple(f"{n}.weight" for n in names)),
        Weight(f"{name}.qkv.bias", (3 * width,), "bias", tuple(f"{n}.bias" for n in names)),
    ]
    if projects:
        weights += linear(f"{name}.proj", f"{other}.to_add_out" if text else f"{other}.to_out.0", width, width)
    if fields.get("qk_norm"):
        for part in "qk":
            theirs = f"{other}.norm_added_{part}.weight" if text else f"{other}.norm_{part}.weight"
            weights.append(Weight(f"{name}.ln_{part}.weight", (each,), "scale", (theirs,)))
    return weights


def mmdit_swaps(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """How the names in diffusers of those layers begin whose scale and shift stand in another order there."""
    return f"transformer_blocks.{fields['depth'] - 1}.norm1_context.linear.", "norm_out.linear."


def mmdit_swapped(tensors: Mapping[str, Stored], fields: Mapping[str, Any]) -> dict[str, Stored]:
    """Tensors under diffusers' names with scale and shift exchanged where the two formats differ: its own inverse."""

    def swapped(a: np.ndarray) -> np.ndarray:
        return np.concatenate(np.split(a, 2)[::-1])

    return {
        name: tensor.map(swapped, tensor.shape) if name.startswith(mmdit_swaps(fields)) else tensor
        for name, tensor in tensors.items()
    }
