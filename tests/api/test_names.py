"""Every sampler x schedule x prediction x grid by name, as a user gives them: in a config, or to `ldm.sample`.

The network is an oracle of data that are one point, and knows the level by its time input alone: if schedule, prediction, input
scale, grid and sampler fit one another, every solver draws that point, in however few steps. Runs are eager: a program for each
combination would take hours to compile.
"""

import itertools
import types

import jax
import numpy as np
import pytest

from ldm_jax import LatentDiffusion, build
from ldm_jax.api import Specification
from ldm_jax.diffusion import GRIDS, PREDICTIONS, REFUSED, SAMPLERS, SCHEDULES, Level, diffuse, schedules, target
from ldm_jax.diffusion.clock import Clock
from ldm_jax.diffusion.level import CLEAN
from ldm_jax.diffusion.parameterization import of_schedule
from tests.diffusion.oracles import point

POINT, STEPS = 0.3, 3
MORE = {"plms": 8, "pndm": 8}  # steps: the first ones are not of the kind of the others, and warm up for these
KEY = jax.random.key(0, impl="unsafe_rbg")  # quick where nothing is compiled


def level_of(schedule, t):
    """The level that a network is told as `t`, as the schedules document it."""
    if isinstance(schedule, schedules.Discrete):
        return schedule(t)
    if isinstance(schedule, schedules.VarianceExploding):
        return schedule.from_log_snr(-8 * t)
    if isinstance(schedule, schedules.RectifiedFlow):
        return Level(t, 1 - t / 1000, t / 1000)
    return schedule(t / 1000)


def model(schedule, prediction, sampler="ddim", grid="trailing"):
    """A model of these names on pictures of 2 x 2 pixels, without a first stage."""
    config = {
        "data": {"image_size": 2},
        "first_stage": {"kind": "none", "path": ""},
        "network": {},
        "conditioner": {"kind": "none"},
        "diffusion": {"schedule": schedule, "prediction": prediction},
        "sampling": {"sampler": sampler, "steps": MORE.get(sampler, STEPS), "grid": grid, "guidance_scale": 1.0},
    }
    made = build.make_schedule(config)

    def apply(variables, x, t, cond, s=None):
        t, s = (a if a is None or isinstance(a, jax.core.Tracer) else np.asarray(a, np.float64) for a in (t, s))
        level = level_of(made, t)
        scale = 1.0 if made.input_scale is None else made.input_scale(level)[:, None, None, None]
        known = point(POINT)(x / scale, level)
        if s is None:
            return target(of_schedule(prediction, made), known, level)
        clock, to = Clock(made), level_of(made, t - s) if np.any(t > s) else CLEAN  # the mean velocity on the way there
        return (x - diffuse(known.x0, known.eps, to)) / (clock.of(level) - clock.of(to))[:, None, None, None]

    spec = Specification(config, build.make_condition(config))
    spec.network = types.SimpleNamespace(apply=apply)
    return LatentDiffusion(spec, {"first_stage": {}, "network": {}})


def drawn(ldm, **options):
    """How far pictures are from the point, eagerly; or why there are none."""
    try:
        with jax.disable_jit():
            images = np.asarray(ldm.sample(ldm.params, KEY, num=2, **options))
    except ValueError as error:
        return None, str(error)
    assert images.shape == (2, 2, 2, 3)
    return np.abs(images - POINT).max(), None


def check(schedule, prediction, sampler, grid, by_options):
    """The combination draws the point, or is refused for a reason of REFUSED, by config and by options alike."""
    given = model(schedule, prediction, "ddim", "karras"), {"sampler": sampler, "grid": grid, "steps": MORE.get(sampler, STEPS)}
    ways = (model(schedule, prediction, sampler, grid), {}), given
    found, why = drawn(ways[by_options][0], **ways[by_options][1])
    name = f"{sampler}, {schedule}, {prediction}, {grid}: {why or found}"
    if why is None:
        levels = ways[0][0].specification.recipe().grid(MORE.get(sampler, STEPS))
        steepest = levels.noise_ratio[levels.alpha > 0][0]  # which float32's rounding of eps is multiplied by
        assert found < max(2e-3, 1e-4 * steepest), name
        return
    assert "\n" not in why, name
    if any(why.endswith(reason) for _, reason in REFUSED):
        assert f"sampler={sampler!r}, grid={grid!r}, prediction={prediction!r}" in why, name
    else:  # most of this table is as good as pure noise: where a grid of it starts decides
        assert (schedule, grid) == ("sqrt", "leading"), name
        assert "cannot leave alpha" in why or "is singular where alpha" in why, name
    assert drawn(ways[not by_options][0], **ways[not by_options][1]) == (None, why), name


NAMES = list(itertools.product(SCHEDULES, PREDICTIONS, SAMPLERS, GRIDS))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_combination_draws_the_point_or_is_refused_by_name(sampler):
    for i, names in enumerate(names for names in NAMES if names[2] == sampler):
        check(*names, by_options=i % 2)


def test_some_combinations_in_which_every_name_occurs():
    schedules_, others = itertools.cycle(SCHEDULES), itertools.cycle(itertools.product(GRIDS, PREDICTIONS))
    for i, sampler in enumerate(SAMPLERS):
        grid, prediction = next(others)
        check(next(schedules_), prediction, sampler, grid, by_options=i % 2)


@pytest.mark.parametrize("sampler", ["dpm2", "dpm2_ancestral", "edm", "heun", "plms", "pndm"])
def test_means_over_a_first_step_that_is_too_long_are_refused_for_the_cosine_schedule_alone(sampler):
    for schedule in ("cosine", "squared_cosine"):
        for grid in ("trailing", "linspace"):
            why = drawn(model(schedule, "v", "ddim", "karras"), sampler=sampler, grid=grid)[1]
            assert "use grid='karras' or 'log_snr', or a sampler that integrates x0 (dpmpp_2m, unipc, ddim)" in why
        assert drawn(model(schedule, "v", sampler, "karras"))[1] is None
    assert drawn(model("scaled_linear", "v", sampler, "trailing"))[1] is None


@pytest.mark.parametrize("names", [("edm", "edm", "dpmpp_2m", "karras"), ("flow", "flow", "ddim", "trailing")])
def test_the_compiled_program_draws_it_too(names):
    ldm = model(*names)
    assert np.abs(np.asarray(ldm.sample(ldm.params, KEY, num=2)) - POINT).max() < 2e-3


def test_names_that_are_none_say_what_is_near():
    ldm = model("cosine", "v")
    for options, said in (({"sampler": "dpmp_2m"}, "dpmpp_2m"), ({"grid": "karas"}, "karras")):
        with pytest.raises(ValueError, match=f"Did you mean '{said}'"):
            ldm.sample(ldm.params, KEY, num=1, **options)
    for section, name in (("diffusion", "schedule"), ("diffusion", "prediction")):
        wrong = {**ldm.config, section: {**ldm.config[section], name: "nonsense"}}
        with pytest.raises(ValueError, match="nonsense"):
            build.make_recipe(wrong)
