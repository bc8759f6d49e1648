"""A latent diffusion model as pure functions of its parameters.

    ldm = ldm_jax.load("runs/shapes")
    cond = ldm.embed(ldm.params, ["a red circle"] * 4)
    images = ldm.sample(ldm.params, jax.random.key(0), cond, sampler="dpmpp_2m", steps=20, guidance_scale=3.0)
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, diffusion, latents
from ldm_jax.api import editing, prompts
from ldm_jax.api.process import check_told, decode, keys_of, prepare, process, program, start_scale
from ldm_jax.conditioning import Conditioning, encoded

PyTree = Any
# What can be done with a model, by its kind of condition; the others can do all of it.
ABILITIES = ("sample", "panorama", "image_to_image", "inpaint", "outpaint", "edit", "variation", "interpolate")
ABILITIES_BY_KIND = {
    "superres": ("upscale",),
    "inpaint": ("inpaint", "outpaint"),
    "none": tuple(name for name in ABILITIES if name != "edit"),  # which goes from one condition to another
}


@dataclasses.dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A model as functions; `params` is a plain dict {"first_stage", "network", "conditioner"} and always an argument, so that
    jit, grad and vmap see it. Images are float32 [B, H, W, 3] in [-1, 1]; latents are scaled to unit variance."""

    config: Mapping[str, Any]
    params: PyTree
    conditioning: Conditioning
    latent_scale: float = 1.0
    latent_shift: float = 0.0

    @functools.cached_property
    def schedule(self) -> Any:
        """t -> Level(t, alpha, sigma)."""
        return build.make_recipe(self.config).schedule

    @functools.cached_property
    def first_stage(self) -> build.FirstStage:
        """The autoencoder on raw latents: its functions, `factor` and `latent_shape`."""
        return build.make_first_stage(self.config)

    @functools.cached_property
    def _network(self) -> Any:
        return build.make_network(self.config)

    @property
    def abilities(self) -> tuple[str, ...]:
        """Names of the methods that make pictures with this model."""
        return ABILITIES_BY_KIND.get(self.conditioning.kind, ABILITIES)

    def describe(self) -> str:
        """What the model is, what it can be given, and which methods make pictures with it."""
        size, sampling = self.config["data"]["image_size"], self.config["sampling"]
        return (
            f"{self.config['name']}: {size} x {size} pixels, takes {self.conditioning.takes}; "
            f"{sampling['sampler']} in {sampling['steps']} steps, guidance scale {sampling['guidance_scale']:g}\n"
            f"can {', '.join(self.abilities)}"
        )

    def embed(self, params: PyTree, values: Sequence[Any] | PyTree) -> PyTree:
        """What a user gave, one entry a picture -> cond for `apply` and `sample`: prompts, in which "(word:1.3)" weighs a part;
        names or numbers of classes; what `describe` says. Arrays (tokens int32 [B, L], labels int32 [B]) and dicts of arrays
        are taken as they are, as the conditioner's inputs.

        Raises:
          ValueError: an unknown class or word, a prompt too long, or any value for an unconditional model.
        """
        weights = None
        if isinstance(values, (jax.Array, np.ndarray, Mapping)):
            inputs = values
        elif self.conditioning.tokenize is not None:
            values, weights = prompts.weighted(self.conditioning, values)
            inputs = self.conditioning.parse(values)
        else:
            inputs = self.conditioning.parse(values)
        return self._embed(params, jax.tree.map(jnp.asarray, inputs), weights)

    @functools.partial(jax.jit, static_argnums=0)
    def _embed(self, params: PyTree, inputs: PyTree, weights: jax.Array | None) -> PyTree:
        inputs = encoded(self.conditioning, inputs, lambda images: self.encode(params, images))
        cond = self.conditioning.apply(params["conditioner"], inputs)
        return cond if weights is None else cond | {"context": prompts.weigh(cond["context"], weights)}

    def null(self, params: PyTree, batch: int, size: tuple[int, int] | None = None) -> PyTree:
        """The empty condition, `batch` times; where conditions are pictures, for ones of `size` pixels, by default the training
        size."""
        nulls = self.conditioning.nulls(batch, size)
        return None if nulls is None else self._embed(params, nulls, None)

    def encode(self, params: PyTree, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images -> scaled latents: the posterior's mean, or a draw from it if there is a key."""
        self.first_stage.latent_shape(*images.shape[1:3])
        encoded = self.first_stage.encode(params["first_stage"], images)
        if "moments" in encoded:
            z = latents.mode(encoded["moments"]) if key is None else latents.sample_posterior(encoded["moments"], key)
        else:
            z = encoded["latents"]
        return latents.scale_latents(z, self.latent_scale, self.latent_shift)

    def decode(self, params: PyTree, z: jax.Array) -> jax.Array:
        """Scaled latents -> images (not clipped)."""
        return self.first_stage.decode(params["first_stage"], latents.unscale_latents(z, self.latent_scale, self.latent_shift))

    def apply(self, params: PyTree, x: jax.Array, t: jax.Array, cond: PyTree = None) -> jax.Array:
        """The raw network: x [B, h, w, C] at times t [B] -> what config.diffusion.prediction says, [B, h, w, C]."""
        return self._network.apply({"params": params["network"]}, x, t, cond)

    def noise(self, key: jax.Array, num: int, size: tuple[int, int] | None = None) -> jax.Array:
        """The unit noise [num, h, w, C] that `sample` starts from with this key."""
        side = self.config["data"]["image_size"]
        shape = self.first_stage.latent_shape(*(size or (side, side)))
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys_of(key, num)[0])

    def sample(
        self,
        params: PyTree,
        key: jax.Array,
        cond: PyTree = None,
        *,
        num: int | None = None,
        size: tuple[int, int] | None = None,
        noise: jax.Array | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        grid: str | None = None,
        guidance_scale: float | jax.Array | None = None,
        negative: PyTree = None,
        tile: int | None = None,
        overlap: int | None = None,
        wrap: bool = False,
    ) -> jax.Array:
        """Draws images [B, H, W, 3] in [-1, 1]: start noise, the whole trajectory and the decoder in one compiled program.

        Args:
          key: a typed key. Image i depends on (key, i) alone, not on its neighbours in the batch.
          cond: from `embed`, one a picture; None where there is no condition, then `num` says how many.
          size: (height, width) in pixels; default that of a condition which is a picture, or the training size.
          noise: unit noise [B, h, w, C] to start from instead of the key's, as `noise` and `invert` give it.
          sampler, steps, grid, guidance_scale: default as in config.sampling, or by the scheduler that a diffusers folder
            came with. Names and step counts are compiled in; the scale (a number or [B]) is traced, except that the number
            1.0 leaves the unconditional half out.
          negative: the condition to steer away from; default the empty one.
          tile, overlap, wrap: the canvas is denoised on windows of `tile` pixels that overlap by `overlap` (default half a
            tile) and agree there, and decoded in tiles; memory grows with the window. `wrap` closes it horizontally.

        Raises:
          ValueError: an unknown sampler or grid, steps < 1, a size that the first stage can't make, scales that don't fit.
        """
        check_told(self, cond)
        num = editing.count(cond, num)
        if noise is not None:
            factor = self.first_stage.factor
            if noise.shape[0] != num or (size or (0, 0)) not in ((0, 0), (noise.shape[1] * factor, noise.shape[2] * factor)):
                raise ValueError(f"noise of shape {noise.shape} for {num} pictures of size {size}")
            size = (noise.shape[1] * factor, noise.shape[2] * factor)
        plan, told = prepare(
            self, params, cond, num, size or editing.canvas(self, cond), sampler=sampler, steps=steps, grid=grid,
            guidance_scale=guidance_scale, negative=negative, tile=tile, overlap=overlap, wrap=wrap,
        )  # fmt: skip
        return draw(self, plan, params, key, told, noise)

    panorama = editing.panorama
    upscale = editing.upscale
    image_to_image = editing.image_to_image
    inpaint = editing.inpaint
    outpaint = editing.outpaint
    invert = editing.invert
    edit = editing.edit
    variation = editing.variation
    interpolate = editing.interpolate


@program
def draw(ldm, plan, params, key, told, noise):
    """`LatentDiffusion.sample`, compiled."""
    denoise, sampler, levels = process(ldm, plan, params, told)
    start, steps = keys_of(key, plan.shape[0])
    x = diffusion.start(start if noise is None else noise, plan.shape, levels, start_scale(ldm, plan))
    return decode(ldm, plan, params, diffusion.sample(denoise, sampler, x, levels, steps))
