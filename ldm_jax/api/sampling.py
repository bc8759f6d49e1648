"""The parts that every way of making pictures joins into one compiled program.

    Plan       what is compiled in: shape, recipe, numbers of steps, windows
    Guidance   what is traced: the condition to follow, the one to leave, by how much

`prepare` makes both from what a user gave, and refuses what can't work; `denoiser` and `grid` turn them into what
`diffusion.sample` takes. Windows make canvases larger than a network can see or memory holds: denoised by
`diffusion.editing.tiled`, encoded and decoded tile by tile.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import diffusion
from ldm_jax.api.arguments import check_alike, check_arrays, check_cond, check_count, check_size, count, is_whole
from ldm_jax.api.specification import Specification
from ldm_jax.diffusion import editing
from ldm_jax.primitives.arrays import row_keys, threefry, typed_key
from ldm_jax.primitives.choices import did_you_mean
from ldm_jax.primitives.windows import decode_tiled, encode_tiled

PyTree = Any
DECODED = 64  # latent pixels: the least side of the tiles that a first stage gets at once, where there are windows


class Windows(NamedTuple):
    """In latent pixels, along every axis. `wrap`: the canvas is closed along its last one."""

    side: tuple[int, ...]
    stride: tuple[int, ...]
    wrap: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """`shape` of the latents [B, *space, C]; of `steps` only the `last` are run."""

    shape: tuple[int, ...]
    recipe: diffusion.Recipe
    steps: int
    last: int
    windows: Windows | None

    @property
    def whole(self) -> bool:
        """Whether all steps are run."""
        return self.last == self.steps

    @property
    def grid(self) -> diffusion.Level:
        """The levels that are visited. A scheduler's grid may lack its last steps, of no length (`schedulers._stopping`): those
        count among the `last`, of which one that moves is run at least."""
        levels = self.recipe.grid(self.steps)
        return levels if self.whole else levels[min(self.steps - self.last, len(levels) - 2) :]

    @property
    def sampler(self) -> diffusion.Sampler:
        """For this number of steps."""
        return self.recipe.sampler(self.steps)


class Guidance(NamedTuple):
    """`negative` and `scale` are None where there is no guidance, `image_scale` where it has one scale."""

    cond: PyTree
    negative: PyTree = None
    scale: jax.Array | None = None
    image_scale: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """How to sample; every method that makes pictures takes these.

    sampler         a name in `diffusion.SAMPLERS`, or a `diffusion.Sampler`; default: the config's, or that of the scheduler
                    that a diffusers folder came with. Of such a folder a name, one with "_karras" at its end, or a class's own
                    ("UniPCMultistepScheduler") stands for that scheduler with its own defaults, grid and all, as diffusers'
                    `from_config` gives it. Compiled in, as are `steps` and `grid`.
    steps, grid     how many, and at which levels: a name in `diffusion.GRIDS`, a function of the steps, or a `diffusion.Level`,
                    which says how many
    guidance_scale  a number or [B], traced, except that the number 1.0 leaves the unconditional half out
    image_guidance_scale  a number or [B], traced: how much the picture counts, for models that are told one and a prompt
                    (InstructPix2Pix)
    negative        the cond to steer away from; default the empty one
    tile, overlap   the canvas is denoised on windows of `tile` pixels (a number, or one for each axis) that overlap by
                    `overlap` (default half a tile) and agree there, and decoded in tiles: memory grows with the window
    wrap            the canvas is closed along its last axis: a panorama
    """

    sampler: Any = None
    steps: int | None = None
    grid: Any = None
    guidance_scale: float | jax.Array | None = None
    image_guidance_scale: float | jax.Array | None = None
    negative: PyTree = None
    tile: int | tuple[int, ...] | None = None
    overlap: int | None = None
    wrap: bool = False


def make_options(options: dict[str, Any]) -> Options:
    """`Options(**options)`. ValueError that says what is near for a name that isn't one."""
    names = [field.name for field in dataclasses.fields(Options)]
    for name in options:
        if name not in names:
            raise ValueError(f"{name}: no such option.{did_you_mean(name, names)} There are: {', '.join(names)}")
    made = Options(**options)
    check_options(made)
    return made


