"""Which mode is meant, what is refused and in which words, and pictures that go through files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax import media
from ldm_jax.drawing import modes as sample
from ldm_jax.drawing.modes import choose_mode, draw
from ldm_jax.drawing.reading import read_mask
from ldm_jax.models import init_lora
from ldm_jax.pictures import save_film, save_pictures
from ldm_jax.retrieval import query
from ldm_jax.retrieval.database import Database
from tests.tiny import model

rng = np.random.default_rng(2)


def flags(**fields):
    return {"prompt": ["a red circle"], "num": 1} | fields


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A photo of odd sizes, a mask for it, a label map, a layout."""
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).save(folder / "photo.png")
    mask = np.zeros((7, 9), np.uint8)
    mask[2:5, 4:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(folder / "black.png")
    Image.fromarray(rng.integers(0, 3, (7, 10), dtype=np.uint8)).save(folder / "map.png")
    Image.fromarray(rng.integers(0, 256, (7, 10, 3), dtype=np.uint8)).save(folder / "map_sized.png")
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(folder / "wrong.png")
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:, 4:] = (0, 255, 0)
    Image.fromarray(colours).save(folder / "colours.png")
    (folder / "palette.json").write_text(json.dumps([[0, 0, 0], [0, 255, 0], [9, 9, 9]]))
    (folder / "layout.json").write_text(json.dumps([{"name": "star", "box": [0.1, 0.2, 0.5, 0.9]}]))
    return folder


