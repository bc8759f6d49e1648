"""Odd shapes, types and ranges in the hands of a model's functions: a sentence, or what they plainly mean."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax.api.control import control
from ldm_jax.primitives.arrays import key_of, row_normal
from ldm_jax.training.sharding import seed_key
from tests.tiny import model, random_model

KEY = jax.random.key(0)
PICTURES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
HOLE = np.ones((2, 8, 8), np.float32)


def two(ldm):
    return ldm.embed(ldm.params, ["a red circle", "a blue star"])


@pytest.mark.parametrize(
    "images, message",
    [
        (((PICTURES + 1) * 127.5).astype(np.uint8), "uint8: they must be float"),
        ((PICTURES + 1) * 127.5, r"bring it to \[-1, 1\]"),
        (PICTURES * np.nan, "nan"),
        (PICTURES[0], r"shape \(8, 8, 3\)"),
        (PICTURES[:0], r"shape \(0, 8, 8, 3\)"),
    ],
)
def test_pictures_to_encode(images, message):
    ldm = model("text")
    with pytest.raises(ValueError, match=message):
        ldm.encode(ldm.params, images)


def test_pictures_as_lists_and_legacy_keys_are_what_they_say():
    ldm = model("text")
    np.testing.assert_array_equal(ldm.encode(ldm.params, PICTURES.tolist()), ldm.encode(ldm.params, PICTURES))
    old, new = jax.random.PRNGKey(1), jax.random.key(1)
    np.testing.assert_array_equal(ldm.encode(ldm.params, PICTURES, old), ldm.encode(ldm.params, PICTURES, new))
    with pytest.raises(ValueError, match="give a random key"):
        ldm.encode(ldm.params, PICTURES, 0)
    with pytest.raises(ValueError, match="2 keys"):
        ldm.encode(ldm.params, PICTURES, jax.random.split(KEY))


@pytest.mark.parametrize("shape", [(4, 4, 4), (0, 4, 4, 4), (1, 2, 4, 4, 4)])
def test_latents_of_other_shapes(shape):
    ldm = model("text")
    with pytest.raises(ValueError, match="latents of shape"):
        ldm.decode(ldm.params, np.zeros(shape))


@pytest.mark.parametrize(
    "kind, values, message",
    [
        ("text", np.full((1, 6), 16, np.int32), "numbered 0 to 15"),
        ("text", np.full((1, 6), -1, np.int32), "from -1"),
        ("text", np.zeros(6, np.int32), r"int32 \[B, L\]"),
        ("text", np.zeros((1, 6), np.float32), "these are float32"),
        ("text", {"tokens": np.full((1, 6), 99, np.int32), "weights": np.ones((1, 6))}, "to 99"),
        ("text", None, "no condition"),
        ("text", {}, "no condition"),
        ("text", np.array("a red circle"), "takes a list"),
        ("text", ["a \ud800 circle"], "half of a character"),
        ("class", np.array([4], np.int32), "numbered 0 to 3"),
        ("class", jnp.array([-1]), "from -1"),
        ("class", np.array([[1]], np.int32), r"int32 \[B\]"),
        ("class", {"label": np.array([1])}, r"int32 \[B\], these are a dict"),
        ("text", {"weights": np.ones((1, 6))}, "a dict of tokens, weights, as arrays; this is a dict of weights"),
        ("text", {"tokens": np.ones((2, 6), np.int32), "weights": np.ones((1, 6))}, "one a token"),
        ("none", np.array([1]), "unconditional"),
        ("superres", np.full((1, 2, 2, 3), 200, np.uint8), r"float \[B, H, W, 3\] in \[-1, 1\], these are uint8"),
        ("superres", np.full((1, 2, 2, 3), 200.0), r"bring it to \[-1, 1\]"),
        ("superres", PICTURES[0, :2, :2], r"these are float32 \[2, 2, 3\]"),
        ("semantic", np.full((1, 8, 8), 3), "from 3 to 3: they are numbered -1 to 2"),
        ("semantic", np.full((1, 8, 8), 0.5), r"int32 \[B, H, W\], these are float64"),
        ("semantic", np.zeros((1, 7, 8), int), "multiples of 2"),
        ("inpaint", PICTURES, "a dict of masked, mask, as arrays; this is float32"),
        ("inpaint", {"masked": PICTURES}, "this is a dict of masked"),
        ("inpaint", {"masked": PICTURES, "mask": HOLE}, r"it lies on latents, \(2, 4, 4, 1\)"),
        ("inpaint", {"masked": PICTURES, "mask": np.full((2, 4, 4, 1), 255.0)}, "mask from 255"),
        ("layout", np.full((1, 8), 102), "numbered 0 to 101"),
        ("layout", np.zeros((1, 8)), "these are float64"),
        ("retrieval", np.zeros((2, 8)), r"float \[B, k, 8\], these are float64 \[2, 8\]"),
    ],
)
def test_conditions_that_no_table_has(kind, values, message):
    ldm = model(kind)
    with pytest.raises(ValueError, match=message):
        ldm.embed(ldm.params, values)


@pytest.mark.parametrize(
    "kind, values",
    [
        ("superres", PICTURES[:, :2, :2]),
        ("semantic", np.arange(-1, 127).reshape(2, 8, 8) % 4 - 1),
        ("retrieval", PICTURES.reshape(2, 24, 8)),
    ],
)
def test_one_array_is_as_a_list_of_its_rows(kind, values):
    ldm = model(kind)
    jax.tree.map(np.testing.assert_array_equal, ldm.embed(ldm.params, values), ldm.embed(ldm.params, list(values)))
    assert jax.eval_shape(lambda x: ldm.embed(ldm.params, x), values)  # traced ones pass


def test_pictures_for_a_controlnet():
    """Edges as bools or bytes would be grey and white: 0 is the middle of [-1, 1]."""
    spec = copy.copy(model("text").specification)
    spec.control = object()
    np.testing.assert_allclose(control(spec, PICTURES)["hint"], (PICTURES + 1) / 2)
    for edges in (PICTURES > 0, (PICTURES > 0).astype(np.uint8)):
        with pytest.raises(ValueError, match=rf"float \[B, H, W, 3\].*got {edges.dtype}"):
            control(spec, edges)


def test_a_list_of_scales_guides_as_an_array():
    ldm = model("text")
    x, level = ldm.noise(KEY, 2), ldm.schedule(0.5)
    plain, empty = (ldm.denoiser(ldm.params, cond)(x, level) for cond in (two(ldm), ldm.null(ldm.params, 2)))
    found = ldm.denoiser(ldm.params, two(ldm), [0.0, -2.0])(x, level)
    for c, u, f in zip(plain, empty, found):
        np.testing.assert_allclose(f, np.stack([u[0], u[1] - 2 * (c[1] - u[1])]), atol=1e-5)


def test_the_last_token_and_class_are_known():
    for kind, values in (("text", np.full((1, 6), 15, np.int32)), ("class", np.array([3], np.int32))):
        ldm = model(kind)
        assert np.isfinite(ldm.embed(ldm.params, values)["context"]).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise": np.zeros((2, 4, 4, 3))}, r"float \(2, 4, 4, 4\)"),
        ({"noise": np.full((2, 4, 4, 4), np.nan)}, "not finite"),
        ({"noise": np.zeros((2, 4, 4))}, "shape of latents"),
        ({"noise": np.zeros((1, 4, 4, 4))}, r"float \(2, 4, 4, 4\)"),
        ({"size": np.array([8, 8])}, "2 whole numbers"),
        ({"guidance_scale": 1j}, "finite number"),
        ({"num": 2.5}, "whole number of pictures"),
        ({"num": True}, "whole number of pictures"),
        ({"tile": 8, "wrap": "no"}, "True or False"),
        ({"negative": {"context": np.zeros((3, 6, 8), np.float32)}}, r"negative has context \[3, 6, 8\]"),
    ],
)
def test_options_of_sample(options, message):
    ldm = model("text")
    with pytest.raises(ValueError, match=message):
        ldm.sample(ldm.params, KEY, two(ldm), **options)


def test_a_condition_of_another_model():
    ldm = model("text")
    with pytest.raises(ValueError, match=r"cond has context \[2, 3, 5\]"):
        ldm.sample(ldm.params, KEY, {"context": np.zeros((2, 3, 5), np.float32)})
    one_hint = two(ldm) | {"hint": np.zeros((1, 8, 8, 3), np.float32)}
    for function in (ldm.sample, ldm.trajectory, ldm.variation):
        with pytest.raises(ValueError, match=r"hint \[1, 8, 8, 3\]: as many of one as of the other"):
            function(ldm.params, KEY, one_hint)
    with pytest.raises(ValueError, match="holds no condition"):
        ldm.sample(ldm.params, KEY, {"context": np.zeros((0, 6, 8), np.float32)})


@pytest.mark.parametrize("params", [None, KEY, {"network": {}}, "model"])
def test_parameters_that_are_none(params):
    ldm = model("text")
    for call in (lambda: ldm.sample(params, KEY, two(ldm)), lambda: ldm.encode(params, PICTURES)):
        with pytest.raises(ValueError, match="params is a"):
            call()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, c: m.image_to_image(m.params, KEY, PICTURES, c, strength=[0.5]), "strength="),
        (lambda m, c: m.image_to_image(m.params, KEY, PICTURES, c, strength=None), "strength=None"),
        (lambda m, c: m.image_to_image(m.params, KEY, PICTURES, c, strength=True), "strength=True"),
        (lambda m, c: m.image_to_image(m.params, KEY, c, PICTURES), "cond is a ndarray: give what ldm.embed"),
        (lambda m, c: m.image_to_image(m.params, KEY, c, jnp.asarray(PICTURES)), "cond is a ArrayImpl: give what ldm.embed"),
        (lambda m, c: m.inpaint(m.params, KEY, PICTURES, HOLE, c, resample="2"), "resample='2'"),
        (lambda m, c: m.inpaint(m.params, KEY, PICTURES, HOLE, c, resample=2, method="certain"), "'imposed' alone"),
        (lambda m, c: m.outpaint(m.params, KEY, PICTURES, c, top="2"), "whole numbers of pixels"),
        (lambda m, c: m.outpaint(m.params, KEY, PICTURES, c, top=1.5), "whole numbers of pixels"),
        (lambda m, c: m.invert(m.params, PICTURES, c, iterations=0), "iterations=0"),
        (lambda m, c: m.invert(m.params, PICTURES, c, guidance_scale=3.0), "guidance_scale=3.0: pictures are inverted by ddim"),
        (lambda m, c: m.invert(m.params, PICTURES, c, sampler="dpmpp_2m"), "leave sampler out"),
        (lambda m, c: m.invert(m.params, PICTURES, c, negative=c), "leave negative out"),
        (lambda m, c: m.edit(m.params, KEY, PICTURES, c, iterations=1.5), "iterations=1.5"),
        (lambda m, c: m.variation(m.params, KEY, c, amount=2), "from 0 to 1"),
        (lambda m, c: m.variation(m.params, KEY, c, amount="x"), "from 0 to 1"),
        (lambda m, c: m.variation(m.params, KEY, c, amount=[0.1] * 3), "one a picture"),
        (lambda m, c: m.variation(m.params, KEY, c, noise=np.zeros((1, 4, 4, 3))), "noise of shape"),
        (lambda m, c: m.interpolate(m.params, KEY, c, 2.5), "frames=2.5"),
        (lambda m, c: m.interpolate(m.params, KEY, c, noise=np.full((2, 4, 4, 4), np.inf)), "not finite"),
        (lambda m, c: m.interpolate(m.params, KEY, c, 3, negative=c), "for 3 pictures"),
        (lambda m, c: m.edit(m.params, KEY, PICTURES, ["a red circle"] * 2), "cond is a list"),
        (lambda m, c: m.edit(m.params, KEY, PICTURES, c, {"context": c["context"][:1]}), "1 conditions for 2 pictures"),
        (lambda m, c: m.interpolate(m.params, KEY, {"context": np.zeros((3, 6, 8), np.float32)}, 2), "as many frames or more"),
        (lambda m, c: m.variation(m.params, KEY, c, noise=m.noise(KEY, 1), size=(16, 16)), "not of size"),
        (lambda m, c: m.interpolate(m.params, KEY, c, noise=m.noise(KEY, 2), size=(8, 16)), r"is for pictures of \(8, 8\)"),
        (lambda m, c: m.sample(m.params, KEY, c, noise=m.noise(KEY, 2), size=8), "2 whole numbers"),
        (lambda m, c: m.variation(m.params, KEY), "this model takes a prompt"),
        (lambda m, c: m.noise(KEY, 0), "how many"),
        (lambda m, c: m.noise(KEY, 1, 8), "2 whole numbers"),
    ],
)
def test_what_is_done_with_pictures(call, message):
    ldm = model("text")
    with pytest.raises(ValueError, match=message):
        call(ldm, two(ldm))


def test_noise_as_a_list_and_a_strength_on_a_device():
    ldm = model("text")
    cond, noise = two(ldm), np.random.default_rng(1).standard_normal((2, 4, 4, 4))
    given = ldm.sample(ldm.params, KEY, cond, noise=noise)
    np.testing.assert_array_equal(ldm.sample(ldm.params, KEY, cond, noise=noise.tolist()), given)
    half = ldm.image_to_image(ldm.params, KEY, PICTURES, cond, strength=0.5)
    np.testing.assert_array_equal(ldm.image_to_image(ldm.params, KEY, PICTURES, cond, strength=jnp.float32(0.5)), half)


def test_embeddings_of_another_width_are_refused_before_anything_is_traced():
    """Also where there is no guidance, and nothing to compare them with."""
    ldm = model("text")
    right = jnp.zeros((2, 6, 8))
    for cond in ({"context": right[..., :5]}, {"context": right[0]}, {"context": right[None]}, {"contxt": right}):
        for scale in (1.0, 3.0):
            with pytest.raises(ValueError, match=r"network reads context \[B, L, 8\]; give what ldm.embed returns"):
                ldm.sample(ldm.params, KEY, cond, guidance_scale=scale)
    with pytest.raises(ValueError, match=r"network reads context \[B, L, 8\]"):
        jax.eval_shape(lambda cond: ldm.sample(ldm.params, KEY, cond), {"context": right[..., :5]})


def test_traced_arguments_have_the_shapes_of_the_others():
    ldm = model("text")
    cond = {"context": jnp.zeros((2, 6, 8))}

    def drawn(**options):
        return jax.eval_shape(lambda given: ldm.sample(ldm.params, KEY, cond, steps=2, **given), options).shape

    assert drawn(guidance_scale=jnp.float32(3)) == drawn(guidance_scale=jnp.ones(2)) == (2, 8, 8, 3)
    with pytest.raises(ValueError, match=r"guidance_scale of shape \(3,\) for 2 pictures: give one number, or one a picture"):
        drawn(guidance_scale=jnp.ones(3))
    for scale in ([1.0, 2.0, 3.0], jnp.ones((2, 1))):
        with pytest.raises(ValueError, match="give one number, or one a picture"):
            ldm.sample(ldm.params, KEY, cond, guidance_scale=scale)
    with pytest.raises(ValueError, match="num=.*: must be a whole number of pictures"):
        jax.eval_shape(lambda num: ldm.sample(ldm.params, KEY, cond, num=num), jnp.int32(2))
    with pytest.raises(ValueError, match="steps=.*: must be a whole number"):
        jax.eval_shape(lambda steps: ldm.sample(ldm.params, KEY, cond, steps=steps), jnp.int32(2))
    seeds = jax.eval_shape(jax.vmap(lambda seed: ldm.sample(ldm.params, jax.random.key(seed), cond, steps=2)), jnp.arange(3))
    several = jax.eval_shape(jax.vmap(lambda c: ldm.sample(ldm.params, KEY, c, steps=2)), {"context": jnp.zeros((3, 2, 6, 8))})
    assert seeds.shape == several.shape == (3, 2, 8, 8, 3)
    with pytest.raises(ValueError, match="network reads context"):  # conditions without their batch
        jax.eval_shape(jax.vmap(lambda c: ldm.sample(ldm.params, KEY, c)), cond)


def test_the_noise_of_a_key_is_the_same_where_numbers_are_of_64_bits():
    ldm = model("text")
    plain = ldm.noise(KEY, 2)
    with jax.enable_x64(True):
        wide = ldm.noise(KEY, 2)
    np.testing.assert_array_equal(wide, plain)


OUTSIDE = {  # a call, an array that it takes, and a number that it refuses there with these words
    "picture": (lambda m, c, k, a: m.image_to_image(m.params, k, a, c), PICTURES, 2.0, r"bring it to \[-1, 1\]"),
    "encoded": (lambda m, c, k, a: m.encode(m.params, a, k), PICTURES, 2.0, r"bring it to \[-1, 1\]"),
    "mask": (lambda m, c, k, a: m.inpaint(m.params, k, PICTURES, a, c), HOLE, 2.0, "0 where to keep"),
    "canvas": (lambda m, c, k, a: m.outpaint(m.params, k, a, c, left=2), PICTURES, 2.0, r"bring it to \[-1, 1\]"),
    "noise": (lambda m, c, k, a: m.sample(m.params, k, c, noise=a), np.zeros((2, 4, 4, 4)), np.nan, "not finite"),
    "amount": (lambda m, c, k, a: m.variation(m.params, k, c, amount=a), np.ones(2), 2.0, "from 0 to 1"),
    "tokens": (lambda m, c, k, a: m.embed(m.params, a), np.zeros((2, 6), np.int32), 16, "numbered 0 to 15"),
}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("trace", ["jit", "map", "shard_map"])
def test_arrays_outside_of_a_traced_function_are_looked_at_as_ever(name, trace):
    """`jax.jit` traces what is done with arrays that it found outside, too, and then they have no numbers to look at."""
    ldm = model("text")
    cond, (call, array, wrong, message) = two(ldm), OUTSIDE[name]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    keys, each = jax.random.split(KEY, 8), jax.P("data")

    def traced(given):
        def several(keys):
            return jax.lax.map(lambda key: call(ldm, cond, key, given), keys)

        if trace == "shard_map":
            return jax.eval_shape(jax.shard_map(several, mesh=mesh, in_specs=each, out_specs=each), keys)
        return jax.eval_shape(several, keys) if trace == "map" else jax.eval_shape(lambda k: call(ldm, cond, k, given), KEY)

    array = jnp.asarray(array)
    assert jax.tree.leaves(traced(array))
    for given in (array.at[0].set(wrong), np.asarray(array.at[-1].set(wrong))):
        with pytest.raises(ValueError, match=message):
            traced(given)


def test_a_picture_to_enlarge_without_its_batch():
    with pytest.raises(ValueError, match="size 0 x 4: both sides must be"):
        model("superres").upscale(model("superres").params, KEY, np.zeros((1, 0, 4, 3), np.float32))
    ldm = model("superres")
    with pytest.raises(ValueError, match=r"low of shape \(2, 2, 3\): pictures to enlarge are float \[B, h, w, 3\]"):
        ldm.upscale(ldm.params, KEY, PICTURES[0, :2, :2])


@pytest.mark.parametrize("given", [np.asarray, jnp.asarray])
def test_a_model_that_is_told_pictures_takes_those_outside_of_a_traced_function(given):
    ldm, images, mask = model("inpaint"), given(PICTURES), given(np.where(np.arange(8) > 3, HOLE, 0))
    calls = {
        "inpaint": lambda key: ldm.inpaint(ldm.params, key, images, mask),
        "outpaint": lambda key: ldm.outpaint(ldm.params, key, images, left=2),
    }
    for name, call in calls.items():
        np.testing.assert_allclose(jax.jit(call)(KEY), call(KEY), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["superres", "inpaint"])
def test_traced_pictures_that_must_be_looked_at_are_refused(kind):
    ldm = model(kind)
    calls = {
        "superres": lambda x: ldm.upscale(ldm.params, KEY, x[:, :2, :2]),
        "inpaint": lambda x: ldm.inpaint(ldm.params, KEY, x, HOLE),
    }
    assert calls[kind](PICTURES).shape == PICTURES.shape
    with pytest.raises(ValueError, match="is traced: .* call it outside jax.jit"):
        jax.jit(calls[kind])(PICTURES)


@pytest.mark.parametrize("kind", ["rbg", pytest.param("unsafe_rbg", marks=pytest.mark.slow)])
def test_keys_of_other_kinds_draw_each_picture_by_itself(kind):
    """What JAX draws by rbg under vmap depends on the keys beside a key."""
    ldm, key = model("text"), jax.random.key(3, impl=kind)
    cond = ldm.embed(ldm.params, ["a red circle", "a blue star"] * 2)
    keys = jnp.stack([jax.random.fold_in(key, i) for i in range(4)])
    drawn = ldm.sample(ldm.params, key, cond, sampler="euler_ancestral")
    last = ldm.sample(ldm.params, keys[2:], jax.tree.map(lambda x: x[2:], cond), sampler="euler_ancestral")
    np.testing.assert_allclose(drawn[2:], last, atol=1e-5)
    np.testing.assert_array_equal(ldm.noise(key, 4)[:3], ldm.noise(key, 3))
    rows = jnp.arange(5, 9)
    np.testing.assert_array_equal(row_normal(key, rows, (8,))[2:], row_normal(key, rows[2:], (8,)))
    assert len({float(x[0, 0, 0]) for x in ldm.noise(key, 4)}) == 4
    with jax.default_prng_impl(kind):
        legacy = ldm.noise(jax.random.PRNGKey(3), 4)
        assert all(jax.random.key_impl(made(5)) == "threefry2x32" for made in (key_of, seed_key))
    assert kind != "rbg" or np.array_equal(legacy, ldm.noise(key, 4))


def test_variations_with_a_key_each():
    ldm = model("text")
    cond, keys = two(ldm), jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(2))
    ours = ldm.variation(ldm.params, keys, cond, amount=0.5)
    np.testing.assert_allclose(ours, ldm.variation(ldm.params, KEY, cond, amount=0.5), atol=1e-5)


@pytest.mark.parametrize("format", ["diffusers", "compvis"])
@pytest.mark.parametrize(
    "part, field, value",
    [("network", "context_waves", 2), ("first_stage", "shortcuts", True), ("first_stage", "num_res_blocks", [1, 1]),
     ("conditioner", "conv_kernel", 3)],  # fmt: skip
)
def test_what_files_of_others_have_no_word_for_is_not_written(part, field, value, format, tmp_path):
    plain = model()
    config = {**plain.config, part: {**plain.config[part], field: value}}
    odd = random_model(config, plain.condition.setting.tokenizer)
    with pytest.raises(ValueError, match=rf"config.{part}.{field}=.*files of {format}"):
        ldm_jax.save(odd, tmp_path / ("saved.ckpt" if format == "compvis" else "saved"), format=format)
    assert list(tmp_path.iterdir()) == []
