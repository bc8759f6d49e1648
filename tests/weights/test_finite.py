"""Weights that are not finite are refused by the tensor's name, whatever they are the weights of."""

import ml_dtypes
import numpy as np
import pytest

import ldm_jax
from ldm_jax import weights
from ldm_jax.weights import files, safetensors_files
from tests import tiny

BAD = (np.nan, np.inf, -np.inf)


def values(dtype, bad=None):
    array = np.random.default_rng(0).standard_normal((6, 5)).astype(dtype)
    if bad is not None:
        array[2, 3] = bad
    return array


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_one_number_is_seen_in_any_type(dtype, tmp_path):
    path = tmp_path / "model.safetensors"
    for bad in BAD:
        safetensors_files.write(path, {"fine": values(dtype), "conv.weight": values(dtype, bad), "steps": np.arange(3)})
        found = safetensors_files.read(path)
        said = f"model.safetensors: conv.weight: 1 of 30 numbers are not finite as {np.dtype(dtype)}"
        with pytest.raises(ValueError, match=said):
            np.asarray(found["conv.weight"])
        with pytest.raises(ValueError, match="conv.weight: 1 of 30 numbers are not finite as float32"):
            np.asarray(found["conv.weight"].map(np.transpose, (5, 6)), np.float32)
        with pytest.raises(ValueError, match="conv.weight: 1 of 5 numbers"):
            found["conv.weight"][2]
        np.testing.assert_array_equal(found["conv.weight"][:2], values(dtype)[:2])
        np.testing.assert_array_equal(np.asarray(found["fine"]), values(dtype))
        assert np.asarray(found["steps"]).tolist() == [0, 1, 2]


def test_large_numbers_are_finite_and_what_a_type_cannot_hold_is_not(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors_files.write(path, {"w": np.full(4, 1e30, np.float32)})
    found = safetensors_files.read(path)["w"]
    assert np.asarray(found).tolist() == [np.float32(1e30)] * 4
    with pytest.raises(ValueError, match="w: 4 of 4 numbers are not finite as float16"), np.errstate(over="ignore"):
        np.asarray(found, np.float16)


def test_other_formats_name_their_tensors_too(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra parity: pip install -e .[parity]")
    torch.save({"state_dict": {"w": torch.tensor([1.0, float("nan")])}}, tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match="m.ckpt: .*w: 1 of 2 numbers are not finite"):
        [np.asarray(tensor) for tensor in files.tensors(tmp_path / "m.ckpt", []).values()]


def test_a_model_and_a_word_with_such_weights_are_refused(tmp_path):
    path = tmp_path / "model"
    ldm_jax.save(tiny.model("none"), path)
    assert ldm_jax.load(path)
    file = next(file for file in path.rglob("diffusion_pytorch_model.safetensors") if "vae" in file.parent.name)
    tensors = {name: np.asarray(tensor) for name, tensor in safetensors_files.read(file).items()}
    tensors["decoder.conv_in.weight"][0, 0, 0, 0] = np.nan
    safetensors_files.write(file, tensors)
    with pytest.raises(ValueError, match=r"vae.*safetensors: decoder.conv_in.weight: 1 of \d+ numbers are not finite"):
        ldm_jax.load(path)
    safetensors_files.write(tmp_path / "word.safetensors", {"<cat>": values(np.float32, np.nan)})
    with pytest.raises(ValueError, match="word.safetensors: <cat>: 1 of 30 numbers are not finite"):
        weights.read_embedding(tmp_path / "word.safetensors")
