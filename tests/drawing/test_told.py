"""What the flags make a model be told besides the words: sizes, scores, pictures; of what it is led away from, too."""

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.data.tokenizer import Tokenizers, load_tokenizer
from ldm_jax.drawing import reading
from ldm_jax.drawing.modes import draw
from ldm_jax.primitives.arrays import key_of
from tests import tiny
from tests.api.test_sd3 import CLIP, clip_words

WIDE = (8, 16)  # pixels; training has 8 x 8
HOW = {"steps": 2, "guidance_scale": 4.0}
SIZES = {"original_size": WIDE, "target_size": WIDE}


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """{name: a tiny model that is told as Stable Diffusion XL and its refiner are}."""
    words = clip_words(tmp_path_factory.mktemp("xl") / "words")
    made = {}
    for name, count, last in (("base", 2, "target_size"), ("refiner", 1, "aesthetic_score")):
        network = tiny.CONFIG["network"] | {"context_dim": 8 * count, "num_classes": "sequential"}
        network["adm_in_channels"] = 4 + 4 * (6 if count == 2 else 5)
        towers = {f"text_encoder_{i}": CLIP | {"max_position_embeddings": 16} for i in range(count)}
        conditioner = {"kind": "sdxl", "towers": towers, "time_ids": ("original_size", "crop", last), "time_embed_dim": 4}
        config = tiny.CONFIG | {"network": network, "conditioner": conditioner | {"tokenizer": [str(words)] * count}}
        made[name] = tiny.random_model(config, Tokenizers((checkpoint_tokenizers.load(str(words)),) * count))
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two wide pictures, and a mask for them."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (*WIDE, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros(WIDE, np.uint8)
    mask[2:6, 3:11] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return {name: str(folder / f"{name}.png") for name in ("a", "b", "mask")}


def flags(**fields):
    return {"prompt": ["a red tub"], "num": 1} | HOW | fields


def close(drawn, images):
    np.testing.assert_allclose(drawn.images, images, atol=1e-5)


@pytest.mark.parametrize("negative", [None, "a bad lute"])
def test_a_size_is_told_of_both_halves(xl, negative):
    ldm = xl["base"]
    p, told = ldm.params, [{"prompt": text, **SIZES} for text in ("a red tub", negative)]
    how = HOW | ({} if negative is None else {"negative": ldm.embed(p, told[1:])})
    ours = draw(ldm, flags(size="8x16", negative=negative))
    close(ours, ldm.sample(p, key_of(0), ldm.embed(p, told[:1]), size=WIDE, **how))
    assert np.abs(ours.images - ldm.sample(p, key_of(0), ldm.embed(p, ["a red tub"]), size=WIDE, **how)).max() > 1e-3


def test_arrays_in_place_of_prompts_are_looked_at(xl):
    ldm = xl["base"]
    inputs = ldm.condition.parse(["a (red:1.2) tub", "a tub"])
    assert set(inputs) == {"tokens", "weights", "sizes", "kept"}
    for given in (inputs, {name: value for name, value in inputs.items() if name != "weights"}):
        assert ldm.embed(ldm.params, given)["context"].shape == (2, 16, 16)
    tokens = inputs["tokens"]
    for change, message in (
        ({"tokens": tokens + 10**6}, "tokens from"),
        ({"tokens": tokens[:, :1]}, r"int32 \[B, 2, L\]"),
        ({"size": inputs["sizes"]}, "a dict of tokens, sizes, kept, weights"),
    ):
        with pytest.raises(ValueError, match=message):
            ldm.embed(ldm.params, inputs | change)
    with pytest.raises(ValueError, match="a dict of tokens, sizes, kept, as arrays; this is int32"):
        ldm.embed(ldm.params, tokens)


@pytest.mark.parametrize("name", ["base", "refiner"])
def test_a_picture_s_size_is_told_and_a_score_of_what_is_led_away_from(xl, photos, name):
    ldm = xl[name]
    p, sizes = ldm.params, {n: size for n, size in SIZES.items() if n in ldm.condition.time_ids}
    worst = {"aesthetic_score": 2.5} if name == "refiner" else {}
    cond = ldm.embed(p, [{"prompt": "a red tub", **sizes}])
    negative = ldm.embed(p, [{"prompt": "a bad lute", **sizes, **worst}])
    image = reading.picture(ldm, photos["a"])[None]
    drawn = draw(ldm, flags(image=[photos["a"]], strength=1.0, negative="a bad lute"))
    close(drawn, ldm.image_to_image(p, key_of(0), image, cond, strength=1.0, negative=negative, **HOW))
    if name == "base":
        drawn = draw(ldm, flags(image=[photos["a"]], source="a lute", negative="a bad lute"))
        source = ldm.embed(p, [{"prompt": "a lute", **sizes}])
        close(drawn, ldm.edit(p, key_of(0), image, cond, source, negative=negative, **HOW))
    else:
        mask = reading.read_mask(photos["mask"], WIDE)[None]
        drawn = draw(ldm, flags(image=[photos["a"]], mask=photos["mask"], negative="a bad lute"))
        close(drawn, ldm.inpaint(p, key_of(0), image, mask, cond, negative=negative, **HOW))


