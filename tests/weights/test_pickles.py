"""The torch pickle reader: every tensor as torch wrote it, and nothing of the file is ever run."""

import io
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ldm_jax.weights import pickle_machine, pickles, torch_files

RNG = np.random.default_rng(0)
ARRAYS = {
    "f32": RNG.normal(size=(3, 4, 5)).astype(np.float32),
    "f16": RNG.normal(size=(7,)).astype(np.float16),
    "bf16": RNG.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
    "f64": RNG.normal(size=(2, 2)),
    "i64": RNG.integers(-9, 9, (4,)),
    "u8": RNG.integers(0, 255, (5, 1), dtype=np.uint8),
    "bool": np.asarray([True, False]),
    "scalar": np.float32(0.5),
    "empty": np.zeros((0, 3), np.float32),
}


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    content = {"state_dict": dict(ARRAYS), "epoch": 3, "big": 1 << 40, "lr": 1e-6, "none": None, "list": [1, (2, "x"), True]}
    torch_files.write(tmp_path / "a.ckpt", content)
    found, dropped = pickles.read(tmp_path / "a.ckpt")
    assert dropped == [] and {k: v for k, v in found.items() if k != "state_dict"} == {
        k: v for k, v in content.items() if k != "state_dict"
    }
    assert found["state_dict"].keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        tensor = found["state_dict"][name]
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype)
        assert np.asarray(tensor).tobytes() == array.tobytes()
    whole = ARRAYS["f32"]
    assert np.array_equal(found["state_dict"]["f32"][1:, ::2], whole[1:, ::2])


def test_records_are_aligned_and_uncompressed(tmp_path):
    torch_files.write(tmp_path / "a.ckpt", dict(ARRAYS))
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            header = (tmp_path / "a.ckpt").read_bytes()[info.header_offset :][:30]
            start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
            assert info.compress_type == zipfile.ZIP_STORED and start % 64 == 0


def op(value) -> bytes:
    return torch_files._emit(value, [])


def tensor(storage: str, key: str, numel: int, offset: int, shape: tuple, strides: tuple, view=()) -> bytes:
    """The pickle of a tensor over any part of a storage, as torch writes it."""
    reference = b"(" + op("storage") + torch_files._global("torch", storage) + op(key) + op("cpu") + op(numel)
    reference += b"".join(op(item) for item in view) + b"tQ"
    arguments = reference + op(offset) + op(shape) + op(strides) + b"\x89" + torch_files._global("collections", "OrderedDict")
    return torch_files._global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b")RtR"


def archive(path, program: bytes, records: dict[str, bytes], byteorder: str = "little"):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/byteorder", byteorder)
        for key, data in records.items():
            file.writestr(f"archive/data/{key}", data)
    return path


