"""What the page does without a page: what is offered, settings as flags, pictures, uploads, strokes, curves, refusals."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax.app import pictures, run, uploads
from ldm_jax.app.pictures import MOST_WAITING, Studio, make
from ldm_jax.app.settings import NUMBERS, Settings, flags_of, offer
from ldm_jax.app.uploads import Picture, mask_of, read_picture, read_small
from ldm_jax.cli import app
from ldm_jax.drawing import draw, trajectory
from ldm_jax.drawing.records import read_record, repeated
from ldm_jax.training.metrics import to_uint8
from tests.tiny import model

rng = np.random.default_rng(5)
PIXELS = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
PHOTO = Picture("photo_8x8.png", PIXELS)
RED = Settings(text="a red circle", num=1, steps=2, scale=3.0)


def file_of(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pixels_of(made):
    return np.stack([shot.picture.pixels for shot in made.shots])


# What is offered


@pytest.mark.parametrize(
    "kind, tasks, told, guided",
    [
        ("text", ["sample", "image_to_image", "inpaint", "interpolate", "trajectory"], "prompt", True),
        ("class", ["sample", "image_to_image", "inpaint", "interpolate", "trajectory"], "label", True),
        ("none", ["sample", "image_to_image", "inpaint", "interpolate", "trajectory"], "", False),
        ("superres", ["upscale"], "", False),
        ("inpaint", ["inpaint"], "", False),
        ("layout", [], "", False),
        ("semantic", [], "", False),
        ("retrieval", [], "", False),
    ],
)
def test_what_a_model_can_do_is_offered_and_no_more(kind, tasks, told, guided):
    found = offer(model(kind))
    assert (list(found.tasks), found.told, found.guided) == (tasks, told, guided)
    assert found.own_steps == 3 in found.steps and found.samplers[0] == "dpmpp_2m" and len(found.samplers) > 15
    if not tasks:
        with pytest.raises(ValueError, match="can do nothing here"):
            make(model(kind), Settings())


@pytest.mark.slow
def test_every_sampler_that_is_offered_draws():
    """Traced, not compiled."""
    ldm = model("text")
    cond = ldm.embed(ldm.params, ["a red circle"])
    for name in offer(ldm).samplers:
        options = {"sampler": name, "steps": 8}
        shape = jax.eval_shape(lambda key, o=options: ldm.sample(ldm.params, key, cond, **o), jax.random.key(0))
        assert shape.shape == (1, 8, 8, 3), name


# Pictures


def test_a_picture_is_what_the_commands_draw_and_says_so(tmp_path):
    ldm = model("text")
    made = make(ldm, dataclasses.replace(RED, num=4, seed=7, negative="a star"))
    flags = {"prompt": ["a red circle"], "negative": "a star", "num": 4, "seed": 7, "steps": 2, "guidance_scale": 3.0}
    np.testing.assert_array_equal(pixels_of(made), to_uint8(draw(ldm, flags).images))
    assert made.film is None and len({shot.png for shot in made.shots}) == 4
    path = tmp_path / made.shots[2].picture.name
    path.write_bytes(made.shots[2].png)
    assert read_record(path)["flags"] == {name: value for name, value in flags.items() if name != "num"} | {"index": 2}
    again, warning = repeated(ldm, path, {}, ())
    assert warning is None
    alone = to_uint8(draw(ldm, again).images)[0].astype(int)
    assert np.abs(alone - made.shots[2].picture.pixels).max() <= 1


def test_each_setting_changes_the_pictures():
    ldm = model("text")
    before = pixels_of(make(ldm, RED))
    for change in ({"seed": 1}, {"text": "a blue star"}, {"negative": "a red circle"}, {"scale": 9.0}, {"steps": 4},
                   {"sampler": "euler_ancestral"}):  # fmt: skip
        after = pixels_of(make(ldm, dataclasses.replace(RED, **change)))
        assert np.abs(after.astype(int) - before).max() > 2, change
    assert np.array_equal(pixels_of(make(ldm, RED)), before)


@pytest.mark.parametrize("kind, text", [("class", "star"), ("none", "")])
def test_classes_and_nothing(kind, text):
    made = make(model(kind), Settings(text=text, num=4, steps=2))
    assert pixels_of(made).shape == (4, 8, 8, 3)
    assert made.shots[0].texts["parameters"].startswith(text + "\nSteps: 2")


def test_from_a_picture():
    settings = dataclasses.replace(RED, task="image_to_image", picture=PHOTO, steps=4)
    little, much = (make(model("text"), dataclasses.replace(settings, strength=strength)) for strength in (0.3, 1.0))
    assert np.abs(pixels_of(little).astype(int) - pixels_of(much)).max() > 2
    assert json.loads(little.shots[0].texts["ldm_jax"])["flags"]["image"] == ["photo_8x8.png"]


@pytest.mark.parametrize("kind, text", [("text", "a red circle"), ("inpaint", "")])
def test_only_what_was_painted_over_changes(kind, text):
    mask = np.zeros((8, 8), np.float32)
    mask[:, 5:] = 1
    settings = Settings(task="inpaint", text=text, num=4, steps=2, picture=PHOTO, mask=mask, strength=1.0)
    made = make(model(kind), settings)
    drawn = pixels_of(made)
    assert np.array_equal(drawn[:, :, :5], PIXELS[None, :, :5].repeat(4, 0)) and (drawn[:, :, 5:] != PIXELS[:, 5:]).any()
    assert json.loads(made.shots[0].texts["ldm_jax"])["flags"]["mask"] == "photo_8x8_mask.png"


def test_a_small_picture_enlarged():
    made = make(model("superres"), Settings(task="upscale", num=1, steps=2, picture=Picture("small.png", PIXELS[:3, :5])))
    assert pixels_of(made).shape == (1, 12, 20, 3)


def test_between_two_seeds_and_two_prompts():
    ldm = model("text")
    both = dataclasses.replace(RED, task="interpolate", frames=8, to_seed=5, to_text="a blue star")
    made = make(ldm, both)
    ends = [make(ldm, dataclasses.replace(RED, seed=0)), make(ldm, dataclasses.replace(RED, seed=5, text="a blue star"))]
    drawn = pixels_of(made).astype(int)
    assert np.abs(drawn[[0, -1]] - np.concatenate([pixels_of(end) for end in ends])).max() <= 1  # rounding
    assert Image.open(io.BytesIO(made.film)).n_frames == 14  # there and back
    told = json.loads(made.shots[3].texts["ldm_jax"])["flags"]
    assert told["prompt"] == ["a red circle", "a blue star"]
    assert (told["to_seed"], told["interpolate"], told["index"]) == (5, 8, 3)
    one = pixels_of(make(ldm, dataclasses.replace(both, to_text="")))
    assert np.abs(one[0].astype(int) - drawn[0]).max() <= 1 and np.abs(one[-1].astype(int) - drawn[-1]).max() > 2


def test_the_way_to_a_picture_ends_at_it():
    ldm = model("text")
    made = make(ldm, dataclasses.replace(RED, task="trajectory", seed=3, steps=4))
    plain = make(ldm, dataclasses.replace(RED, seed=3, steps=4))
    assert np.abs(pixels_of(made).astype(int) - pixels_of(plain)).max() <= 1
    assert made.shots[0].texts == plain.shots[0].texts
    assert Image.open(io.BytesIO(made.film)).n_frames == 5
    flags = {"prompt": ["a red circle"], "seed": 3, "num": 1, "steps": 4, "guidance_scale": 3.0}
    frames = trajectory(ldm, flags).images
    noise = np.asarray(ldm.decode(ldm.params, ldm.noise(jax.random.key(3), 1)))
    np.testing.assert_allclose(frames[0], np.clip(noise[0], -1, 1), atol=1e-4)
    for wrong, message in (({"strength": 0.5, "image": ["p"]}, "plain sample"), ({"prompt": ["a", "a"]}, "one condition")):
        with pytest.raises(ValueError, match=message):
            trajectory(ldm, flags | wrong)


# What compiles


@pytest.fixture
def compilations():
    """Programs that were compiled since, of any function."""
    found = []

    def heard(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield found
    jax.monitoring.unregister_event_duration_listener(heard)


SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in ("sample", "image_to_image", "interpolate", "trajectory")]


@pytest.mark.parametrize("task", ["inpaint", *SLOW])
def test_words_seeds_scales_and_pictures_compile_nothing(task, compilations):
    mask = np.zeros((8, 8), np.float32)
    mask[2:4] = 1
    first = dataclasses.replace(RED, task=task, picture=PHOTO, mask=mask, to_text="a blue star", to_seed=9)
    others = [
        {"seed": 4}, {"text": "a star"}, {"scale": 5.5}, {"scale": 1.0}, {"negative": "blue"}, {"to_seed": 3},
        {"picture": Picture("other.png", PIXELS[::-1])}, {"mask": 1 - mask},
    ]  # fmt: skip
    studio = Studio(model("text"))
    jax.clear_caches()
    assert studio.compiles(first)
    studio.make(first)
    assert compilations
    for change in others:
        settings = dataclasses.replace(first, **change)
        before = len(compilations)
        assert not studio.compiles(settings)
        studio.make(settings)
        assert len(compilations) == before, change
    for change in ({"steps": 4}, {"sampler": "ddim"}):
        settings = dataclasses.replace(first, **change)
        before = len(compilations)
        assert studio.compiles(settings)
        studio.make(settings)
        assert len(compilations) > before, change


def test_many_at_once_get_their_own():
    studio = Studio(model("text"))
    wanted = {seed: make(studio.ldm, dataclasses.replace(RED, seed=seed)) for seed in range(4)}
    found = {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: studio.make(dataclasses.replace(RED, seed=seed))}))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {seed: made.shots[0].png for seed, made in found.items()} == {s: m.shots[0].png for s, m in wanted.items()}
    assert studio.asked == 0
    studio._asked = MOST_WAITING
    with pytest.raises(ValueError, match="waiting already"):
        studio.make(RED)


def test_too_little_memory_is_said_and_the_next_one_draws(monkeypatch):
    def fail(text):
        def draws_nothing(ldm, settings):
            raise jax.errors.JaxRuntimeError(text)

        return draws_nothing

    studio = Studio(model("text"))
    monkeypatch.setattr(pictures, "make", fail("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."))
    with pytest.raises(ValueError, match="too little memory for 16 pictures at once: choose fewer"):
        studio.make(dataclasses.replace(RED, num=16))
    monkeypatch.setattr(pictures, "make", fail("INTERNAL: something else"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        studio.make(RED)
    assert studio.asked == 0 and not studio._drawing.locked()


# What is refused


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"task": "upscale"}, "upscale: this model can sample, image_to_image"),
        ({"steps": 17}, "steps 17: choose one of 1, 2, 3"),
        ({"num": 5}, "pictures 5: choose one of 1, 4"),
        ({"frames": 9999}, "frames 9999"),
        ({"sampler": "magic"}, "sampler 'magic'"),
        ({"scale": 1e9}, "guidance scale 1e"),
        ({"scale": float("nan")}, "guidance scale nan"),
        ({"text": "a" * 1001}, "a prompt of 1001 letters: at most 1000"),
        ({"text": "a zebra"}, "zebra"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1.5}, "seed 1.5"),
        ({"scale": 1.0, "negative": "blue"}, "without effect"),
        ({"task": "interpolate"}, "would end where it begins"),
        ({"task": "interpolate", "to_text": "a red circle", "to_seed": 0}, "would end where it begins"),
        ({"task": "image_to_image"}, "give a picture first"),
        ({"task": "image_to_image", "picture": PHOTO, "strength": 0.0}, r"in \(0, 1\]"),
        ({"task": "inpaint", "picture": PHOTO}, "paint over the part"),
        ({"task": "inpaint", "picture": PHOTO, "mask": np.zeros((8, 8), np.float32)}, "paint over the part"),
    ],
)
def test_refusals(fields, message, compilations):
    with pytest.raises(ValueError, match=message):
        make(model("text"), dataclasses.replace(RED, **fields))


def test_a_class_must_be_one():
    with pytest.raises(ValueError, match="choose a class first"):
        make(model("class"), Settings(text="zebra"))
    assert all(flags_of(offer(model("class")), Settings(text="star", num=num))["num"] == num for num in NUMBERS)


# Uploads


def test_an_upload_is_cut_to_the_models_size():
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = PIXELS
    found = read_picture(file_of(wide), "../../etc/Fo to\n.jpeg", (8, 8))
    assert np.array_equal(found.pixels, PIXELS) and found.name == "Fo to_8x8.png"
    assert read_picture(file_of(PIXELS.repeat(100, 0).repeat(100, 1), "JPEG"), "", (8, 8)).name == "picture_8x8.png"
    assert found.scaled.dtype == np.float32 and found.scaled.min() >= -1 and found.scaled.max() <= 1
    assert len(read_picture(file_of(PIXELS), "a" * 500 + ".png", (8, 8)).name) < 80


def test_uploads_that_are_refused(monkeypatch):
    for data in (b"", b"GIF89a", b"<svg/>", file_of(PIXELS)[:60], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(ValueError, match="photo.png cannot be read as an image"):
            read_picture(data, "photo.png", (8, 8))
    large = file_of(np.zeros((4097, 4096, 3), np.uint8))
    assert len(large) < 2**20  # small in bytes, not in pixels
    monkeypatch.setattr(uploads.Transform, "view", None)  # refused before it is decoded
    with pytest.raises(ValueError, match="4096 x 4097 pixels: at most 16777216"):
        read_picture(large, "photo.png", (8, 8))
    with pytest.raises(ValueError, match="has 8.0 MB: at most 8 are taken"):
        read_picture(bytes(uploads.MOST_BYTES + 1), "photo.png", (8, 8))
    with pytest.raises(ValueError, match="small.png is 8 x 8 pixels: at most 4 a side"):
        read_small(file_of(PIXELS), "small.png", 4)
    assert np.array_equal(read_small(file_of(PIXELS), "small.webp", 8).pixels, PIXELS)


def test_strokes():
    assert not mask_of([], (4, 6), 3).any()
    dot = mask_of([[(2.5, 1.5)]], (4, 6), 1)
    assert dot[1, 2] == 1 and dot.sum() == 1
    line = mask_of([[(0.5, 2.5), (3.5, 2.5)], [(5.5, 0.5)]], (4, 6), 1)
    expected = np.zeros((4, 6))
    expected[2, :4] = expected[0, 5] = 1
    assert np.array_equal(line, expected)
    assert mask_of([[(0.5, 0.5), (3.5, 3.5)]], (4, 4), 1).trace() == 4
    assert mask_of([[(2, 2)]], (4, 4), 100).all()


# The run, and the model


def test_curves_and_pictures_of_a_run(tmp_path):
    folder = tmp_path / "diffusion"
    (folder / "images").mkdir(parents=True)
    lines = [{"step": i, "train/loss": 1 / (i + 1), "step_ms": 3, "train/<b>": 1} for i in range(500)]
    lines += [{"step": 250, "validation/loss": 0.5}, {"step": 300, "validation/loss": float("nan")}]
    lines += [{"validation/loss": 1}, [1]]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 501, "train/lo'
    (folder / "metrics.jsonl").write_text(text)
    (folder / "images" / "samples_1.png").write_bytes(file_of(PIXELS))
    found = run.curves(tmp_path)
    assert list(found) == ["diffusion"] and list(found["diffusion"]) == ["<b>", "loss"]
    svg = found["diffusion"]["loss"]
    assert "train" in svg and "validation" in svg and 1 + 50 <= svg.count("<circle") <= 1 + run.MOST_POINTS
    assert "<b>" not in found["diffusion"]["<b>"]
    assert run.pictures(tmp_path) == {"diffusion/images/samples_1.png": file_of(PIXELS)}
    for i in range(600, 1200, 100):
        (tmp_path / "evaluation" / f"step_{i}").mkdir(parents=True)
        (tmp_path / "evaluation" / f"step_{i}" / "a.png").write_bytes(file_of(PIXELS))
    assert [*run.pictures(tmp_path)][:-1] == [f"evaluation/step_{i}/a.png" for i in (800, 900, 1000, 1100)]
    assert run.curves(tmp_path / "nothing") == run.pictures(tmp_path / "nothing") == {}


def test_what_a_model_is():
    ldm = model("text")
    said = run.about(ldm)
    total = sum(leaf.size for leaf in jax.tree.leaves(ldm.params))
    assert said["all together"] == f"{total:,} parameters" and "takes a prompt" in said["model"]
    assert json.loads(run.config_text(ldm))["network"]["model_channels"] == 8


# The command


def test_the_command_refuses_in_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="--port=99999: must be a whole number from 0 to 65535"):
        app.main(["--port", "99999"])
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError) as error:
        app.main(["--workdir", str(tmp_path)])
    assert str(error.value) == 'the page needs NiceGUI: pip install "ldm_jax[app]"'


def test_the_functions_need_no_page():
    """Everything but the page itself, where its library is absent."""
    code = "import sys; sys.modules['nicegui'] = None; from ldm_jax.app import pictures, run, settings, uploads"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
