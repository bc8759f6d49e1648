"""The tensors of the diffusion transformer (Peebles & Xie 2023): facebookresearch/DiT, and diffusers beside it.

In diffusers' `DiTTransformer2DModel` every block has an embedder of time and class of its own (in released weights all
the same); the reference has one for all (`shared_embedder`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.weights.layouts.parts import conv, linear, table
from ldm_jax.weights.naming import Layout, Weight
from ldm_jax.weights.stored import Stored

_FIRST = "transformer_blocks.0.norm1.emb."
_TABLE = "class_embedder.embedding_table.weight"


def dit(fields: Mapping[str, Any]) -> Layout:
    """Names of a DiT's tensors."""
    width, patch = fields["hidden_size"], fields["patch_size"]
    shared, inner = fields.get("shared_embedder", True), round(width * fields.get("mlp_ratio", 4.0))
    weights = conv("x_embedder.proj", "pos_embed.proj", fields["in_channels"], width, patch)
    if shared:
        weights += _embedder(fields, "", _FIRST)
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


def dit_of_diffusers(tensors: Mapping[str, Stored], fields: Mapping[str, Any], classes: int) -> dict[str, Stored]:
    """The tensors of `dit`, under diffusers' names, as it has them: every block with an embedder, every table with `classes`
    and the empty one, which fills it up."""
    missing = classes - fields["num_classes"]

    def filled(name: str, tensor: Stored) -> Stored:
        if missing <= 0 or not name.endswith(_TABLE):
            return tensor
        shape = (classes + 1, *tensor.shape[1:])
        return tensor.map(lambda a: np.concatenate([a, np.repeat(a[-1:], missing, 0)]), shape)

    result = {name: filled(name, tensor) for name, tensor in tensors.items()}
    if fields.get("shared_embedder", True):
        shared = {name.removeprefix(_FIRST): tensor for name, tensor in result.items() if name.startswith(_FIRST)}
        for index in range(1, fields["depth"]):
            result |= {_FIRST.replace("0", str(index), 1) + name: tensor for name, tensor in shared.items()}
    return result


def dit_from_diffusers(tensors: Mapping[str, Stored], fields: Mapping[str, Any]) -> dict[str, Stored]:
    """The inverse of `dit_of_diffusers`, for what we wrote: one embedder where it is shared, and the classes that there are."""
    classes = fields["num_classes"]

    def cut(name: str, tensor: Stored) -> Stored:
        if not name.endswith(_TABLE) or tensor.shape[0] <= classes + 1:
            return tensor
        return tensor.map(lambda a: a[: classes + 1], (classes + 1, *tensor.shape[1:]))

    def copied(name: str) -> bool:
        return fields.get("shared_embedder", True) and ".norm1.emb." in name and not name.startswith(_FIRST)

    return {name: cut(name, tensor) for name, tensor in tensors.items() if not copied(name)}
