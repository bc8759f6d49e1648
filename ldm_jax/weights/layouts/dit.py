"""The tensors of the diffusion transformer (Peebles & Xie 2023): facebookresearch/DiT, and diffusers beside it.

In diffusers' `DiTTransformer2DModel` every block has an embedder of time and class of its own (in released weights all
the same); the reference has one for all (`shared_embedder`).
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.weights.layouts.parts import conv, linear, table
from ldm_jax.weights.naming import Layout, Weight


def dit(fields: Mapping[str, Any]) -> Layout:
    """Names of a DiT's tensors."""
    width, patch = fields["hidden_size"], fields["patch_size"]
    shared, inner = fields.get("shared_embedder", True), round(width * fields.get("mlp_ratio", 4.0))
    weights = conv("x_embedder.proj", "pos_embed.proj", fields["in_channels"], width, patch)
    if shared:
        weights += _embedder(fields, "", "transformer_blocks.0.norm1.emb.")
    for index in range(fields["depth"]):
        name, other = f"blocks.{index}", f"transformer_blocks.{index}"
        if not shared:
            weights += _embedder(fields, f"{name}.", f"{other}.norm1.emb.")
        weights += linear(f"{name}.adaLN_modulation.1", f"{other}.norm1.linear", width, 6 * width)
        parts = [f"{other}.attn1.to_{part}" for part in "qkv"]
        for leaf, shape, kind in (("weight", (3 * width, width), "kernel"), ("bias", (3 * width,), "bias")):
            weights.append(Weight(f"{name}.attn.qkv.{leaf}", shape, kind, tuple(f"{part}.{leaf}" for part in parts)))
        weights += linear(f"{name}.attn.proj", f"{other}.attn1.to_out.0", width, width)
        weights += linear(f"{name}.mlp.fc1", f"{other}.ff.net.0.proj", width, inner)
        weights += linear(f"{name}.mlp.fc2", f"{other}.ff.net.2", inner, width)
    weights += linear("final_layer.adaLN_modulation.1", "proj_out_1", width, 2 * width)
    out = fields["in_channels"] * (2 if fields.get("learn_sigma", True) else 1)
    return weights + linear("final_layer.linear", "proj_out_2", width, patch * patch * out)


def _embedder(fields: Mapping[str, Any], name: str, other: str) -> Layout:
    width, classes = fields["hidden_size"], fields.get("num_classes")
    weights = linear(f"{name}t_embedder.mlp.0", f"{other}timestep_embedder.linear_1", 256, width)
    weights += linear(f"{name}t_embedder.mlp.2", f"{other}timestep_embedder.linear_2", width, width)
    if classes is not None:
        weights += table(f"{name}y_embedder.embedding_table", f"{other}class_embedder.embedding_table", classes + 1, width)
    return weights
