"""Editing: what to do with images that exist. Parts of grids, denoisers that know a region, samplers that re-impose one,
ways back to the noise.

    img2img      noise x0 to a level of the grid and sample the rest               partial, diffuse
    inpainting   the known region, in predictions or in x                          known_region, imposed
    inversion    noise from which the sampler returns to x0                        invert, invert_stochastic
    variations   points between two noises                                         slerp, lerp
    panoramas    one denoiser on overlapping windows of a larger canvas            tiled, outpainting_canvas
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.denoiser import from_x0
from ldm_jax.diffusion.driver import step_keys
from ldm_jax.diffusion.level import Denoiser, Level, Prediction, diffuse, expand
from ldm_jax.diffusion.samplers.first_order import posterior_variance
from ldm_jax.diffusion.samplers.protocol import Sampler, State, gaussian, noise_to, split, without_memory
from ldm_jax.primitives.windows import blended, check_windows


def partial(grid: Level, strength: float) -> Level:
    """SDEdit (Meng et al. 2022): the last steps of the grid, as many as `last_steps` says. Noise x0 to the first level:
    `sample(denoise, sampler, diffuse(x0, eps, part[0]), part)`."""
    steps = len(grid) - 1
    return grid[steps - last_steps(strength, steps) :]


def last_steps(strength: float, steps: int) -> int:
    """How many steps this strength means: the whole ones of strength * steps, at least one."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength is the part of the steps to run, in (0, 1]; got {strength}.")
    return max(1, int(strength * steps))


def known_region(denoise: Denoiser, known: jax.Array, mask: jax.Array) -> Denoiser:
    """A denoiser that is certain of x0 = known where mask is 1 ([B, *spatial, 1] or x's shape; soft values
    blend)."""

    def denoise_known(x: jax.Array, level: Level) -> Prediction:
        x0 = denoise(x, level).x0
        return from_x0(x, mask * known + (1 - mask) * x0, level)

    return denoise_known


def imposed(
    sampler: Sampler, known: jax.Array, mask: jax.Array, resample: int = 1, noise: jax.Array | None = None
) -> Sampler:
    """After each step x is the noised `known` where mask is 1 (as the reference samples with a mask), by fresh noise, or always
    by `noise` of known's shape. RePaint (Lugmayr et al. 2022): a memoryless sampler takes each step `resample` times, noised
    back in between, at that multiple of its NFE."""

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        if key is None or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise ValueError("Imposing a known region draws noise several times a step: pass a key, or one per sample.")

        def once(state: State, key: jax.Array) -> tuple[State, None]:
            step_key, known_key, back_key = split(key, 3)
            again = sampler.step(state, denoise, level, to, step_key)
            x = mask * diffuse(known, gaussian(known_key, known) if noise is None else noise, to) + (1 - mask) * again.x
            if resample == 1:
                return again._replace(x=x), None
            return again._replace(x=noise_to(x, to, level, gaussian(back_key, x))), x

        if resample == 1:
            return once(state, key)[0]
        state, xs = jax.lax.scan(once, state, split(key, resample))
        return state._replace(x=xs[-1])

    if resample < 1:
        raise ValueError(f"resample is how often each step is taken, at least 1; got {resample}.")
    if resample == 1:
        return Sampler(sampler.init, step)
    return Sampler(lambda x, grid: without_memory(sampler, x, grid, "resampling"), step)


def invert(denoise: Denoiser, x0: jax.Array, grid: Level, iterations: int = 1) -> jax.Array:
    """DDIM inversion: the noise at grid[0] from which ddim on the same grid comes back to x0.

    Undoing a step means solving x = move(x_to, eps(x, level)) for the noisier x. `iterations` fixed-point iterations do, from
    x = x_to: one is the usual inversion (Mokady et al. 2023), a few make it exact (Pan et al. 2023). As many NFE per step.
    """
    levels = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[::-1], x0.dtype), grid)

    def step(x: jax.Array, pair: tuple[Level, Level]) -> tuple[jax.Array, None]:
        here, above = pair
        first = denoise(x, Level(above.t, here.alpha, here.sigma))

        def again(_: int, guess: jax.Array) -> jax.Array:
            eps = denoise(guess, above).eps
            return diffuse((x - expand(here.sigma, x) * eps) / expand(here.alpha, x), eps, above)

        return jax.lax.fori_loop(1, iterations, again, diffuse(*first, above)), None

    return jax.lax.scan(step, x0, (levels[:-1], levels[1:]))[0]