def check_options(options: Options) -> None:
    """ValueError naming the first option that is of another kind than it should be, or not finite. What is traced passes."""
    sampler = options.sampler
    if not (sampler is None or isinstance(sampler, (str, diffusion.Sampler))):
        raise ValueError(f"sampler={sampler!r}: give a name of diffusion.SAMPLERS, or what diffusion.make_sampler gives")
    if not (options.grid is None or isinstance(options.grid, (str, diffusion.Level)) or callable(options.grid)):
        kind = type(options.grid).__name__
        raise ValueError(f"grid is a {kind}: give a name of diffusion.GRIDS, a diffusion.Level, or a function of the steps")
    if options.steps is not None:
        check_count(options.steps, "steps")
    for name in ("guidance_scale", "image_guidance_scale"):
        scale = getattr(options, name)
        if scale is not None and not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(scale)):
            numbers = np.asarray(scale)
            real = jnp.issubdtype(numbers.dtype, jnp.number) and not jnp.issubdtype(numbers.dtype, jnp.complexfloating)
            if not real or not np.isfinite(numbers).all():
                raise ValueError(f"{name}={scale!r}: must be a finite number, or one a picture")
    if options.negative is not None:
        check_arrays(options.negative, "negative")
    for name in ("tile", "overlap"):
        value = getattr(options, name)
        each = value if name == "tile" and isinstance(value, (tuple, list)) else (value,)
        if value is not None and not all(map(is_whole, each)):
            raise ValueError(f"{name}={value!r}: must be a whole number of pixels")
    if not isinstance(options.wrap, (bool, np.bool_)):
        raise ValueError(f"wrap={options.wrap!r}: must be True or False")


def program(function: Callable) -> Callable:
    """`function(spec, plan, ...)` compiled once for a specification, a plan and shapes."""
    return jax.jit(function, static_argnums=(0, 1))


def canvas(spec: Specification, cond: PyTree) -> tuple[int, ...]:
    """The size in pixels of a condition that is a picture, or has one for a ControlNet; or the training size."""
    if cond is not None and "hint" in cond:
        return cond["hint"].shape[1:-1]
    if cond is not None and "concat" in cond:
        return spec.first_stage.grown(cond["concat"].shape[1:-1])
    return spec.image_size