def legacy(path, program: bytes, storages: dict[str, bytes], itemsize: int = 4):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    out = b"".join(pickle.dumps(value, 2) for value in (pickles.LEGACY_MAGIC, 1001, system)) + program
    out += pickle.dumps(list(storages), 2)
    for data in storages.values():
        out += struct.pack("<q", len(data) // itemsize) + data
    path.write_bytes(out)
    return path


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def test_strides_offsets_and_shared_storages(tmp_path):
    base = np.arange(24, dtype=np.float32)
    whole = tensor("FloatStorage", "0", 24, 0, (4, 6), (6, 1))
    columns = tensor("FloatStorage", "0", 24, 0, (6, 4), (1, 6))
    every = tensor("FloatStorage", "0", 24, 3, (2, 3), (12, 2))
    expanded = tensor("FloatStorage", "0", 24, 5, (2, 3), (0, 0))
    body = b"}(" + op("a") + whole + op("b") + columns + op("c") + every + op("d") + expanded + b"u"
    found, _ = pickles.read(archive(tmp_path / "z.pt", program(body), {"0": base.tobytes()}))
    assert np.array_equal(found["a"], base.reshape(4, 6))
    assert np.array_equal(found["b"], base.reshape(4, 6).T)
    assert np.array_equal(found["c"], base[3:][[[0, 2, 4], [12, 14, 16]]])
    assert np.array_equal(found["d"], np.full((2, 3), 5.0))


def test_the_legacy_format_and_its_views(tmp_path):
    base = np.arange(10, dtype=np.float32)
    one = tensor("FloatStorage", "11", 10, 2, (2, 3), (3, 1), view=(None,))
    two = tensor("FloatStorage", "11", 10, 1, (3,), (1,), view=(("v", 4, 5),))
    path = legacy(tmp_path / "a.pt", program(b"}(" + op("one") + one + op("two") + two + b"u"), {"11": base.tobytes()})
    found, _ = pickles.read(path)
    assert np.array_equal(found["one"], base[2:8].reshape(2, 3)) and np.array_equal(found["two"], base[5:8])


def test_big_endian_archives(tmp_path):
    base = np.arange(6, dtype=">f4")
    body = b"}(" + op("a") + tensor("FloatStorage", "0", 6, 0, (6,), (1,)) + b"u"
    found, _ = pickles.read(archive(tmp_path / "a.pt", program(body), {"0": base.tobytes()}, "big"))
    assert np.array_equal(found["a"], np.arange(6))


def test_a_parameter_dict_has_what_its_state_has(tmp_path):
    """As torch pickles `nn.ParameterDict`: an object without arguments, and its attributes."""
    kind = torch_files._global("torch.nn.modules.container", "ParameterDict")
    ordered = torch_files._global("collections", "OrderedDict") + b")R"
    held = ordered + b"(" + op("*") + tensor("FloatStorage", "0", 6, 0, (2, 3), (3, 1)) + b"u"
    state = b"}(" + op("training") + b"\x88" + op("_parameters") + held + op("_buffers") + ordered + b"ub"
    body = b"}(" + op("string_to_param") + kind + b")\x81" + state + op("name") + op("x") + b"u"
    found, dropped = pickles.read(archive(tmp_path / "a.pt", program(body), {"0": np.arange(6, dtype=np.float32).tobytes()}))
    assert not dropped and found.keys() == {"string_to_param", "name"} and found["string_to_param"].keys() == {"*"}
    np.testing.assert_array_equal(found["string_to_param"]["*"], np.arange(6).reshape(2, 3))
    again = b"".join(b"}(" + op("_parameters") + b"h\x01ub" for _ in range(50))
    body = b"}q\x01(" + b"".join(op(i) + op(i) for i in range(100_000)) + b"u" + kind + b")\x81" + again
    with pytest.raises(ValueError, match="copy more than"):
        pickles.read(archive(tmp_path / "b.pt", program(body), {}))


def test_unknown_classes_become_inert_and_are_named(tmp_path):
    callback = torch_files._global("pytorch_lightning.callbacks", "ModelCheckpoint")
    state = b"}(" + op("best") + tensor("FloatStorage", "0", 1, 0, (), ()) + b"ub"
    body = b"}(" + op("callbacks") + b"}(" + callback + callback + b")\x81" + state + b"u" + op("epoch") + op(1) + b"u"
    path = archive(tmp_path / "a.ckpt", program(body), {"0": np.float32(1).tobytes()})
    found, dropped = pickles.read(path)
    assert dropped == ["pytorch_lightning.callbacks.ModelCheckpoint"] and found["epoch"] == 1
    (key, value), *_ = found["callbacks"].items()
    assert isinstance(key, pickles.Global) and isinstance(value, pickle_machine.Inert)


class Runs:
    """Pickles to a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("which", ["os.system", "open", "eval", "exec", "getattr", "subprocess", "runpy"])
def test_code_is_refused_and_never_run(tmp_path, monkeypatch, which, protocol):
    import runpy
    import subprocess

    monkeypatch.chdir(tmp_path)
    calls = {
        "os.system": (os.system, "touch PWNED"),
        "open": (open, "PWNED", "w"),
        "eval": (eval, "open('PWNED', 'w')"),
        "exec": (exec, "open('PWNED', 'w')"),
        "getattr": (getattr, os, "system") if protocol > 2 else (getattr, "a", "upper"),
        "subprocess": (subprocess.Popen, ["touch", "PWNED"]),
        "runpy": (runpy.run_path, "PWNED"),
    }
    content = {"state_dict": {}, "callbacks": Runs(*calls[which])}
    try:
        data = pickle.dumps(content, protocol)
    except TypeError:
        data = pickle.dumps({"callbacks": Runs(getattr, "a", "upper")}, protocol)
    for path in (
        archive(tmp_path / "a.ckpt", data, {}),
        legacy(tmp_path / "b.ckpt", data if protocol >= 2 else pickle.dumps(content["callbacks"], 2), {}),
    ):
        with pytest.raises(ValueError, match="refused"):
            pickles.read(path)
    assert not (tmp_path / "PWNED").exists()


def test_a_state_cannot_reach_the_reader_itself(tmp_path):
    """BUILD on a known function would set its defaults in an ordinary unpickler."""
    rebuild = torch_files._global("torch._utils", "_rebuild_tensor_v2")
    body = rebuild + b"(N}(" + op("__defaults__") + op((1, 2)) + b"utb"
    pickles.read(archive(tmp_path / "a.ckpt", program(b"}(" + op("x") + body + b"u"), {}))
    defaults = pickles._CALLS["torch._utils._rebuild_tensor_v2"].__defaults__
    assert defaults is None


def test_truncated_files_are_named_as_such(tmp_path):
    torch_files.write(tmp_path / "a.ckpt", {"state_dict": dict(ARRAYS)})
    data = (tmp_path / "a.ckpt").read_bytes()
    base = np.arange(10, dtype=np.float32)
    body = program(b"}(" + op("a") + tensor("FloatStorage", "1", 10, 0, (10,), (1,), view=(None,)) + b"u")
    old = legacy(tmp_path / "b.ckpt", body, {"1": base.tobytes()}).read_bytes()
    for name, whole in (("zip", data), ("legacy", old)):
        for length in (0, 3, 20, len(whole) // 2, len(whole) - 1):
            path = tmp_path / f"{name}{length}.ckpt"
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=f"{path.name}.*(truncated|damaged|neither)"):
                pickles.read(path)


def test_tensors_beyond_their_storage_are_refused(tmp_path):
    for shape, strides in (((5,), (1,)), ((2, 2), (4, 1)), ((2,), (1 << 40,))):
        body = program(b"}(" + op("a") + tensor("FloatStorage", "0", 4, 0, shape, strides) + b"u")
        with pytest.raises(ValueError, match="reaches element"):
            pickles.read(archive(tmp_path / "a.ckpt", body, {"0": bytes(16)}))
    body = program(b"}(" + op("a") + tensor("FloatStorage", "0", 8, 0, (8,), (1,)) + b"u")
    with pytest.raises(ValueError, match="16 bytes"):
        pickles.read(archive(tmp_path / "a.ckpt", body, {"0": bytes(16)}))
    with pytest.raises(ValueError, match="missing"):
        pickles.read(archive(tmp_path / "a.ckpt", body, {}))


def test_other_files_are_not_taken_for_checkpoints(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="neither a zip archive nor a pickle"):
        pickles.read(tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps({"a": 1}, 2))
    with pytest.raises(ValueError, match="plain pickle"):
        pickles.read(tmp_path / "b.ckpt")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}.")
        file.writestr("a/constants.pkl", b"")
    (tmp_path / "c.pt").write_bytes(out.getvalue())
    with pytest.raises(ValueError, match="TorchScript"):
        pickles.read(tmp_path / "c.pt")


@pytest.mark.parity
def test_the_reference_files(fixtures_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in sorted(fixtures_dir.glob("D*")):
        for path in sorted(folder.glob("evil*.ckpt")):
            with pytest.raises(ValueError, match="refused"):
                pickles.read(path)
        new, _ = pickles.read(folder / "model.ckpt")
        old, _ = pickles.read(folder / "model_legacy.ckpt")
        assert new["state_dict"].keys() == old["state_dict"].keys()
        for name, tensor in new["state_dict"].items():
            a, b = np.asarray(tensor), np.asarray(old["state_dict"][name])
            assert np.array_equal(a.astype(np.float16) if a.ndim > 1 else a, b)
    assert not list(tmp_path.iterdir())
