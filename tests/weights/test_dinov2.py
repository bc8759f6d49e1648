"""DINOv2's reader and network beside outputs of transformers (tests/weights/dinov2, made by make.py there)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import models, weights
from ldm_jax.weights import files
from ldm_jax.weights.dinov2 import bicubic

SMALL = Path(__file__).resolve().parent / "dinov2"


@pytest.mark.parametrize("name", ["plain", "registers"])
def test_pooled_features_are_the_references(name):
    """Positions of a 7 x 7 grid for pictures of 4 x 4 patches; heads of 8, as config.json says."""
    fields, params = weights.read_dinov2(SMALL / name, image_size=16)
    io = np.load(SMALL / name / "io.npz")
    network = models.DINOv2(**fields)
    assert fields["num_heads"] == 2 and fields["registers"] == (3 if name == "registers" else 0)
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), params)
    found = network.apply({"params": params}, jnp.asarray(io["images"]))
    np.testing.assert_allclose(found, io["pooled"], atol=2e-5)


def test_metas_own_names_are_read_alike(tmp_path):
    """The same tensors fused and named as in Meta's files; heads of 64 can't be, so fields are compared, not outputs."""
    from safetensors.numpy import save_file

    there = {name: np.asarray(tensor) for name, tensor in files.folder_tensors(SMALL / "plain", [])[0].items()}
    renamed = {}
    for name, array in there.items():
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj").replace("layernorm", "norm")
        name = name.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.", "")
        name = name.replace("encoder.layer", "blocks").replace("layer_scale1.lambda1", "ls1.gamma")
        name = name.replace("layer_scale2.lambda1", "ls2.gamma").replace("attention.output.dense", "attn.proj")
        renamed[name] = array
    for i in range(2):
        for leaf in ("weight", "bias"):
            parts = [renamed.pop(f"blocks.{i}.attention.attention.{part}.{leaf}") for part in ("query", "key", "value")]
            renamed[f"blocks.{i}.attn.qkv.{leaf}"] = np.concatenate(parts)
    save_file(renamed, tmp_path / "small.safetensors")
    fields, params = weights.read_dinov2(tmp_path / "small.safetensors", image_size=28)
    theirs, expected = weights.read_dinov2(SMALL / "plain", image_size=28)
    assert fields == theirs | {"num_heads": 0}  # 16 wide, and heads of 64
    np.testing.assert_array_equal(params["blocks_1"]["attn"]["qkv"]["kernel"], expected["blocks_1"]["attn"]["qkv"]["kernel"])
    np.testing.assert_array_equal(params["pos_embed"], expected["pos_embed"])


@pytest.mark.parametrize("name, why", [("blocks.1.ls2.gamma", "missing"), ("pos_embed", "no DINOv2, it has no pos_embed")])
def test_another_network_is_refused(tmp_path, name, why):
    from safetensors.numpy import save_file

    there = {key: np.asarray(tensor) for key, tensor in files.folder_tensors(SMALL / "plain", [])[0].items()}
    drop = {"blocks.1.ls2.gamma": "encoder.layer.1.layer_scale2.lambda1", "pos_embed": "embeddings.position_embeddings"}[name]
    save_file({key: array for key, array in there.items() if key != drop}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=why):
        weights.read_dinov2(tmp_path / "model.safetensors", image_size=28)
    with pytest.raises(ValueError, match="30 pixels can't be cut into patches of 4"):
        weights.read_dinov2(SMALL / "plain", image_size=30)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("count, wanted", [(7, 4), (4, 7), (5, 5)])
def test_bicubic_keeps_constants_and_prefers_no_side(count, wanted, antialias):
    matrix = bicubic(count, wanted, antialias)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    if count == wanted:
        np.testing.assert_allclose(matrix, np.eye(count), atol=1e-12)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-12)  # no side is preferred
