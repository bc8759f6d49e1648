"""A model without its parameters: what a config describes, as pure functions of them. Compiled programs hold one of these, so a
model that is deleted leaves no parameters behind."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, diffusion, models
from ldm_jax.conditioning import Condition
from ldm_jax.conditioning.pictures import check_range
from ldm_jax.first_stage import FirstStage, draw, latents
from ldm_jax.primitives.arrays import typed_key

PyTree = Any


class Specification:
    """`params` is a plain dict {"first_stage", "network", "conditioner"} and always an argument. Images are float32
    [B, *size, 3] in [-1, 1]; latents [B, *space, C] are scaled to unit variance, by a number or one a channel."""

    def __init__(self, config: Mapping[str, Any], condition: Condition, scale: Any = 1.0, shift: Any = 0.0):
        self.config, self.condition = config, condition
        self.scale, self.shift = (np.asarray(value, np.float32) for value in (scale, shift))
        self._recipes: dict[Any, diffusion.Recipe] = {}
        self.control = build.make_control(config)  # the Linen module of a ControlNet, whose parameters are the part "control"

    @functools.cached_property
    def first_stage(self) -> FirstStage:
        """The autoencoder on raw latents: its functions, `factor` and `latent_shape`."""
        return build.make_first_stage(self.config)

    @functools.cached_property
    def network(self) -> Any:
        """The Linen module."""
        return build.make_network(self.config)

    @property
    def told_guidance(self) -> bool:
        """Whether the guidance scale is an input of the network, which then needs one evaluation a step."""
        return bool(getattr(self.network, "guidance_dim", 0))

    @property
    def image_size(self) -> tuple[int, ...]:
        """The spatial shape in pixels of training."""
        return build.image_size(self.config)

    def check_params(self, params: PyTree, *parts: str) -> None:
        """ValueError unless `params` is a dict with these parts."""
        if not isinstance(params, Mapping) or not {*parts} <= {*params}:
            what = f"a dict of {', '.join(map(str, params))}" if isinstance(params, Mapping) else f"a {type(params).__name__}"
            raise ValueError(f"params is {what}: give ldm.params, or a dict like it with {', '.join(parts) or 'its parts'}")

    def recipe(self, sampler: Any = None, grid: Any = None) -> diffusion.Recipe:
        """How to sample, by the config unless a sampler (a name or a `diffusion.Sampler`, see `build.make_recipe`) or a grid (a
        name, a function of the steps, or a `diffusion.Level`) says otherwise; a named grid ends clean. The same arguments give
        the same object: programs are compiled for it once."""
        asked = sampler, grid
        if isinstance(grid, diffusion.Level):  # arrays, which have no hash
            asked = sampler, tuple(np.asarray(x).tobytes() for x in (grid.t, grid.alpha, grid.sigma))
        if asked not in self._recipes:
            self._recipes[asked] = build.make_recipe(self.config, sampler, grid)
        return self._recipes[asked]

    def apply(
        self, params: PyTree, x: jax.Array, t: jax.Array, cond: PyTree = None, s: jax.Array | None = None
    ) -> jax.Array:
        """The raw network: x [B, *space, C] at times t [B] -> what config.diffusion.prediction says, [B, *space, C].
        `s` [B]: how far it is to step, in units of t, for networks that take that. One time or step is that of all."""
        t, s = (None if n is None else jnp.broadcast_to(jnp.asarray(n), x.shape[:1]) for n in (t, s))
        second = {} if s is None else {"s": s}
        if cond is not None and "hint" in cond:
            both = {name: params[name] for name in ("network", "control")}
            return models.Steered(self.network, self.control).apply({"params": both}, x, t, cond, **second)
        return self.network.apply({"params": params["network"]}, x, t, cond, **second)

    @property
    def of_tokens(self) -> bool:
        """Whether what is drawn are the numbers of tokens, a sentence, in place of numbers in [-1, 1]."""
        return hasattr(self.first_stage.module, "drawn")

    def encode(self, params: PyTree, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images -> scaled latents: the posterior's mean, or a draw from it if there is a key."""
        self.check_params(params, "first_stage")
        images = images if isinstance(images, jax.Array) else np.asarray(images)
        axes = len(self.image_size) + 2
        if images.ndim != axes or not images.size or not jnp.issubdtype(images.dtype, jnp.floating):
            kind = f"images of shape {images.shape}, {images.dtype.name}"
            raise ValueError(f"{kind}: they must be float [B, *space, C] in [-1, 1]")
        if self.of_tokens:
            check_tokens(images, self.first_stage.module.vocab_size)
        else:
            check_range(images, "images")
        key = None if key is None else typed_key(key)
        if key is not None and key.ndim:
            raise ValueError(f"{len(key)} keys for one call of encode: give one for all pictures")
        self.first_stage.latent_shape(*images.shape[1:-1])
        z = draw(self.first_stage.encode(params["first_stage"], images), key)
        return latents.scale_latents(z, self.scale, self.shift)

    def decode(self, params: PyTree, z: jax.Array) -> jax.Array:
        """Scaled latents -> images (not clipped)."""
        self.check_params(params, "first_stage")
        z = z if isinstance(z, jax.Array) else np.asarray(z, np.float32)
        if z.ndim != len(self.image_size) + 2 or not z.size:
            raise ValueError(f"latents of shape {z.shape}: they must be float [B, *space, {self.first_stage.channels}]")
        return self.first_stage.decode(params["first_stage"], latents.unscale_latents(z, self.scale, self.shift))

    def embed(self, params: PyTree, values: Sequence[Any] | PyTree) -> PyTree:
        """What a user gave, one entry a picture -> cond for `apply` and `sample`: prompts, in which "(word:1.3)" weighs a part;
        names or numbers of classes; what `describe` says. Arrays (tokens int32 [B, L], labels int32 [B]) and dicts of arrays
        are taken as they are, as the conditioner's inputs.

        Raises:
          ValueError: an unknown class or word, a prompt too long, or any value for an unconditional model.
        """
        self.check_params(params)
        if values is None or isinstance(values, Mapping) and not values:
            raise ValueError("embed was given no condition: one entry a picture")
        if isinstance(values, str) or isinstance(values, np.ndarray) and not values.ndim:
            raise ValueError(f"embed takes a list, one entry a picture: [{values!r}]")
        if isinstance(values, np.ndarray) and values.dtype.kind in "OSU":
            values = values.tolist()  # of texts
        arrays = isinstance(values, (jax.Array, np.ndarray, Mapping))
        values = values if arrays or isinstance(values, Sequence) else list(values)
        if not arrays and not len(values):
            raise ValueError("embed was given no condition: one entry a picture")
        inputs = values if arrays else self.condition.parse(values)
        if arrays:
            self.condition.check_inputs(inputs)
        return self._embed(params, jax.tree.map(jnp.asarray, inputs))

    @functools.partial(jax.jit, static_argnums=0)
    def _embed(self, params: PyTree, inputs: PyTree) -> PyTree:
        inputs = self.condition.encoded(inputs, lambda images: self.encode(params, images))
        return self.condition.apply(params.get("conditioner", {}), inputs)

    def null(self, params: PyTree, batch: int, size: tuple[int, ...] | None = None, like: PyTree = None) -> PyTree:
        """The empty condition, `batch` times, for pictures of `size` pixels; `like`: the cond that it stands against."""
        nulls = self.condition.nulls(batch, size, like)
        found = None if nulls is None else self._embed(params, jax.tree.map(jnp.asarray, nulls))
        return found if like is None else found | {name: like[name] for name in self.condition.kept}

    def denoiser(
        self,
        params: PyTree,
        cond: PyTree = None,
        guidance_scale: float | jax.Array | None = None,
        negative: PyTree = None,
        recipe: diffusion.Recipe | None = None,
        image_guidance_scale: float | jax.Array | None = None,
    ) -> diffusion.Denoiser:
        """(x [B, *space, C], level) -> Prediction(x0, eps). With a guidance scale (a number or [B]) the prediction is led from
        `negative` to `cond` by it, both in one call of the network. With an `image_guidance_scale` in two steps: by that to the
        picture of `cond` with the rest of `negative`, from there by the first (Brooks et al. 2023, eq. 3)."""
        recipe = recipe or self.recipe()
        return recipe.wrap(self._guided(params, cond, guidance_scale, negative, recipe, image_guidance_scale))

    def _guided(self, params, cond, guidance_scale, negative, recipe, image_guidance_scale=None) -> diffusion.Denoiser:
        def network(x, t, cond, *s):
            return self.apply(params, x, t, cond, *s)

        if cond is not None and negative is not None:  # a ControlNet steers both
            negative = {name: cond[name] for name in models.HINT if name in cond} | negative
        if self.told_guidance:
            scale = self.config["sampling"]["guidance_scale"] if guidance_scale is None else guidance_scale

            def told(x, t, *s):
                w = jnp.broadcast_to(jnp.asarray(scale, jnp.float32) - 1, x.shape[:1])
                return network(x, t, dict(cond or {}) | {"guidance": w}, *s)

            return diffusion.make_denoiser(told, recipe.prediction, recipe.input_scale)
        if guidance_scale is None or negative is None:
            return diffusion.make_denoiser(lambda x, t, *s: network(x, t, cond, *s), recipe.prediction, recipe.input_scale)
        if image_guidance_scale is not None:
            between = negative | {"concat": cond["concat"]}
            predictions = diffusion.together(network, recipe.prediction, [cond, between, negative], recipe.input_scale)
            return diffusion.guidance.composed(predictions, [guidance_scale, image_guidance_scale - guidance_scale])
        predictions = diffusion.together(network, recipe.prediction, [cond, negative], recipe.input_scale)
        return diffusion.classifier_free(predictions, guidance_scale)


def check_tokens(tokens: jax.Array, vocab_size: int) -> None:
    """ValueError unless the numbers of tokens are whole ones of the vocabulary. Traced ones pass unseen."""
    if not isinstance(tokens, jax.core.Tracer):
        tokens = np.asarray(tokens)
        if wrong := tokens[~((tokens >= 0) & (tokens < vocab_size) & (tokens == np.rint(tokens)))].ravel().tolist():
            raise ValueError(f"tokens: {wrong[0]:g} is none, they are whole numbers from 0 to {vocab_size - 1}")
