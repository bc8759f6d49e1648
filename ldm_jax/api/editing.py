"""What is done with pictures that exist.

Every function here takes a specification and parameters; `LatentDiffusion` has a method of each name. `options` are
`sampling.Options`. The trajectory with encoder and decoder is one program, compiled once for a shape and a number of steps:
pictures, masks, conditions, keys and scales are traced, and strengths that mean the same number of steps are one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import diffusion
from ldm_jax.api.arguments import check_count, check_here, check_noise, count, is_whole
from ldm_jax.api.sampling import (
    Guidance,
    Plan,
    decode,
    denoiser,
    encode,
    keys_of,
    make_options,
    noised,
    prepare,
    program,
    run,
    start,
)
from ldm_jax.api.specification import Specification
from ldm_jax.conditioning.pictures import check_mask, check_range
from ldm_jax.diffusion import editing
from ldm_jax.primitives.arrays import typed_key
from ldm_jax.primitives.choices import check_choice

PyTree = Any
INPAINTING = ("concat", "imposed", "certain")
# Samplers, not names: those keep the model's own grid, and no scheduler of that name clips anything.
INVERSIONS = {"ddim": diffusion.make_sampler("ddim"), "stochastic": diffusion.make_sampler("ddpm")}


def image_to_image(
    spec: Specification,
    params: PyTree,
    key: jax.Array,
    image: jax.Array,
    cond: PyTree = None,
    *,
    strength: float = 0.6,
    noise: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """SDEdit (Meng et al. 2022): `image` [B, H, W, 3] is noised and sampled anew from there. `strength` in (0, 1] is the part
    of the steps that are run: how much may change. `noise`: unit noise [B, h, w, C] instead of the key's."""
    image = _images(spec, image, len(image) if cond is None else count(cond))
    plan, guidance = prepare(spec, params, cond, len(image), image.shape[1:-1], make_options(options), strength=strength)
    return _image_to_image(spec, plan, params, typed_key(key), guidance, image, _unit(noise, plan))


@program
def _image_to_image(spec, plan, params, key, guidance, image, noise):
    starts, steps = keys_of(key, plan.shape[0])
    z = encode(spec, plan, params, image)
    return run(spec, plan, params, guidance, noised(plan, z, starts if noise is None else noise), steps)


def _unit(noise: jax.Array | None, plan: Plan) -> jax.Array | None:
    """`noise` as an array; ValueError unless it has the shape of the latents."""
    return None if noise is None else check_noise(noise, plan.shape)


