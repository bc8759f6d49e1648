"""Latents computed once: the same as computed each time, and refused for anything else."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.folder import folder
from ldm_jax.data.latent_cache import Damaged, hash_arrays, latent_cache
from ldm_jax.data.pipeline import batches, eval_batches, in_memory
from ldm_jax.data.transform import LatentTransform, Transform

MARK = {"first_stage": "abc"}


def encode(images):
    """Stands in for a first stage: averages over 4 x 4 blocks, and their deviation."""
    assert images.shape == (4, 16, 16, 3) and images.dtype == np.float32  # one shape for one compilation
    blocks = images.reshape(4, 4, 4, 4, 4, 3)
    return np.concatenate([blocks.mean((2, 4)), blocks.std((2, 4))], -1)


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    (tmp_path / "images").mkdir()
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (16, 24, 3)).astype(np.uint8)).save(tmp_path / f"images/{i}.png")
        Image.fromarray(rng.integers(0, 9, (16, 24)).astype(np.uint8)).save(tmp_path / f"images/{i}m.png")
        box = {"label": i % 3, "box": [0.25, 0.0, 0.5, 0.5]}
        rows.append({"file_name": f"{i}.png", "caption": f"picture {i}" if i % 2 else ["a", f"b {i}"], "label": i % 4,
                     "label_map_file_name": f"{i}m.png", "boxes": [box] * (i % 3)})  # fmt: skip
    (tmp_path / "images/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder(tmp_path / "images")


def make(path, source, transform=None, **kwargs):
    return latent_cache(path, source, transform or Transform(16), encode, MARK, batch_size=4, **kwargs)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-4), ("float32", 1e-7)])
def test_cached_equals_computed(source, tmp_path, dtype, tolerance):
    calls = []
    cache = make(tmp_path / "cache", source, dtype=dtype, report=lambda done, of: calls.append((done, of)))
    assert calls == [(4, 10), (8, 10), (10, 10)] and len(cache) == 10
    assert cache.info.class_names == source.info.class_names
    assert cache.info.columns == ("moments", "caption", "label", "label_map", "boxes", "box_labels")
    extras = {"tokenize": lambda text: np.int32([len(text)]), "max_boxes": 3}
    for pixels, latents in zip(
        eval_batches(source, Transform(16, **extras), 4), eval_batches(cache, LatentTransform(**extras), 4), strict=True
    ):
        image = pixels.pop("image")
        moments = latents.pop("moments")
        assert moments.dtype == np.float32 and np.abs(moments - encode(image)).max() <= tolerance
        assert pixels.keys() == latents.keys() and all(np.array_equal(pixels[k], latents[k]) for k in pixels)


def test_mirrored_copies(source, tmp_path):
    cache = make(tmp_path / "cache", source, Transform(16, flip=True), dtype="float32")
    plain, flipped = 0, 0
    for seed in range(20):
        example = LatentTransform(flip=True, max_boxes=2)(cache[5], np.random.default_rng(seed))
        view = Transform(16, max_boxes=2).view(source[5])
        mirrored = not np.allclose(example["moments"], cache[5]["moments"])
        turn = np.s_[:, ::-1] if mirrored else np.s_[:, :]
        image = view["image"][turn].astype(np.float32) / 127.5 - 1
        assert np.allclose(example["moments"], encode(np.stack([image] * 4))[0], atol=1e-6)
        assert np.array_equal(example["label_map"], view["label_map"][turn])
        x0, x1 = view["boxes"][0][[0, 2]]
        assert np.allclose(example["boxes"][0][[0, 2]], [1 - x1, 1 - x0] if mirrored else [x0, x1])
        plain, flipped = plain + (not mirrored), flipped + mirrored
    assert plain > 3 and flipped > 3


def test_feeds_the_pipeline(source, tmp_path):
    cache = make(tmp_path / "cache", source)
    kept = in_memory(cache, dict)
    a, b = (batches(s, LatentTransform(), 4, seed=0) for s in (cache, kept))
    for _ in range(6):
        x, y = next(a), next(b)
        assert x["moments"].shape == (4, 4, 4, 6) and all(np.array_equal(x[k], y[k]) for k in x)


def test_used_again_and_bound(source, tmp_path):
    path = tmp_path / "cache"
    first = make(path, source)

    def never(images):
        raise AssertionError("encoded again")

    again = latent_cache(path, source, Transform(16), never, MARK, batch_size=4)
    assert np.array_equal(first[3]["moments"], again[3]["moments"])
    changes = {
        "first_stage was 'abc', is 'abd'": ({"first_stage": "abd"}, {}),
        r"size was \[16, 16\], is \[8, 8\]": (MARK, {"transform": Transform(8)}),
        "flip was False, is True": (MARK, {"transform": Transform(16, flip=True)}),
        "dtype was 'float16', is 'float32'": (MARK, {"dtype": "float32"}),
        "rows was 10, is 5": (MARK, {"source": folder(source.info.name, "train[:50%]")}),
    }
    for words, (mark, change) in changes.items():
        args = {"source": source, "transform": Transform(16), **change}
        with pytest.raises(ValueError, match=f"made from something else: .*{words}.*Delete it"):
            latent_cache(path, encode=never, fingerprint=mark, **args)


def test_stopped_half_way(source, tmp_path):
    left = iter([encode, encode])

    def stop(images):
        if (step := next(left, None)) is None:
            raise KeyboardInterrupt
        return step(images)

    with pytest.raises(KeyboardInterrupt):
        latent_cache(tmp_path / "cache", source, Transform(16), stop, MARK, batch_size=4)
    assert not (tmp_path / "cache").exists()
    assert len(make(tmp_path / "cache", source)) == 10
    assert [p.name for p in tmp_path.iterdir() if "incomplete" in p.name] == []


def test_unreadable_images(source, tmp_path, caplog):
    for i in (2, 8, 9):
        (tmp_path / f"images/{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="2.png cannot be read"):
        make(tmp_path / "cache", source)
    cache = make(tmp_path / "cache", source, on_error="skip")
    assert [cache[i]["name"][-5] for i in range(len(cache))] == list("0134567") and "9.png cannot" in caplog.text
    for i in range(10):
        (tmp_path / f"images/{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no readable image"):
        make(tmp_path / "other", source, on_error="skip")


def test_refusals(source, tmp_path):
    for change, words in (
        ({"transform": Transform(16, crop="random")}, "crop='random'"),
        ({"dtype": "int8"}, "dtype='int8'"),
    ):
        with pytest.raises(ValueError, match=words):
            make(tmp_path / "cache", source, **change)
    with pytest.raises(ValueError, match="moments of .*0.png are not finite"):
        latent_cache(tmp_path / "cache", source, Transform(16), lambda x: encode(x) * np.nan, MARK, batch_size=4)
    with pytest.raises(ValueError, match="not finite in float16"):
        latent_cache(tmp_path / "cache", source, Transform(16), lambda x: encode(x) * 1e6, MARK, batch_size=4)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="is not a latent cache"):
        make(tmp_path / "other", source)


def test_hash_sees_names_types_shapes_and_values():
    a = {"x": np.zeros((2, 3), np.float32), "y": np.ones(2)}
    variants = [
        a,
        {**a, "y": np.ones(2, np.float32)},
        {**a, "x": np.zeros((3, 2), np.float32)},
        {**a, "y": np.float64([1, 2])},
        {"x": a["x"], "z": a["y"]},
    ]
    assert len({hash_arrays(v.items()) for v in variants}) == 5
    assert hash_arrays(a.items()) == hash_arrays(reversed(a.items()))


def never(images):
    raise AssertionError("encoded again")


def together(count, work):
    """`work(process_index, barrier)` in `count` threads that stand for processes; what they returned, or the first error."""
    gate, results, errors = threading.Barrier(count), [None] * count, []

    def run(index):
        try:
            results[index] = work(index, lambda name: gate.wait(60))
        except Exception as error:
            errors.append(error)
            gate.abort()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return results


def equal(a, b):
    def same(x, y):
        return x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x)

    return len(a) == len(b) and all(same(a[i], b[i]) for i in range(len(a)))


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_processes_write_shards_of_one_cache(source, tmp_path, count):
    calls = [0] * count

    def work(index, barrier):
        def counted(images):
            calls[index] += 1
            return encode(images)

        args = {"process_index": index, "process_count": count, "barrier": barrier}
        return latent_cache(tmp_path / "cache", source, Transform(16), counted, MARK, batch_size=4, **args)

    alone = make(tmp_path / "alone", source)
    for cache in together(count, work):
        assert equal(cache, alone) and cache.info == alone.info
    share = (10 + count - 1) // count
    assert calls == [(share + 3) // 4] * count  # equally often: encode may be a computation over all processes
    assert len(list((tmp_path / "cache").glob("rows-*"))) == count and not list((tmp_path / "cache").glob("part-*"))
    again = latent_cache(tmp_path / "cache", source, Transform(16), never, MARK, batch_size=4)  # by one process
    assert equal(pickle.loads(pickle.dumps(again)), alone)


def test_processes_leave_out_unreadable_images(source, tmp_path):
    for i in (0, 1, 2, 3, 4):
        (tmp_path / f"images/{i}.png").write_bytes(b"")

    def work(index, barrier):
        args = {"process_index": index, "process_count": 2, "barrier": barrier, "on_error": "skip"}
        return make(tmp_path / "cache", source, **args)

    assert [len(cache) for cache in together(2, work)] == [5, 5]  # the first process wrote none
    for i in range(10):
        (tmp_path / f"images/{i}.png").write_bytes(b"")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ValueError, match="no readable image"):
        together(2, work)


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeroed": lambda path: overwrite(path, path.stat().st_size // 2, bytes(64)),
    "one bit": lambda path: overwrite(path, path.stat().st_size // 3, None),
    "last bit": lambda path: overwrite(path, path.stat().st_size - 1, None),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "deleted": lambda path: path.unlink(),
}


def overwrite(path, place, data):
    """Writes data at a place of a file; without data it flips a bit."""
    whole = bytearray(path.read_bytes())
    data = bytes([whole[place] ^ 4]) if data is None else data[: len(whole) - place]
    if whole[place : place + len(data)] == data:
        data = b"\1" * len(data)
    whole[place : place + len(data)] = data
    path.write_bytes(whole)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["rows-00000-of-00001", "ends-00000-of-00001", "meta.json"])
def test_damage_is_named_or_made_again(source, tmp_path, caplog, part, damage):
    whole = make(tmp_path / "cache", source)
    rows = [whole[i] for i in range(len(whole))]
    DAMAGES[damage](tmp_path / "cache" / part)
    with pytest.raises(Damaged, match=f"{tmp_path / 'cache'} is damaged.*Delete it: it will be made again"):
        make(tmp_path / "cache", source, damaged="raise")
    assert equal(make(tmp_path / "cache", source), rows) and "is damaged" in caplog.text
    assert equal(latent_cache(tmp_path / "cache", source, Transform(16), never, MARK, batch_size=4), rows)


def test_a_damaged_row_is_named_when_it_is_read(source, tmp_path):
    make(tmp_path / "cache", source)
    overwrite(tmp_path / "cache/rows-00000-of-00001", 300, None)
    cache = make(tmp_path / "cache", source, verify_bytes=0)  # too large to read through at once
    with pytest.raises(ValueError, match="cache is damaged in row 0: its checksum is wrong. Delete it"):
        cache[0]
    assert cache[9]["moments"].shape == (4, 4, 6)
    iterator = batches(cache, LatentTransform(), 10, seed=0, on_error="skip")
    with pytest.raises(Damaged):  # not an unreadable image that may be left out
        next(iterator)
    os.truncate(tmp_path / "cache/rows-00000-of-00001", 1000)  # while it is open
    with pytest.raises(ValueError, match="row 9: .*cut off"):
        cache[9]


def test_a_cache_of_the_old_version(source, tmp_path, caplog):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/rows.array_record").write_bytes(b"x")
    (tmp_path / "cache/meta.json").write_text('{"count": 10, "info": {}, "bound": {"format": 1}}')
    with pytest.raises(Damaged, match="made by an older version of this library. Delete it: it will be made again"):
        make(tmp_path / "cache", source, damaged="raise")
    assert len(make(tmp_path / "cache", source)) == 10 and "older version" in caplog.text


def test_a_folder_of_something_else_is_left_alone(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("words")
    with pytest.raises(ValueError, match="is not a latent cache"):
        make(tmp_path / "mine", source)
    assert (tmp_path / "mine/thesis.txt").exists()


@pytest.mark.parametrize("keep_time", [False, True])
@pytest.mark.parametrize("in_ram", [False, True])
def test_changed_pixels_are_noticed(source, tmp_path, keep_time, in_ram):
    def read():
        rows = folder(tmp_path / "images")
        return in_memory(rows, Transform(16).fit) if in_ram else rows

    make(tmp_path / "cache", read())
    file = tmp_path / "images/3.png"
    before, size = file.stat(), file.stat().st_size
    for seed in range(100):  # another picture whose file is equally long
        pixels = np.random.default_rng(seed + 50).integers(0, 256, (16, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(file)
        if file.stat().st_size == size:
            break
    assert file.stat().st_size == size
    if keep_time:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(
        ValueError, match="made from something else: the images of .*images, or what is said of them, have changed"
    ):
        make(tmp_path / "cache", read())


def test_changed_captions_and_class_names_are_noticed(source, tmp_path):
    make(tmp_path / "cache", source)
    text = (tmp_path / "images/metadata.jsonl").read_text()
    (tmp_path / "images/metadata.jsonl").write_text(text.replace("picture 3", "picture 4"))
    with pytest.raises(ValueError, match="have changed"):
        make(tmp_path / "cache", folder(tmp_path / "images"))
    (tmp_path / "images/metadata.jsonl").write_text(text)
    assert len(latent_cache(tmp_path / "cache", folder(tmp_path / "images"), Transform(16), never, MARK, batch_size=4)) == 10
    with pytest.raises(ValueError, match="have changed"):
        make(tmp_path / "cache", folder(tmp_path / "images", class_names=list("abcd")))


def test_a_moved_folder_is_the_same_source(source, tmp_path):
    made = make(tmp_path / "cache", source)
    moments = [made[i]["moments"] for i in range(10)]
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "copy")
    for place in ("elsewhere", "copy"):
        moved = folder(tmp_path / place)
        cache = latent_cache(tmp_path / "cache", moved, Transform(16), never, MARK, batch_size=4)
        assert cache.info.name == str(tmp_path / place)
        assert all(cache[i]["name"] == moved[i]["name"] and np.array_equal(cache[i]["moments"], moments[i]) for i in range(10))


SCRIPT = """
import json, pathlib, sys
import numpy as np
from ldm_jax.data.folder import folder
from ldm_jax.data.latent_cache import latent_cache
from ldm_jax.data.tokenizer import load_tokenizer, train_tokenizer
from ldm_jax.data.transform import Transform

root = pathlib.Path(sys.argv[1])
source = folder(root / "images", class_names=root / "classes.txt")
tokenizer = train_tokenizer([source[0]["caption"]])
tokenizer.save(root / "tokenizer.json")
tokenizer = load_tokenizer(root / "tokenizer.json")
assert ascii(tokenizer.decode(tokenizer.encode([source[0]["caption"]], 8)[0])) == ascii(source[0]["caption"])
for _ in range(2):
    cache = latent_cache(root / "cache", source, Transform(8), lambda x: np.zeros((2, 1, 1, 2)), {}, batch_size=2)
assert ascii(cache[0]["caption"]) == ascii(source[0]["caption"]) and cache.info.class_names == source.info.class_names
print(ascii(source.info.class_names[0]))
"""


def test_other_locales_change_nothing(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("1.png", "\u00fc.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / name)
    row = {"file_name": "1.png", "caption": "eine bl\u00fcte", "label": "blume\u00f1"}
    (tmp_path / "images/metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "classes.txt").write_text("blume\u00f1\n", encoding="utf-8")
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "blume\\xf1" in done.stdout, done.stderr
    assert "bl\u00fcte" in (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
