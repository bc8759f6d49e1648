"""What written PNGs say of themselves, one picture of a batch alone, and pictures repeated from their files."""

import json
import zlib

import jax
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import ldm_jax
from ldm_jax.cli.sample_command import main as command
from ldm_jax.drawing import modes as sample
from ldm_jax.drawing.modes import Drawn, alone, choose_mode, draw, with_defaults, with_prompts
from ldm_jax.drawing.records import CHUNK, LONGEST, fingerprint, read_record, records, repeated
from ldm_jax.pictures import labelled_grid, png_info, save_film, save_pictures
from ldm_jax.training.metrics import image_grid, to_uint8
from tests.tiny import model

TWO = {"prompt": ["a red circle", "a blue star"], "num": 2, "seed": 3}


def write(folder, ldm, flags):
    drawn = draw(ldm, flags)
    save_pictures(folder, "grid", drawn.images, drawn.words, drawn.columns, True, records(ldm, flags, drawn))
    return drawn


def chunks(path):
    """{keyword: (chunk type, text)} by the PNG specification, without Pillow."""
    data, at, found = path.read_bytes(), 8, {}
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        assert int.from_bytes(data[at + 8 + size : at + 12 + size], "big") == zlib.crc32(kind + body)
        if kind == b"tEXt":
            keyword, text = body.split(b"\0")
            found[keyword.decode()] = ("tEXt", text.decode("ascii"))
        if kind == b"iTXt":
            keyword, text = body.split(b"\0\0\0\0\0", 1)  # no compression, no language, no translation
            found[keyword.decode()] = ("iTXt", text.decode("utf-8"))
        at += 12 + size
    return found


def test_a_batch_says_what_each_picture_is_and_each_is_drawn_again(tmp_path):
    ldm = model("text")
    flags = TWO | {"negative": "a star", "guidance_scale": 2.5}
    drawn = write(tmp_path / "out", ldm, flags)
    assert chunks(tmp_path / "out" / "grid.png") == {}
    found = chunks(tmp_path / "out" / "0002.png")
    assert found["parameters"] == (
        "tEXt",
        "a blue star\nNegative prompt: a star\nSteps: 3, Sampler: dpmpp_2m, CFG scale: 2.5, Seed: 3, Index: 2, Size: 8x8, "
        f"Model: tiny, Version: ldm_jax {ldm_jax.__version__}",
    )
    record = json.loads(found[CHUNK][1])
    assert record == read_record(tmp_path / "out" / "0002.png")
    assert record["flags"] == {
        "prompt": ["a blue star"], "negative": "a star", "seed": 3, "index": 2, "steps": 3, "guidance_scale": 2.5,
    }  # fmt: skip
    for i in (0, 2, 3):
        again, warning = repeated(ldm, tmp_path / "out" / f"{i:04d}.png", {}, [])
        one = draw(ldm, again)
        np.testing.assert_allclose(one.images, drawn.images[i : i + 1], atol=1e-4)
        written = {name: text for name, (_, text) in chunks(tmp_path / "out" / f"{i:04d}.png").items()}
        assert warning is None and records(ldm, again, one) == [written]
    assert np.abs(drawn.images[3] - drawn.images[2]).max() > 0.05


@pytest.mark.parametrize(
    "kind, fields",
    [
        ("none", {"prompt": [], "num": 4, "variations": 0.3, "sampler": "ddpm"}),
        pytest.param("text", {"variations": 0.3, "sampler": "ddpm"}, marks=pytest.mark.slow),
        pytest.param("text", {"interpolate": 4}, marks=pytest.mark.slow),
    ],
)
def test_one_of_variations_or_of_a_film_alone(kind, fields):
    ldm, flags = model(kind), TWO | fields
    drawn = draw(ldm, flags)
    one = draw(ldm, flags | {"index": 3})
    np.testing.assert_allclose(one.images, drawn.images[3:4], atol=1e-4)
    assert not one.film and np.abs(drawn.images[3] - drawn.images[2]).max() > 0.01


@pytest.mark.slow
def test_one_edited_picture_alone(tmp_path):
    """The same keys wherever the picture starts from; so too with noise in every step, without a condition, of any size."""
    ldm, photo = model("none"), tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)).save(photo)
    flags = {"image": [str(photo)], "num": 3, "sampler": "ddpm", "strength": 0.7}
    drawn = write(tmp_path / "out", ldm, flags)
    text = chunks(tmp_path / "out" / "0002.png")["parameters"][1]
    assert text.startswith("\nSteps: 3, Sampler: ddpm, CFG scale: 1, Seed: 0, Index: 2, Size: 9x7, Model: tiny, ")
    again, _ = repeated(ldm, tmp_path / "out" / "0002.png", {}, [])
    np.testing.assert_allclose(draw(ldm, again).images, drawn.images[2:], atol=1e-4)
    assert np.abs(drawn.images[2] - drawn.images[1]).max() > 0.05


