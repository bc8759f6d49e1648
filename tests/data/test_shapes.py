"""The embedded data set: pictures are functions of their number, and the reader reads every one of them back."""

import collections
import dataclasses
import io
import resource
import signal
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ldm_jax.data import shapes
from ldm_jax.data.shapes import builder
from ldm_jax.data.shapes.builder import png
from ldm_jax.data.shapes.render import coverage
from ldm_jax.data.shapes.scene import DIAMETERS, GAP, MARGIN, SIZE_JITTER


@pytest.fixture(scope="module")
def scenes():
    return {k: [scene for _, scene in shapes.prompts(240, objects=k, seed=3)] for k in (1, 2, 3)}


def blurred(images: np.ndarray, sigma: float, noise: float, seed: int = 0) -> np.ndarray:
    """A stand-in for a decoder's errors: separable Gaussian blur, then Gaussian noise (both in pixels, grey levels)."""
    reach = np.arange(-3, 4)
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    kernel /= kernel.sum()
    out = images.astype(np.float64)
    for axis in (1, 2):
        wide = np.pad(out, [(3, 3) if a == axis else (0, 0) for a in range(4)], mode="edge")
        out = sum(w * np.take(wide, range(i, i + out.shape[axis]), axis) for i, w in enumerate(kernel))
    out += np.random.default_rng(seed).normal(0, noise, out.shape)
    return np.clip(np.round(out), 0, 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def test_scene_is_function_of_its_number():
    assert shapes.draw_scene(0, 17) == shapes.draw_scene(0, 17)
    assert len({shapes.draw_scene(seed, 17, stream)[0] for seed in (0, 1) for stream in (0, 1)}) == 4
    counts = collections.Counter(len(shapes.draw_scene(0, i)[0].things) for i in range(2000))
    assert np.allclose([counts[k] / 2000 for k in (1, 2, 3)], [0.6, 0.3, 0.1], atol=0.04)
    assert {len(shapes.draw_scene(0, i, mix=shapes.Mix(counts=(0, 1, 0)))[0].things) for i in range(20)} == {2}


def test_scene_invariants():
    for i in range(500):
        scene, text = shapes.draw_scene(1, i)
        things = scene.things
        assert len({(t.shape, t.colour) for t in things}) == len(things)
        for a, thing in enumerate(things):
            colour, shape = thing.words
            assert f"{colour} {shape}" in text
            assert abs(thing.diameter - DIAMETERS[len(things)][thing.size]) <= SIZE_JITTER + 1e-9
            box = shapes.bounding_box(thing)
            assert min(box) >= MARGIN - 1e-9 and max(box) <= 1 - MARGIN + 1e-9
            for other in things[:a]:
                gap = max(abs(thing.x - other.x), abs(thing.y - other.y)) - (thing.diameter + other.diameter) / 2
                assert gap >= GAP - 1e-9
        if scene.relation:
            dx, dy = things[0].x - things[1].x, things[0].y - things[1].y
            forward = {"left": -dx, "right": dx, "above": -dy, "below": dy}[scene.relation]
            across = dy if scene.relation in ("left", "right") else dx
            assert forward > 0 and abs(across) <= 0.6 * forward + 1e-9
        else:
            assert len(things) != 2


def test_prompts_are_balanced_and_state_the_relation():
    asked = shapes.prompts(96, seed=5)
    pairs = collections.Counter((s.things[0].shape, s.things[0].colour) for _, s in asked)
    assert len(pairs) == 48 and set(pairs.values()) == {2}
    assert asked == shapes.prompts(96, seed=5) and asked[:10] != shapes.prompts(10, seed=6)
    said = {"above": "above|over", "below": "below|under", "left": "left of", "right": "right of"}
    for text, scene in shapes.prompts(40, objects=2):
        assert any(words in text for words in said[scene.relation].split("|")), text
    with pytest.raises(ValueError, match="objects=4"):
        shapes.prompts(1, objects=4)


@pytest.mark.parametrize("shape", range(6))
def test_coverage_against_brute_force(shape):
    """Analytic anti-aliasing agrees with the average over 16 x 16 samples a pixel."""
    args = [np.array([v]) for v in (shape, 0.47, 0.53, 0.6)]
    fine = coverage(*args, 32 * 16).reshape(32, 16, 32, 16).mean((1, 3))
    coarse = coverage(*args, 32)[0]
    assert np.abs(coarse - fine).max() < 0.35  # sharp corners are where a distance is not a coverage
    assert np.abs(coarse - fine).mean() < 0.004
    left, top, right, bottom = shapes.bounding_box(shapes.Thing(shape, 0, 0, 0, 0.47, 0.53, 0.6))
    rows, columns = np.nonzero(coverage(*args, 512)[0] > 0.5)
    measured = [columns.min() / 512, rows.min() / 512, (columns.max() + 1) / 512, (rows.max() + 1) / 512]
    assert np.allclose(measured, [left, top, right, bottom], atol=0.012)


def test_render_at_any_resolution(scenes):
    scene = scenes[3][0]
    for size in (32, 47, 256):
        image, label_map = shapes.render(scene, size)
        assert image.shape == (size, size, 3) and image.dtype == label_map.dtype == np.uint8
        assert set(np.unique(label_map)) == {0, *(1 + t.shape for t in scene.things)}
    with pytest.raises(ValueError, match="size=8"):
        shapes.render(scene, 8)


def test_background_never_looks_like_an_object(scenes):
    images, maps = shapes.render_all([s for k in scenes for s in scenes[k]], 64)
    behind = images[maps == 0].astype(int)
    chroma = np.ptp(behind, axis=-1)
    assert np.quantile(chroma, 0.98) < 20  # the rest is the anti-aliased rim of objects


@pytest.mark.parametrize(("size", "objects", "least"), [(32, 1, 0.99), (64, 1, 0.99), (32, 2, 0.98), (32, 3, 0.98)])
def test_reader_is_exact_on_renders(scenes, size, objects, least):
    images, _ = shapes.render_all(scenes[objects], size)
    right = shapes.check_all(images, scenes[objects])
    assert right["all"].mean() >= least and right["size"].mean() >= least
    for found, scene in zip(shapes.read_all(images), scenes[objects]):
        for thing in scene.things:
            near = min(found, key=lambda f: (f.x - thing.x) ** 2 + (f.y - thing.y) ** 2)
            assert np.hypot(near.x - thing.x, near.y - thing.y) < 1 / 32
            assert np.abs(np.subtract(near.box, shapes.bounding_box(thing))).max() < 1.5 / 32


@pytest.mark.parametrize(("size", "objects", "least"), [(32, 1, 0.99), (64, 1, 0.99), (32, 2, 0.96), (32, 3, 0.95)])
def test_reader_forgives_what_a_decoder_does(scenes, size, objects, least):
    clean, _ = shapes.render_all(scenes[objects], size)
    images = blurred(clean, 0.6 * size / 32, 12)
    assert 22 < psnr(images, clean) < 27
    assert shapes.check_all(images, scenes[objects])["all"].mean() >= least


def test_reader_forgives_jpeg(scenes):
    def jpeg(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=60)
        return np.asarray(Image.open(file))

    clean, _ = shapes.render_all(scenes[1], 64)
    assert shapes.check_all(np.stack([jpeg(i) for i in clean]), scenes[1])["all"].mean() >= 0.98


def test_reader_sees_nothing_where_nothing_is(scenes):
    rng = np.random.default_rng(0)
    shape = (240, 32, 32, 3)
    nothing = {
        "noise": rng.integers(0, 256, shape).astype(np.uint8),
        "gauss": rng.normal(0, 0.5, shape),
        "empty": np.zeros(shape),
        "white": np.full(shape, 255, np.uint8),
        "red": np.broadcast_to(np.uint8([219, 20, 26]), shape),
        "nan": np.full(shape, np.nan),
    }
    for name, images in nothing.items():
        right = shapes.check_all(images, scenes[1])
        assert not right["shape"].any() and not right["all"].any(), name
    backgrounds = [dataclasses.replace(s, things=()) for s in scenes[1]]
    assert not any(shapes.read_all(np.stack([shapes.render(s, 32)[0] for s in backgrounds])))
    soft = blurred(rng.integers(0, 256, shape).astype(np.uint8), 2.0, 0)
    contrast = np.clip((soft - 127.0) * 6 + 127, 0, 255).astype(np.uint8)
    assert shapes.check_all(contrast, scenes[1])["bound"].mean() < 0.01


def test_check_tells_attributes_apart(scenes):
    scene = next(s for s in scenes[2] if s.relation == "above")
    image, _ = shapes.render(scene, 64)
    first, second = scene.things
    right = shapes.check(image, scene)
    assert all(right.values()) and set(right) == {"count", "shape", "colour", "bound", "size", "relation", "all"}

    def judged(**changes):
        return shapes.check(image, dataclasses.replace(scene, **changes))

    repaint = dataclasses.replace(first, colour=next(c for c in range(8) if c not in (first.colour, second.colour)))
    wrong = judged(things=(repaint, second))
    assert not wrong["colour"] and wrong["shape"] and wrong["count"] and not wrong["all"]
    wrong = judged(relation="below")
    assert not wrong["relation"] and wrong["bound"] and not wrong["all"]
    wrong = judged(things=(first,), relation=None)
    assert not wrong["count"] and wrong["bound"]
    wrong = judged(things=(*scene.things, repaint), relation=None)
    assert not any(wrong.values())
    swapped = (dataclasses.replace(first, colour=second.colour), dataclasses.replace(second, colour=first.colour))
    if first.shape != second.shape and first.colour != second.colour:
        assert not judged(things=swapped)["bound"]


def test_reader_refuses_what_is_no_picture():
    with pytest.raises(ValueError, match=r"\(2, 32, 16, 3\)"):
        shapes.read_all(np.zeros((2, 32, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="int64"):
        shapes.read_all(np.zeros((2, 32, 32, 3), np.int64))
    with pytest.raises(ValueError, match="1 images for 0"):
        shapes.check_all(np.zeros((1, 32, 32, 3), np.uint8), [])


def test_float_pictures_read_the_same(scenes):
    images, _ = shapes.render_all(scenes[1][:20], 32)
    as_float = images.astype(np.float32) / 127.5 - 1
    words = [[f.words for f in row] for row in shapes.read_all(images)]
    assert words == [[f.words for f in row] for row in shapes.read_all(as_float)]


@pytest.mark.parametrize("shape", [(5, 7), (6, 4, 3)])
def test_png_round_trip(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


def test_builder(tmp_path):
    made = [builder.prepare(tmp_path / name, train=40, validation=8, seed=4) for name in ("a", "b")]
    raw = {"image": tfds.decode.SkipDecoding(), "label_map": tfds.decode.SkipDecoding()}
    a, b = (builder.as_data_source("train", decoders=raw) for builder in made)
    assert len(a) == 40 and len(made[0].as_data_source("validation")) == 8
    assert [a[i]["image"] for i in range(40)] == [b[i]["image"] for i in range(40)]
    assert made[0].info.features["label"].names == list(shapes.SHAPES)
    for i in range(40):
        image = np.asarray(Image.open(io.BytesIO(a[i]["image"])))
        colour, shape = shapes.COLOUR_NAMES[a[i]["objects"]["colour"][0]], shapes.SHAPES[a[i]["label"]]
        assert (colour, shape) in [f.words for f in shapes.read_back(image)]
        assert f"{colour} {shape}" in a[i]["caption"].decode()
        label_map = np.asarray(Image.open(io.BytesIO(a[i]["label_map"])))
        labels = a[i]["objects"]["label"]
        x0, y0, x1, y1 = np.stack([b for b, k in zip(a[i]["objects"]["box"], labels) if k == labels[0]]).T
        x0, y0, x1, y1 = x0.min(), y0.min(), x1.max(), y1.max()
        rows, columns = np.nonzero(label_map == 1 + labels[0])
        assert columns.min() >= 32 * x0 - 1 and rows.max() <= 32 * y1 + 1 and x0 < x1 and y0 < y1
    assert "tensorflow" not in sys.modules
    for bad in ({"resolution": 16}, {"train": 0}, {"counts": (0, 0, 0)}, {"fills": (1, 0)}, {"spread": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            builder.prepare(tmp_path / "a", **bad)


def test_a_full_disk_while_it_is_made_is_an_error_of_one_line(tmp_path):
    """No file may grow beyond 2 kB; when it may, the same call makes it."""
    config = {"resolution": 32, "train": 96, "validation": 8}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with pytest.raises(OSError, match="shapes can't be written below") as error:
            builder.prepare(tmp_path, **config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert "\n" not in str(error.value)
    assert builder.prepare(tmp_path, **config).info.splits["train"].num_examples == 96


def test_two_processes_that_make_it_at_once_both_have_it(tmp_path, monkeypatch):
    """The second finds the first one's data in place when it is about to put its own there."""
    config = {"train": 40, "validation": 8}
    generate, other = builder.Shapes._generate_examples, []

    def overtaken(self, split, count):
        monkeypatch.setattr(builder.Shapes, "_generate_examples", generate)
        other.append(builder.prepare(tmp_path, **config))
        yield from generate(self, split, count)

    monkeypatch.setattr(builder.Shapes, "_generate_examples", overtaken)
    found = builder.prepare(tmp_path, **config)
    assert other and found.info.splits["train"].num_examples == 40
    assert [path.name for path in found.data_path.parent.iterdir()] == [found.data_path.name]
    assert found.as_data_source("train")[0]["caption"] == other[0].as_data_source("train")[0]["caption"]
