"""Guidance: closed forms at one point, identities at scale 1, costs, shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import (
    Level,
    Prediction,
    clip,
    dynamic_threshold,
    grids,
    guidance,
    make_denoiser,
    make_sampler,
    map_x0,
    sample,
    schedules,
    start,
)
from ldm_jax.diffusion.guidance import separately, together

TABLE = schedules.scaled_linear()
LEVEL = jax.tree.map(jnp.float32, TABLE(500.0))
X = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
COND, NULL = {"label": jnp.array([0.1, 0.2, 0.3])}, {"label": jnp.zeros(3)}
NEGATIVE = {"label": -jnp.ones(3)}


def network(x, t, cond):
    return jnp.tanh(x * (1 + cond["label"][:, None, None, None])) + 1e-4 * t[:, None, None, None]


def denoiser(cond):
    return make_denoiser(lambda x, t: network(x, t, cond), "eps")


PAIR = together(network, "eps", [COND, NULL])
GUIDED = {
    "classifier_free": guidance.classifier_free,
    "composed": lambda pair, scale: guidance.composed(pair, [scale]),
    "rescaled": guidance.rescaled,
    "cfg_plus_plus": guidance.cfg_plus_plus,
    "adaptive_projected": guidance.adaptive_projected,
    "cfg_zero_star": guidance.cfg_zero_star,
}


def close(a, b, atol=2e-5):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=atol), a, b)


@pytest.mark.parametrize("name", GUIDED)
def test_scale_1_is_the_conditional_denoiser(name):
    got = GUIDED[name](PAIR, 1.0)(X, LEVEL)
    wanted = denoiser(COND)(X, LEVEL)
    close(got.x0, wanted.x0)
    if name != "cfg_plus_plus":
        close(got.eps, wanted.eps)


@pytest.mark.parametrize("name", GUIDED)
def test_one_batched_call_is_two_calls_and_scales_may_vary_by_sample_and_level(name):
    two = separately(denoiser(COND), denoiser(NULL))
    rule = GUIDED[name]
    wanted = rule(two, 3.0)(X, LEVEL)
    close(rule(PAIR, 3.0)(X, LEVEL), wanted)
    close(rule(PAIR, jnp.full(3, 3.0))(X, LEVEL), wanted)
    close(rule(PAIR, lambda level: 3.0 * level.alpha / LEVEL.alpha)(X, LEVEL), wanted)
    mixed = rule(PAIR, jnp.array([1.0, 3.0, 7.0]))(X, LEVEL)
    close(mixed.x0[1], wanted.x0[1])
    traced = jax.jit(lambda s: rule(PAIR, s)(X, LEVEL))(jnp.array([1.0, 3.0, 7.0]))
    close(traced, mixed, 5e-5)
    with pytest.raises(ValueError, match=r"one entry per sample, \[3\]; got shape \(2,\)"):
        rule(PAIR, jnp.ones(2))(X, LEVEL)


def test_wrong_scale_fails_before_tracing_the_loop():
    grid = grids.leading(TABLE, 5)
    with pytest.raises(ValueError, match="one entry per sample"):
        sample(guidance.classifier_free(PAIR, jnp.ones(7)), make_sampler("ddim"), X, grid)


def test_batched_call_counts():
    calls = []

    def counted(x, t, cond):
        calls.append(x.shape[0])
        return network(x, t, cond)

    guidance.classifier_free(together(counted, "eps", [COND, NULL]), 2.0)(X, LEVEL)
    assert calls == [6]
    with pytest.raises(ValueError, match="same structure"):
        together(counted, "eps", [COND, None])


def test_classifier_free_formula_in_every_kind():
    c, u = denoiser(COND)(X, LEVEL), denoiser(NULL)(X, LEVEL)
    got = guidance.classifier_free(PAIR, 4.0)(X, LEVEL)
    close(got, Prediction(*(b + 4.0 * (a - b) for a, b in zip(c, u))), 1e-4)
    close(LEVEL.alpha * got.x0 + LEVEL.sigma * got.eps, X, 1e-4)  # still explains x


def test_composition_and_negative_conditions():
    three = together(network, "eps", [COND, NEGATIVE, NULL])
    c, n, u = (denoiser(cond)(X, LEVEL).eps for cond in (COND, NEGATIVE, NULL))
    close(guidance.composed(three, [2.0, -0.5])(X, LEVEL).eps, u + 2 * (c - u) - 0.5 * (n - u), 5e-5)
    with pytest.raises(ValueError, match="got 3 predictions"):
        guidance.composed(three, [1.0])(X, LEVEL)


def test_rescaled_restores_the_standard_deviation():
    got = guidance.rescaled(PAIR, 7.0, strength=1.0)(X, LEVEL)
    np.testing.assert_allclose(got.eps.std((1, 2, 3)), denoiser(COND)(X, LEVEL).eps.std((1, 2, 3)), rtol=1e-5)
    close(guidance.rescaled(PAIR, 7.0, strength=0.0)(X, LEVEL), guidance.classifier_free(PAIR, 7.0)(X, LEVEL), 1e-4)


def test_adaptive_projected_guidance():
    c, u = denoiser(COND)(X, LEVEL).x0, denoiser(NULL)(X, LEVEL).x0
    close(guidance.adaptive_projected(PAIR, 5.0, eta=1.0)(X, LEVEL).x0, u + 5 * (c - u), 2e-4)
    change = guidance.adaptive_projected(PAIR, 5.0)(X, LEVEL).x0 - c
    np.testing.assert_allclose(jnp.sum(change * c, (1, 2, 3)), 0, atol=1e-2 * float(jnp.abs(change).max() * jnp.abs(c).max()))
    short = guidance.adaptive_projected(PAIR, 5.0, eta=1.0, limit=0.01)(X, LEVEL).x0 - c
    np.testing.assert_allclose(jnp.sqrt(jnp.sum(short**2, (1, 2, 3))), 0.04, rtol=1e-2)


def test_cfg_zero_star():
    """The scaled unconditional target is the projection of the conditional one: c - s u is orthogonal to u."""
    c, u = (denoiser(cond)(X, LEVEL) for cond in (COND, NULL))
    c, u = c.eps - c.x0, u.eps - u.x0
    s = jnp.sum(c * u, (1, 2, 3), keepdims=True) / jnp.sum(u * u, (1, 2, 3), keepdims=True)
    got = guidance.cfg_zero_star(PAIR, 3.0)(X, LEVEL)
    close(got.eps - got.x0, s * u + 3 * (c - s * u), 2e-4)
    silent = guidance.cfg_zero_star(PAIR, 3.0, zero_above=0.1)(X, LEVEL)
    close(silent.eps - silent.x0, 0 * X, 1e-5)


def test_cfg_plus_plus_is_ddim_with_the_unconditional_noise():
    grid = grids.leading(TABLE, 5)
    x = start(jax.random.key(1), X.shape, grid)
    got = sample(guidance.cfg_plus_plus(PAIR, 0.6), make_sampler("ddim"), x, grid)
    for i in range(5):
        level = jax.tree.map(jnp.float32, grid[i])
        c, u = (denoiser(cond)(x, level) for cond in (COND, NULL))
        x = grid.alpha[i + 1] * (u.x0 + 0.6 * (c.x0 - u.x0)) + grid.sigma[i + 1] * u.eps
    close(got, x, 1e-3)


def test_interval_costs_one_call_outside():
    calls = []

    def counted(cond):
        def denoise(x, level):
            jax.debug.callback(lambda: calls.append(1))
            return denoiser(cond)(x, level)

        return denoise

    both = guidance.classifier_free(separately(counted(COND), counted(NULL)), 2.0)
    denoise = guidance.guidance_interval(0.5, 2.0, both, counted(COND))
    grid = grids.karras(TABLE, 10)
    jax.jit(lambda x: sample(denoise, make_sampler("ddim"), x, grid))(X)
    jax.effects_barrier()
    inside = np.sum((grid.noise_ratio[:-1] > 0.5) & (grid.noise_ratio[:-1] <= 2.0))
    assert 0 < inside < 10 and len(calls) == 10 + inside


def test_classifier_guidance_moves_gaussians_exactly():
    """Data N(0, 1), classifier log p = -(x - 2 alpha)^2 / 2: guided eps is the score of the product of both, by hand."""

    def denoise(x, level):
        return Prediction(level.alpha * x, level.sigma * x)

    guided = guidance.classifier(denoise, lambda x, t: -0.5 * jnp.sum((x - 2.0) ** 2, (1, 2, 3)), 1.5)
    got = guided(X, LEVEL)
    close(got.eps, LEVEL.sigma * X + 1.5 * LEVEL.sigma * (X - 2.0))
    close(LEVEL.alpha * got.x0 + LEVEL.sigma * got.eps, X)


def test_thresholds():
    big = 5 * X
    close(clip(1.0)(big), jnp.clip(big, -1, 1))
    s = np.maximum(np.quantile(np.abs(big).reshape(3, -1), 0.9, axis=1), 1)[:, None, None, None]
    close(dynamic_threshold(0.9)(big), np.clip(big, -s, s) / s)
    close(dynamic_threshold(0.9, limit=1.5)(big), np.clip(big, -1.5, 1.5) / 1.5)
    clipped = map_x0(denoiser(COND), clip(0.1))(X, LEVEL)
    assert jnp.abs(clipped.x0).max() <= 0.1
    close(LEVEL.alpha * clipped.x0 + LEVEL.sigma * clipped.eps, X)
    kept = map_x0(denoiser(COND), clip(0.1), keep_eps=True)(X, LEVEL)
    close(kept.eps, denoiser(COND)(X, LEVEL).eps)


def test_levels_may_differ_by_sample():
    levels = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), TABLE(np.array([10.0, 500.0, 900.0])))
    got = guidance.classifier_free(PAIR, 2.0)(X, levels)
    one = Level(*(a[1] for a in (levels.t, levels.alpha, levels.sigma)))
    close(got.x0[1], guidance.classifier_free(PAIR, 2.0)(X, one).x0[1])
