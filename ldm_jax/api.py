"""What research code calls: a latent diffusion model as pure functions of its parameters.

    ldm = ldm_jax.load("runs/shapes")
    cond = ldm.embed(ldm.params, ["a red circle"] * 4)
    images = ldm.sample(ldm.params, jax.random.key(0), cond, sampler="dpmpp_2m", steps=20, guidance_scale=3.0)
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, checkpoints, diffusion, latents, weights
from ldm_jax.conditioning import Conditioning
from ldm_jax.data.tokenizer import load_tokenizer
from ldm_jax.training.checkpoint import load_averaged

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


def load(path: str | Path, *, ema: bool = True, config: str | Path | None = None) -> LatentDiffusion:
    """A model from a working directory of `train.py`, or from a checkpoint of the world: a diffusers pipeline folder, or a
    CompVis .ckpt or .safetensors file with its YAML beside it (or at `config`); or, where the package huggingface_hub is
    installed, the name of a repository of such a folder, "owner/name". Weights are put on the default device.

    Args:
      ema: for a CompVis file that holds both, whether to take the averaged weights.

    Raises:
      FileNotFoundError: nothing there, or no stage of it has been trained yet.
      ValueError: a file that can't be read, is not a whole model, or names code to run.
    """
    path = Path(path) if Path(path).exists() else fetch(str(path))
    if (path / "config.json").is_file() and (path / "versions.json").is_file():
        return load_workdir(path)
    return LatentDiffusion(*checkpoints.load(path, ema=ema, config=config))


def fetch(name: str) -> Path:
    """A local copy of the repository "owner/name" of the Hugging Face hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{name} does not exist")
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(f"{name} does not exist here; to fetch it from the hub: pip install huggingface_hub") from None
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.bin"]))


def save(ldm: LatentDiffusion, path: str | Path, format: str = "diffusers") -> None:
    """Writes a model for other programs: a diffusers pipeline folder, or (`format="compvis"`) a .ckpt with its YAML beside
    it. `load` takes both back. The tokenizer is copied; how many steps to sample with and names of classes are not kept.

    Raises ValueError if there is something at `path`, or the format can't express the model.
    """
    checkpoints.save(path, format, ldm.config, ldm.params, ldm.latent_scale, ldm.latent_shift)


def load_workdir(workdir: Path) -> LatentDiffusion:
    """The averaged weights of a working directory, with the scale, tokenizer and class names saved beside them."""
    config = json.loads((workdir / "config.json").read_text())
    checkpoints = workdir / "diffusion" / "checkpoints"
    if not checkpoints.is_dir():
        raise FileNotFoundError(f"{workdir}: its diffusion model has not been trained yet; run train.py --workdir {workdir}")
    params = load_averaged(checkpoints)
    params = {"first_stage": load_first_stage(config, workdir), "conditioner": {}, **params}
    scale = json.loads((workdir / "latents.json").read_text())
    if config["conditioner"]["kind"] == "text":
        config["conditioner"]["tokenizer"] = str(workdir.absolute() / "tokenizer.json")
    return LatentDiffusion(config, params, load_conditioning(config, workdir), scale["scale"], scale["shift"])


def load_first_stage(config: Mapping[str, Any], workdir: Path) -> PyTree:
    """The first stage's parameters: trained in this working directory, or those of config.first_stage.path, which is another
    working directory or a checkpoint of the world (diffusers folder, CompVis file).

    Raises ValueError if they don't belong to the autoencoder of `config`."""
    stage = build.make_first_stage(config)
    if stage.module is None:
        return {}
    path = Path(config["first_stage"]["path"] or workdir)
    if (path / "first_stage" / "checkpoints").is_dir():
        params = load_averaged(path / "first_stage" / "checkpoints")
    elif path == workdir:
        raise FileNotFoundError(f"{workdir}: its first stage has not been trained yet; list 'first_stage' in config.stages")
    else:
        params = weights.read(path).params.get("first_stage", {})
        params = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, np.float32)), params)
    expected = jax.eval_shape(stage.init, jax.random.key(0))
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        raise ValueError(f"the first stage in {path} is not the one that config.first_stage describes")
    return params


def load_conditioning(config: Mapping[str, Any], workdir: Path) -> Conditioning:
    """The conditioning with the tokenizer and the class names of the working directory."""
    kind = config["conditioner"]["kind"]
    tokenizer = load_tokenizer(workdir / "tokenizer.json") if kind == "text" else None
    names = json.loads((workdir / "classes.json").read_text()) if kind in ("class", "label") else None
    return build.make_conditioning(config, names, tokenizer)
