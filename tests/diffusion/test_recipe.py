"""Every sampler x schedule x prediction x grid, by name, on data whose denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import (
    GRIDS,
    PREDICTIONS,
    REFUSED,
    SAMPLERS,
    SCHEDULES,
    Level,
    Prediction,
    Sampler,
    Schedule,
    make_grid,
    make_objective,
    make_recipe,
    make_sampler,
    make_schedule,
    sample,
    schedules,
    start,
    target,
)
from ldm_jax.diffusion.driver import step_keys
from tests.diffusion.oracles import gaussian

KEY = jax.random.key(3)
STEPS, COUNT = 250, 400
MEAN, STD = 0.4, 0.6
# x0 is noised anew at every step, so a posterior mean instead of a draw loses variance each time: their mean alone is known.
LOSES_VARIANCE = {"consistency", "tcd"}
# Their variance is off where steps are long at the end: equidistant times of "sqrt" go from noise_ratio 0.25 to 0.1 in one.
UNEVEN = {"ddpm", "dpmpp_3m_sde", "euler_ancestral"}


def oracle(recipe):
    """The network of Gaussian data: knows the level by its time input alone, undoes the input scale, answers with a target."""
    schedule = recipe.schedule

    def level_of(t):
        if isinstance(schedule, schedules.Discrete):
            return schedule(t)
        if isinstance(schedule, schedules.VarianceExploding):
            return schedule.from_log_snr(-8 * t)
        if isinstance(schedule, schedules.RectifiedFlow):
            return Level(t, 1 - t / 1000, t / 1000)
        return schedule(t / 1000)

    def network(x, t):
        level = level_of(t)
        scale = 1.0 if recipe.input_scale is None else recipe.input_scale(level)[:, None]
        return target(recipe.prediction, gaussian(MEAN, STD)(x / scale, level), level)

    return network


def refused(names):
    """The recipe, or the reason why there is none."""
    try:
        return make_recipe(*names), None
    except ValueError as error:
        return None, str(error)


def resolves(levels):
    """Whether steps are short where the data's structure emerges, at noise_ratio 0.1 to 3."""
    ratio = levels.noise_ratio[:-1]
    inside = (ratio[1:] < 3) & (ratio[:-1] > 0.1)
    return np.all(ratio[:-1][inside] / ratio[1:][inside] < 1.5)


def run(denoise, sampler, schedule):
    """`sample`, with the grid an argument, so that all grids share one compiled scan."""

    @jax.jit
    def scan(state, levels, keys):
        def body(state, step):
            level, to, key = step
            return sampler.step(state, denoise, level, to, key), None

        return jax.lax.scan(body, state, (levels[:-1], levels[1:], keys))[0].x

    def go(x, levels, keys):
        return scan(sampler.init(x, levels), jax.tree.map(jnp.float32, levels), keys)

    return go


def combinations():
    """Of every sampler and schedule; a sampler with one of two common schedules in turn, the others being slow."""
    # flow_map draws with networks of two times: tests/diffusion/test_few_steps.py
    for i, sampler in enumerate(name for name in SAMPLERS if name != "flow_map"):
        for schedule in SCHEDULES:
            quick = schedule == ("scaled_linear", "flow")[i % 2]
            yield pytest.param(sampler, schedule, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("sampler", "schedule"), combinations())
def test_every_combination_of_names_draws_from_the_data_or_is_refused(sampler, schedule):
    """One trajectory for all predictions, a part of the batch each: their answers agree, and their moments are the data's."""
    programs = {}
    for grid in GRIDS:
        found = {prediction: refused((schedule, prediction, sampler, grid)) for prediction in PREDICTIONS}
        recipes = {prediction: recipe for prediction, (recipe, _) in found.items() if recipe}
        for _, why in found.values():
            assert why is None or any(why.endswith(reason) for _, reason in REFUSED), why
        if not recipes:
            continue
        recipe, count, names = next(iter(recipes.values())), len(recipes), tuple(recipes)
        if names not in programs:
            denoisers = [recipe.denoiser(oracle(recipe)) for recipe in recipes.values()]

            def denoise(x, level, denoisers=tuple(denoisers)):
                parts = [one(part, level) for one, part in zip(denoisers, jnp.split(x, len(denoisers)))]
                return Prediction(*map(jnp.concatenate, zip(*parts)))

            programs[names] = run(denoise, recipe.sampler(STEPS), schedule)
        levels = recipe.grid(STEPS)
        keys = jnp.tile(jax.random.split(KEY, COUNT), count)
        x = start(keys, (len(keys), 1), levels, recipe.start_scale)
        x = np.asarray(programs[names](x, levels, step_keys(keys, STEPS))).reshape(count, COUNT)
        name = f"{sampler}, {schedule}, {grid}, {names}"
        steepest = levels.noise_ratio[levels.alpha > 0][0]  # which float32's rounding of eps is multiplied by
        np.testing.assert_allclose(x, np.broadcast_to(x[0], x.shape), atol=max(0.05, 1e-4 * steepest), err_msg=name)
        if grid == "beta" and not resolves(levels):
            continue  # equidistant in noise_ratio, up to 1808 for schedules of pure noise
        assert np.abs(x.mean(1) - MEAN).max() < 0.08, (name, x.mean(1))
        if sampler not in LOSES_VARIANCE:
            limit = 0.4 if sampler in UNEVEN and not resolves(levels) else 0.15
            assert np.abs(x.std(1) / STD - 1).max() < limit, (name, x.std(1))


def test_names_and_objects_are_taken_alike():
    """A Schedule, a Sampler and a grid of one's own wherever their names are, and names wherever they are."""
    schedule, sampler = make_schedule("cosine"), make_sampler("ddim")
    levels = make_grid("trailing", "cosine", 4)
    named = make_recipe("cosine", "v", "ddim", "trailing")
    made = make_recipe(schedule, "v", sampler, levels)
    noise = jax.random.normal(jax.random.key(0), (2, 3))

    def drawn(recipe, sampler):
        denoise = recipe.denoiser(lambda x, t: 0.5 * x)
        return sample(denoise, sampler, noise, recipe.grid(4))

    for other in (made, named.with_grid(levels), named.with_grid(lambda steps: make_grid("trailing", schedule, steps))):
        for one in ("ddim", sampler, other.sampler(4)):
            np.testing.assert_array_equal(drawn(named, "ddim"), drawn(other, one))
    assert make_schedule(schedule) is schedule and make_sampler(sampler) is sampler
    for wrong, said in (
        (lambda: make_grid(levels, schedule, 5), "a Level of 6 levels for 5 steps"),
        (lambda: make_grid(lambda steps: 3, schedule, 5), "a Level of 6 levels"),
        (lambda: make_schedule(schedule, size=3), "a Schedule, which has its own"),
        (lambda: make_schedule(3), "schedule=3: give a name"),
        (lambda: make_sampler(sampler, eta=1.0), "a Sampler, which has its own"),
        (lambda: make_sampler(3), "sampler=3: give a name"),
        (lambda: sample(named.denoiser(lambda x, t: x), "dimm", noise, levels), "Did you mean 'ddim'"),
        (lambda: sample(named.denoiser(lambda x, t: x), "pndm", noise, levels), "needs the schedule"),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()
    make_objective("cosine", "v")
    for described in (Schedule, Sampler):
        assert "of your own" in described.__doc__
