"""What `LatentDiffusion` does with pictures that exist, and on canvases larger than a model was trained for.

Every function here is a method of the model. Its options `how` are those of `sample` (sampler, steps, grid, guidance_scale,
negative, tile, overlap, wrap); the trajectory with encoder and decoder is one program, compiled once for a shape and a number
of steps: pictures, masks, conditions, keys and scales are traced, and strengths that mean the same number of steps are one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import diffusion
from ldm_jax.api.process import decode, encode, keys_of, prepare, process, program, start_scale
from ldm_jax.diffusion import editing

PyTree = Any
INPAINTING = ("concat", "imposed", "certain")
INVERSIONS = {"ddim": "ddim", "stochastic": "ddpm"}


def count(cond: PyTree, num: int | None = None) -> int:
    """How many pictures: as many as there are conditions, or `num` where there are none."""
    batch = num if cond is None else jax.tree.leaves(cond)[0].shape[0]
    if batch is None or batch < 1:
        raise ValueError(f"num={num}: say how many pictures to draw")
    return batch


def canvas(ldm: Any, cond: PyTree) -> tuple[int, int]:
    """(height, width) in pixels of a condition that is a picture, or the training size."""
    if cond is not None and "concat" in cond:
        return tuple(side * ldm.first_stage.factor for side in cond["concat"].shape[1:3])
    return (ldm.config["data"]["image_size"],) * 2


def panorama(
    ldm,
    params: PyTree,
    key: jax.Array,
    cond: PyTree = None,
    *,
    size: tuple[int, int],
    num: int | None = None,
    tile: int | None = None,
    wrap: bool = True,
    **how: Any,
) -> jax.Array:
    """Pictures of `size` (height, width) larger than the training size, denoised on overlapping windows of that size (or `tile`
    pixels) which agree where they overlap (MultiDiffusion, Bar-Tal et al. 2023); with `wrap`, the right end continues at the
    left."""
    tile = tile or ldm.config["data"]["image_size"]
    return ldm.sample(params, key, cond, num=num, size=size, tile=tile, wrap=wrap, **how)


def upscale(
    ldm,
    params: PyTree,
    key: jax.Array,
    low: jax.Array,
    *,
    level: int | None = None,
    tile: int | None = None,
    **how: Any,
) -> jax.Array:
    """Super-resolution of images [B, h, w, 3] of any size. Results larger than the training size are made on overlapping
    windows of that size (or `tile` pixels), each with its part of the low-resolution picture.

    `level`: how much noise is added to `low` first and told to the network, where it was trained with that. Where latents are
    smaller than `low`, it is padded to a multiple by its last row and column, and the result cut.
    """
    conditioning = ldm.conditioning
    if conditioning.kind != "superres":
        raise ValueError(f"upscale is for models of super-resolution; this one takes {conditioning.takes}")
    low = np.asarray(low)
    null = conditioning.null["low"] if isinstance(conditioning.null, dict) else conditioning.null
    scale = conditioning.side // null.shape[1]
    multiple = max(ldm.first_stage.factor // scale, 1)
    height, width = low.shape[1:3]
    padded = np.pad(low, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")
    cond = ldm.embed(params, list(padded) if level is None else [(image, level) for image in padded])
    side = ldm.config["data"]["image_size"]
    if tile is None and max(canvas(ldm, cond)) > side:
        tile = side
    return ldm.sample(params, key, cond, tile=tile, **how)[:, : height * scale, : width * scale]


def image_to_image(
    ldm, params: PyTree, key: jax.Array, image: jax.Array, cond: PyTree = None, *, strength: float = 0.6, **how: Any
) -> jax.Array:
    """SDEdit (Meng et al. 2022): `image` [B, H, W, 3] is noised and sampled anew from there. `strength` in (0, 1] is the part
    of the steps that are run: how much may change."""
    image = _images(image, count(cond, len(image)))
    plan, told = prepare(ldm, params, cond, len(image), image.shape[1:3], strength=strength, **how)
    return _image_to_image(ldm, plan, params, key, told, image)


@program
def _image_to_image(ldm, plan, params, key, told, image):
    denoise, sampler, levels = process(ldm, plan, params, told)
    start, steps = keys_of(key, plan.shape[0])
    x = _noised(encode(ldm, plan, params, image), start, levels)
    return decode(ldm, plan, params, diffusion.sample(denoise, sampler, x, levels, steps))


def inpaint(
    ldm,
    params: PyTree,
    key: jax.Array,
    image: jax.Array,
    mask: jax.Array,
    cond: PyTree = None,
    *,
    method: str | None = None,
    resample: int = 1,
    strength: float = 1.0,
    **how: Any,
) -> jax.Array:
    """Paints `image` [B, H, W, 3] anew where `mask` [B, H, W] or [B, H, W, 1] is 1. Where it is 0 the result is the image,
    exactly; values between blend.

    method: "concat", for models that were trained to inpaint, which are told the image and the mask and take no `cond`; for all
    others "imposed" (after each step the known latents are put back, noised; `resample` > 1 takes each step so often, as
    RePaint does, with samplers that have no memory such as ddpm and ddim) or "certain" (predictions are replaced by what is
    known). The default is "concat" or "imposed". At a `strength` below 1 the painted part starts from what is there.
    """
    concat = ldm.conditioning.kind == "inpaint"
    method = method or ("concat" if concat else "imposed")
    if method not in INPAINTING or concat != (method == "concat"):
        choices = ("concat",) if concat else INPAINTING[1:]
        raise ValueError(f"method={method!r}: a model that takes {ldm.conditioning.takes} inpaints by {' or '.join(choices)}")
    image = _images(image, count(cond, len(image)))
    mask = jnp.asarray(mask, jnp.float32)
    mask = mask[..., None] if mask.ndim == 3 else mask
    if mask.shape != (*image.shape[:3], 1):
        raise ValueError(f"mask of shape {mask.shape[:3]} for images of shape {image.shape[:3]}: one value a pixel")
    if concat:
        if cond is not None:
            raise ValueError("this model is told the image and the mask, and takes no other condition")
        cond = ldm.embed(params, list(zip(np.asarray(image), np.asarray(mask > 0, np.float32))))
    plan, told = prepare(ldm, params, cond, len(image), image.shape[1:3], strength=strength, **how)
    return _inpaint(ldm, (plan, method, resample), params, key, told, image, mask)


@program
def _inpaint(ldm, static, params, key, told, image, mask):
    plan, method, resample = static
    denoise, sampler, levels = process(ldm, plan, params, told)
    start, steps = keys_of(key, plan.shape[0])
    z = encode(ldm, plan, params, image)
    b, h, w, _ = z.shape
    # a latent pixel is known if all its pixels are
    known = 1 - mask.reshape(b, h, mask.shape[1] // h, w, mask.shape[2] // w).max((2, 4))[..., None]
    if method == "imposed":
        sampler = editing.imposed(sampler, z, known, resample)
    elif method == "certain":
        denoise = editing.known_region(denoise, z, known)
    whole = plan.last == plan.steps
    x = diffusion.start(start, z.shape, levels, start_scale(ldm, plan)) if whole else _noised(z, start, levels)
    painted = decode(ldm, plan, params, diffusion.sample(denoise, sampler, x, levels, steps))
    return jnp.where(mask > 0, mask * painted + (1 - mask) * image, image)


def outpaint(
    ldm,
    params: PyTree,
    key: jax.Array,
    image: jax.Array,
    cond: PyTree = None,
    *,
    top: int = 0,
    bottom: int = 0,
    left: int = 0,
    right: int = 0,
    **how: Any,
) -> jax.Array:
    """`image` on a canvas that is larger by so many pixels, painted there by `inpaint` (whose options it takes)."""
    if min(top, bottom, left, right) < 0 or not top + bottom + left + right:
        raise ValueError(f"top={top}, bottom={bottom}, left={left}, right={right}: pixels to add, 0 or more, not all 0")
    sides = ((0, 0), (top, bottom), (left, right))
    known = jnp.pad(jnp.asarray(image), (*sides, (0, 0)), mode="edge")
    mask = jnp.pad(jnp.zeros(jnp.shape(image)[:3]), sides, constant_values=1.0)
    return inpaint(ldm, params, key, known, mask, cond, **how)


def invert(
    ldm, params: PyTree, image: jax.Array, cond: PyTree = None, *, iterations: int = 3, steps: int | None = None, **how: Any
) -> jax.Array:
    """DDIM inversion: the noise [B, h, w, C] from which `sample(..., noise=noise, sampler="ddim", guidance_scale=1.0)` with the
    same steps, grid and condition comes back to `image`, up to what the first stage loses. `cond` says what is in it; default
    the empty condition. `iterations` of a fixed point a step: one is the usual inversion, a few make it more exact."""
    image = _images(image, count(cond, len(image)))
    plan, told = _source(ldm, params, cond, image, steps=steps, sampler="ddim", **how)
    return _invert(ldm, (plan, iterations), params, told, image)


@program
def _invert(ldm, static, params, told, image):
    plan, iterations = static
    denoise, _, levels = process(ldm, plan, params, told)
    return editing.invert(denoise, encode(ldm, plan, params, image), levels, iterations) / start_scale(ldm, plan)(levels[0])


def edit(
    ldm,
    params: PyTree,
    key: jax.Array,
    image: jax.Array,
    cond: PyTree,
    source: PyTree = None,
    *,
    method: str = "stochastic",
    strength: float = 0.7,
    iterations: int = 3,
    **how: Any,
) -> jax.Array:
    """Changes what `image` [B, H, W, 3] shows from `source` (default: the empty condition) to `cond`, keeping the rest: the
    noise that makes the image under `source` is found, and sampled under `cond`.

    method: "ddim" (deterministic inversion; `iterations` as for `invert`) or "stochastic" (edit-friendly DDPM inversion,
    Huberman-Spiegelglas et al. 2024, which comes back exactly). `strength`: the part of the steps that is undone.
    """
    if method not in INVERSIONS or how.get("sampler") is not None:
        raise ValueError(
            f"method={method!r}, sampler={how.get('sampler')!r}: edits are made by {' or '.join(INVERSIONS)} inversion, each "
            "with its own sampler"
        )
    image = _images(image, count(cond, len(image)))
    how["sampler"] = INVERSIONS[method]
    plan, told = prepare(ldm, params, cond, len(image), image.shape[1:3], strength=strength, **how)
    kept = {name: value for name, value in how.items() if name not in ("guidance_scale", "negative")}
    _, source = _source(ldm, params, source, image, **kept)
    return _edit(ldm, (plan, method, iterations), params, key, told, source, image)


@program
def _edit(ldm, static, params, key, told, source, image):
    plan, method, iterations = static
    denoise, sampler, levels = process(ldm, plan, params, told)
    denoise_source, _, _ = process(ldm, plan, params, source)
    z, noise = encode(ldm, plan, params, image), None
    if method == "ddim":
        x = editing.invert(denoise_source, z, levels, iterations)
    else:
        x, noise = editing.invert_stochastic(denoise_source, z, levels, keys_of(key, plan.shape[0])[1])
    return decode(ldm, plan, params, diffusion.sample(denoise, sampler, x, levels, noise))


def variation(
    ldm,
    params: PyTree,
    key: jax.Array,
    cond: PyTree = None,
    *,
    amount: float | jax.Array = 0.2,
    num: int | None = None,
    noise: jax.Array | None = None,
    size: tuple[int, int] | None = None,
    **how: Any,
) -> jax.Array:
    """Pictures like the first one that `sample` draws with this key (or the one of `noise` [1, h, w, C], such as `invert`
    gives): its noise is turned towards fresh ones by `amount` (a number or [B]), 0 for itself, 1 for another picture."""
    num = count(cond, num)
    if noise is None:
        noise = ldm.noise(key, 1, size or canvas(ldm, cond))
    factor = ldm.first_stage.factor
    plan, told = prepare(ldm, params, cond, num, (noise.shape[1] * factor, noise.shape[2] * factor), **how)
    return _variation(ldm, plan, params, key, told, noise, jnp.asarray(amount, jnp.float32))


@program
def _variation(ldm, plan, params, key, told, noise, amount):
    denoise, sampler, levels = process(ldm, plan, params, told)
    start, steps = keys_of(key, plan.shape[0])
    # not the noise of sample's other pictures; the first one's steps for all
    fresh = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), plan.shape[1:]))(start)
    noise = editing.slerp(jnp.broadcast_to(noise, plan.shape), fresh, amount)
    x = diffusion.start(noise, plan.shape, levels, start_scale(ldm, plan))
    return decode(ldm, plan, params, diffusion.sample(denoise, sampler, x, levels, jnp.repeat(steps[:1], plan.shape[0])))


def interpolate(
    ldm,
    params: PyTree,
    key: jax.Array,
    cond: PyTree = None,
    frames: int = 8,
    *,
    noise: jax.Array | None = None,
    size: tuple[int, int] | None = None,
    **how: Any,
) -> jax.Array:
    """`frames` pictures on the way from each condition to the next, and from each noise to the next.

    `cond`, from `embed`, and `noise` [K, h, w, C], from `noise` or `invert`, hold K waypoints each, or one that stays; default
    the key's noise for all frames. Conditions move on straight lines, noises on great circles.
    """
    noise = ldm.noise(key, 1, size or canvas(ldm, cond)) if noise is None else noise
    counts = {len(noise)} if cond is None else {len(noise), count(cond)}
    waypoints = max(counts)
    if waypoints < 2 or not counts <= {1, waypoints} or frames < 2:
        raise ValueError(
            f"frames={frames} between {'no' if cond is None else count(cond)} conditions and {len(noise)} noises: give two or "
            "more frames and waypoints, as many of one as of the other, or one that stays"
        )
    if any(not jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves(cond)):
        raise ValueError("this model's classes are numbers to its network, with nothing between them: give noises instead")
    factor = ldm.first_stage.factor
    plan, told = prepare(ldm, params, cond, frames, (noise.shape[1] * factor, noise.shape[2] * factor), **how)
    return _interpolate(ldm, plan, params, key, told, noise)


@program
def _interpolate(ldm, plan, params, key, told, noise):
    num = plan.shape[0]

    def along(points, mix):
        if len(points) == 1:
            return jnp.repeat(points, num, axis=0)
        where = np.linspace(0, len(points) - 1, num)
        left = np.minimum(where.astype(int), len(points) - 2)
        return mix(points[left], points[left + 1], jnp.asarray(where - left, jnp.float32))

    told = told._replace(cond=jax.tree.map(lambda points: along(points, editing.lerp), told.cond))
    denoise, sampler, levels = process(ldm, plan, params, told)
    _, steps = keys_of(key, 1)
    x = diffusion.start(along(noise, editing.slerp), plan.shape, levels, start_scale(ldm, plan))
    return decode(ldm, plan, params, diffusion.sample(denoise, sampler, x, levels, jnp.repeat(steps, num)))


def _source(ldm: Any, params: PyTree, cond: PyTree, image: jax.Array, **how: Any) -> tuple:
    """What an inversion is told: no guidance, and the empty condition if none is given."""
    cond = ldm.null(params, len(image), image.shape[1:3]) if cond is None else cond
    return prepare(ldm, params, cond, len(image), image.shape[1:3], guidance_scale=1.0, **how)


def _noised(z: jax.Array, key: jax.Array, levels: diffusion.Level) -> jax.Array:
    """The forward process to the first of the levels."""
    noise = diffusion.start(key, z.shape, levels, lambda level: level.sigma)
    return levels.alpha[0].astype(np.float32) * z + noise


def _images(images: jax.Array, num: int) -> jax.Array:
    """Checked. Values can't be, in a trace."""
    images = jnp.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or len(images) != num or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images of shape {images.shape}, {images.dtype.name}, for {num} conditions: they must be float "
            f"[{num}, H, W, 3] in [-1, 1]"
        )
    return images.astype(jnp.float32)