def prepare(
    spec: Specification,
    params: PyTree,
    cond: PyTree,
    num: int,
    size: tuple[int, ...],
    options: Options,
    *,
    strength: float = 1.0,
) -> tuple[Plan, Guidance]:
    """For `num` pictures of `size` pixels; `strength` in (0, 1]: the part of the steps that is run."""
    defaults = spec.config["sampling"]
    own = len(options.grid.alpha) - 1 if isinstance(options.grid, diffusion.Level) else defaults["steps"]
    steps = own if options.steps is None else options.steps
    try:
        strength = float(strength if not isinstance(strength, (str, bool, np.bool_)) else "")
    except (TypeError, ValueError):  # of what is traced, too: the number of steps is compiled in
        raise ValueError(f"strength={strength!r}: must be a number in (0, 1]") from None
    spec.check_params(params, "network", "first_stage")
    check_size(spec, size)
    steps, size = int(steps), tuple(map(int, size))
    scale = defaults["guidance_scale"] if options.guidance_scale is None else options.guidance_scale
    check_cond(spec, cond)
    if cond is not None and count(cond) != num:
        raise ValueError(f"{count(cond)} conditions for {num} pictures: give one a picture")
    for name, given in (("guidance_scale", scale), ("image_guidance_scale", options.image_guidance_scale)):
        if given is not None and np.shape(given) not in ((), (num,)):
            raise ValueError(f"{name} of shape {np.shape(given)} for {num} pictures: give one number, or one a picture")
    shape = spec.first_stage.latent_shape(*size)
    if cond is not None and "concat" in cond and cond["concat"].shape[1:-1] != shape[:-1]:
        there, here = (" x ".join(map(str, space)) for space in (cond["concat"].shape[1:-1], shape[:-1]))
        raise ValueError(f"the condition lies on {there} latent pixels, the picture on {here}: give both the same size")
    if cond is not None and "hint" in cond and (cond["hint"].shape[1:-1] != tuple(size) or options.tile is not None):
        there = " x ".join(map(str, cond["hint"].shape[1:-1]))
        raise ValueError(f"the ControlNet's picture has {there} pixels, and must be as large as what is drawn, without tiles")
    if spec.of_tokens and options.tile is not None:
        raise ValueError(f"tile={options.tile}: sentences are drawn whole; leave it out")
    negative, second = options.negative, options.image_guidance_scale
    if second is not None and spec.condition.image_guidance_scale is None:
        raise ValueError(
            f"image_guidance_scale={second}: this model has one scale, guidance_scale; it takes {spec.condition.takes}"
        )
    second = spec.condition.image_guidance_scale if second is None else second
    if spec.told_guidance and negative is not None:
        raise ValueError("negative: this model is told the guidance scale and leads from nothing; leave it out")
    scales = scale, 1 if second is None else second
    off = spec.told_guidance or cond is None or all(isinstance(s, (int, float)) and s == 1 for s in scales)
    if off and negative is not None:
        raise ValueError(f"guidance_scale={scale} leaves the negative condition without effect; give one above 1")
    if not off and negative is None:
        negative = spec.null(params, num, size, cond)
    if not off:
        check_alike(cond, negative, num, options.negative is not None)
    plan = Plan(
        shape=(num, *shape),
        recipe=spec.recipe(options.sampler, options.grid),
        steps=steps,
        last=editing.last_steps(strength, steps),
        windows=_windows(spec.first_stage.factors, options.tile, options.overlap, options.wrap),
    )
    if spec.told_guidance:
        return plan, Guidance(cond, None, jnp.asarray(scale, jnp.float32))
    if off:
        return plan, Guidance(cond)
    return plan, Guidance(cond, negative, *(None if s is None else jnp.asarray(s, jnp.float32) for s in (scale, second)))


