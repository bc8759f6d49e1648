"""The one driver: `sample` is one `lax.scan` over a grid, for every sampler, denoiser and process.

It works under jit, vmap and grad, and on batches sharded over devices: nothing in it looks across the batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.denoiser import check_denoiser
from ldm_jax.diffusion.grids import check_grid
from ldm_jax.diffusion.level import Denoiser, Level, namespace
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.diffusion.samplers.protocol import Sampler, State, gaussian, split


def sample(
    denoise: Denoiser,
    sampler: str | Sampler,
    x: jax.Array,
    grid: Level,
    key: jax.Array | None = None,
    *,
    record: Callable[[State], Any] | None = None,
    callback: Callable[[Any, Any], None] | None = None,
    remat: bool = False,
) -> Any:
    """Runs `sampler` (one of `SAMPLERS`, or its name) from x [B, ...] at grid[0] down to grid[-1].

    Start: `start(key, shape, grid)`. `key`: a typed key; one per sample [B], which makes a sample independent of
    its batch neighbours; or the noise of all steps [steps, B, ...]; None for deterministic samplers.
    `record(state)`: what to keep of every step, stacked along a new first axis and returned second: `trajectory`, `previews`,
    or any function of the state. `callback(step, x0)` is called on the host after every step (progress from inside jit).
    `remat` recomputes each step in the backward pass, so a gradient through the sampler stores one x per step.

    Returns x at the last level, float32 or wider; with `record`, (x, records). Raises ValueError before the scan is traced.
    """
    sampler = make_sampler(sampler)
    check_grid(grid)
    steps = len(grid) - 1
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    check_denoiser(denoise, x, grid[0])

    def body(state: State, step: Any) -> tuple[State, Any]:
        index, level, to, key = step
        state = sampler.step(state, denoise, level, to, key)
        if callback is not None:
            jax.debug.callback(callback, index, state.x0)
        return state, None if record is None else record(state)

    state = sampler.init(x, grid)
    levels = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), grid)
    xs = (jnp.arange(steps), levels[:-1], levels[1:], step_keys(key, steps))
    state, records = jax.lax.scan(jax.checkpoint(body) if remat else body, state, xs)
    return state.x if record is None else (state.x, records)


def unit_variance_scale(level: Level) -> Any:
    """sqrt(alpha^2 + sigma^2): the standard deviation that data of unit variance have once noised to this level. 1 for every
    variance-preserving process, whose reference samplers start from unit noise."""
    return namespace(level.alpha, level.sigma).sqrt(level.alpha**2 + level.sigma**2)


def start(
    key: jax.Array, shape: tuple[int, ...], grid: Level, scale: Callable[[Level], Any] = unit_variance_scale
) -> jax.Array:
    """Where a trajectory starts: unit noise of `shape` [B, ..., C] times `scale(grid[0])`, float32. `key`: as for `sample`, one
    key or one per sample, or the unit noise itself. `scale`: a recipe's `start_scale`."""
    return jnp.float32(scale(grid[0])) * gaussian(key, jnp.zeros(shape, jnp.float32))


def trajectory(state: State) -> jax.Array:
    """For `record`: x after every step."""
    return state.x


def previews(decode: Callable[[jax.Array], jax.Array] = lambda x0: x0) -> Callable[[State], jax.Array]:
    """For `record`: the predicted clean latents of every step, decoded."""
    return lambda state: decode(state.x0)


def step_keys(key: jax.Array | None, steps: int) -> jax.Array | None:
    """One key per step [steps] or [steps, B]; noise given as an array stays as it is."""
    if key is None:
        return None
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape[:1] != (steps,):
            raise ValueError(f"key holds noise of shape {key.shape} for {steps} steps. (A raw uint32 key? Use jax.random.key.)")
        return key
    return split(key, steps)
