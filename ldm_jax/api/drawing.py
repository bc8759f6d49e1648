"""Pictures drawn from noise: plain ones, canvases larger than a model was trained for, variations, films, super-resolution.

Every function here takes a specification and parameters; `LatentDiffusion` has a method of each name. `options` are
`sampling.Options`. The trajectory with its decoder is one program, compiled once for a shape and a number of steps: keys,
conditions and scales are traced.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import diffusion
from ldm_jax.api.arguments import check_amount, check_cond, check_here, check_noise, check_size, count, is_whole, space_of
from ldm_jax.api.sampling import (
    canvas,
    decode,
    denoiser,
    keys_of,
    make_options,
    prepare,
    program,
    run,
    start,
)
from ldm_jax.api.specification import Specification
from ldm_jax.diffusion import editing
from ldm_jax.primitives.arrays import typed_key

PyTree = Any


def sample(
    spec: Specification,
    params: PyTree,
    key: jax.Array,
    cond: PyTree = None,
    *,
    num: int | None = None,
    size: tuple[int, ...] | None = None,
    noise: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Draws images [B, *size, 3] in [-1, 1]: start noise, the whole trajectory and the decoder in one compiled program.

    Args:
      key: a typed key. Image i depends on (key, i) alone, not on its neighbours in the batch. Or one a picture, [B]: those of
        `fold_in(key, i)` draw what `key` draws, in any batches.
      cond: from `embed`, one a picture; None where there is no condition, then `num` says how many.
      size: in pixels, (height, width) of pictures; default that of a condition which is a picture, or the training size.
      noise: unit noise [B, *space, C] to start from instead of the key's, as `noise` and `invert` give it.

    Raises:
      ValueError: an unknown sampler or grid, steps < 1, a size that the first stage can't make, scales that don't fit.
    """
    check_cond(spec, cond)
    num = count(cond, num)
    if noise is not None:
        size = space_of(spec, noise, size)
    size = canvas(spec, cond) if size is None else size
    plan, guidance = prepare(spec, params, cond, num, size, make_options(options))
    noise = None if noise is None else check_noise(noise, plan.shape)
    return _sample(spec, plan, params, typed_key(key), guidance, noise)


@program
def _sample(spec, plan, params, key, guidance, noise):
    starts, steps = keys_of(key, plan.shape[0])
    return run(spec, plan, params, guidance, start(plan, starts if noise is None else noise), steps)


def trajectory(
    spec: Specification,
    params: PyTree,
    key: jax.Array,
    cond: PyTree = None,
    *,
    num: int | None = None,
    size: tuple[int, ...] | None = None,
    **options: Any,
) -> jax.Array:
    """What `sample` goes through with this key: its start noise and the latents after each step, decoded, images
    [steps + 1, B, *size, 3] in [-1, 1]. The last ones are `sample`'s; latents on the way are brought to unit variance first.
    Arguments and errors as of `sample`."""
    check_cond(spec, cond)
    num = count(cond, num)
    plan, guidance = prepare(spec, params, cond, num, canvas(spec, cond) if size is None else size, make_options(options))
    return _trajectory(spec, plan, params, typed_key(key), guidance)


@program
def _trajectory(spec, plan, params, key, guidance):
    starts, steps = keys_of(key, plan.shape[0])
    x, denoise = start(plan, starts), denoiser(spec, plan, params, guidance)
    _, states = diffusion.sample(denoise, plan.sampler, x, plan.grid, steps, record=diffusion.trajectory)
    # the last latents as they are: what `sample` decodes
    scales = jnp.append(jnp.float32(diffusion.unit_variance_scale(plan.grid))[:-1], 1.0)
    states = jnp.concatenate([x[None], states]) / scales.reshape(-1, *(1 for _ in x.shape))
    return jax.lax.map(lambda z: decode(spec, plan, params, z), states)


def unit_noise(spec: Specification, key: jax.Array, num: int, size: tuple[int, ...] | None = None) -> jax.Array:
    """The unit noise [num, *space, C] that `sample` starts from with this key."""
    num, size = count(None, num), spec.image_size if size is None else size
    check_size(spec, size)
    shape = spec.first_stage.latent_shape(*map(int, size))
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys_of(key, num)[0])


def panorama(
    spec: Specification,
    params: PyTree,
    key: jax.Array,
    cond: PyTree = None,
    *,
    size: tuple[int, ...],
    num: int | None = None,
    tile: int | tuple[int, ...] | None = None,
    wrap: bool = True,
    **options: Any,
) -> jax.Array:
    """Pictures of `size` (height, width) larger than the training size, denoised on overlapping windows of that size (or `tile`
    pixels) which agree where they overlap (MultiDiffusion, Bar-Tal et al. 2023); with `wrap`, the right end continues at the
    left."""
    tile = tile or spec.image_size
    return sample(spec, params, key, cond, num=num, size=size, tile=tile, wrap=wrap, **options)


