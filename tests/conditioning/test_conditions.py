"""Conditions of every kind: what a user gives and what a batch holds become the same inputs, and these the network's cond."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import build
from ldm_jax.conditioning import class_number, space_to_depth
from ldm_jax.conditioning.classes import keep_names
from ldm_jax.data import layout
from tests import tiny

RNG = np.random.default_rng(0)
SIDE = 8  # of tiny models, with latents of 4 x 4 x 4


def photo(*size):
    return RNG.uniform(-1, 1, (*size, 3)).astype(np.float32)


def make(kind, names=None, network=(), **fields):
    config = dict(tiny.CONFIG)
    config["conditioner"] = {"kind": kind, **fields}
    config["network"] = config["network"] | dict(network)
    return build.make_condition(config, names)


def halved(images):
    """A stand-in for the first stage: means of 2 x 2 pixels in four channels."""
    B, H, W, C = images.shape
    small = images.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))
    return jnp.concatenate([small, small[..., :1]], -1)


def cond_of(condition, inputs):
    params = condition.init(jax.random.key(0))
    return jax.jit(lambda p, x: condition.apply(p, condition.encoded(x, halved)))(params, inputs)


# Super-resolution


@pytest.mark.parametrize("scale, side, channels", [(2, 4, 3), (1, 8, 12), (4, 2, 3), (8, 1, 3)])
def test_low_pictures_come_to_the_size_of_the_latents(scale, side, channels):
    """The first stage halves: x2 lies beside the latents as it is, larger pictures go into channels, smaller are enlarged."""
    condition = make("superres", scale=scale)
    low = photo(side, side)
    cond = cond_of(condition, condition.parse([low, low]))
    assert cond["concat"].shape == (2, 4, 4, channels)
    assert condition.null.shape == (1, side, side, 3)
    expected = space_to_depth(low[None], 2) if scale == 1 else jax.image.resize(low[None], (1, 4, 4, 3), "cubic")
    np.testing.assert_allclose(cond["concat"][0], expected[0], atol=1e-6)
    batch = {"low": np.stack([low, low])}
    np.testing.assert_array_equal(condition.from_batch(batch), condition.parse([low, low]))


def test_space_to_depth_keeps_every_pixel():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    y = space_to_depth(x, 2)
    assert y.shape == (2, 2, 3, 12)
    assert y[1, 1, 2].tolist() == x[1, 2:4, 4:6].reshape(-1).tolist()


def test_scale_of_published_models_is_in_their_channels():
    for channels, scale in ((7, 2), (16, 1)):  # four latents and 3 n^2 of a picture n times their size
        assert make("superres", network={"in_channels": channels}).scale == scale


def test_noise_levels_are_added_and_told():
    condition = make("superres", scale=2, noise_levels=100)
    low = photo(4, 4)
    inputs = condition.parse([low, (low, 0), (low, 99)])
    assert inputs["level"].tolist() == [0, 0, 99]
    errors = np.abs(inputs["low"] - low).mean((1, 2, 3))
    assert errors[0] < 0.02 and errors[2] > 5 * errors[0]
    cond = cond_of(condition, inputs)
    assert cond["label"].tolist() == [0, 0, 99] and cond["concat"].shape == (3, 4, 4, 3)
    batch = {"low": inputs["low"], "level": inputs["level"]}
    jax.tree.map(np.testing.assert_array_equal, condition.from_batch(batch), inputs)
    for wrong in (100, -1, 2.5, True, "3", float("nan")):
        with pytest.raises(ValueError, match="0 to 99"):
            condition.parse([(low, wrong)])
    condition.check_inputs(batch)
    for change, message in (({"level": np.full(3, 100)}, "0 to 99"), ({"low": np.zeros((3, 4, 4, 3), np.uint8)}, "are uint8")):
        with pytest.raises(ValueError, match=message):
            condition.check_inputs(batch | change)
    with pytest.raises(ValueError, match="a dict of low, level, as arrays; this is float32"):
        condition.check_inputs(batch["low"])
    with pytest.raises(ValueError, match="without noise levels"):
        make("superres", scale=2).parse([(low, 3)])


@pytest.mark.parametrize(
    "scale, values, message",
    [
        (1, [photo(7, 8)], "7 x 8: both sides must be multiples of 2"),
        (2, [photo(4, 4)[..., :1]], r"float \[H, W, 3\]"),
        (2, [np.zeros((4, 4, 3), np.uint8)], "uint8"),
        (2, [photo(4, 4) * 200], "127.5"),
        (2, [photo(4, 4), photo(4, 6)], "of one size"),
    ],
)
def test_low_pictures_that_are_refused(scale, values, message):
    with pytest.raises(ValueError, match=message):
        make("superres", scale=scale).parse(values)


def test_a_scale_that_the_first_stage_cannot_meet():
    with pytest.raises(ValueError, match="does not divide"):
        make("superres", scale=3)


# Inpainting


def test_masked_latents_and_mask():
    condition = make("inpaint")
    image, mask = photo(SIDE, SIDE), np.zeros((SIDE, SIDE), np.float32)
    mask[:4, 2:5] = 1
    inputs = condition.parse([(image, mask)])
    np.testing.assert_allclose(inputs["masked"][0][mask == 0], image[mask == 0], atol=1e-6)
    assert (inputs["masked"][0][mask == 1] == -1).all()  # as cut out of [0, 1]
    assert inputs["mask"].shape == (1, 4, 4, 1)
    np.testing.assert_array_equal(inputs["mask"][0, ..., 0], 2 * mask[::2, ::2] - 1)  # top left pixels, as PyTorch's nearest
    batch = {"image": image[None], "hole": mask[None, ..., None]}
    jax.tree.map(np.testing.assert_allclose, condition.from_batch(batch), inputs)
    cond = cond_of(condition, inputs)["concat"]
    assert cond.shape == (1, 4, 4, 5)
    np.testing.assert_allclose(cond[..., :4], halved(inputs["masked"]), atol=1e-6)
    np.testing.assert_array_equal(cond[..., 4:], inputs["mask"])
    jax.tree.map(np.testing.assert_array_equal, condition.parse([(image, mask[..., None] > 0)]), inputs)


@pytest.mark.parametrize(
    "value, message",
    [
        (photo(8, 8), r"\(image, mask\)"),
        ((photo(8, 8), np.zeros((8, 6))), r"mask of shape \[8, 6, 1\] for an image of 8 x 8"),
        ((photo(8, 8), np.zeros((8, 8, 3))), "as large"),
        ((photo(8, 8), np.full((8, 8), 255)), "1 where to paint"),
        ((photo(7, 8), np.zeros((7, 8))), "multiples of 2"),
    ],
)
def test_masks_that_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        make("inpaint").parse([value])


# Semantic maps


def test_maps_are_one_hot_on_the_device():
    condition = make("semantic", n_stages=1, in_channels=3, out_channels=None)
    found = RNG.integers(0, 3, (SIDE, SIDE))
    inputs = condition.parse([found, found - 1])
    assert inputs.dtype == np.int32
    cond = cond_of(condition, inputs)["concat"]
    expected = np.eye(3)[found].reshape(4, 2, 4, 2, 3).mean((1, 3))
    np.testing.assert_allclose(cond[0], expected, atol=1e-6)
    assert not cond_of(condition, condition.null)["concat"].any()  # class -1 is none
    np.testing.assert_array_equal(condition.from_batch({"label_map": inputs}), inputs)


@pytest.mark.parametrize(
    "value, message",
    [
        (np.full((8, 8), 3), "class 3: this model knows 0 to 2"),
        (np.full((8, 8), -2), "class -2"),
        (np.zeros((8, 8)), r"a label map is int \[H, W\], this is float64"),
        (np.zeros((8, 8, 3), int), "this is int64"),
        (np.zeros((8, 9), int), "multiples of 2"),
    ],
)
def test_maps_that_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        make("semantic", n_stages=1, in_channels=3, out_channels=2).parse([value])


# Layouts


LAYOUT = {"n_embed": 8, "n_layer": 1, "max_seq_len": 8, "vocab_size": 102}
BOX = [0.0, 0.25, 0.5, 1.0]


def test_layouts_are_tokens():
    condition = make("layout", ("circle", "star"), **LAYOUT)
    code = layout.layout_code(8, 102)
    tokens = condition.parse([[{"name": "star", "box": BOX}], []])
    np.testing.assert_array_equal(tokens[0], layout.encode(code, [BOX], [1]))
    np.testing.assert_array_equal(tokens[1:], condition.null)
    assert condition.null.tolist() == [[101] * 6 + [0, 99]]
    np.testing.assert_array_equal(condition.from_batch({"layout": tokens}), tokens)
    assert cond_of(condition, tokens)["context"].shape == (2, 8, 8)
    assert "circle, star" in condition.takes and "at most 2 objects" in condition.takes


@pytest.mark.parametrize(
    "value, message",
    [
        ([{"name": "star", "box": BOX}] * 3, "a layout of 3 objects: this model has tokens for 2"),
        ([{"name": "star", "box": [0, 0, 1.5, 1]}], "object 0: box"),
        ([{"name": "stare", "box": BOX}], "Did you mean 'star'"),
        ([{"label": 2, "box": BOX}], "numbered 0 to 1"),
    ],
)
def test_layouts_that_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        make("layout", ("circle", "star"), **LAYOUT).parse([value])


# Classes


def test_classes_by_name_and_by_number():
    assert class_number("rose", ("daisy", "rose")) == class_number(" 1", ("daisy", "rose")) == class_number(1, ("a", "b")) == 1
    numbered = "001", "003", "010"
    spellings = "rosé", "rose\u0301"
    assert all(class_number(asked, ("daisy", known)) == 1 for asked in spellings for known in spellings)
    assert [class_number(text, numbered) for text in ("1", "003", "10")] == [0, 1, 2] and class_number(2, numbered) == 2
    assert [class_number(number, tuple("012345678")) for number in range(9)] == [*range(9)]
    assert class_number("a", ("b", " a ")) == class_number(" a", ("b", "a")) == 1
    for value, names, message in (
        (1, ("1", "2", "3"), "'1' is the name of class number 0; give the name as text"),
        (np.int64(3), ("1", "2", "3"), "'3' is the name of class number 2"),
        ("\u00b2", ("1", "2"), "unknown class"),
        ("2", numbered, "unknown class '2'.*001, 003, 010"),
        ("2", ("daisy", "rose"), "numbered 0 to 1"),
        ("rosé", ("daisy", "rose"), "Did you mean 'rose'"),
    ):
        with pytest.raises(ValueError, match=message):
            class_number(value, names)


# Neighbours


def test_neighbours():
    condition = make("retrieval", neighbours=3)
    vectors = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    np.testing.assert_array_equal(cond_of(condition, condition.parse(list(vectors)))["context"], vectors)
    np.testing.assert_array_equal(condition.from_batch({"neighbours": vectors}), vectors)
    assert condition.null.shape == (1, 3, 8)
    for value in (vectors[0, 0], vectors[0, :, :7], vectors[0, :0]):
        with pytest.raises(ValueError, match=r"this model takes \[k, 8\]"):
            condition.parse([value])
    for value, message in ((np.full((3, 8), np.nan), "not finite"), ("a prompt", "takes vectors of neighbours")):
        with pytest.raises(ValueError, match=message):
            condition.parse([value])


# Empty conditions


@pytest.mark.parametrize("kind", ["superres", "inpaint", "semantic"])
def test_empty_conditions_for_other_sizes_are_those_of_a_model_of_that_size(kind):
    fields = {"superres": {"scale": 4}, "semantic": {"n_stages": 1, "in_channels": 3}}.get(kind, {})
    condition = make(kind, **fields)
    found = condition.nulls(2, (16, 24))
    large = build.make_condition({**tiny.CONFIG, "data": {"image_size": 16}, "conditioner": {"kind": kind, **fields}})
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:1, :, : y.shape[1]], y), found, large.null)
    assert all(x.shape[:1] + x.shape[2:3] == (2, x.shape[1] * 3 // 2) for x in jax.tree.leaves(found))
    jax.tree.map(np.testing.assert_array_equal, condition.nulls(1), condition.null)


def test_empty_tokens_have_no_size():
    condition = make("layout", **LAYOUT)
    assert condition.nulls(3, (16, 16)).shape == (3, 8)
    assert make("retrieval", neighbours=2).nulls(3, (16, 16)).shape == (3, 2, 8)


def test_only_named_inputs_are_encoded():
    calls = []
    inputs = make("inpaint").null
    found = make("inpaint").encoded(inputs, lambda x: calls.append(x.shape) or x[:, ::2, ::2])
    assert calls == [(1, 8, 8, 3)] and found["mask"] is inputs["mask"]
    tokens = np.zeros((1, 8), np.int32)
    assert make("layout", **LAYOUT).encoded(tokens, lambda x: calls.append(x.shape)) is tokens
    assert len(calls) == 1


def test_names_of_classes_are_kept_and_compared_without_regard_to_how_accents_are_stored(tmp_path):
    keep_names(tmp_path, "names", ("daisy", "rose\u0301"))
    before = (tmp_path / "classes.json").read_bytes()
    keep_names(tmp_path, "names", ("daisy", "rosé"))
    assert (tmp_path / "classes.json").read_bytes() == before
    for others in (("daisy", "rose"), ("rosé", "daisy"), None):
        with pytest.raises(ValueError, match="the names of the classes have changed"):
            keep_names(tmp_path, "names", others)
