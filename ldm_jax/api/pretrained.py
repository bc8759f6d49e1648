"""Checkpoints of the world, whole: from a file or folder to a config, parameters and conditioning, and back."""

import copy
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, weights
from ldm_jax.api.specification import Specification
from ldm_jax.conditioning import Condition, kind_of
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.data.tokenizer import Tokenizer, Tokenizers
from ldm_jax.primitives.choices import choose
from ldm_jax.primitives.files import models_near, of_this_machine
from ldm_jax.weights import towers

PyTree = Any
PARTS = ("network", "first_stage", "conditioner", "diffusion", "scheduler", "sampling")
READERS = 4  # more than one, for a copy waits for memory; few, for each holds a leaf besides what is on the device
TEXT = ("text", "clip_text", "sdxl", "sd3")


def load(
    path: Path,
    *,
    ema: bool,
    config: str | Path | None,
    dtype: Any = None,
    prediction: str | None = None,
    tokenizer_path: str | Path | None = None,
) -> tuple[Specification, PyTree]:
    """A whole model: its specification and parameters, float32 or `dtype`. Of a first stage alone the same, its specification
    without a condition."""
    checkpoint = weights.read(path, ema=ema, config=config, prediction=prediction)
    description = checkpoint.description
    if "first_stage" in description and "network" not in description:
        return _first_stage_alone(path, checkpoint, dtype)
    if missing := [part for part in ("network", "first_stage", "diffusion") if part not in description]:
        near = models_near(path if path.is_dir() else path.parent)
        said = f"{path} holds {', '.join(description)} but no {' and no '.join(missing)}: not a whole model"
        raise ValueError(f"{said}{near and '. '}{near}")
    complete = completed(description, path.stem)
    tokenizer, text = None, text_section(complete["conditioner"])
    if tokenizer_path is not None:
        text = {} if text is None else text
        at = of_this_machine(tokenizer_path, "tokenizer")
        places = [_own_tokenizer(at, tower) for tower in text.get("towers", ("text_encoder",))]
        if not text or not all(map(checkpoint_tokenizers.found_in, places)):
            why = "there is no tokenizer" if text else "this model reads no text"
            raise ValueError(f"tokenizer={str(tokenizer_path)!r}: {why}")
        text["tokenizer"] = [str(place) for place in places] if "towers" in text else str(places[0])
    if text is not None:
        tokenizer = find_tokenizer(path, text)
    if dtype is not None:
        complete["dtype"] = np.dtype(dtype).name
    condition = build.make_condition(complete, complete["conditioner"].get("class_names"), tokenizer)
    init = build.make_diffusion_init(complete, condition)
    expected = jax.eval_shape(
        lambda key: {"first_stage": build.make_first_stage(complete).init(key), **init(key)}, jax.random.key(0)
    )
    params = {name: checkpoint.params.get(name, {}) for name in expected}
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        raise ValueError(f"{path}: its arrays don't have the shapes that its configuration describes")
    stage_dtype = np.float32 if dtype is None else build.first_stage_dtype(complete)
    params = {
        name: on_device(part, stage_dtype if name == "first_stage" else dtype or np.float32) for name, part in params.items()
    }
    latents = description.get("latents", {})
    return Specification(complete, condition, latents.get("scale", 1.0), latents.get("shift", 0.0)), params


def on_device(params: PyTree, dtype: Any) -> PyTree:
    """Leaves that may still be in their files, on the default device, each in `dtype` from the start; at most `READERS` at a
    time."""
    leaves, structure = jax.tree.flatten(params)
    device = jax.config.jax_default_device  # of this thread

    def put(leaf: Any) -> jax.Array:
        with jax.default_device(device):
            return jax.device_put(np.asarray(leaf, dtype))

    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as readers:  # copies hold no lock
        return structure.unflatten(readers.map(put, leaves))


def _first_stage_alone(path: Path, checkpoint: weights.Checkpoint, dtype: Any) -> tuple[Specification, PyTree]:
    section, latents = checkpoint.description["first_stage"], checkpoint.description.get("latents", {})
    config = {"name": path.stem, "data": {"image_size": section.get("resolution", 256)}, "first_stage": dict(section)}
    if dtype is not None:
        config["dtype"] = np.dtype(dtype).name
    expected = jax.eval_shape(build.make_first_stage(config).init, jax.random.key(0))
    params = checkpoint.params["first_stage"]
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        raise ValueError(f"{path}: its arrays don't have the shapes that its configuration describes")
    params = on_device(params, np.float32 if dtype is None else build.first_stage_dtype(config))
    specification = Specification(config, None, latents.get("scale", 1.0), latents.get("shift", 0.0))
    return specification, {"first_stage": params}