@pytest.mark.slow
def test_films_are_told_their_size(xl, photos):
    ldm = xl["base"]
    p, told = ldm.params, [{"prompt": text, **SIZES} for text in ("a red tub", "a lute")]
    cond, negative = ldm.embed(p, told), ldm.embed(p, [{"prompt": "a bad tub", **SIZES}] * 3)
    drawn = draw(ldm, flags(prompt=["a red tub", "a lute"], size="8x16", interpolate=3, negative="a bad tub"))
    noise = ldm.noise(key_of(0), 1, WIDE)
    close(drawn, ldm.interpolate(p, key_of(0), cond, 3, noise=noise, negative=negative, **HOW))
    images = np.stack([reading.picture(ldm, photos[name]) for name in ("a", "b")])
    drawn = draw(ldm, {"prompt": ["a red tub"], "num": 1, "steps": 2, "image": [photos["a"], photos["b"]], "interpolate": 2})
    noise = ldm.invert(p, images, ldm.embed(p, told[:1] * 2), steps=2)
    how = {"noise": noise, "sampler": "ddim", "guidance_scale": 1.0, "steps": 2}
    close(drawn, ldm.interpolate(p, key_of(0), ldm.embed(p, told[:1]), 2, **how))


def test_frames_between_sizes_are_led_away_from_nothing_of_their_size(xl):
    """More frames than conditions: the empty condition of each is told what the frame is."""
    ldm = xl["base"]
    p, noise = ldm.params, ldm.noise(key_of(0), 1)
    ends = ldm.embed(p, ["a red tub", {"prompt": "a lute", "original_size": (4, 4)}])
    film = ldm.interpolate(p, key_of(0), ends, 3, noise=noise, **HOW)
    cond = {name: np.stack([a[0], (a[0] + a[1]) / 2, a[1]]) for name, a in ends.items()}
    np.testing.assert_allclose(film, ldm.sample(p, key_of(0), cond, noise=np.repeat(noise, 3, 0), **HOW), atol=1e-4)


@pytest.fixture(scope="module")
def beside():
    """A model of prompts with a picture of this kind beside."""

    def make(kind, **fields):
        text = tiny.CONFIG["conditioner"] | {"tokenizer": tiny.model("text").config["conditioner"]["tokenizer"]}
        parts = {"prompt": text, "picture": {"kind": kind, **fields}}
        network = tiny.CONFIG["network"] | {"in_channels": 9 if kind == "inpaint" else 8}
        config = tiny.CONFIG | {"network": network, "conditioner": {"kind": "combined", "parts": parts}}
        return tiny.random_model(config, load_tokenizer(text["tokenizer"]))

    return make


def test_a_negative_prompt_is_embedded_with_the_picture_and_its_mask(beside, photos):
    ldm = beside("inpaint", convention="stable_diffusion")
    p, image = ldm.params, reading.picture(ldm, photos["a"])
    mask = reading.read_mask(photos["mask"], WIDE)
    given = flags(prompt=["a red circle"], image=[photos["a"]], mask=photos["mask"])
    plain, drawn = draw(ldm, given), draw(ldm, given | {"negative": "a blue star"})
    negative = ldm.embed(p, [{"prompt": "a blue star", "picture": (image, mask)}])
    asked = (p, key_of(0), image[None], mask[None], ["a red circle"])
    close(drawn, ldm.inpaint(*asked, negative=negative, **HOW))
    close(drawn, ldm.inpaint(*asked, negative=["a blue star"], **HOW))
    assert np.abs(drawn.images - plain.images).max() > 1e-3
    outside = {name: value for name, value in given.items() if name != "mask"} | {"outpaint": ["0", "0", "0", "4"]}
    plain, drawn = draw(ldm, outside), draw(ldm, outside | {"negative": "a blue star"})
    assert np.abs(drawn.images - plain.images).max() > 1e-3
    with pytest.raises(ValueError, match="give negative as a list, one a picture"):
        ldm.inpaint(*asked, negative=["a blue star"] * 2, **HOW)


def test_a_negative_prompt_comes_without_the_picture_to_change(beside, photos):
    """Brooks et al. 2023, equation 3, with it in place of the empty prompt."""
    ldm = beside("instruct")
    p, image = ldm.params, reading.picture(ldm, photos["a"])
    cond, against = (ldm.embed(p, [{"prompt": text, "picture": image}]) for text in ("a red circle", "a blue star"))
    given = flags(prompt=["a red circle"], picture=photos["a"], negative="a blue star", image_guidance_scale=2.0)
    negative = against | {"concat": 0 * against["concat"]}
    close(draw(ldm, given), ldm.sample(p, key_of(0), cond, negative=negative, image_guidance_scale=2.0, **HOW))
