"""What research code calls: a latent diffusion model as pure functions of its parameters.

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
from ldm_jax.conditioning import Conditioning

PyTree = Any


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
    def _first_stage(self) -> build.FirstStage:
        return build.make_first_stage(self.config)

    @functools.cached_property
    def _network(self) -> Any:
        return build.make_network(self.config)

    def describe(self) -> str:
        """What the model is and what it can be given."""
        size, sampling = self.config["data"]["image_size"], self.config["sampling"]
        return (
            f"{self.config['name']}: {size} x {size} pixels, takes {self.conditioning.takes}; "
            f"{sampling['sampler']} in {sampling['steps']} steps, guidance scale {sampling['guidance_scale']:g}"
        )

    def embed(self, params: PyTree, values: Sequence[Any] | jax.Array) -> PyTree:
        """Prompts, class names or numbers, one a picture -> cond for `apply` and `sample`. Arrays (tokens int32 [B, L], labels
        int32 [B]) are taken as they are.

        Raises:
          ValueError: an unknown class or word, a prompt too long, or any value for an unconditional model.
        """
        inputs = values if isinstance(values, (jax.Array, np.ndarray)) else self.conditioning.parse(values)
        return self.conditioning.apply(params["conditioner"], jnp.asarray(inputs))

    def null(self, params: PyTree, batch: int) -> PyTree:
        """The empty condition, `batch` times."""
        return self.conditioning.apply(params["conditioner"], self.conditioning.nulls(batch))

    def encode(self, params: PyTree, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images -> scaled latents: the posterior's mean, or a draw from it if there is a key."""
        self._first_stage.latent_shape(*images.shape[1:3])
        encoded = self._first_stage.encode(params["first_stage"], images)
        if "moments" in encoded:
            z = latents.mode(encoded["moments"]) if key is None else latents.sample_posterior(encoded["moments"], key)
        else:
            z = encoded["latents"]
        return latents.scale_latents(z, self.latent_scale, self.latent_shift)

    def decode(self, params: PyTree, z: jax.Array) -> jax.Array:
        """Scaled latents -> images (not clipped)."""
        return self._first_stage.decode(params["first_stage"], latents.unscale_latents(z, self.latent_scale, self.latent_shift))

    def apply(self, params: PyTree, x: jax.Array, t: jax.Array, cond: PyTree = None) -> jax.Array:
        """The raw network: x [B, h, w, C] at times t [B] -> what config.diffusion.prediction says, [B, h, w, C]."""
        return self._network.apply({"params": params["network"]}, x, t, cond)

    def sample(
        self,
        params: PyTree,
        key: jax.Array,
        cond: PyTree = None,
        *,
        num: int | None = None,
        size: tuple[int, int] | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        grid: str | None = None,
        guidance_scale: float | jax.Array | None = None,
        negative: PyTree = None,
    ) -> jax.Array:
        """Draws images [B, H, W, 3] in [-1, 1]: start noise, the whole trajectory and the decoder in one compiled program.

        Args:
          key: a typed key. Image i depends on (key, i) alone, not on its neighbours in the batch.
          cond: from `embed`, one a picture; None where there is no condition, then `num` says how many.
          size: (height, width) in pixels; default the training size.
          sampler, steps, grid, guidance_scale: default as in config.sampling, or by the scheduler that a diffusers folder
            came with. Names and step counts are compiled in; the scale (a number or [B]) is traced, except that the number
            1.0 leaves the unconditional half out.
          negative: the condition to steer away from; default the empty one.

        Raises:
          ValueError: an unknown sampler or grid, steps < 1, a size that the first stage can't make, scales that don't fit.
        """
        defaults = self.config["sampling"]
        guidance_scale = defaults["guidance_scale"] if guidance_scale is None else guidance_scale
        guided = cond is not None and not (isinstance(guidance_scale, (int, float)) and guidance_scale == 1)
        if cond is None and self.conditioning.kind != "none":
            raise ValueError(f"this model takes {self.conditioning.takes}; give cond=ldm.embed(params, [...])")
        batch = num if cond is None else jax.tree.leaves(cond)[0].shape[0]
        if batch is None or batch < 1:
            raise ValueError(f"num={num}: say how many pictures to draw")
        if guided and negative is None:
            negative = self.null(params, batch)
        side = self.config["data"]["image_size"]
        return self._sample(
            params,
            key,
            cond,
            negative if guided else None,
            jnp.asarray(guidance_scale, jnp.float32) if guided else None,
            shape=(batch, *self._first_stage.latent_shape(*(size or (side, side)))),
            sampler=sampler,
            steps=defaults["steps"] if steps is None else steps,
            grid=grid,
        )

    @functools.partial(jax.jit, static_argnums=0, static_argnames=("shape", "sampler", "steps", "grid"))
    def _sample(self, params, key, cond, negative, scale, *, shape, sampler, steps, grid):
        recipe = build.make_recipe(self.config, sampler, grid)
        levels = recipe.grid(steps)

        def network(x, t, cond):
            return self.apply(params, x, t, cond)

        if negative is None:
            denoise = diffusion.make_denoiser(lambda x, t: network(x, t, cond), recipe.kind, recipe.input_scale)
        else:
            predictions = diffusion.guidance.together(network, recipe.kind, [cond, negative], recipe.input_scale)
            denoise = diffusion.guidance.classifier_free(predictions, scale)

        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(jnp.arange(shape[0]))
        x = diffusion.start(keys[:, 0], shape, levels)
        z = diffusion.sample(recipe.wrap(denoise), recipe.sampler(steps), x, levels, keys[:, 1])
        return jnp.clip(self.decode(params, z), -1.0, 1.0)
