"""From a path to a model: working directories of `train.py`, checkpoints of the world, names on the hub."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, checkpoints, weights
from ldm_jax.api.model import LatentDiffusion
from ldm_jax.conditioning import Conditioning
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.data.tokenizer import load_tokenizer
from ldm_jax.training.checkpoint import load_averaged

PyTree = Any


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
    params = {"first_stage": load_first_stage(config, workdir), "conditioner": load_conditioner(config), **params}
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
        params = params.get("autoencoder", params)  # the first working directories held it alone
    elif path == workdir:
        raise FileNotFoundError(f"{workdir}: its first stage has not been trained yet; list 'first_stage' in config.stages")
    else:
        params = weights.read(path).params.get("first_stage", {})
    return _checked(params, stage.init, "first stage", path)


def load_conditioner(config: Mapping[str, Any]) -> PyTree:
    """The parameters of a conditioner that is not trained here: CLIP's text encoder, from config.conditioner.path, a
    checkpoint of the world. {} for the others.

    Raises ValueError if they don't belong to the encoder of `config`."""
    section = config["conditioner"]
    if section["kind"] != "clip_text":
        return {}
    params = weights.read(section["path"]).params.get("conditioner", {})
    return _checked(params, build.make_conditioning(config).init, "conditioner", section["path"])


def _checked(params: PyTree, init: Callable[[jax.Array], PyTree], part: str, path: Any) -> PyTree:
    """The parameters as float32 on the default device; ValueError if they are not shaped as those of `init`."""
    expected = jax.eval_shape(init, jax.random.key(0))
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        raise ValueError(f"the {part} in {path} is not the one that config.{part.replace(' ', '_')} describes")
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, np.float32)), params)


def load_conditioning(config: Mapping[str, Any], workdir: Path) -> Conditioning:
    """The conditioning with the tokenizer and the class names of the working directory."""
    section, tokenizer = config["conditioner"], None
    if section["kind"] == "text":
        tokenizer = load_tokenizer(workdir / "tokenizer.json")
    elif section["kind"] == "clip_text":
        tokenizer = checkpoint_tokenizers.load(section["tokenizer"], section.get("pad_token_id"))
    classes = workdir / "classes.json"
    names = json.loads(classes.read_text()) if classes.is_file() else None
    return build.make_conditioning(config, names, tokenizer)
