"""Samplers by name: of a model that came with a scheduler of diffusers, and of our own."""

import numpy as np
import pytest

from ldm_jax import build
from ldm_jax.weights import scheduler_names
from tests import tiny

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000}
EDM = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}


def same(a, b):
    return all(np.allclose(getattr(a, name), getattr(b, name)) for name in ("t", "alpha", "sigma"))


def test_our_own_models_keep_their_grid_by_a_sampler_s_name():
    recipe = build.make_recipe(tiny.CONFIG, "deis")
    assert same(recipe.grid(5), build.make_recipe(tiny.CONFIG).grid(5)) and recipe.prediction == "v"


def test_a_name_that_only_a_scheduler_has_brings_its_grid_along():
    recipe = build.make_recipe(tiny.CONFIG, "dpmpp_2m_karras")
    steps = np.diff(recipe.grid(10).noise_ratio[:-1] ** (1 / 7))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert recipe.prediction == "v"
    assert build.make_recipe(tiny.CONFIG, "UniPCMultistepScheduler").grid(5).t[0] == 999


def test_models_of_other_processes_get_the_same_method_for_theirs():
    flow = build.make_recipe({"scheduler": FLOW}, "dpmpp_2m")
    assert flow.prediction == "flow" and flow.schedule.shift == 3.0
    assert same(build.make_recipe({"scheduler": FLOW}, "euler").grid(4), build.make_recipe({"scheduler": FLOW}).grid(4))
    own = build.make_recipe({"scheduler": FLOW})
    assert same(build.make_recipe({"scheduler": FLOW}, "lms").grid(4), own.grid(4))  # none for flows: the own grid
    edm = build.make_recipe({"scheduler": EDM}, "dpmpp_2m")
    assert same(edm.grid(4), build.make_recipe({"scheduler": EDM}).grid(4))


@pytest.mark.parametrize("name", ["ddim_karras", "euler_a", "DPMSolverSDEScheduler"])
def test_unknown_names_are_refused_with_what_is_near(name):
    with pytest.raises(ValueError, match="sampler"):
        build.make_recipe({"scheduler": FLOW}, name)


def test_a_scheduler_that_a_flow_lacks_is_refused():
    with pytest.raises(ValueError, match="diffusers has none of this name"):
        build.make_recipe({"scheduler": FLOW}, "lcm")


def test_every_name_makes_a_recipe_of_version_1():
    of = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
          "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}  # fmt: skip
    for name in scheduler_names.NAMES:
        recipe = build.make_recipe({"scheduler": of}, name)
        assert len(recipe.grid(6)) >= 6 and recipe.sampler(6) is not None, name
