"""A picture to change beside another condition, led by two scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldm_jax import LatentDiffusion, build
from ldm_jax.api import Specification
from ldm_jax.build.check import check
from ldm_jax.drawing import modes as sample
from ldm_jax.first_stage import FirstStage
from ldm_jax.second_stage import make_loss
from ldm_jax.training.state import Step
from ldm_jax.weights import pipelines
from tests import tiny
from tests.test_habits import config_of

FACTOR = 2.0


@pytest.fixture(scope="module")
def ldm():
    """The tiny class model with a picture beside its latents."""
    model = tiny.model("class")
    network = model.config["network"] | {"in_channels": 8}
    parts = {"label": model.config["conditioner"], "picture": {"kind": "instruct", "factor": FACTOR}}
    config = model.config | {"network": network, "conditioner": {"kind": "combined", "parts": parts}}
    condition = build.make_condition(config, tiny.CLASSES)
    kernel = model.params["network"]["input_blocks_0_0"]["kernel"]
    wide = jnp.concatenate([kernel, 0.5 * kernel[:, :, ::-1]], axis=2)
    made = {**model.params["network"], "input_blocks_0_0": {**model.params["network"]["input_blocks_0_0"], "kernel": wide}}
    params = {**model.params, "network": made, "conditioner": {"label": model.params["conditioner"]}}
    return LatentDiffusion(Specification(config, condition, 0.5, 0.25), params)


def values(n=2):
    rng = np.random.default_rng(0)
    return [{"label": "star", "picture": rng.uniform(-1, 1, (8, 8, 3)).astype(np.float32)} for _ in range(n)]


def test_latents_lie_beside_and_the_empty_one_is_zero(ldm):
    cond, images = ldm.embed(ldm.params, values()), np.stack([value["picture"] for value in values()])
    np.testing.assert_allclose(cond["concat"], FACTOR * ldm.encode(ldm.params, images), atol=1e-5)
    assert not np.any(ldm.null(ldm.params, 2)["concat"])
    larger = ldm.null(ldm.params, 1, (16, 8))["concat"]
    assert not np.any(larger) and larger.shape[1:3] == (8, 4)


def test_arrays_are_looked_at_part_by_part(ldm):
    images = np.stack([value["picture"] for value in values()])
    given = {"label": np.full(2, 2), "picture": {"picture": images, "shown": np.ones(2, np.float32)}}
    found = ldm.embed(ldm.params, given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, ldm.embed(ldm.params, values()))
    for change, message in (
        ({"label": np.full(2, 4)}, "numbered 0 to 3"),
        ({"picture": {**given["picture"], "picture": np.uint8(100 * images + 100)}}, "these are uint8"),
        ({"picture": images}, "a dict of picture, shown"),
    ):
        with pytest.raises(ValueError, match=message):
            ldm.embed(ldm.params, given | change)
    with pytest.raises(ValueError, match="a dict of label, picture, as arrays; this is a dict of label"):
        ldm.embed(ldm.params, {"label": given["label"]})


def test_two_scales_are_the_paper_s_equation(ldm):
    """Brooks et al. 2023, equation 3: e(0, 0) + s_I (e(I, 0) - e(0, 0)) + s_T (e(I, T) - e(I, 0))."""
    p, cond = ldm.params, ldm.embed(ldm.params, values())
    nothing = ldm.null(p, 2)
    between = nothing | {"concat": cond["concat"]}
    x, level = ldm.noise(jax.random.key(1), 2), ldm.schedule(np.float32(0.6))
    one, two, three = (ldm.denoiser(p, c)(x, level) for c in (cond, between, nothing))
    guided = ldm.specification.denoiser(p, cond, 4.0, nothing, image_guidance_scale=1.7)(x, level)
    for full, picture, empty, found in zip(one, two, three, guided):
        expected = empty + 1.7 * (picture - empty) + 4.0 * (full - picture)
        np.testing.assert_allclose(found, expected, atol=2e-4 * float(jnp.abs(expected).max()))


def test_the_command_takes_the_picture_beside_the_prompt(ldm, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
    drawn = [
        sample.draw(ldm, {"num": 1, "steps": 2, "label": ["star"], "picture": str(path), "image_guidance_scale": scale}).images
        for scale in (None, 1.5, 3.0)
    ]
    assert drawn[0].shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(drawn[0], drawn[1])  # 1.5 is what such models are drawn with
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3
    with pytest.raises(ValueError, match="give --picture PHOTO.png"):
        sample.draw(ldm, {"num": 1, "steps": 2, "label": ["star"]})


def test_a_batch_of_a_training_is_what_a_user_gives(ldm):
    """The picture as it was is the data set's column "conditioning"."""
    assert "conditioning" in ldm.condition.columns
    told, label = values(), ldm.condition.parts["label"]
    numbers = label.parse(["star", "star"])
    batch = {"conditioning": np.stack([value["picture"] for value in told]), "label": numbers}
    found, wanted = ldm.condition.from_batch(batch), ldm.condition.parse(told)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_training_drops_the_label_the_picture_and_both(ldm):
    """Brooks et al. 2023, section 3.2.1: of as many examples each; whatever is not dropped stays the example's own."""
    seen = {}

    class Spy:
        def apply(self, variables, x, t, cond, **_):
            seen["cond"] = cond
            return x

    def objective(problem, x0, key, rows, batch_size):
        problem.network(problem.params, x0, jnp.zeros(len(x0)), None)
        seen["dropped"] = problem.dropped
        return jnp.zeros(()), {}

    count, share = 3000, 0.2
    told = {"label": jnp.full(count, ldm.condition.parts["label"].parse(["star"])[0]),
            "picture": {"picture": jnp.ones((count, 2, 2, 4)), "shown": jnp.ones(count)}}  # fmt: skip
    params = ldm.params | {"latents": {"scale": 1.0, "shift": 0.0}, "network": {}}
    batch = {"latents": jnp.ones((count, 2, 2, 4)), "inputs": told}
    condition = build.make_condition(ldm.config, tiny.CLASSES)
    condition.encoded = lambda inputs, encode: inputs
    small = {"picture": np.zeros((1, 2, 2, 4), np.float32), "shown": np.zeros(1, np.float32)}
    condition.null = {"label": condition.parts["label"].null, "picture": small}
    step = Step(jnp.zeros((), jnp.int32), {}, jnp.arange(count), count)
    make_loss(Spy(), FirstStage(), condition, objective, null_probability=share)(params, batch, jax.random.key(0), step)
    picture = np.asarray(seen["cond"]["concat"]).reshape(count, -1).any(1)
    context = np.asarray(seen["cond"]["context"])
    one = condition.apply(params["conditioner"], jax.tree.map(lambda x: x[:1], told))["context"]
    label = np.isclose(context, one).all((1, 2))
    for lost, expected in ((~label & picture, share), (~label & ~picture, share), (label & ~picture, share)):
        assert abs(lost.mean() - expected) < 4 * np.sqrt(share * (1 - share) / count)
    np.testing.assert_array_equal(seen["dropped"], ~(label & picture))


def test_what_it_cannot(ldm):
    ldm.condition.check()
    often = ldm.config | {"conditioner": ldm.config["conditioner"] | {"null_probability": 0.4}}
    with pytest.raises(ValueError, match="null_probability=0.4: .* set it to a third or less, 0.05 as published"):
        build.make_condition(often, tiny.CLASSES).check()
    alone = config_of()
    alone["conditioner"] = {"kind": "instruct"}
    with pytest.raises(ValueError, match="'instruct' stands beside another condition"):
        check(alone)
    words = {"kind": "combined", "parts": {"prompt": {"kind": "clip_text"}, "picture": {"kind": "instruct", "factor": FACTOR}}}
    told = {"latents": {"scale": 0.25}, "conditioner": words}
    with pytest.raises(ValueError, match="unscaled, this model learnt them times 0.5: .* at 4"):
        pipelines._instructed(told)
    plain = tiny.model("class")
    cond = plain.embed(plain.params, ["star"])
    with pytest.raises(ValueError, match="one scale, guidance_scale"):
        plain.sample(plain.params, jax.random.key(0), cond, image_guidance_scale=1.5)