@pytest.mark.parametrize(
    "fields, mode",
    [
        ({}, "sample"),
        ({"size": "8x16"}, "sample"),
        ({"image": ["p"]}, "image_to_image"),
        ({"image": ["p"], "strength": 0.5, "negative": "a star"}, "image_to_image"),
        ({"image": ["p"], "mask": "m"}, "inpaint"),
        ({"image": ["p"], "mask": "m", "strength": 0.5}, "inpaint"),
        ({"image": ["p"], "outpaint": ["4"]}, "outpaint"),
        ({"image": ["p"], "source": "a star"}, "edit"),
        ({"variations": 0.0}, "variation"),
        ({"interpolate": 5}, "interpolate"),
        ({"interpolate": 5, "image": ["p", "q"]}, "interpolate"),
        ({"panorama": True, "size": "8x32"}, "panorama"),
    ],
)
def test_the_mode_follows_from_what_is_given(fields, mode):
    assert choose_mode(model("text"), flags(**fields)) == mode


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        ("text", {"prompt": []}, "takes a prompt of at most 4 words or word pieces: give --prompt"),
        ("text", {"prompt": "a star"}, "prompt='a star': give a list, ['a star']"),
        ("text", {"image": ["p"], "outpaint": "48"}, "outpaint='48': give a list, ['48']"),
        ("text", {"mask": "m"}, "--mask has no meaning for a plain sample; it goes with --image"),
        ("text", {"strength": 0.5}, "it goes with --image"),
        ("text", {"label": ["1"]}, "give --label or --prompt, not both"),
        ("text", {"prompt": [], "label": ["1"]}, "--label is nothing to this model, which takes a prompt"),
        ("text", {"palette": "p"}, "--palette is nothing to this model"),
        ("text", {"database": "p"}, "--database is nothing to this model"),
        ("text", {"neighbours": 3}, "--neighbours is nothing to this model"),
        ("text", {"prompt": [], "like": ["p"]}, "--like is nothing to this model"),
        ("retrieval", {"prompt": []}, "float [k, 8] (trained with k = 2): give --prompt or --like or --label"),
        ("retrieval", {}, "give --database"),
        ("retrieval", {"database": "d", "like": ["p"]}, "give --like or --prompt, not both"),
        ("retrieval", {"database": "d", "negative": "x"}, "--negative is nothing"),
        ("text", {"panorama": True}, "--panorama has no meaning for a plain sample; it goes with --size"),
        ("text", {"image": ["p"], "size": "8x8"}, "--size has no meaning for --image"),
        ("text", {"image": ["p"], "mask": "m", "source": "s"}, "--source has no meaning for --image and --mask"),
        ("text", {"variations": 0.1, "image": ["p"]}, "--image has no meaning for --variations"),
        ("text", {"upscale": "p"}, "--upscale: this model can't upscale, it can sample"),
        ("class", {}, "--prompt is nothing to this model, which takes a class: circle, square, star"),
        ("none", {}, "--prompt is nothing to this model, which takes nothing"),
        ("none", {"prompt": [], "image": ["p"], "source": "s"}, "can't edit"),
        ("superres", {"prompt": []}, "can't sample, it can upscale; it takes a picture to enlarge 4 times"),
        ("superres", {"upscale": "p"}, "--prompt is nothing"),
        ("inpaint", {"prompt": [], "image": ["p"]}, "can't image_to_image, it can inpaint, outpaint"),
        ("semantic", {"prompt": []}, "give --map"),
        ("layout", {"prompt": [], "negative": "x", "layout": ["l"]}, "--negative is nothing"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(kind, fields, message):
    with pytest.raises(ValueError) as error:
        choose_mode(model(kind), flags(**fields))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_files_hold_is_checked_before_anything_compiles(files):
    ldm, photo = model("text"), [str(files / "photo.png")]
    for fields, message in (
        ({"image": ["/nowhere.png"]}, "no such file"),
        ({"image": photo * 2}, "--image 2 times"),
        ({"image": photo, "strength": 1.5}, r"must lie in \(0, 1\]"),
        ({"image": photo, "mask": str(files / "map.png")}, "map.png is 10 x 7 pixels and the picture 9 x 7"),
        ({"image": photo, "mask": str(files / "black.png")}, "black, or clear, all over"),
        ({"image": photo, "outpaint": ["1", "2"]}, "TOP,BOTTOM,LEFT,RIGHT"),
        ({"image": photo, "outpaint": ["0"]}, "pixels to add"),
        ({"image": photo, "outpaint": ["\u00b2"]}, "pixels to add"),
        ({"image": photo, "interpolate": 3}, "between 1 pictures"),
        ({"prompt": ["a star"] * 3, "interpolate": 2}, "--interpolate=2 between 3 conditions: give as many frames"),
        ({"image": [*photo, str(files / "wrong.png")], "interpolate": 3}, "one size"),
        ({"image": photo * 2, "interpolate": 3, "sampler": "ddpm"}, "by ddim without guidance"),
        ({"image": photo * 2, "interpolate": 3, "size": "8x8"}, "--size has no meaning for --interpolate between pictures"),
        ({"size": "8"}, "HEIGHTxWIDTH"),
        ({"size": "8x9"}, "multiples of 2"),
        ({"prompt": ["a crimson circle"]}, "'crimson'"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            draw(ldm, flags(**fields))
    for fields, message in (
        ({"map": [str(files / "wrong.png")]}, "class 9 in 100.0% of its pixels"),
        ({"map": [str(files / "colours.png")]}, "one index a pixel"),
        ({"map": [str(files / "photo.png")], "palette": str(files / "palette.json")}, "none of the palette's 3"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(model("semantic"), flags(prompt=[], **fields))


def test_images_of_every_sort(tmp_path):
    """Transparency lies on white, and a stroke on a clear layer is a mask; 16 bits become 8, EXIF turns."""
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = (255, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(media.Image({}).read(tmp_path / "alpha.png")[:, 0], [[1, -1, -1], [1, 1, 1]])
    Image.fromarray(np.uint16([[0, 65535]])).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(media.Image({}).read(tmp_path / "deep.png")[0], [[-1] * 3, [1] * 3])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(np.zeros((2, 6, 3), np.uint8)).save(tmp_path / "turned.png", exif=exif)
    assert media.Image({}).read(tmp_path / "turned.png").shape == (6, 2, 3)
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", (2, 2)), [[1, 1], [0, 0]])


@pytest.mark.parametrize("kind", ["text", "inpaint"])
def test_known_pixels_survive_the_way_through_files(files, tmp_path, kind):
    fields = {"image": [str(files / "photo.png")], "mask": str(files / "mask.png"), "num": 2}
    drawn = draw(model(kind), flags(**fields) if kind == "text" else flags(prompt=[], **fields))
    save_pictures(tmp_path / "out", "grid", drawn.images, drawn.words, columns=drawn.columns, singly=True)
    photo, kept = np.asarray(Image.open(files / "photo.png")), np.asarray(Image.open(files / "mask.png")) == 0
    for name in ("0000.png", "0001.png"):
        written = np.asarray(Image.open(tmp_path / "out" / name))
        assert np.array_equal(written[kept], photo[kept])
        assert (written[~kept] != photo[~kept]).mean() > 0.5


def test_outpainting_from_files(files):
    drawn = draw(model("text"), flags(image=[str(files / "photo.png")], outpaint=["0", "2", "3", "4"]))
    assert drawn.images.shape == (1, 9, 16, 3)
    photo = np.asarray(Image.open(files / "photo.png"))
    assert np.array_equal(np.round((drawn.images[0, :7, 3:12] + 1) * 127.5).astype(np.uint8), photo)


def test_films(files, tmp_path):
    drawn = draw(model("text"), flags(prompt=["a red circle", "a blue star"], interpolate=4))
    assert drawn.images.shape == (4, 8, 8, 3) and drawn.film and drawn.words == ["a red circle", "", "", "a blue star"]
    last = draw(model("text"), flags(prompt=["a red circle", "a blue star"], interpolate=4, index=3))
    assert last.words == ["a blue star"] and np.array_equal(last.images, drawn.images[3:])
    assert Image.open(save_film(tmp_path, drawn.images)).n_frames == 6  # there and back
    one = draw(model("text"), flags(interpolate=4))  # two noises
    assert np.abs(one.images[0] - one.images[-1]).max() > 0.1
    for i in (0, 1):
        Image.open(files / "photo.png").rotate(180 * i).save(tmp_path / f"{i}.png")
    pair = draw(model("text"), flags(image=[str(tmp_path / "0.png"), str(tmp_path / "1.png")], interpolate=3))
    assert pair.images.shape == (3, 7, 9, 3)  # padded, and cut back


def test_films_between_maps_are_as_large_as_they(files, monkeypatch):
    """Whatever the training size: their noise is for pictures of the maps' size, padded to what the first stage takes."""
    ldm, noises = model("semantic"), []

    def interpolate(self, params, key, cond, frames, noise, **options):
        noises.append(noise)
        return np.zeros((frames, 2 * noise.shape[1], 2 * noise.shape[2], 3), np.float32)

    monkeypatch.setattr(type(ldm), "interpolate", interpolate)
    drawn = draw(ldm, flags(prompt=[], map=[str(files / "map.png")] * 2, interpolate=3))
    assert noises[0].shape == (1, 4, 5, 4) and drawn.images.shape == (3, 7, 10, 3)


def test_maps_of_several_sizes_are_refused_by_their_sizes(files, tmp_path):
    """Two that are padded to one size would both be cut to the first one's."""
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(tmp_path / "8.png")
    map_, other, photo = str(files / "map.png"), str(tmp_path / "8.png"), [str(files / "map_sized.png")]
    for fields, said in (
        ({"map": [map_, other]}, "--map: maps of 10 x 7 and 10 x 8 pixels: those drawn together must be of one size"),
        ({"map": [other, map_], "interpolate": 3}, "--map: maps of 10 x 8 and 10 x 7 pixels"),
        ({"map": [other], "image": photo}, "--map: a map of 10 x 8 pixels on a picture of 10 x 7"),
        ({"map": [other], "image": photo * 2, "interpolate": 3}, "--map: a map of 10 x 8 pixels on a picture of 10 x 7"),
        ({"map": [map_], "image": photo, "outpaint": ["1"]}, "--map: a map of 10 x 7 pixels on a picture of 12 x 9"),
        ({"map": [map_], "image": photo, "source": other}, "--source: a map of 10 x 8 pixels on a picture of 10 x 7"),
    ):
        with pytest.raises(ValueError, match=said):
            draw(model("semantic"), flags(prompt=[], **fields))


def test_other_conditions(files):
    drawn = draw(model("semantic"), flags(prompt=[], map=[str(files / "map.png")], num=2))
    assert drawn.images.shape == (2, 7, 10, 3)  # padded, and cut back
    drawn = draw(model("layout"), flags(prompt=[], layout=[str(files / "layout.json")]))
    assert drawn.images.shape == (1, 8, 8, 3)
    drawn = draw(
        model("semantic"),
        flags(prompt=[], map=[str(files / "map.png")], source=str(files / "map.png"), image=[str(files / "map_sized.png")]),
    )
    assert drawn.images.shape == (1, 7, 10, 3)
    drawn = draw(model("superres"), flags(prompt=[], upscale=str(files / "photo.png")))
    assert drawn.images.shape == (1, 28, 36, 3)
    drawn = draw(model("class"), flags(prompt=[], label=["star", "1"], negative="circle", num=2))
    assert drawn.images.shape == (4, 8, 8, 3) and drawn.words == ["star", "star", "1", "1"]


def test_neighbours_of_a_prompt_a_picture_or_a_class(files, tmp_path, monkeypatch):
    """As many as are asked for, which needn't be as many as in training."""
    ldm, found = model("retrieval"), []

    class Embedder:
        size = (6, 6)

        def __call__(self, images):
            found.append(images)
            return np.eye(5, 8, dtype=np.float32)[[2] * len(images)]

        def words(self, texts):
            return np.eye(5, 8, dtype=np.float32)[[1] * len(texts)]

    monkeypatch.setattr(query, "_embedder", lambda path: Embedder())
    names, classes = tuple("abcde"), ("odd", "even")
    database = Database(names, np.eye(5, 8, dtype=np.float32), 5, np.arange(5, dtype=np.int32) % 2, classes, {"embedder": "x"})
    database.save(tmp_path / "base", np.zeros((5, 1), np.int32))
    how = {"prompt": [], "database": str(tmp_path / "base"), "num": 2}
    by_text = draw(ldm, flags(**how | {"prompt": ["blue"]}))
    by_picture = draw(ldm, flags(**how, like=[str(files / "photo.png")]))
    by_class = draw(ldm, flags(**how, label=["even"], neighbours=3))
    assert by_text.images.shape == by_picture.images.shape == by_class.images.shape == (2, 8, 8, 3)
    assert found[0].shape == (1, 6, 6, 3) and not np.array_equal(by_text.images, by_picture.images)
    film = draw(ldm, flags(**how | {"prompt": ["blue", "red"]}, neighbours=3, interpolate=4))
    assert film.images.shape == (4, 8, 8, 3)
    with pytest.raises(ValueError, match="k=6: the data base has 5 pictures"):
        draw(ldm, flags(**how | {"prompt": ["blue"]}, neighbours=6))


def test_no_neighbour_is_the_same_for_any_number_of_them():
    ldm, key = model("retrieval"), jax.random.key(0)
    vectors = rng.standard_normal((2, 3, 8)).astype(np.float32)
    cond = ldm.embed(ldm.params, list(vectors))
    drawn = ldm.sample(ldm.params, key, cond, guidance_scale=2.0)
    by_hand = ldm.sample(ldm.params, key, cond, guidance_scale=2.0, negative={"context": np.zeros((2, 3, 8), np.float32)})
    np.testing.assert_array_equal(drawn, by_hand)
    x, t = np.ones((2, 4, 4, 4), np.float32), np.full(2, 0.5, np.float32)
    one, three = (ldm.apply(ldm.params, x, t, {"context": np.zeros((2, k, 8), np.float32)}) for k in (1, 3))
    np.testing.assert_allclose(one, three, atol=1e-5)


def test_usage_names_the_modes_and_their_flags():
    text = sample.usage(model("text"))
    assert all(name in text for name in model("text").abilities) and '--prompt "..."' in text
    assert sample.usage(model("superres")).split() == ["upscale", "--upscale", "SMALL.png"]
    assert "can upscale" in model("superres").describe()


def test_a_lora_is_drawn_with(tmp_path):
    """FILE or FILE:SCALE, several; the model itself stays as it is."""
    ldm, path = model("text"), tmp_path / "style.safetensors"
    lora = jax.tree.map(lambda x: x + 0.5, {"network": init_lora(jax.random.key(0), ldm.params["network"], 2)})
    ldm.save_lora(lora, path)
    merged, wanted = sample.with_loras(ldm, [f"{path}:0.5", str(path)]), ldm.with_lora(lora, 1.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), merged.params, wanted.params)
    plain, styled = (draw(ldm, flags(lora=said)).images for said in ([], [str(path)]))
    assert np.abs(plain - styled).max() > 1e-3
    with pytest.raises(ValueError, match="nowhere.safetensors does not exist"):
        draw(ldm, flags(lora=["nowhere.safetensors:2"]))


def test_what_is_not_finite_is_no_picture():
    """Files would show it black, and nobody would know why."""
    ldm = model("text")
    network = jax.tree.map(lambda x: x * np.nan, ldm.params["network"])
    broken = dataclasses.replace(ldm, params={**ldm.params, "network": network})
    with pytest.raises(ValueError, match="1 of 1 that were drawn are not finite, the first number 0: guidance"):
        draw(broken, flags())
    images = np.zeros((3, 4, 4, 3), np.float32)
    images[1, 2, 2, 0] = np.inf
    with pytest.raises(ValueError, match="1 of 3 that were drawn are not finite, the first number 1"):
        sample.Drawn(images, ["a"] * 3, 1)


def test_pictures_of_8_bits_are_not_saved_as_white_ones(tmp_path):
    with pytest.raises(ValueError, match=r"pictures of uint8: expected floating-point numbers in \[-1, 1\]"):
        save_pictures(tmp_path, "grid", np.full((2, 4, 4, 3), 100, np.uint8), ["a", "b"], singly=True)
    assert not [*tmp_path.iterdir()]
