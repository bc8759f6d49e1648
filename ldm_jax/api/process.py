"""The parts that every mode of `LatentDiffusion` joins into one compiled program.

    Plan    what is compiled in: shape, names, numbers of steps, windows
    Told    what the network is told, traced: the condition to follow, the one to leave, the guidance scale

`prepare` makes both from what a user gave, and refuses what can't work; `process` turns them into a denoiser, a sampler and a
grid. Windows make canvases larger than a network can see or memory holds: denoised by `diffusion.editing.tiled`, encoded and
decoded by `primitives.windows`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldm_jax import build, diffusion
from ldm_jax.diffusion import editing
from ldm_jax.primitives import windows

PyTree = Any
DECODED = 64  # latent pixels: the least side of the tiles that a first stage gets at once, where there are windows


class Windows(NamedTuple):
    """In latent pixels. `wrap`: the canvas is closed horizontally."""

    side: int
    stride: int
    wrap: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """`shape` of the latents [B, h, w, C]; of `steps` only the `last` are run; names that are None are the config's."""

    shape: tuple[int, int, int, int]
    sampler: str | None
    steps: int
    last: int
    grid: str | None
    windows: Windows | None


class Told(NamedTuple):
    """`negative` and `scale` are None where there is no guidance."""

    cond: PyTree
    negative: PyTree = None
    scale: jax.Array | None = None


def program(function: Callable) -> Callable:
    """`function(ldm, plan, ...)` compiled once for a model, a plan and shapes."""
    return jax.jit(function, static_argnums=(0, 1))


def check_told(ldm: Any, cond: PyTree) -> None:
    """ValueError if the model takes a condition and there is none."""
    if cond is None and ldm.conditioning.kind != "none":
        raise ValueError(f"this model takes {ldm.conditioning.takes}; give cond=ldm.embed(params, [...])")


def prepare(
    ldm: Any,
    params: PyTree,
    cond: PyTree,
    num: int,
    size: tuple[int, int],
    *,
    strength: float = 1.0,
    sampler: str | None = None,
    steps: int | None = None,
    grid: str | None = None,
    guidance_scale: float | jax.Array | None = None,
    negative: PyTree = None,
    tile: int | None = None,
    overlap: int | None = None,
    wrap: bool = False,
) -> tuple[Plan, Told]:
    """For `num` pictures of `size` pixels; the options are those of `LatentDiffusion.sample`."""
    defaults = ldm.config["sampling"]
    steps = defaults["steps"] if steps is None else steps
    guidance_scale = defaults["guidance_scale"] if guidance_scale is None else guidance_scale
    check_told(ldm, cond)
    h, w, channels = ldm.first_stage.latent_shape(*size)
    if cond is not None and "concat" in cond and cond["concat"].shape[1:3] != (h, w):
        there = " x ".join(map(str, cond["concat"].shape[1:3]))
        raise ValueError(f"the condition lies on {there} latent pixels, the picture on {h} x {w}: give both the same size")
    off = cond is None or (isinstance(guidance_scale, (int, float)) and guidance_scale == 1)
    if off and negative is not None:
        raise ValueError(f"guidance_scale={guidance_scale} leaves the negative condition without effect; give one above 1")
    if not off and negative is None:
        negative = ldm.null(params, num, size)
        if ldm.conditioning.kind == "retrieval":  # no neighbour, as often as there are any: attention doesn't count equal ones
            negative = {"context": jnp.broadcast_to(negative["context"][:, :1], (num, *cond["context"].shape[1:]))}
    plan = Plan(
        shape=(num, h, w, channels),
        sampler=sampler,
        steps=steps,
        last=editing.last_steps(strength, steps),
        grid=grid,
        windows=_windows(ldm.first_stage.factor, tile, overlap, wrap),
    )
    return plan, Told(cond) if off else Told(cond, negative, jnp.asarray(guidance_scale, jnp.float32))


def _windows(factor: int, tile: int | None, overlap: int | None, wrap: bool) -> Windows | None:
    if tile is None:
        if overlap is not None or wrap:
            raise ValueError(f"overlap={overlap}, wrap={wrap}: these are of windows; give their side, tile=...")
        return None
    overlap = tile // factor // 2 * factor if overlap is None else overlap
    if tile < factor or tile % factor or overlap % factor or not 0 <= overlap < tile:
        raise ValueError(f"tile={tile}, overlap={overlap}: multiples of {factor} pixels, the overlap less than the tile")
    return Windows(tile // factor, (tile - overlap) // factor, wrap)


def process(ldm: Any, plan: Plan, params: PyTree, told: Told) -> tuple[diffusion.Denoiser, diffusion.Sampler, diffusion.Level]:
    """Denoiser, sampler and grid, inside the trace."""
    recipe = build.make_recipe(ldm.config, plan.sampler, plan.grid)

    def network(x, t, cond):
        return ldm.apply(params, x, t, cond)

    def denoise(x, level, cond=told.cond, negative=told.negative):
        if told.scale is None:
            return diffusion.make_denoiser(lambda x, t: network(x, t, cond), recipe.prediction, recipe.input_scale)(x, level)
        predictions = diffusion.together(network, recipe.prediction, [cond, negative], recipe.input_scale)
        return diffusion.classifier_free(predictions, told.scale)(x, level)

    if plan.windows is not None:
        side, stride, wrap = plan.windows
        window = tuple(min(side, full) for full in plan.shape[1:3])
        conds = (told.cond, told.negative)
        along = [None if cond is None else cond.get("concat") for cond in conds]

        def denoise_window(x, level, pieces):
            cut = (cond if piece is None else cond | {"concat": piece} for cond, piece in zip(conds, pieces))
            return denoise(x, level, *cut)

        whole = editing.tiled(denoise_window, window, tuple(min(stride, s) for s in window), -1 if wrap else None, along)
    else:
        whole = denoise
    levels = recipe.grid(plan.steps)
    if plan.last < plan.steps:
        levels = levels[len(levels) - 1 - plan.last :]
    return recipe.wrap(whole), recipe.sampler(plan.steps), levels


def start_scale(ldm: Any, plan: Plan) -> Callable[[diffusion.Level], Any]:
    """What unit noise is multiplied by at the grid's first level."""
    return build.make_recipe(ldm.config, plan.sampler, plan.grid).start_scale


def keys_of(key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """One key a picture for its start noise, one for its steps: picture i depends on (key, i), not on its neighbours."""
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(jnp.arange(num))
    return keys[:, 0], keys[:, 1]


def encode(ldm: Any, plan: Plan, params: PyTree, images: jax.Array) -> jax.Array:
    """Scaled latents of images, tile by tile where there are windows."""
    if plan.windows is None:
        return ldm.encode(params, images)
    tile = max(DECODED, plan.windows.side)
    return windows.encode_tiled(lambda x: ldm.encode(params, x), images, factor=ldm.first_stage.factor, tile=tile)


def decode(ldm: Any, plan: Plan, params: PyTree, z: jax.Array) -> jax.Array:
    """Images in [-1, 1]; a canvas that is closed horizontally is decoded with its ends seeing each other."""
    if plan.windows is None:
        return jnp.clip(ldm.decode(params, z), -1.0, 1.0)
    tile, factor = max(DECODED, plan.windows.side), ldm.first_stage.factor
    wrap = -1 if plan.windows.wrap else None
    images = windows.decode_tiled(lambda z: ldm.decode(params, z), z, factor=factor, tile=tile, wrap=wrap)
    return jnp.clip(images, -1.0, 1.0)