def upscale(
    spec: Specification,
    params: PyTree,
    key: jax.Array,
    low: jax.Array,
    *,
    level: int | None = None,
    tile: int | None = None,
    **options: Any,
) -> jax.Array:
    """Super-resolution of images [B, h, w, 3] of any size. Results larger than the training size are made on overlapping
    windows of that size (or `tile` pixels), each with its part of the low-resolution picture.

    `level`: how much noise is added to `low` first and told to the network, where it was trained with that. Where latents are
    smaller than `low`, it is padded to a multiple by its last row and column, and the result cut.
    """
    condition = spec.condition
    if condition.kind != "superres":
        raise ValueError(f"upscale is for models of super-resolution; this one takes {condition.takes}")
    check_here(low, "low", "upscale")
    low, scale = np.asarray(low), condition.scale
    if low.ndim != 4:
        raise ValueError(f"low of shape {low.shape}: pictures to enlarge are float [B, h, w, 3] in [-1, 1]")
    multiple = max(spec.first_stage.factor // scale, 1)
    height, width = low.shape[1:3]
    padded = np.pad(low, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")
    cond = spec.embed(params, list(padded) if level is None else [(image, level) for image in padded])
    if tile is None and any(side > learnt for side, learnt in zip(canvas(spec, cond), spec.image_size)):
        tile = spec.image_size
    return sample(spec, params, key, cond, tile=tile, **options)[:, : height * scale, : width * scale]


def variation(
    spec: Specification,
    params: PyTree,
    key: jax.Array,
    cond: PyTree = None,
    *,
    amount: float | jax.Array = 0.2,
    num: int | None = None,
    noise: jax.Array | None = None,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> jax.Array:
    """Pictures like the first one that `sample` draws with this key (or the one of `noise` [1, h, w, C], such as `invert`
    gives): its noise is turned towards fresh ones by `amount` (a number or [B]), 0 for itself, 1 for another picture.
    `key`: one for all, or one a picture, as of `sample`."""
    check_cond(spec, cond)
    num, key = count(cond, num), typed_key(key)
    if noise is None:
        noise = unit_noise(spec, key[:1] if key.ndim else key, 1, canvas(spec, cond) if size is None else size)
    full = space_of(spec, noise, size)
    plan, guidance = prepare(spec, params, cond, num, full, make_options(options))
    noise = check_noise(noise, (num if len(noise) == num else 1, *plan.shape[1:]))
    return _variation(spec, plan, params, key, guidance, noise, check_amount(amount, num))


@program
def _variation(spec, plan, params, key, guidance, noise, amount):
    starts, steps = keys_of(key, plan.shape[0])
    # not the noise of sample's other pictures; the first one's steps for all
    fresh = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), plan.shape[1:], jnp.float32))(starts)
    noise = editing.slerp(jnp.broadcast_to(noise, plan.shape), fresh, amount)
    return run(spec, plan, params, guidance, start(plan, noise), jnp.repeat(steps[:1], plan.shape[0]))


def interpolate(
    spec: Specification,
    params: PyTree,
    key: jax.Array,
    cond: PyTree = None,
    frames: int = 8,
    *,
    noise: jax.Array | None = None,
    size: tuple[int, int] | None = None,
    **options: Any,
) -> jax.Array:
    """`frames` pictures on the way from each condition to the next, and from each noise to the next.

    `cond`, from `embed`, and `noise` [K, h, w, C], from `noise` or `invert`, hold K waypoints each, or one that stays; default
    the key's noise for all frames. Conditions move on straight lines, noises on great circles.
    """
    check_cond(spec, cond)
    noise = unit_noise(spec, key, 1, canvas(spec, cond) if size is None else size) if noise is None else noise
    if not is_whole(frames):
        raise ValueError(f"frames={frames!r}: must be a whole number")
    frames = int(frames)
    full = space_of(spec, noise, size)
    counts = {len(noise)} if cond is None else {len(noise), count(cond)}
    waypoints = max(counts)
    if waypoints < 2 or not counts <= {1, waypoints} or frames < waypoints:
        raise ValueError(
            f"frames={frames} between {'no' if cond is None else count(cond)} conditions and {len(noise)} noises: give two "
            "or more waypoints, as many of one as of the other, or one that stays, and as many frames or more"
        )
    if any(len(a) > 1 and not jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves(cond)):
        raise ValueError("this model's classes are numbers to its network, with nothing between them: give noises instead")
    cond = _between(cond, frames)  # the empty one repeats what each frame is told
    plan, guidance = prepare(spec, params, cond, frames, full, make_options(options))
    noise = check_noise(noise, (len(noise), *plan.shape[1:]))
    return _interpolate(spec, plan, params, typed_key(key), guidance, noise)


@functools.partial(jax.jit, static_argnums=1)
def _between(cond, frames):
    """cond of every frame."""
    return jax.tree.map(lambda points: _along(points, frames, editing.lerp), cond)


def _along(points, num, mix):
    if len(points) == 1:
        return jnp.repeat(points, num, axis=0)
    where = np.linspace(0, len(points) - 1, num)
    left = np.minimum(where.astype(int), len(points) - 2)
    return mix(points[left], points[left + 1], jnp.asarray(where - left, jnp.float32))


@program
def _interpolate(spec, plan, params, key, guidance, noise):
    num = plan.shape[0]
    _, steps = keys_of(key, 1)
    return run(spec, plan, params, guidance, start(plan, _along(noise, num, editing.slerp)), jnp.repeat(steps, num))
