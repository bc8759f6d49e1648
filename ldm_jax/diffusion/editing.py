"""Editing: what to do with images that exist. Parts of grids, denoisers that know a region, samplers that re-impose one,
ways back to the noise.

    img2img      noise x0 to a level of the grid and sample the rest               partial, diffuse
    inpainting   the known region, in predictions or in x                          known_region, imposed
    inversion    noise from which the sampler returns to x0                        invert, invert_stochastic
    variations   points between two noises                                         slerp, lerp
    panoramas    one denoiser on overlapping windows of a larger canvas            tiled, outpainting_canvas
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.denoiser import from_x0
from ldm_jax.diffusion.driver import step_keys
from ldm_jax.diffusion.level import Denoiser, Level, Prediction, diffuse, expand
from ldm_jax.diffusion.samplers.first_order import posterior_variance
from ldm_jax.diffusion.samplers.protocol import Sampler, State, gaussian, noise_to, split, without_memory


def partial(grid: Level, strength: float) -> Level:
    """SDEdit (Meng et al. 2022): the last round(strength * steps) steps of the grid, at least one. Noise x0 to its first level:
    `sample(denoise, sampler, diffuse(x0, eps, part[0]), part)`."""
    steps = len(grid) - 1
    return grid[steps - last_steps(strength, steps) :]


def last_steps(strength: float, steps: int) -> int:
    """How many steps this strength means."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength is the part of the steps to run, in (0, 1]; got {strength}.")
    return max(1, round(strength * steps))


def known_region(denoise: Denoiser, known: jax.Array, mask: jax.Array) -> Denoiser:
    """A denoiser that is certain of x0 = known where mask is 1 ([B, H, W, 1] or x's shape, soft values blend)."""

    def denoise_known(x: jax.Array, level: Level) -> Prediction:
        x0 = denoise(x, level).x0
        return from_x0(x, mask * known + (1 - mask) * x0, level)

    return denoise_known


def imposed(sampler: Sampler, known: jax.Array, mask: jax.Array, resample: int = 1) -> Sampler:
    """After each step x is the noised `known` where mask is 1 (as the reference samples with a mask). RePaint (Lugmayr et al.
    2022): a memoryless sampler takes each step `resample` times, noised back in between, at that multiple of its NFE."""

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        if key is None or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise ValueError("Imposing a known region draws noise several times a step: pass a key, or one per sample.")

        def once(state: State, key: jax.Array) -> tuple[State, None]:
            step_key, known_key, back_key = split(key, 3)
            again = sampler.step(state, denoise, level, to, step_key)
            x = mask * diffuse(known, gaussian(known_key, known), to) + (1 - mask) * again.x
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
    """Along the great circle from a to b, per sample: noise keeps its norm. slerp(noise, fresh, 0.1) is a variation."""
    axes = tuple(range(1, a.ndim))
    dot = jnp.sum(a * b, axes) / jnp.sqrt(jnp.sum(a * a, axes) * jnp.sum(b * b, axes))
    angle = jnp.arccos(jnp.clip(dot, -1, 1))
    near = jnp.sin(angle) < 1e-4
    safe = jnp.where(near, 1.0, jnp.sin(angle))
    left = jnp.where(near, 1 - weight, jnp.sin((1 - weight) * angle) / safe)
    right = jnp.where(near, weight, jnp.sin(weight * angle) / safe)
    return expand(left, a) * a + expand(right, a) * b


def outpainting_canvas(
    x0: jax.Array, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0
) -> tuple[jax.Array, jax.Array]:
    """(known, mask) for `known_region` or `imposed`: x0 [B, H, W, C] on a larger canvas, mask 1 where it lies."""
    around = ((0, 0), (top, bottom), (left, right), (0, 0))
    return jnp.pad(x0, around), jnp.pad(jnp.ones_like(x0[..., :1]), around)


def tiled(
    denoise: Callable[..., Prediction],
    window: tuple[int, int],
    stride: tuple[int, int],
    wrap: bool = False,
    along: Any = None,
) -> Denoiser:
    """MultiDiffusion (Bar-Tal et al. 2023): a canvas [B, H, W, C] is predicted on overlapping windows, one call each, and
    averaged where they overlap; with weights that fall off linearly towards a window's border, because networks know where
    their input ends, and equal weights, as in the paper, show it. `wrap` closes the canvas horizontally, for panoramas.
    `along`: arrays [B, H, W, ..] that lie on it, such as a condition; then it is `denoise(x, level, pieces)`, cut as x is."""
    if any(s < 1 or s > w for s, w in zip(stride, window)):
        raise ValueError(f"Windows must overlap or touch: stride {stride} within 1 .. window {window}.")

    def ramp(side: int, step: int) -> np.ndarray:
        return np.minimum((np.minimum(np.arange(side), np.arange(side)[::-1]) + 1) / (side - step + 1), 1.0)

    weights = (ramp(window[0], stride[0])[:, None] * ramp(window[1], stride[1]))[None, :, :, None]

    def denoise_tiles(x: jax.Array, level: Level) -> Prediction:
        height, width = x.shape[1:3]
        if height < window[0] or width < window[1]:
            raise ValueError(f"The canvas {height}x{width} is smaller than the window {window[0]}x{window[1]}.")
        tops = _starts(height, window[0], stride[0])
        lefts = np.arange(0, width, stride[1]) if wrap else _starts(width, window[1], stride[1])
        corners = jnp.asarray([(top, left) for top in tops for left in lefts])
        extra = window[1] if wrap else 0

        def tile(sums: Any, corner: jax.Array) -> tuple[Any, None]:
            at = (0, corner[0], corner[1], 0)

            def cut(a: jax.Array) -> jax.Array:
                around = jnp.concatenate([a, a[:, :, :extra]], 2) if wrap else a
                return jax.lax.dynamic_slice(around, at, (a.shape[0], *window, a.shape[3]))

            piece = cut(x)
            predicted = denoise(piece, level) if along is None else denoise(piece, level, jax.tree.map(cut, along))

            def add(total: jax.Array, part: jax.Array) -> jax.Array:
                present = jax.lax.dynamic_slice(total, at, part.shape)
                return jax.lax.dynamic_update_slice(total, present + part, at)

            weight = jnp.broadcast_to(jnp.asarray(weights, x.dtype), piece.shape)
            return jax.tree.map(add, sums, (jax.tree.map(lambda a: a * weight, predicted), weight)), None

        zeros = jnp.zeros((x.shape[0], height, width + extra, x.shape[3]), x.dtype)
        (predicted, count), _ = jax.lax.scan(tile, (Prediction(zeros, zeros), zeros), corners)
        fold = (lambda a: a[:, :, :width].at[:, :, :extra].add(a[:, :, width:])) if wrap else (lambda a: a)
        return jax.tree.map(lambda a: fold(a) / fold(count), predicted)

    return denoise_tiles


def _starts(size: int, window: int, stride: int) -> np.ndarray:
    """Offsets of windows that cover [0, size), the last flush with the end."""
    return np.append(np.arange(0, size - window, stride), size - window)
