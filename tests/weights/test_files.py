"""Safetensors and flax msgpack files, against the libraries that define them."""

import json

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ldm_jax.weights import files, msgpack_files, safetensors_files, torch_files
from ldm_jax.weights.stored import ALIGNMENT, owned

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.normal(size=(3, 4)).astype(np.float32),
    "b": RNG.normal(size=(5,)).astype(np.float16),
    "c": RNG.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
    "d": np.asarray(7, np.int64),
    "e": RNG.integers(0, 9, (3,), dtype=np.uint8),
    "f": np.zeros((0, 2), np.float32),
}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert np.asarray(found[name]).tobytes() == array.tobytes()


def test_safetensors_both_ways(tmp_path):
    safetensors_files.write(tmp_path / "ours.safetensors", ARRAYS)
    same(safetensors_files.read(tmp_path / "ours.safetensors"), ARRAYS)
    plain = {name: array for name, array in ARRAYS.items() if name != "c"}
    safetensors_files.write(tmp_path / "plain.safetensors", plain)
    theirs = safetensors.numpy.load_file(tmp_path / "plain.safetensors")
    assert all(np.array_equal(theirs[name], plain[name]) for name in plain)
    safetensors.numpy.save_file(ARRAYS, tmp_path / "theirs.safetensors")
    same(safetensors_files.read(tmp_path / "theirs.safetensors"), ARRAYS)


def test_leaves_are_read_alone_and_in_parts(tmp_path):
    safetensors_files.write(tmp_path / "a.safetensors", {"x": np.arange(12.0).reshape(3, 4)})
    leaf = safetensors_files.read(tmp_path / "a.safetensors")["x"]
    assert leaf[1:, 0].tolist() == [4.0, 8.0] and leaf.nbytes == 96
    array = np.asarray(leaf)
    array[:] = 0  # a copy of one's own
    assert leaf[0].tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "shape, axes",
    [((), ()), ((0, 3), (1, 0)), ((130, 1100), (1, 0)), ((40, 300, 3, 3), (2, 3, 1, 0)), ((17, 600, 1, 1), (2, 3, 1, 0))],
)
def test_copies_of_transposed_arrays(shape, axes):
    """In tiles that don't divide the sides, with and without another type; where JAX's CPU backend takes them as they are."""
    array = np.asarray(RNG.standard_normal(shape)).astype(np.float16).transpose(axes)
    for dtype in (np.float16, np.float32, ml_dtypes.bfloat16):
        copy = owned(array, np.dtype(dtype))
        assert copy.flags.c_contiguous and copy.flags.writeable and not np.shares_memory(copy, array)
        assert copy.size == 0 or copy.ctypes.data % ALIGNMENT == 0
        np.testing.assert_array_equal(copy, array.astype(dtype), strict=True)


def test_truncated_or_foreign_safetensors(tmp_path):
    safetensors_files.write(tmp_path / "a.safetensors", ARRAYS)
    data = (tmp_path / "a.safetensors").read_bytes()
    for length in (0, 5, 40, len(data) - 1):
        (tmp_path / "b.safetensors").write_bytes(data[:length])
        with pytest.raises(ValueError, match="b.safetensors.*truncated"):
            safetensors_files.read(tmp_path / "b.safetensors")
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "c.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match="does not fit"):
        safetensors_files.read(tmp_path / "c.safetensors")


def shard(folder, names=("1", "2")):
    parts = {"1": {"a.weight": ARRAYS["a.weight"]}, "2": {"b": ARRAYS["b"]}}
    for name in names:
        safetensors_files.write(folder / f"model-0000{name}-of-00002.safetensors", parts[name])
    weight_map = {key: f"model-0000{name}-of-00002.safetensors" for name, part in parts.items() for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards(tmp_path):
    shard(tmp_path)
    found, flax_names = files.folder_tensors(tmp_path, [])
    same(found, {name: ARRAYS[name] for name in ("a.weight", "b")})
    assert not flax_names


def test_missing_shards_are_listed(tmp_path):
    shard(tmp_path, names=("1",))
    with pytest.raises(ValueError, match="missing shards model-00002-of-00002"):
        files.folder_tensors(tmp_path, [])
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="without their index"):
        files.folder_tensors(tmp_path, [])


def test_an_index_whose_shards_were_not_copied_is_passed_by(tmp_path):
    shard(tmp_path, names=())
    parts = {"a.weight": "model.fp16-00001-of-00002.safetensors", "b": "model.fp16-00002-of-00002.safetensors"}
    for name, file in parts.items():
        safetensors_files.write(tmp_path / file, {name: ARRAYS[name]})
    (tmp_path / "model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": parts}))
    same(files.folder_tensors(tmp_path, [])[0], {name: ARRAYS[name] for name in parts})


def test_a_plain_file_comes_before_variants(tmp_path):
    safetensors_files.write(tmp_path / "model.fp16.safetensors", {"b": ARRAYS["b"]})
    assert "b" in files.folder_tensors(tmp_path, [])[0]
    safetensors_files.write(tmp_path / "model.safetensors", {"a.weight": ARRAYS["a.weight"]})
    assert "a.weight" in files.folder_tensors(tmp_path, [])[0]


def test_a_plain_pickle_comes_before_variants(tmp_path):
    """As in diffusers; the variant may be of other numbers, as non_ema is."""
    safetensors_files.write(tmp_path / "diffusion_pytorch_model.non_ema.safetensors", {"b": ARRAYS["b"]})
    torch_files.write(tmp_path / "diffusion_pytorch_model.bin", {"a.weight": ARRAYS["a.weight"]})
    same(files.folder_tensors(tmp_path, [])[0], {"a.weight": ARRAYS["a.weight"]})


def test_msgpack_of_flax(tmp_path, monkeypatch):
    tree = {"down_blocks_0": {"conv": {"kernel": ARRAYS["a.weight"], "bias": ARRAYS["b"]}}, "c": ARRAYS["c"]}
    wanted = {"down_blocks_0.conv.kernel": ARRAYS["a.weight"], "down_blocks_0.conv.bias": ARRAYS["b"], "c": ARRAYS["c"]}
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    same(msgpack_files.read(tmp_path / "a.msgpack"), wanted)
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 8)  # arrays in pieces, as above 1 GB
    (tmp_path / "b.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    same(msgpack_files.read(tmp_path / "b.msgpack"), wanted)
    data = (tmp_path / "a.msgpack").read_bytes()
    (tmp_path / "c.msgpack").write_bytes(data[:-3])
    with pytest.raises(ValueError, match="truncated"):
        msgpack_files.read(tmp_path / "c.msgpack")