def test_any_text_survives_on_its_own_line(tmp_path):
    """Letters of Latin-1 and others as UTF-8, line breaks and zeros as spaces, broken file names as question marks."""
    ldm, images = model("text"), np.zeros((1, 2, 3, 3), np.float32)
    for said, line, kind in (
        ("caf\u00e9", "caf\u00e9", "iTXt"),
        ("\u2615 \U0001f600", "\u2615 \U0001f600", "iTXt"),
        ("a\nNegative prompt: b\r\nSteps: 1\u2028c\0d", "a Negative prompt: b Steps: 1 c d", "tEXt"),
        ("x\udcff", "x?", "tEXt"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        flags = {"prompt": [said], "seed": 2**64 - 1}
        texts = records(ldm, flags, Drawn(images, [said], 1))
        save_pictures(folder, "grid", images, ["x"], 1, True, texts)
        form, text = chunks(folder / "0000.png")["parameters"]
        assert (form, text.split("\n")[0]) == (kind, line) and text.count("\n") == 1
        assert Image.open(folder / "0000.png").info["parameters"] == text
        assert "Size: 3x2," in text and f"Seed: {2**64 - 1}," in text
        assert read_record(folder / "0000.png")["flags"]["prompt"] == [said]
    with pytest.raises(ValueError, match="texts of 1 pictures for 2"):
        save_pictures(tmp_path / "two", "grid", np.zeros((2, 2, 2, 3)), ["x"], 1, True, texts)


def test_which_pictures_there_are():
    ldm = model("class")
    flags = {"label": ["star", "circle"], "num": 3}
    assert alone(ldm, flags, 3)["label"] == ["circle"] and alone(ldm, flags, 2)["label"] == ["star"]
    assert alone(ldm, flags | {"label": ["star"]}, 70)["label"] == ["star"]  # one condition has pictures without end
    for fields, index, message in (({}, 6, "--num=3 pictures each"), ({"interpolate": 4}, 4, "the film has 4 frames")):
        with pytest.raises(ValueError, match=message):
            alone(ldm, flags | fields, index)
    for index in (-1, 2**31):
        with pytest.raises(ValueError, match="--index"):
            choose_mode(ldm, flags | {"index": index})


def record_file(path, text):
    info = png_info({CHUNK: text} if text is not None else {})
    Image.new("RGB", (2, 2)).save(path, pnginfo=info)
    return path


def test_flags_beside_a_file_stand_above_its_own(tmp_path):
    ldm = model("text")
    kept = {"prompt": ["a red circle"], "seed": 3, "index": 7, "steps": 3, "guidance_scale": 3.0}
    whole = {"version": "0", "model": "tiny", "weights": fingerprint(ldm), "flags": kept}
    path = record_file(tmp_path / "a.png", json.dumps(whole))
    typed = {"prompt": ["a star"], "seed": 4, "num": 2, "steps": None}
    assert repeated(ldm, path, typed, []) == (kept, None)
    assert repeated(ldm, path, typed, ["seed"])[0] == kept | {"seed": 4}
    assert repeated(ldm, path, typed, ["prompt"])[0] == kept | {"prompt": ["a star"]}
    more = repeated(ldm, path, typed, ["num"])[0]
    assert more == {name: value for name, value in kept.items() if name != "index"} | {"num": 2}
    other = ldm_jax.LatentDiffusion(ldm.specification, jax.tree.map(lambda leaf: leaf + 1, ldm.params))
    _, warning = repeated(other, path, {}, [])
    assert 'drawn by "tiny" with other weights' in warning and "\n" not in warning


def test_files_that_say_nothing_or_nonsense_are_refused_in_one_sentence(tmp_path):
    good = {"version": "0", "model": "m", "weights": "w", "flags": {"seed": 3, "index": 7}}
    assert read_record(record_file(tmp_path / "good.png", json.dumps(good))) == good
    for text, message in (
        (None, "doesn't say how it was drawn"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "without version, model, weights, flags"),
        (json.dumps(good | {"model": 1}), "without version"),
        (json.dumps(good | {"flags": {"seed": 3}}), "without index"),
        (" " * (LONGEST + 1), "characters of flags"),
        *(
            (json.dumps(good | {"flags": good["flags"] | {name: value}}), f"the flag {name!r}")
            for name, value in (
                ("nonsense", 1), ("num", 10**9), ("seed", True), ("seed", "3"), ("prompt", "a"), ("prompt", [1]),
                ("tiled", 1), ("strength", float("nan")), ("mask", ["m"]), ("workdir", "w"), ("steps", 2.5),
            )
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as error:
            read_record(record_file(tmp_path / "bad.png", text))
        assert "\n" not in str(error.value) and "bad.png" in str(error.value)
    whole = (tmp_path / "good.png").read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"weights")] ^= 1
    for data in (b"", b"text", whole[:20], whole[:-20], bytes(flipped)):
        (tmp_path / "damaged.png").write_bytes(data)
        with pytest.raises(ValueError, match="no PNG, WebP or JPEG, or a damaged one"):
            read_record(tmp_path / "damaged.png")
    bomb = PngImagePlugin.PngInfo()
    bomb.add_itxt(CHUNK, " " * 2**22, zip=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "bomb.png", pnginfo=bomb)
    with pytest.raises(ValueError, match="no PNG, WebP or JPEG, or a damaged one"):
        read_record(tmp_path / "bomb.png")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_record(tmp_path / "nowhere.png")


MODES = {
    "inpaint": ("text", {"image": True, "mask": True, "sampler": "ddpm"}),
    "outpaint": ("none", {"image": True, "outpaint": ["0", "3", "0", "1"], "sampler": "ddpm"}),
    "upscale": ("superres", {"upscale": True, "sampler": "ddpm"}),
    "edit": ("text", {"image": True, "source": "a star"}),
    "panorama": ("none", {"panorama": True, "size": "8x24", "sampler": "ddpm"}),
    "map": ("semantic", {"map": True, "sampler": "ddpm"}),
    "tiled": ("none", {"size": "16x16", "tiled": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_one_picture_of_every_mode_alone(mode, tmp_path):
    """The third of four, or of two conditions twice, is the same alone, and so is what its file repeats."""
    kind, fields = MODES[mode]
    ldm, rng = model(kind), np.random.default_rng(4)
    mask, photo, labels = tmp_path / "mask.png", tmp_path / "photo.png", [tmp_path / "0.png", tmp_path / "1.png"]
    Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).save(photo)
    hole = np.zeros((7, 9), np.uint8)
    hole[2:6, 3:] = 255
    Image.fromarray(hole).save(mask)
    for path in labels:
        Image.fromarray(rng.integers(0, 3, (7, 10), dtype=np.uint8)).save(path)
    files = {"image": [str(photo)], "mask": str(mask), "upscale": str(photo), "map": [str(path) for path in labels]}
    flags = {name: files[name] if value is True and name in files else value for name, value in fields.items()}
    flags |= {"seed": 5, "num": 2 if kind in ("text", "semantic") else 4}
    if kind == "text":
        flags["prompt"] = ["a red circle", "a blue star"]
    drawn = write(tmp_path / "out", ldm, flags)
    assert len(drawn.images) == 4 and np.abs(drawn.images[2] - drawn.images[3]).max() > 0.01
    one = draw(ldm, flags | {"index": 2})
    np.testing.assert_allclose(one.images, drawn.images[2:3], atol=2e-4)
    again, warning = repeated(ldm, tmp_path / "out" / "0002.png", {}, [])
    assert warning is None
    np.testing.assert_allclose(draw(ldm, again).images, drawn.images[2:3], atol=2e-4)


@pytest.mark.parametrize("suffix", ["webp", "jpg"])
def test_other_formats_say_it_as_well(tmp_path, suffix):
    ldm, images = model("text"), np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    drawn = Drawn(images, ["a caf\u00e9 \u2615"] * 2, 2)
    texts = records(ldm, {"prompt": ["a caf\u00e9 \u2615"], "num": 2, "seed": 3}, drawn)
    grid = save_pictures(tmp_path, "grid", images, drawn.words, 2, True, texts, suffix=suffix, labels=True)
    assert grid == tmp_path / f"grid.{suffix}" and len(list(tmp_path.glob(f"*.{suffix}"))) == 3
    path = tmp_path / f"0001.{suffix}"
    assert read_record(path) == json.loads(texts[1][CHUNK]) and read_record(path)["flags"]["index"] == 1
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0" and comment[8:].decode("utf-16-be") == texts[1]["parameters"]
        near = np.abs(np.asarray(image, np.float32) / 127.5 - 1 - images[1])
    assert near.max() < 1 / 127 if suffix == "webp" else near.mean() < 0.2
    with pytest.raises(FileExistsError, match="exists"):
        save_pictures(tmp_path, "grid", images, drawn.words, 2, True, texts, suffix=suffix)
    with pytest.raises(ValueError, match="format='gif' is not known"):
        save_pictures(tmp_path / "gif", "grid", images, drawn.words, 2, suffix="gif")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"other.{suffix}")
    with pytest.raises(ValueError, match="doesn't say how it was drawn"):
        read_record(tmp_path / f"other.{suffix}")


def test_no_file_of_a_users_own_is_written_over(tmp_path):
    images = np.zeros((2, 8, 8, 3), np.float32)
    for name in ("grid.txt", "grid.png", "0001.png"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
        with pytest.raises(FileExistsError, match=f"{name} exists"):
            save_pictures(tmp_path, "grid", images, ["x"] * 2, singly=True)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
    (tmp_path / "film.gif").write_text("mine")
    with pytest.raises(FileExistsError):
        save_film(tmp_path, images)
    assert (tmp_path / "film.gif").read_text() == "mine"


def test_what_is_too_large_for_a_format_is_a_png(tmp_path):
    """Hundreds of pictures in a row are wider than a WebP may be; what each is stays on a line of its own."""
    images = np.zeros((9, 2, 2000, 3), np.float32)
    grid = save_pictures(tmp_path / "row", "grid", images, ["two\nlines", *"bcdefghi"], 9, True, suffix="webp")
    assert grid.name == "grid.png" and Image.open(grid).size == (18020, 6)
    assert sorted(path.name for path in (tmp_path / "row").glob("0*")) == [f"000{i}.webp" for i in range(9)]
    assert grid.with_suffix(".txt").read_text().splitlines() == ["two lines", *"bcdefghi"]
    wide = save_pictures(tmp_path / "one", "grid", images.reshape(1, 2, 18000, 3), ["x"], 1, True, suffix="webp")
    assert wide.name == "grid.png" and Image.open(tmp_path / "one" / "0000.png").size == (18000, 2)


def test_grids_say_what_is_in_them():
    images, words = np.full((4, 32, 32, 3), 1.0, np.float32), ["a red circle", "a red circle", "a blue star", "a blue star"]
    plain = image_grid(images, 2)
    rows = labelled_grid(images, words, 2)
    assert rows.shape[1] == plain.shape[1] and plain.shape[0] < rows.shape[0] < plain.shape[0] + 2 * 50
    assert plain.min() == 255 and rows.min() < 128  # white on white: what is dark is text
    each = labelled_grid(images, ["one", "two", "three", "four"], 2)
    assert each.shape[1] == plain.shape[1] and each[:34].min() == 255 and each[36:48].min() < 128
    longest = labelled_grid(images, ["word " * 500, "", "x", "\u2615"], 0)
    assert longest.shape[0] < plain.shape[0] + 2 * 60
    pictures = np.linspace(-1, 1, 4 * 32 * 32 * 3, dtype=np.float32).reshape(4, 32, 32, 3)
    drawn = labelled_grid(pictures, words, 2)
    assert np.array_equal(drawn[-34:-2, 2:34], to_uint8(pictures[2]))


@pytest.mark.parametrize("kind, flag", [("text", "prompt"), ("class", "label")])
def test_prompts_come_from_a_file(tmp_path, kind, flag):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa red circle\r\n\r\n  a blue star \n", encoding="utf-8")
    with pytest.raises(ValueError, match="it has no lines"):
        with_prompts(model(kind), {}, "/dev/null")  # read as pipes of a shell are
    given = with_prompts(model(kind), with_defaults({flag: ["first"]}), str(path))
    assert given[flag] == ["first", "a red circle", "a blue star"] and given["seed"] == 0
    path.write_text(" \n\n")
    for wrong, message in ((path, "it has no lines"), (tmp_path / "none.txt", "no such file")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            with_prompts(model(kind), {}, str(wrong))
    with pytest.raises(ValueError, match="--prompts is nothing to this model"):
        with_prompts(model("none"), {}, str(path))


@pytest.mark.parametrize(
    "typed, said",
    [
        ("--prmpt x", "--prmpt is no flag. Did you mean 'prompt'"),
        ("circle", "'circle': flags begin with --"),
        ("--num=x", "flag --num=x: 'x' is no whole number"),
        ("--format=gif --workdir=w", "--format='gif' is not known. .*'png', 'webp', 'jpg'"),
        ("--workdir=/nowhere", "/nowhere does not exist"),
        ("--negative=red --negative=blue", "--negative is there 2 times, and there can be one"),
        ("--prompts=a.txt --prompts=b.txt", "--prompts is there 2 times"),
    ],
)
def test_mistyped_flags_of_the_command_are_one_line(typed, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        command(["sample.py", *typed.split()])
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "none"])
def test_many_pictures_are_drawn_in_parts(monkeypatch, kind):
    flags = {"num": 2, "seed": 9, "sampler": "ddpm"}
    flags |= {"prompt": ["a red circle", "a blue star", "a star"], "negative": "red"} if kind == "text" else {"num": 6}
    whole = draw(model(kind), flags)
    monkeypatch.setattr(sample, "MOST_AT_ONCE", 4)
    parts = draw(model(kind), flags)
    assert parts.words == whole.words and len(parts.images) == 6
    np.testing.assert_allclose(parts.images, whole.images, atol=1e-4)
