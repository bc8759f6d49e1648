"""Models of few steps through the interface: what they say they are, how they draw, what other programs are spared."""

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import LatentDiffusion, models
from ldm_jax.api import Specification
from tests import tiny

FIELDS = {"objective": "mean_flow", "options": {"guidance_scale": 3.0, "share": 0.25}}


@pytest.fixture(scope="module")
def ldm():
    """The tiny model without a condition, told how far it steps."""
    plain = tiny.model("none")
    config = dict(plain.config) | {"diffusion": plain.config["diffusion"] | FIELDS}
    config["network"] = plain.config["network"] | {"second_time": True}
    config["sampling"] = config["sampling"] | {"sampler": "flow_map", "guidance_scale": 1.0}
    spec = Specification(config, plain.condition, 0.5, 0.25)
    shapes = models.shapes(spec.network, *(jax.ShapeDtypeStruct(s, np.float32) for s in ((1, 4, 4, 4), (1,))))
    rng = np.random.default_rng(1)
    new = {name: part for name, part in shapes.items() if name in models.STEP_EMBEDDINGS}
    new = jax.tree.map(lambda x: np.float32(0.3) * rng.standard_normal(x.shape, np.float32), new)
    return LatentDiffusion(spec, plain.params | {"network": plain.params["network"] | new})


def test_a_model_says_what_it_was_trained_for(ldm):
    said = ldm.describe().splitlines()
    assert said[1] == (
        "trained for 1 to 4 steps of flow_map by mean_flow: it predicts average velocities, led by guidance scale 3 inside: "
        "draw with 1"
    )
    assert "trained for" not in tiny.model("none").describe()


def test_the_sampler_tells_the_network_how_far_it_steps(ldm):
    """Two steps are x - (tau - tau') u twice, u asked for with s = t - t', decoded."""
    key = jax.random.key(0)
    images = ldm.sample(ldm.params, key, num=2, steps=2)
    x, clock = ldm.noise(key, 2), ldm_jax.diffusion.Clock(ldm.schedule)
    grid = ldm.specification.recipe().grid(2)
    apply = jax.jit(ldm.apply)
    for level, to in ((grid[0], grid[1]), (grid[1], grid[2])):
        t, s = (np.full(2, value, np.float32) for value in (level.t, level.t - to.t))
        x = x - (clock.of(level) - clock.of(to)) * apply(ldm.params, x, t, None, s)
    wanted = np.clip(jax.jit(ldm.decode)(ldm.params, x), -1, 1)
    np.testing.assert_allclose(images, wanted, atol=2e-3)
    assert np.abs(images - ldm.sample(ldm.params, key, num=2, steps=2, sampler="ddim")).max() > 1e-3


def test_other_programs_are_not_handed_one(ldm, tmp_path):
    with pytest.raises(ValueError, match="keep its working directory"):
        ldm_jax.save(ldm, tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_an_ordinary_model_is_not_told(ldm):
    plain = tiny.model("none")
    with pytest.raises(ValueError, match="takes no step's length"):
        plain.sample(plain.params, jax.random.key(0), num=1, sampler="flow_map")


@pytest.fixture(scope="module")
def told():
    """The tiny model of prompts, told the guidance scale."""
    plain = tiny.model("text")
    config = dict(plain.config) | {"diffusion": plain.config["diffusion"] | {"objective": "latent_consistency"}}
    config["network"] = plain.config["network"] | {"guidance_dim": 8}
    config["sampling"] = config["sampling"] | {"sampler": "consistency"}
    layer = {"kernel": np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32)}
    network = plain.params["network"] | {"time_embed_cond_proj": layer}
    return LatentDiffusion(Specification(config, plain.condition, 0.5, 0.25), plain.params | {"network": network})


def test_a_guidance_scale_that_is_an_input_takes_one_evaluation(told):
    """x0 of the network alone, told the scale less 1, within the boundary condition; no negative condition."""
    cond, key = told.embed(told.params, ["a red circle", "a blue star"]), jax.random.key(0)
    images = told.sample(told.params, key, cond, steps=1, guidance_scale=4.0)
    x, level = told.noise(key, 2), told.specification.recipe().grid(1)[0]
    t = np.full(2, level.t, np.float32)
    v = jax.jit(told.apply)(told.params, x, t, cond | {"guidance": np.full(2, 3.0, np.float32)})
    s = 10 * level.t
    x0 = 0.25 / (s**2 + 0.25) * x + s / np.sqrt(s**2 + 0.25) * (level.alpha * x - level.sigma * v)
    np.testing.assert_allclose(images, np.clip(jax.jit(told.decode)(told.params, x0), -1, 1), atol=2e-3)
    assert np.abs(images - told.sample(told.params, key, cond, steps=1, guidance_scale=9.0)).max() > 1e-3
    with pytest.raises(ValueError, match="told the guidance scale"):
        told.sample(told.params, key, cond, steps=1, negative=cond)
