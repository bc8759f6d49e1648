"""A latent diffusion model as pure functions of its parameters.

ldm = ldm_jax.load("runs/shapes")
cond = ldm.embed(ldm.params, ["a red circle"] * 4)
images = ldm.sample(ldm.params, jax.random.key(0), cond, sampler="dpmpp_2m", steps=20, guidance_scale=3.0)
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from ldm_jax import build, diffusion
from ldm_jax.api import adapters, control, drawing, editing, embeddings
from ldm_jax.api.sampling import canvas
from ldm_jax.api.specification import Specification
from ldm_jax.conditioning import Condition
from ldm_jax.first_stage import FirstStage
from ldm_jax.primitives.explicit import automatic

PyTree = Any


def _method(function: Callable) -> Callable:
    """A function of (spec, ...) as a method of the model, with its documentation."""

    @functools.wraps(function)
    def method(self, *arguments, **options):
        return function(self.specification, *arguments, **options)

    own, *others = inspect.signature(function).parameters.values()
    method.__signature__ = inspect.Signature([own.replace(name="self", annotation=own.empty), *others])
    return automatic(method)


_null = automatic(Specification.null)


@automatic
def _denoise(spec, params, cond, guidance_scale, negative, x, level):
    return spec.denoiser(params, cond, guidance_scale, negative)(x, level)


@dataclasses.dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A model as functions; `params` is a plain dict {"first_stage", "network", "conditioner"} and always an argument, so that
    jit, grad and vmap see it. Images are float32 [B, H, W, 3] in [-1, 1]; latents [B, h, w, C] are scaled to unit variance.
    Films, volumes and sounds have as many axes of space as they have.

    sample, trajectory, image_to_image, inpaint, outpaint, upscale, edit, invert, variation, interpolate, panorama are functions
    of `ldm_jax.api.drawing` and `ldm_jax.api.editing`; all take `ldm_jax.api.sampling.Options` (sampler, steps, grid,
    guidance_scale, negative, tile, ...), and end in a ValueError for what can't work, before anything compiles.

    Attributes:
      specification: all of the model but its arrays; what is compiled in.
      params: the arrays. Others of the same shapes (a training's, a LoRA's) compile nothing.
    """

    specification: Specification
    params: PyTree

    @property
    def config(self) -> Mapping[str, Any]:
        """What the model was made from."""
        return self.specification.config

    @property
    def condition(self) -> Condition:
        """How it is told what to draw: its `kind`, and what it `takes` in words."""
        return self.specification.condition

    @property
    def schedule(self) -> diffusion.Schedule:
        """t -> Level(t, alpha, sigma); see `diffusion.Schedule`."""
        return self.specification.recipe().schedule

    @property
    def first_stage(self) -> FirstStage:
        """The autoencoder on raw latents: its functions, `factor` and `latent_shape`."""
        return self.specification.first_stage

    @property
    def abilities(self) -> tuple[str, ...]:
        """Names of the methods that make sense with this model, which `sample.py` and the page offer. Of the others those raise
        ValueError whose arguments can't be told from its condition."""
        among = build.make_medium(self.config).abilities
        return tuple(name for name in self.condition.abilities if among is None or name in among)

    def describe(self) -> str:
        """What the model is, what it can be given, and which methods make pictures with it."""
        size, sampling = " x ".join(map(str, self.specification.image_size)), self.config["sampling"]
        return (
            f"{self.config['name']}: {size} {build.make_medium(self.config).unit}, takes {self.condition.takes}; "
            f"{sampling['sampler']} in {sampling['steps']} steps, guidance scale {sampling['guidance_scale']:g}\n"
            f"{self._trained_for()}"
            f"can {', '.join(self.abilities)}"
        )

    def _trained_for(self) -> str:
        """A line on the objective of few steps that the model was trained by; nothing for the diffusion loss."""
        section, kind = self.config.get("diffusion", {}), build.few_steps_kind(self.config)
        if kind is None:
            return ""
        options = section.get("options", {})
        steps = f"{options['student_steps']}" if "student_steps" in options else "1 to 4"
        led = options.get("guidance_scale", 1.0)
        return (
            f"trained for {steps} steps of {kind.sampler} by {section['objective']}: it predicts {kind.learns}"
            + (f", led by guidance scale {led:g} inside: draw with 1" if led != 1 else "")
            + "\n"
        )

    @automatic
    def embed(self, params: PyTree, values: Sequence[Any] | PyTree) -> PyTree:
        """What a user gave, a list with one entry a picture -> cond for `apply` and `sample`, a dict of arrays [B, ...].

        Entries are prompts, in which "(word:1.3)" weighs a part; names or numbers of classes; else what `describe` says. Arrays
        (tokens int32 [B, L], labels int32 [B]) and dicts of arrays are taken as they are, as the conditioner's inputs.

        Raises:
          ValueError: a bare string, an empty list, an unknown class or word, a prompt too long, or any value for an
            unconditional model.
        """
        return self.specification.embed(params, values)

    @automatic
    def null(self, params: PyTree, batch: int, size: tuple[int, ...] | None = None) -> PyTree:
        """The empty condition, `batch` times; where conditions are pictures, for ones of `size` pixels, by default the training
        size."""
        return self.specification.null(params, batch, size)

    @automatic
    def encode(self, params: PyTree, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images float [B, H, W, 3] in [-1, 1] -> scaled latents float32 [B, h, w, C]: the posterior's mean, or a draw from it
        if there is a key. ValueError unless sides are multiples of `first_stage.factor`."""
        return self.specification.encode(params, images, key)

    @automatic
    def decode(self, params: PyTree, z: jax.Array) -> jax.Array:
        """Scaled latents [B, h, w, C] -> images [B, H, W, 3], in [-1, 1] up to what the decoder overshoots: not clipped."""
        return self.specification.decode(params, z)

    @automatic
    def apply(
        self, params: PyTree, x: jax.Array, t: jax.Array, cond: PyTree = None, s: jax.Array | None = None
    ) -> jax.Array:
        """The raw network: x [B, h, w, C] at times t [B] -> what config.diffusion.prediction says, [B, h, w, C].
        `s` [B]: how far it is to step, in units of t, for networks that take that. One time or step is that of all."""
        return self.specification.apply(params, x, t, cond, s)

    def denoiser(
        self,
        params: PyTree,
        cond: PyTree = None,
        guidance_scale: float | jax.Array | None = None,
        negative: PyTree = None,
    ) -> diffusion.Denoiser:
        """(x [B, h, w, C], level) -> Prediction(x0, eps): what samplers of `ldm_jax.diffusion` take, and what to wrap. With a
        guidance scale (a number or [B]) it is led away from `negative`, by default the empty condition."""
        if guidance_scale is not None and negative is None and not self.specification.told_guidance:
            leaves = jax.tree.leaves(cond)
            size = canvas(self.specification, cond)
            negative = _null(self.specification, params, leaves[0].shape[0] if leaves else 1, size, cond)
        return functools.partial(_denoise, self.specification, params, cond, guidance_scale, negative)

    @automatic
    def noise(self, key: jax.Array, num: int, size: tuple[int, ...] | None = None) -> jax.Array:
        """The unit noise [num, h, w, C] that `sample` starts from with this key, for pictures of `size` pixels, by default the
        training size."""
        return drawing.unit_noise(self.specification, key, num, size)

    def read_lora(self, path: Any) -> PyTree:
        """The factors in a LoRA file or folder (peft, diffusers, kohya), float32, for `apply_lora` and `with_lora`:
        {"network": ..., "conditioner": ...}. ValueError if the file is no LoRA, or one for another model."""
        return adapters.read_lora(self.specification, path)

    def with_lora(self, lora: Any, scale: Any = 1.0) -> "LatentDiffusion":
        """This model with LoRAs merged into its parameters: a file or folder (peft, diffusers, kohya), factors from
        `read_lora`, or a list of these; `scale` is one number, or a list of one each. The compiled programs are shared."""
        return dataclasses.replace(self, params=adapters.with_lora(self.specification, self.params, lora, scale))

    def with_control(self, path: Any) -> "LatentDiffusion":
        """This model with a ControlNet, of a diffusers folder or a single file, whose parameters are the part "control".
        ValueError if it is for another network, or this model has one already."""
        return LatentDiffusion(*control.with_control(self.specification, self.params, path))

    def with_embedding(self, path: Any, token: str | None = None) -> "LatentDiffusion":
        """This model with a further word, of a file of textual inversion: the one that the file names, or `token`. ValueError
        for a model that is not told prompts through CLIP, or with a table of another width."""
        return LatentDiffusion(*embeddings.with_embedding(self.specification, self.params, path, token))

    control = _method(control.control)

    def save_lora(self, lora: PyTree, path: Any) -> None:
        """Writes factors as diffusers' `load_lora_weights` takes them: a folder, or a file that ends with .safetensors.
        ValueError if it exists."""
        adapters.save_lora(self.specification, lora, path)

    sample = _method(drawing.sample)
    trajectory = _method(drawing.trajectory)
    panorama = _method(drawing.panorama)
    upscale = _method(drawing.upscale)
    image_to_image = _method(editing.image_to_image)
    inpaint = _method(editing.inpaint)
    outpaint = _method(editing.outpaint)
    invert = _method(editing.invert)
    edit = _method(editing.edit)
    variation = _method(drawing.variation)
    interpolate = _method(drawing.interpolate)