def _windows(
    factors: tuple[int, ...], tile: int | Sequence[int] | None, overlap: int | None, wrap: bool
) -> Windows | None:
    if tile is None:
        if overlap is not None or wrap:
            raise ValueError(f"overlap={overlap}, wrap={wrap}: these are of windows; give their side, tile=...")
        return None
    if isinstance(tile, (tuple, list)):
        sides, multiples = tuple(tile), factors
    else:  # powers of two: a multiple of the largest is one of all
        sides, multiples = (tile,) * len(factors), (max(factors),) * len(factors)
    if len(sides) != len(factors):
        raise ValueError(f"tile={tile}: one number, or {len(factors)}, for each axis")
    overlaps = [s // m // 2 * m if overlap is None else overlap for s, m in zip(sides, multiples)]
    if any(s < m or s % m or o % m or not 0 <= o < s for s, o, m in zip(sides, overlaps, multiples)):
        some = " x ".join(map(str, dict.fromkeys(multiples)))
        raise ValueError(f"tile={tile}, overlap={overlap}: multiples of {some} pixels, the overlap less than the tile")
    whole = list(zip(sides, overlaps, factors))
    return Windows(tuple(s // f for s, _, f in whole), tuple((s - o) // f for s, o, f in whole), wrap)


def denoiser(spec: Specification, plan: Plan, params: PyTree, guidance: Guidance) -> diffusion.Denoiser:
    """`Specification.denoiser`, on windows where the plan has them; each sees its part of conditions that are pictures."""
    if plan.windows is None:
        return spec.denoiser(params, guidance.cond, guidance.scale, guidance.negative, plan.recipe, guidance.image_scale)
    side, stride, wrap = plan.windows
    window = tuple(map(min, side, plan.shape[1:-1]))
    conds = (guidance.cond, guidance.negative)
    along = [None if cond is None else cond.get("concat") for cond in conds]

    def denoise_window(x, level, pieces):
        cond, negative = (c if piece is None else c | {"concat": piece} for c, piece in zip(conds, pieces))
        inner = dataclasses.replace(plan.recipe, wrap=lambda denoise: denoise)  # x0 is clipped or bounded on the whole canvas
        return spec.denoiser(params, cond, guidance.scale, negative, inner, guidance.image_scale)(x, level)

    return plan.recipe.wrap(
        editing.tiled(denoise_window, window, tuple(map(min, stride, window)), -1 if wrap else None, along)
    )


def run(
    spec: Specification, plan: Plan, params: PyTree, guidance: Guidance, x: jax.Array, keys: jax.Array, sampler: Any = None
) -> jax.Array:
    """The trajectory from x at the grid's first level, and the decoder: images [B, *size, 3]. `keys`: one a picture, or the
    noise of every step; `sampler`: in place of the plan's."""
    denoise = denoiser(spec, plan, params, guidance)
    return decode(spec, plan, params, diffusion.sample(denoise, sampler or plan.sampler, x, plan.grid, keys))


def keys_of(key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """One key a picture for its start noise, one for its steps: picture i depends on (key, i), not on its neighbours. `key`:
    one for all, or [num], one a picture."""
    key = typed_key(key)
    if key.ndim and len(key) != num:
        raise ValueError(f"{len(key)} keys for {num} pictures: give one for all, or one a picture")
    own = threefry(key) if key.ndim else row_keys(key, jnp.arange(num))
    keys = jax.vmap(jax.random.split)(own)
    return keys[:, 0], keys[:, 1]


def start(plan: Plan, noise: jax.Array) -> jax.Array:
    """Where a whole trajectory starts; `noise`: unit noise, or keys to draw it with."""
    return diffusion.start(noise, plan.shape, plan.grid, plan.recipe.start_scale)


def noised(plan: Plan, z: jax.Array, keys: jax.Array) -> jax.Array:
    """The forward process from latents z to the first of the plan's levels."""
    first = plan.grid[0]
    return jnp.float32(first.alpha) * z + diffusion.start(keys, z.shape, plan.grid, lambda level: level.sigma)


def encode(spec: Specification, plan: Plan, params: PyTree, images: jax.Array) -> jax.Array:
    """Scaled latents of images, tile by tile where there are windows."""
    if plan.windows is None:
        return spec.encode(params, images)
    tile = max(DECODED, *plan.windows.side)
    return encode_tiled(lambda x: spec.encode(params, x), images, factor=spec.first_stage.factors, tile=tile)


def decode(spec: Specification, plan: Plan, params: PyTree, z: jax.Array) -> jax.Array:
    """Images in [-1, 1]; a canvas that is closed is decoded with its ends seeing each other."""
    if plan.windows is None:
        return spec.first_stage.drawn(spec.decode(params, z))
    tile, factors = max(DECODED, *plan.windows.side), spec.first_stage.factors
    margin = min(plan.windows.side[-1], z.shape[-2]) if plan.windows.wrap else 0
    z = jnp.concatenate([z[..., z.shape[-2] - margin :, :], z, z[..., :margin, :]], axis=-2)
    images = decode_tiled(lambda z: spec.decode(params, z), z, factor=factors, tile=tile)
    cut = margin * factors[-1]
    return jnp.clip(images[..., cut : images.shape[-2] - cut, :], -1.0, 1.0)