def inpaint(
    spec: Specification,
    params: PyTree,
    key: jax.Array,
    image: jax.Array,
    mask: jax.Array,
    cond: PyTree = None,
    *,
    method: str | None = None,
    resample: int = 1,
    strength: float = 1.0,
    noise: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Paints `image` [B, H, W, 3] anew where `mask` [B, H, W] or [B, H, W, 1] is 1. Where it is 0 the result is the image,
    exactly; values between blend.

    method: "concat", for models that were trained to inpaint, which are told the image and the mask (`cond` is then a list of
    prompts where they take these besides, and so may `negative` be; None where they don't); for all others "imposed" (after
    each step the known latents are put back, noised; `resample` > 1 takes each step so often, as RePaint does, with samplers
    that have no memory such as ddpm and ddim) or "certain" (predictions are replaced by what is known). The default is "concat"
    or "imposed". At a `strength` below 1 the painted part starts from what is there.
    `noise`: unit noise [B, h, w, C] to start from instead of the key's, by which "imposed" then noises what is known as well.
    """
    part = spec.condition.inpainting_part
    method = method or ("imposed" if part is None else "concat")
    if method not in INPAINTING or (part is None) == (method == "concat"):
        choices = ("concat",) if part is not None else INPAINTING[1:]
        raise ValueError(f"method={method!r}: a model that takes {spec.condition.takes} inpaints by {' or '.join(choices)}")
    check_choice(method, INPAINTING, "method")
    check_count(resample, "resample")
    if resample > 1 and method != "imposed":
        raise ValueError(f"resample={resample}: steps are taken again by method 'imposed' alone, this is {method!r}")
    image = _images(spec, image, len(image) if part is not None or cond is None else count(cond))
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.shape not in (image.shape[:-1], (*image.shape[:-1], 1)):
        raise ValueError(f"mask of shape {mask.shape} for images of shape {image.shape[:-1]}: one value a pixel")
    check_mask(mask)
    mask = _at_once(lambda mask: jnp.asarray(mask, jnp.float32).reshape(*image.shape[:-1], 1), mask)
    if part is not None:
        cond = spec.embed(params, _with_holes(spec, part, image, mask, cond))
        if isinstance(against := options.get("negative"), (list, tuple)):
            options["negative"] = spec.embed(params, _with_holes(spec, part, image, mask, against, "negative"))
    plan, guidance = prepare(spec, params, cond, len(image), image.shape[1:-1], make_options(options), strength=strength)
    return _inpaint(spec, (plan, method, resample), params, typed_key(key), guidance, image, mask, _unit(noise, plan))


def _with_holes(
    spec: Specification, part: str, image: jax.Array, mask: jax.Array, others: Any, name: str = "cond"
) -> list[Any]:
    """What `embed` takes of a model that is told the image and the mask, and perhaps another condition: `others`, one a
    picture, which a user gave as `name`."""
    for name_of, given in (("image", image), ("mask", mask)):
        check_here(given, name_of, "inpaint, with a model that is told the picture,")
    pairs = list(zip(np.asarray(image), np.float32(np.asarray(mask) > 0)))
    if not part:
        if others is not None:
            raise ValueError("this model is told the image and the mask, and takes no other condition")
        return pairs
    names = [name for name in spec.condition.parts if name != part]
    if not isinstance(others, (list, tuple)) or len(others) != len(pairs):
        raise ValueError(f"this model is told the image, the mask and {', '.join(names)}: give {name} as a list, one a picture")
    return [{part: pair} | (other if isinstance(other, dict) else {names[0]: other}) for pair, other in zip(pairs, others)]


@program
def _inpaint(spec, static, params, key, guidance, image, mask, noise):
    plan, method, resample = static
    denoise, sampler = denoiser(spec, plan, params, guidance), plan.sampler
    starts, steps = keys_of(key, plan.shape[0])
    z = encode(spec, plan, params, image)
    # a latent pixel is known if all its pixels are
    blocks = mask.reshape(len(z), *(n for pair in zip(z.shape[1:-1], spec.first_stage.factors) for n in pair))
    known = 1 - blocks.max(tuple(range(2, blocks.ndim, 2)))[..., None]
    if method == "imposed":
        sampler = editing.imposed(sampler, z, known, resample, noise)
    elif method == "certain":
        denoise = editing.known_region(denoise, z, known)
    starts = starts if noise is None else noise
    x = start(plan, starts) if plan.whole else noised(plan, z, starts)
    x = diffusion.sample(denoise, sampler, x, plan.grid, steps)
    if method != "concat":  # grids may end a little above clean
        x = known * z + (1 - known) * x
    painted = decode(spec, plan, params, x)
    return jnp.where(mask > 0, mask * painted + (1 - mask) * image, image)


def outpaint(
    spec: Specification,
    params: PyTree,
    key: jax.Array,
    image: jax.Array,
    cond: PyTree = None,
    *,
    top: int = 0,
    bottom: int = 0,
    left: int = 0,
    right: int = 0,
    **options: Any,
) -> jax.Array:
    """`image` [B, H, W, 3] on a canvas that is larger by so many pixels, painted there by `inpaint` (and its options).
    The frames of films and slices of volumes grow so as well; a waveform [B, T, C] goes on before (`left`) and behind (`right`)
    what is there. ValueError for sides that are not whole numbers, or that it hasn't."""
    axes = len(spec.image_size)
    if not all(map(is_whole, (top, bottom, left, right))) or np.ndim(image) != axes + 2:
        raise ValueError(
            f"top={top!r}, bottom={bottom!r}, left={left!r}, right={right!r} around images of shape {np.shape(image)}: whole "
            f"numbers of pixels around [B, {', '.join(('D', 'H', 'W')[-axes:])}, C]"
        )
    top, bottom, left, right = map(int, (top, bottom, left, right))
    if min(top, bottom, left, right) < 0 or not top + bottom + left + right:
        raise ValueError(f"top={top}, bottom={bottom}, left={left}, right={right}: pixels to add, 0 or more, not all 0")
    if axes == 1 and top + bottom:
        raise ValueError(f"top={top}, bottom={bottom}: a waveform has only left and right, before and behind it")
    sides = [(0, 0), (0, 0), (top, bottom), (left, right)][-axes:]
    image = _images(spec, image, len(image))
    known = _at_once(lambda image: jnp.pad(image, ((0, 0), *sides, (0, 0)), mode="edge"), image)
    mask = np.pad(np.zeros(image.shape[:-1], np.float32), ((0, 0), *sides), constant_values=1.0)
    return inpaint(spec, params, key, known, mask, cond, **options)


def invert(
    spec: Specification,
    params: PyTree,
    image: jax.Array,
    cond: PyTree = None,
    *,
    iterations: int = 3,
    steps: int | None = None,
    **options: Any,
) -> jax.Array:
    """DDIM inversion: the noise [B, h, w, C] from which `sample(..., noise=noise, sampler="ddim", guidance_scale=1.0)` with the
    same steps, grid and condition comes back to `image`, up to what the first stage loses. `cond` says what is in it; default
    the empty condition. `iterations` of a fixed point a step: one is the usual inversion, a few make it more exact. ValueError
    for another sampler, and for guidance."""
    check_count(iterations, "iterations")
    for name, own in (("sampler", "ddim"), ("guidance_scale", 1), ("negative", None)):
        given = options.get(name)
        if given is not None and (isinstance(given, jax.core.Tracer) or np.ndim(given) or given != own):
            raise ValueError(f"{name}={given!r}: pictures are inverted by ddim without guidance; leave {name} out")
    image = _images(spec, image, len(image) if cond is None else count(cond))
    plan, guidance = _source(spec, params, cond, image, options | {"steps": steps, "sampler": "ddim"})
    return _invert(spec, (plan, iterations), params, guidance, image)


@program
def _invert(spec, static, params, guidance, image):
    plan, iterations = static
    z, levels = encode(spec, plan, params, image), plan.grid
    x = editing.invert(denoiser(spec, plan, params, guidance), z, levels, iterations)
    return x / jnp.float32(plan.recipe.start_scale(levels[0]))


def edit(
    spec: Specification,
    params: PyTree,
    key: jax.Array,
    image: jax.Array,
    cond: PyTree,
    source: PyTree = None,
    *,
    method: str = "stochastic",
    strength: float = 0.7,
    iterations: int = 3,
    **options: Any,
) -> jax.Array:
    """Changes what `image` [B, H, W, 3] shows from `source` (default: the empty condition) to `cond`, keeping the rest: the
    noise that makes the image under `source` is found, and sampled under `cond`.

    method: "ddim" (deterministic inversion; `iterations` as for `invert`) or "stochastic" (edit-friendly DDPM inversion,
    Huberman-Spiegelglas et al. 2024, which comes back exactly). `strength`: the part of the steps that is undone.
    """
    if method not in INVERSIONS or options.get("sampler") is not None:
        raise ValueError(
            f"method={method!r}, sampler={options.get('sampler')!r}: edits are made by {' or '.join(INVERSIONS)} inversion, "
            "each with its own sampler"
        )
    check_count(iterations, "iterations")
    image = _images(spec, image, len(image) if cond is None else count(cond))
    options["sampler"] = INVERSIONS[method]
    plan, guidance = prepare(spec, params, cond, len(image), image.shape[1:-1], make_options(options), strength=strength)
    _, source = _source(spec, params, source, image, options)
    key = typed_key(key) if method == "stochastic" else None  # the other draws no noise
    return _edit(spec, (plan, method, iterations), params, key, guidance, source, image)


@program
def _edit(spec, static, params, key, guidance, source, image):
    plan, method, iterations = static
    denoise_source = denoiser(spec, plan, params, source)
    z, noise = encode(spec, plan, params, image), None
    if method == "ddim":
        x = editing.invert(denoise_source, z, plan.grid, iterations)
    else:
        x, noise = editing.invert_stochastic(denoise_source, z, plan.grid, keys_of(key, plan.shape[0])[1])
    return run(spec, plan, params, guidance, x, noise)


def _source(
    spec: Specification, params: PyTree, cond: PyTree, image: jax.Array, options: dict[str, Any]
) -> tuple[Plan, Guidance]:
    """For an inversion: no guidance, and the empty condition if none is given."""
    size = image.shape[1:-1]
    cond = spec.null(params, len(image), size) if cond is None else cond
    kept = {name: value for name, value in options.items() if name != "negative"} | {"guidance_scale": 1.0}
    return prepare(spec, params, cond, len(image), size, make_options(kept))


def _images(spec: Specification, images: jax.Array, num: int) -> jax.Array:
    """Checked, float32; values unless they are traced."""
    if spec.of_tokens:
        raise ValueError("this model draws sentences: it can't start from one, nor paint over its parts (docs/text.md: infill)")
    images, channels = images if isinstance(images, jax.Array) else np.asarray(images), spec.first_stage.image_channels
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    if images.ndim < 3 or images.shape[-1] != channels or len(images) != num or not images.size or not floating:
        raise ValueError(
            f"images of shape {tuple(images.shape)}, {images.dtype.name}, for {num} conditions: they must be float "
            f"[{num}, H, W, {channels}] in [-1, 1]"
        )
    check_range(images, "images")
    return _at_once(lambda images: jnp.asarray(images, jnp.float32), images)


def _at_once(function: Callable[[jax.Array], jax.Array], array: jax.Array) -> jax.Array:
    """`function` of an array that isn't traced itself, computed now, also in a function that JAX traces: its numbers may be
    looked at then."""
    if isinstance(array, jax.core.Tracer):
        return function(array)
    with jax.ensure_compile_time_eval():
        return function(array)
