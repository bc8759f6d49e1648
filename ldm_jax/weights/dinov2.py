"""The reader of DINOv2: Meta's own files, and folders of transformers.

    read_dinov2("dinov2_vitl14_pretrain.pth")
    read_dinov2("dinov2-large/")                 Dinov2Model, also with registers

Heads are 64 wide in every released model; only a folder's config.json says otherwise.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.weights import files
from ldm_jax.weights.features import tree_of
from ldm_jax.weights.stored import in_memory

HEAD = 64
# transformers' names -> Meta's
_RENAMED = (
    (r"^(dinov2|dinov2_with_registers)\.", ""), (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"), (r"^embeddings\.", ""), (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."), (r"\.attention\.attention\.", ".attn."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"), (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.w3."), (r"^layernorm\.", "norm."),
)  # fmt: skip


def read_dinov2(path: str | Path, image_size: int = 224) -> tuple[dict[str, Any], dict]:
    """The fields of our module (`models.DINOv2`) and its parameters, float32, positions resized to pictures of `image_size`.

    Raises:
      ValueError: not a DINOv2, or a picture size that its patches don't divide.
    """
    path = Path(path)
    said: Mapping[str, Any] = {}
    if path.is_dir():
        said = files.read_json(path / "config.json")
        tensors = files.folder_tensors(path, [])[0]
    else:
        tensors = files.tensors(path, [])
    found = {}
    for name, tensor in tensors.items():
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        if name != "mask_token" and not name.startswith("classifier."):
            found[name] = np.asarray(tensor, np.float32)
    _fuse(found)
    fields = _fields(found, said, path, image_size)
    antialias = fields["registers"] > 0 and path.is_dir()  # so does transformers; Meta's code never
    found["pos_embed"] = resize_positions(found["pos_embed"], image_size // fields["patch_size"], antialias)
    return fields, tree_of(_wanted(fields), {name: in_memory(array) for name, array in found.items()}, f"{path}: DINOv2")


def _fuse(found: dict[str, np.ndarray]) -> None:
    """Queries, keys and values that are kept apart become one, and so do the gate and what it gates."""
    for apart, fused in ((("query", "key", "value"), "qkv"), (("gate_proj", "up_proj"), "w12")):
        for first in [name for name in found if f".{apart[0]}." in name]:
            parts = [found.pop(first.replace(apart[0], part), None) for part in apart]
            if all(part is not None for part in parts):
                found[first.replace(apart[0], fused)] = np.concatenate(parts)


def _fields(found: Mapping[str, np.ndarray], said: Mapping[str, Any], path: Path, image_size: int) -> dict[str, Any]:
    absent = [name for name in ("patch_embed.proj.weight", "pos_embed", "cls_token", "norm.weight") if name not in found]
    if absent:
        raise ValueError(f"{path}: no DINOv2, it has no {absent[0]} among {len(found)} tensors")
    width, _, patch, _ = found["patch_embed.proj.weight"].shape
    if image_size % patch:
        raise ValueError(f"{path}: pictures of {image_size} pixels can't be cut into patches of {patch}")
    swiglu = "blocks.0.mlp.w3.weight" in found
    mlp = found.get("blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight")
    if mlp is None:
        raise ValueError(f"{path}: no DINOv2, its blocks have no MLP that is known")
    numbers = {int(name.split(".")[1]) for name in found if name.startswith("blocks.")}
    return {
        "image_size": image_size, "patch_size": patch, "hidden_size": width, "num_layers": len(numbers),
        "num_heads": int(said.get("num_attention_heads", width // HEAD)), "mlp_size": mlp.shape[1],
        "registers": found["register_tokens"].shape[1] if "register_tokens" in found else 0, "swiglu": swiglu,
        "layer_norm_eps": float(said.get("layer_norm_eps", 1e-6)),
    }  # fmt: skip


def _wanted(fields: Mapping[str, Any]) -> list[str]:
    """Meta's names of all tensors."""
    layers = ("attn.qkv", "attn.proj", *(("mlp.w12", "mlp.w3") if fields["swiglu"] else ("mlp.fc1", "mlp.fc2")))
    block = [f"{part}.{leaf}" for part in ("norm1", "norm2", *layers) for leaf in ("weight", "bias")]
    block += ["ls1.gamma", "ls2.gamma"]
    names = ["patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed", "norm.weight", "norm.bias"]
    names += ["register_tokens"] if fields["registers"] else []
    return names + [f"blocks.{i}.{name}" for i in range(fields["num_layers"]) for name in block]


def resize_positions(positions: np.ndarray, side: int, antialias: bool = False) -> np.ndarray:
    """Position embeddings [1, 1 + n * n, D] for side * side patches, by PyTorch's bicubic interpolation; the class token's
    stays."""
    mark, grid = positions[:, :1], positions[:, 1:]
    n = round(grid.shape[1] ** 0.5)
    if n == side:
        return positions
    weights = bicubic(n, side, antialias)
    grid = np.einsum("ai,bj,ijd->abd", weights, weights, grid.reshape(n, n, -1).astype(np.float64))
    return np.concatenate([mark, grid.reshape(1, side * side, -1).astype(np.float32)], 1)


def bicubic(count: int, wanted: int, antialias: bool) -> np.ndarray:
    """The matrix [wanted, count] of PyTorch's bicubic resize without aligned corners: Keys's kernel with a = -0.75, edges
    repeated; with antialiasing a = -0.5, the kernel stretched and cut off at the edges."""
    a, stretch = (-0.5, max(count / wanted, 1.0)) if antialias else (-0.75, 1.0)
    at = (np.arange(wanted) + 0.5) * count / wanted - 0.5
    reach = int(np.ceil(2 * stretch)) + 1
    taps = np.floor(at)[:, None].astype(int) + np.arange(-reach, reach + 1)
    d = np.abs(taps - at[:, None]) / stretch
    inner = ((a + 2) * d - (a + 3)) * d * d + 1
    outer = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    kernel = np.where(d <= 1, inner, np.where(d < 2, outer, 0.0))
    if antialias:
        kernel = np.where((taps < 0) | (taps >= count), 0.0, kernel)
    kernel = kernel / kernel.sum(1, keepdims=True)
    matrix = np.zeros((wanted, count))
    np.add.at(matrix, (np.arange(wanted)[:, None], np.clip(taps, 0, count - 1)), kernel)
    return matrix
