"""Damaged and hostile files: nothing but ValueError, within two seconds and 200 MB each.

Thousands of seeded mutations of whole files: bytes flipped, cut, doubled, replaced by numbers that matter. `FUZZ=20` does
twenty times as many.
"""

import gc
import io
import json
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile

import msgpack
import numpy as np
import pytest

from ldm_jax import weights
from ldm_jax.weights import files, msgpack_files, pickle_machine, pickles, safetensors_files, torch_files
from tests.limits import Limits

TIMES = int(os.environ.get("FUZZ", "1"))
ARRAYS = {"a.weight": np.ones((2, 3), np.float32), "b": np.arange(4, dtype=np.int64), "c": np.zeros((0, 2), np.float16)}
LEAVES = [None, True, -1, 1.5, 2**31, 2**63, 2**64, 1e400, "", "x" * 50, [], {}, [[]], "F64", "é", [-1], [2**62, 2**62], [1.5]]
TOKENS = [b"\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"[", b"{", b'"', b"1e999", b"&a", b"*a", b"<<: ", b"!!", b"-1"]

OPCODES = b"()]}lqhrtusaeb.cRQ0123KUX\x81\x85\x86\x8a\n\x05"


def read_all(tree):
    """Reads every array of a tree of nested dicts and lists."""
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ():
        if hasattr(value, "view"):
            np.asarray(value)
        elif isinstance(value, dict | list | tuple):
            read_all(value)


def mutated(data: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.choice([1, 4, len(data)])]
            case 2:
                data[at:at] = data[at : at + rng.randrange(40)]
            case 3:
                token = rng.choice(TOKENS)
                data[at : at + len(token)] = token
            case 4:
                data[at:at] = rng.choice(TOKENS)
            case 5:
                if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def changed(value, rng: random.Random):
    """A JSON value with one of its leaves or branches replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        return {**value, (rng.choice(["", "dtype", "x"]) if rng.random() < 0.1 else key): changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(LEAVES)


def only_value_errors(read, path, inputs):
    """How many inputs were refused; any other exception ends the test with the input in it, and so does one that takes long."""
    refused, limits = 0, Limits()
    for data in inputs:
        path.write_bytes(data)
        try:
            with limits:
                read(path)
        except ValueError as error:
            assert str(error)
            refused += 1
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error} from {data[:400]!r}")
    print(f"{path.name}: at most {limits.most[0]:.2f} s and {limits.most[1]:.0f} MB")
    return refused


def torch_zip(tmp_path) -> bytes:
    torch_files.write(tmp_path / "whole.ckpt", {"state_dict": ARRAYS, "epoch": 1, "lr": 0.5, "names": ["a", ("b", None)]})
    return (tmp_path / "whole.ckpt").read_bytes()


def test_safetensors(tmp_path):
    rng, path = random.Random(1), tmp_path / "x.safetensors"
    safetensors_files.write(path, ARRAYS)
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, rest = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def inputs():
        for _ in range(1000 * TIMES):
            yield mutated(whole, rng)
            text = json.dumps(changed(header, rng)).encode()
            yield len(text).to_bytes(8, "little") + text + rest

    assert only_value_errors(lambda path: read_all(safetensors_files.read(path)), path, inputs()) > 1000 * TIMES


def test_pickles_in_zips(tmp_path):
    rng, whole = random.Random(2), torch_zip(tmp_path)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    program = next(name for name in records if name.endswith("data.pkl"))

    def zipped(**changes) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in {**records, **changes}.items():
                archive.writestr(name, data)
        return target.getvalue()

    def inputs():
        for _ in range(600 * TIMES):
            yield mutated(whole, rng)
            yield zipped(**{program: mutated(records[program], rng)})

    assert only_value_errors(lambda path: read_all(pickles.read(path)[0]), tmp_path / "x.ckpt", inputs()) > 500 * TIMES


def test_bare_pickles(tmp_path):
    rng = random.Random(3)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(value, 2) for value in (pickles.LEGACY_MAGIC, 1001, system, {"a": [1, 2.5, "x", (None,)]}, [])]
    whole = b"".join(parts)

    def inputs():
        for _ in range(1000 * TIMES):
            yield mutated(whole, rng)
            yield b"".join([*parts[:3], b"\x80\x02" + bytes(rng.choices(OPCODES, k=40))])

    assert only_value_errors(pickles.read, tmp_path / "x.ckpt", inputs()) > 1000 * TIMES


def test_json_and_yaml(tmp_path):
    rng = random.Random(4)
    config = {"_class_name": "VQModel", "block_out_channels": [32, 64], "scaling_factor": 1.0, "x": {"y": [1, "é", None]}}
    yaml = b"model:\n  target: a.B\n  params: {x: 1, y: [1, 2.5, &a {p: 2020-01-02}, *a], z: '2'}\n  <<: {q: 0x1f, r: 1:30}\n"

    def inputs(whole):
        return (mutated(whole, rng) for _ in range(1000 * TIMES))

    assert only_value_errors(files.read_json, tmp_path / "x.json", inputs(json.dumps(config).encode())) > 500 * TIMES
    assert only_value_errors(files.read_yaml, tmp_path / "x.yaml", inputs(yaml)) > 500 * TIMES


def test_msgpack(tmp_path):
    rng = random.Random(5)

    def extension(array):
        return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))

    chunks = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 2}, "chunks": {"0": extension(np.ones(4, np.float32))}}
    whole = msgpack.packb({"a": {"kernel": extension(np.ones((2, 3), np.float32))}, "b": chunks})
    inputs = (mutated(whole, rng) for _ in range(1500 * TIMES))
    assert only_value_errors(lambda path: read_all(msgpack_files.read(path)), tmp_path / "x.msgpack", inputs) > 1000 * TIMES


def zipped(name: str, data: bytes, compression=zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        archive.writestr(name, data)
    return target.getvalue()


def in_legacy(program: bytes) -> bytes:
    return b"".join(pickle.dumps(v, 2) for v in (pickles.LEGACY_MAGIC, 1001, {"little_endian": True})) + b"\x80\x02" + program


def header(entries) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DEEP = 100_000
ONE = json.dumps(entry([1], [0, 1], "U8")).encode()
MANY = b"](" + b"K\x01" * 90_000 + b"eq\x00"
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGES = "a0: &a0 {k0: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: 1}}\n" for i in range(1, 40))
BOMBS = {
    "header nested.safetensors": header(b"[" * DEEP),
    "header of a list.safetensors": header([1, 2]),
    "a list for an entry.safetensors": header({"a": [1]}),
    "negative shape.safetensors": header({"a": entry([-1, -4], [0, 16])}),
    "fractional shape.safetensors": header({"a": entry([4.0], [0, 16])}),
    "absurd shape.safetensors": header({"a": entry([2**62, 4], [0, 16])}),
    "boolean shape.safetensors": header({"a": entry([True], [0, 4])}),
    "overlapping.safetensors": header({"a": entry([4], [0, 16]), "b": entry([4], [8, 24])}),
    "outside.safetensors": header({"a": entry([32], [0, 128])}),
    "backwards.safetensors": header({"a": entry([0], [16, 0])}),
    "twice.safetensors": header(b'{"a":' + ONE + b',"a":' + ONE + b"}"),
    "metadata of numbers.safetensors": header({"__metadata__": {"a": 1}}),
    "own description.safetensors": header({"__metadata__": {"ldm_jax": "[" * DEEP}}),
    "own description of lists.safetensors": header({"__metadata__": {"ldm_jax": '{"params": 3, "description": []}'}}),
    "a long header.safetensors": struct.pack("<Q", 2**63) + bytes(64),
    "a huge integer.safetensors": header(b'{"a":' + b"9" * 100_000 + b"}"),
    "empty.safetensors": b"",
    "nested tuples as a key.ckpt": in_legacy(b"})" + b"\x85" * DEEP + b"K\x01s."),
    "nested lists.ckpt": in_legacy(b"]" * DEEP + b"a" * (DEEP - 1) + b"."),
    "a memo of 32 GB.ckpt": in_legacy(b"Nr\xff\xff\xff\x7f."),
    "a string of 2^62 bytes.ckpt": in_legacy(b"\x8d" + struct.pack("<Q", 2**62) + b"a."),
    "copies of copies.ckpt": in_legacy(MANY + b"cbuiltins\nlist\nq\x01" + b"h\x01h\x00\x85R0" * 20_000 + b"."),
    "a million opcodes and more.ckpt": in_legacy(b"N0" * 2_000_000 + b"."),
    "a shared tuple as a name.ckpt": in_legacy(b")" + b"\x32\x86" * 3000 + b"\x32\x93."),
    "a shared tuple in a set.ckpt": in_legacy(b"\x8f()" + b"\x32\x86" * 3000 + b"\x90."),
    "a shared tuple as a function.ckpt": in_legacy(b")" + b"\x32\x86" * 3000 + b")R."),
    "a shared tuple as a reference.ckpt": in_legacy(b")" + b"\x32\x86" * 3000 + b"Q."),
    "a line without an end.ckpt": in_legacy(b"c" + b"a" * 5_000_000),
    "a compressed program.ckpt": zipped("a/data.pkl", b"N0" * 50_000_000 + b"N.", zipfile.ZIP_DEFLATED),
    "a program too large.ckpt": zipped("a/data.pkl", b"N0" * 17_000_000 + b"N."),
    "an empty zip.ckpt": zipped("a", b""),
    "laughs.yaml": LAUGHS.encode(),
    "merges.yaml": MERGES.encode(),
    "nested.yaml": b"[" * 60_000,
    "itself.yaml": b"a: &a [*a]\n",
    "python.yaml": b"a: !!python/object/apply:os.system ['true']\n",
    "too long.yaml": b"a: 1\n" * 100_000,
    "twice.yaml": b"a: 1\na: 2\n",
    "a list.yaml": b"- 1\n",
    "nested.json": b'{"a":' + b"[" * DEEP,
    "a list.json": b"[]",
    "digits.json": b'{"a":' + b"9" * 100_000 + b"}",
    "empty.json": b"",
    "nested.msgpack": b"\x81\xa1a" * DEEP,
    "a long array.msgpack": b"\xdd\xff\xff\xff\xff",
    "object array.msgpack": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"12345678")))}),
    "negative array.msgpack": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((-1,), "float32", b"12345678")))}),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_file_ends_in_one_sentence_soon(name, tmp_path):
    """ValueError within two seconds and 200 MB, from the bare reader, and from `weights.read` for what that takes."""
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    bare = {
        ".safetensors": lambda path: (safetensors_files.read(path), weights.read(path)),
        ".ckpt": pickles.read,
        ".yaml": files.read_yaml,
        ".json": files.read_json,
        ".msgpack": msgpack_files.read,
    }[path.suffix]

    def seconds():
        started = time.thread_time()  # other threads of a long run have work of their own
        with pytest.raises(ValueError, match="(?s).+"):
            bare(path)
            if path.suffix != ".safetensors":
                files.tensors(path, [])
        return time.thread_time() - started

    gc.freeze()  # or each collection walks through all that the tests before left behind
    try:
        assert min(seconds() for _ in range(2)) < 2
    finally:
        gc.unfreeze()
    tracemalloc.start()
    if "opcodes" not in name:  # counting its allocations takes longer than it
        with pytest.raises(ValueError):
            bare(path)
            files.tensors(path, [])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 200e6
    if path.suffix in (".ckpt", ".safetensors"):
        (tmp_path / f"{path.stem}.yaml").write_text("model: {target: a.LatentDiffusion, params: {}}\n")
        with pytest.raises(ValueError):
            weights.read(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".msgpack", ".json", ".yaml", ".bin"])
def test_folders_where_files_are_meant(suffix, tmp_path):
    (tmp_path / f"model{suffix}").mkdir()
    reader = {".json": files.read_json, ".yaml": files.read_yaml}.get(suffix, lambda path: files.tensors(path, []))
    with pytest.raises((ValueError, FileNotFoundError), match=f"model{suffix}"):
        reader(tmp_path / f"model{suffix}")
    with pytest.raises(ValueError):
        weights.read(tmp_path)
    with pytest.raises(ValueError):
        weights.read(tmp_path / f"model{suffix}")


def test_a_zip_with_too_long_a_directory(tmp_path, monkeypatch):
    path = tmp_path / "x.ckpt"
    path.write_bytes(torch_zip(tmp_path))
    pickles.read(path)
    monkeypatch.setattr(pickles, "MOST_DIRECTORY", 100)
    with pytest.raises(ValueError, match="directory has"):
        pickles.read(path)


def test_limits_leave_room_for_checkpoints():
    """A program for 10,000 tensors stays below the machine's limits."""
    tensors = {f"model.layers.{i}.some.name.weight": np.zeros(1, np.float32) for i in range(1000)}
    arrays: list = []
    program = torch_files._emit({"state_dict": tensors}, arrays)
    assert 10 * len(program) < pickle_machine.MOST_BYTES
    import pickletools

    assert 10 * sum(1 for _ in pickletools.genops(b"\x80\x02" + program + b".")) < pickle_machine.MOST_OPCODES