def completed(description: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A checkpoint's description with what sampling needs besides: what the scheduler in its folder says, or CompVis's 50
    steps of DDIM."""
    parts = {part: dict(fields) for part, fields in description.items()}
    conditioner = parts.setdefault("conditioner", {"kind": "none"})
    sections = conditioner.get("parts", {"": conditioner}).values()
    scale = max(kind_of(section).guidance_scale for section in sections)  # of the published models' own scripts
    if conditioner["kind"] == "class" and conditioner.get("null_label", 0) < 0:
        scale = 1.0
    sampling = {"sampler": "ddim", "grid": "leading", "end": "first", "steps": 50, "guidance_scale": scale}
    if "scheduler" in parts:
        sampling = {"sampler": parts["scheduler"]["_class_name"], "steps": 50, "guidance_scale": scale}
    data = {"image_size": trained_size(parts)}
    return {"name": name, "data": data, "sampling": sampling, **parts}


def trained_size(parts: Mapping[str, Any]) -> int | tuple[int, ...]:
    """In pixels, what the network was trained for, where the checkpoint says it; else what the first stage was."""
    size, stage = parts.get("latents", {}).get("size"), parts["first_stage"]
    if size is None:
        return stage.get("resolution", 256)
    sides = tuple(side * weights.latent_factor(stage) for side in size)
    return sides[0] if len(set(sides)) == 1 else sides


def text_section(conditioner: dict[str, Any]) -> dict[str, Any] | None:
    """What has a tokenizer: the section itself, or one of its parts; None if there is none."""
    sections = conditioner["parts"].values() if conditioner["kind"] == "combined" else [conditioner]
    return next((section for section in sections if section["kind"] in TEXT), None)


def find_tokenizer(path: Path, conditioner: dict[str, Any]) -> Tokenizer | Tokenizers | None:
    """The tokenizer that the description names, or of the folder `tokenizer` in the model's folder, or of the folder itself;
    None if there is none of the model's kind. Of models with several towers one for each, which a tower alike may share. Writes
    into `conditioner` where it was."""
    folder = path if path.is_dir() else path.parent
    if "towers" in conditioner:
        return find_tokenizers(folder, conditioner)
    named = [Path(conditioner["tokenizer"])] if conditioner.get("tokenizer") else []
    for place in (*named, *(folder / name for name in named), folder / "tokenizer", folder):
        if not checkpoint_tokenizers.found_in(place):
            continue
        tokenizer = checkpoint_tokenizers.load(place, conditioner.get("pad_token_id"))
        if tokenizer.is_clip == (conditioner["kind"] == "clip_text") and not tokenizer.is_t5:
            conditioner["tokenizer"] = str(place.absolute())
            return tokenizer
    conditioner.pop("tokenizer", None)
    return None


def _named(tower: str) -> str:
    """What a tower's tokenizer is called: `tokenizer`, `tokenizer_2`, ..."""
    return tower.replace("text_encoder", "tokenizer")


def _own_tokenizer(folder: Path, tower: str) -> Path:
    """A tower's in `folder`, or `folder` itself, which all share."""
    own = folder / _named(tower)
    return own if checkpoint_tokenizers.found_in(own) else folder


def find_tokenizers(folder: Path, conditioner: dict[str, Any]) -> Tokenizers | None:
    """One for each tower, T5's or CLIP's: where the description says, or in `tokenizer`, `tokenizer_2`, ..., or the one that
    there is, whose rows the second tower has filled up otherwise."""
    names, found = conditioner.pop("tokenizer", None), []
    for i, (tower, fields) in enumerate(conditioner["towers"].items()):
        own = [Path(names[i])] if names else []
        for place in (*own, folder / _named(tower), folder / "tokenizer", folder):
            if not checkpoint_tokenizers.found_in(place):
                continue
            if tower == towers.TOWERS[1] and str(place.absolute()) in (other for other, _ in found):
                fields.setdefault("pad_token_id", towers.OPENCLIP_PAD)
            tokenizer = checkpoint_tokenizers.load(place, fields.get("pad_token_id"))
            if tokenizer.is_t5 if "d_model" in fields else tokenizer.is_clip:
                found.append((str(place.absolute()), tokenizer))
                break
    if len(found) < len(conditioner["towers"]):
        return None
    conditioner["tokenizer"] = [place for place, _ in found]
    return Tokenizers(tuple(tokenizer for _, tokenizer in found))


def copied_tokenizers(section: Mapping[str, Any], folder: Path) -> str | list[str]:
    """Copies the tokenizer's files of a section into `folder`, or those of each of its towers; returns where they are."""
    if "towers" not in section:
        return str(checkpoint_tokenizers.copy(section["tokenizer"], folder / "tokenizer", section.get("pad_token_id")))
    return [
        str(checkpoint_tokenizers.copy(path, folder / _named(name), fields.get("pad_token_id")))
        for path, (name, fields) in zip(section["tokenizer"], section["towers"].items())
    ]


def _check_expressible(config: Mapping, format: str) -> None:
    """ValueError for networks of other than two axes, with other windows, with shortcuts or a convolution over words: the
    formats have no word for them."""
    usual = {"dims": (2,), "kernel_size": (3, (3, 3)), "strides": ((), (2, 2)), "factorised_attention": (False,)}
    usual |= {"shortcuts": (False,), "context_waves": (0,)}
    blocks = config.get("first_stage", {}).get("num_res_blocks", 1)
    if isinstance(blocks, (list, tuple)):
        raise ValueError(f"config.first_stage.num_res_blocks={tuple(blocks)}: files of {format} know one number for all levels")
    for part in ("first_stage", "network"):
        for name, values in usual.items():
            value = config.get(part, {}).get(name, values[0])
            if (tuple(value) if isinstance(value, (list, tuple)) else value) not in values:
                raise ValueError(f"config.{part}.{name}={value}: files of {format} hold no such model; keep the workdir")
    conditioner = config.get("conditioner", {})
    sections = {"": conditioner} | {f"parts.{name}.": part for name, part in conditioner.get("parts", {}).items()}
    for at, section in sections.items():
        if value := section.get("conv_kernel", 0):
            field = f"config.conditioner.{at}conv_kernel"
            raise ValueError(f"{field}={value}: files of {format} hold no such model; keep the workdir")


def save(
    path: str | Path, format: str, config: Mapping, params: PyTree, scale: float, shift: float, condition: Condition | None
) -> None:
    """Writes the model of `config` to `path`, or its first stage alone where there is no condition. All of it is made beside
    `path` first, so that there is never half a model."""
    path = Path(path)
    writers = {"diffusers": weights.write_diffusers, "compvis": weights.write_compvis}
    write = choose(writers, format, "format")
    if format == "compvis" and path.suffix != ".ckpt":
        raise ValueError(f"path={str(path)!r}: CompVis's files are named .ckpt")
    if path.exists():
        raise ValueError(f"{path} exists already; save somewhere else")
    _check_expressible(config, format)
    if condition is not None and (words := getattr(condition.setting.tokenizer, "added", ())):
        raise ValueError(f"a model with learnt words ({', '.join(words)}) can't be written: save it without, they have files")
    description = {part: copy.deepcopy(dict(config[part])) for part in PARTS if part in config}
    size = tuple(side // weights.latent_factor(config["first_stage"]) for side in build.image_size(config))
    description["latents"] = {"scale": scale, "shift": shift, "size": size}
    conditioner = description.get("conditioner", {"kind": "none"})
    if condition is not None and (names := condition.setting.class_names):
        conditioner["class_names"] = dict(names) if isinstance(names, Mapping) else list(names)
    text = text_section(conditioner)
    tokenizer = None if text is None else text.get("tokenizer")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        if tokenizer:
            text["tokenizer"] = copied_tokenizers(text, made if format == "compvis" else Path(scratch))
        write(made / path.name, description, params)
        files = sorted(made.iterdir())
        if taken := [str(path.parent / file.name) for file in files if (path.parent / file.name).exists()]:
            raise ValueError(f"{', '.join(taken)} exists already; save somewhere else")
        for file in files:
            os.rename(file, path.parent / file.name)
