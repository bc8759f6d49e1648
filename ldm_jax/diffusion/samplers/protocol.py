"""What a sampler is: two pure functions, and the moves all of them are made of.

    init(x, grid) -> State                                     the grid gives multistep solvers their coefficients at once
    step(state, denoise, level, next_level, key) -> State      x at `level` becomes x at `next_level`

The probability-flow ODE is a quadrature in every constant parameterization y = c x0 + d eps (d = 1: noise, c = 1: data):
with n = alpha d - sigma c, d(x/n) = y d(tau), where tau = sigma/alpha for eps, alpha/sigma for x0, sigma for flow. `move` is
its exact solution for constant y; the deterministic solvers differ only in the y they put in.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.level import PURE_NOISE, Level, expand
from ldm_jax.diffusion.parameterization import PredictionType, coefficients, determinant
from ldm_jax.primitives.arrays import threefry


class State(NamedTuple):
    """`x` at the current level; `x0`, the last predicted clean latent (a preview); `memory`, the sampler's own pytree."""

    x: jax.Array
    x0: jax.Array
    memory: Any = ()


class Sampler(NamedTuple):
    """What a sampler is: two pure functions. One of your own is such a pair, and is taken wherever a name in `SAMPLERS` is.

        init(x, grid) -> State(x, x0, memory)                          before the first step
        step(state, denoise, level, next_level, key) -> State          one step of the grid, from noisy to clean

    x [B, ...] is at grid[0]; denoise(x, level) -> Prediction(x0, eps) may be called as often as the solver needs. `key` is a
    typed key of this step, or None for deterministic sampling. DDIM, whole:

        def step(state, denoise, level, next_level, key):
            x0, eps = denoise(state.x, level)
            return State(next_level.alpha * x0 + next_level.sigma * eps, x0)

        ddim = Sampler(lambda x, grid: State(x, x), step)
    """

    init: Callable[[jax.Array, Level], State]
    step: Callable[..., State]


def memoryless(x: jax.Array, grid: Level) -> State:
    """`init` of samplers that need nothing but x."""
    return State(x, jnp.zeros_like(x))


def without_memory(sampler: Sampler, x: jax.Array, grid: Level, wrapper: str) -> State:
    """The initial state of a sampler that is about to be wrapped; ValueError if it remembers steps."""
    state = sampler.init(x, grid)
    if state.memory != ():
        raise ValueError(f"{wrapper} wraps samplers without memory (ddim, ddpm, heun, dpm2, dpmpp_2s, their ancestral forms).")
    return state


def solvable(prediction: PredictionType, grid: Level) -> None:
    """ValueError if `prediction` cannot be integrated from a level of this grid: eps from pure noise, x0 from clean."""
    if isinstance(grid.alpha, np.ndarray) and np.any(np.abs(determinant(prediction, grid[:-1])) < PURE_NOISE):
        raise ValueError(
            f"A solver in {prediction!r} cannot leave alpha = {grid.alpha[0]:.3g}, sigma = {grid.sigma[0]:.3g}. On pure noise "
            "use one that integrates x0 (dpmpp_2m, unipc, ddim) or flow (heun('flow')), or start the grid below it."
        )


def move(prediction: PredictionType, x: jax.Array, y: jax.Array, level: Level, to: Level) -> jax.Array:
    """Carries x from `level` to `to` along the probability-flow ODE with the target y of `prediction` held constant.

    For eps this is DDIM, for x0 DPM-Solver++ of order 1, for flow Euler: all the same step when y comes from one evaluation.
    """
    c, d = coefficients(prediction, level)
    det = level.alpha * d - level.sigma * c
    a = (to.alpha * d - to.sigma * c) / det
    b = (level.alpha * to.sigma - level.sigma * to.alpha) / det
    return expand(a, x) * x + expand(b, x) * y


def mean(weights: jax.Array, ys: Sequence[jax.Array]) -> jax.Array:
    """sum_j weights[j] ys[j], as one pass over the arrays."""
    return sum(weights[j] * y for j, y in enumerate(ys))


def gaussian(key: jax.Array | None, x: jax.Array) -> jax.Array:
    """Standard normal noise like x, from a typed key or one key per sample [B]. An array like x is the noise itself."""
    if key is None:
        raise ValueError("This sampler draws noise: pass a key (jax.random.key), one per sample, or the noise of all steps.")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if key.ndim:
        return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(threefry(key))
    return jax.random.normal(key, x.shape, x.dtype)


def split(key: jax.Array, count: int = 2) -> jax.Array:
    """`count` keys [count, ...] from a typed key or from one per sample."""
    if key.ndim == 0:
        return jax.random.split(key, count)
    return jax.vmap(lambda k: jax.random.split(k, count), out_axes=1)(threefry(key))


def noise_to(x: jax.Array, level: Level, to: Level, noise: jax.Array) -> jax.Array:
    """The forward process from `level` to the noisier `to`: x keeps its x0 content and gains fresh noise."""
    ratio = jnp.where(level.alpha == 0, 1.0, to.alpha / jnp.where(level.alpha == 0, 1.0, level.alpha))  # pure noise stays so
    spread = jnp.sqrt(jnp.maximum(to.sigma**2 - (ratio * level.sigma) ** 2, 0))
    return expand(ratio, x) * x + expand(spread, x) * noise