def invert_stochastic(denoise: Denoiser, x0: jax.Array, grid: Level, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024): x at grid[0] and the noise of every step [steps, B, ...]
    with which `sample(denoise, ddpm(), x, grid, noise)` comes back to x0 exactly, and with another condition edits it.

    The x_t are noised independently of each other, which makes the noise carry the image. A step to exactly clean draws no
    noise; there the last prediction stands in for x0.
    """
    steps = len(grid) - 1
    levels = jax.tree.map(lambda a: jnp.asarray(a, x0.dtype), grid)
    draws = jax.vmap(lambda k: gaussian(k, x0))(step_keys(key, steps))
    xs = jax.vmap(lambda level, eps: diffuse(x0, eps, level))(levels[:-1], draws)
    after = jnp.concatenate([xs[1:], diffuse(x0, jnp.zeros_like(x0), levels[-1])[None]])

    def noise(x: jax.Array, x_to: jax.Array, level: Level, to: Level) -> jax.Array:
        predicted = denoise(x, level)
        var = posterior_variance(level, to)
        kept = jnp.sqrt(jnp.maximum(to.sigma**2 - var, 0))
        mean = diffuse(*predicted, Level(to.t, to.alpha, kept))
        return jnp.where(var > 0, (x_to - mean) / jnp.sqrt(jnp.where(var > 0, var, 1)), 0)

    def step(_: None, xs: Any) -> tuple[None, jax.Array]:
        return None, noise(*xs)

    return xs[0], jax.lax.scan(step, None, (xs, after, levels[:-1], levels[1:]))[1]


def lerp(a: jax.Array, b: jax.Array, weight: Any) -> jax.Array:
    """(1 - weight) a + weight b; weight a scalar or [B]."""
    w = expand(weight, a)
    return (1 - w) * a + w * b


def slerp(a: jax.Array, b: jax.Array, weight: Any) -> jax.Array:
    """Along the great circle from a to b, per sample: noise keeps its norm. slerp(noise, fresh, 0.1) is a variation. Float32 or
    wider, as sums of squares of a whole noise are beyond half precision."""
    a, b = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (a, b))
    axes = tuple(range(1, a.ndim))
    dot = jnp.sum(a * b, axes) / jnp.sqrt(jnp.sum(a * a, axes) * jnp.sum(b * b, axes))
    angle = jnp.arccos(jnp.clip(dot, -1, 1))
    near = jnp.sin(angle) < 1e-4
    safe = jnp.where(near, 1.0, jnp.sin(angle))
    left = jnp.where(near, 1 - weight, jnp.sin((1 - weight) * angle) / safe)
    right = jnp.where(near, weight, jnp.sin(weight * angle) / safe)
    return expand(left, a) * a + expand(right, a) * b


def outpainting_canvas(x0: jax.Array, around: Sequence[tuple[int, int]]) -> tuple[jax.Array, jax.Array]:
    """(known, mask) for `known_region` or `imposed`: x0 [B, *spatial, C] on a larger canvas, mask 1 where it lies. `around`:
    for each spatial axis how much is added before and after."""
    if len(around) != x0.ndim - 2 or min(min(pair) for pair in around) < 0:
        raise ValueError(f"around={around}: two numbers of at least 0 for each of the {x0.ndim - 2} spatial axes.")
    around = ((0, 0), *around, (0, 0))
    return jnp.pad(x0, around), jnp.pad(jnp.ones_like(x0[..., :1]), around)


def tiled(
    denoise: Callable[..., Prediction],
    window: Sequence[int],
    stride: Sequence[int],
    wrap: int | None = None,
    along: Any = None,
) -> Denoiser:
    """MultiDiffusion (Bar-Tal et al. 2023): a canvas [B, *spatial, C] is predicted on overlapping windows, one call each, and
    averaged where they overlap, as `primitives.windows.blended` does; equal weights, as in the paper, show the borders.
    `wrap`: the spatial axis that is closed, -1 for a panorama's width. `along`: arrays [B, *spatial, ..] that lie on the
    canvas, such as a condition; then it is `denoise(x, level, pieces)`, cut as x is."""
    check_windows(window, stride)

    def denoise_tiles(x: jax.Array, level: Level) -> Prediction:
        def denoise_window(pieces: tuple[jax.Array, Any]) -> Prediction:
            return denoise(pieces[0], level) if along is None else denoise(pieces[0], level, pieces[1])

        return blended(denoise_window, (x, along), window, stride, wrap=wrap)

    return denoise_tiles
