"""Reading a checkpoint of the world into our description and parameters.

    checkpoint = read("sd-v1-4.ckpt", config="v1-inference.yaml")
    checkpoint.description   {"network": {...}, "first_stage": {...}, "conditioner": ..., "diffusion": ..., "latents": ...}
    checkpoint.params        {"network": tree, "first_stage": tree, "conditioner": tree}, leaves still on disk (`Stored`)

Accepted: a diffusers pipeline folder or one of its model folders (safetensors, sharded, bin, flax msgpack); a CompVis
checkpoint (.ckpt, .pt, .pth, .bin, .safetensors) with its YAML, or without where it is a model that is known by its tensors
(`descriptions.published`), whole or a first stage alone; a folder with the two; what `write_params` wrote.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from ldm_jax.primitives.files import models_near, of_this_machine
from ldm_jax.weights import compvis_files, diffusers_files, files, naming, safetensors_files

_FOLDERS = ("model_index.json", "config.json")  # of diffusers
OWN = "ldm_jax"  # the entry of a safetensors file's metadata that marks our own trees


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds. `description` and `params` have only the parts that are there; `notes` says where the
    weights come from and what was left out."""

    description: dict[str, dict]
    params: dict[str, dict]
    notes: tuple[str, ...] = ()


def read(
    path: str | Path, *, ema: bool = True, config: str | Path | Mapping | None = None, prediction: str | None = None
) -> Checkpoint:
    """Reads names and shapes of the checkpoint at `path`, nothing of its weights yet.

    `ema`: of a CompVis file that has both, the averaged weights of the network rather than the raw ones. `config`: the
    YAML of a CompVis file, a path or its content, if it is not beside the file. `prediction`: "eps" or "v", what the network
    of a single file predicts, where neither a YAML nor the file says so (Stable Diffusion 2).

    Raises ValueError if there is no checkpoint, its files are truncated or missing, its weights do not belong to its
    configuration (every tensor is accounted for), or it is a pickle that names code.
    """
    path = of_this_machine(path, "a checkpoint")
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    try:
        return _read(path, ema, config, prediction)
    except (KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
        problem = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"{path}: its configuration lacks a field, or has one of the wrong type ({problem})") from error


def _read(path: Path, ema: bool, config: str | Path | Mapping | None, prediction: str | None) -> Checkpoint:
    notes: list[str] = []
    if prediction not in (None, "eps", "v"):
        raise ValueError(f'prediction={prediction!r}: "eps" or "v"')
    if prediction is not None and path.is_dir() and any((path / name).is_file() for name in _FOLDERS):
        raise ValueError(f"prediction={prediction!r}: {path} says itself what its network predicts; leave it out")
    if config is not None and path.is_dir() and any((path / name).is_file() for name in _FOLDERS):
        raise ValueError(f"config: {path} is a folder that describes its model itself; leave the YAML out")
    if config is not None and not isinstance(config, Mapping):
        config = of_this_machine(config, "config")
        if not config.exists():
            raise ValueError(f"config={str(config)!r}: there is no such file; name the model's YAML")
    if path.is_dir():
        if (path / "model_index.json").is_file():
            return _checkpoint(diffusers_files.read_pipeline(path, notes), notes)
        if (path / "config.json").is_file():
            return _checkpoint(diffusers_files.read_component(path, notes), notes)
        suffixes = (*files.PICKLES, ".safetensors")
        weights = [file for file in sorted(path.iterdir()) if file.suffix in suffixes and file.is_file()]
        if len(weights) != 1:
            names = ", ".join(file.name for file in weights) or "none"
            near = models_near(path)
            raise ValueError(
                f"{path}: no model_index.json and no config.json, so not a diffusers folder; as a CompVis folder it "
                f"should hold one checkpoint (found {names}){near and '. '}{near}"
            )
        path = weights[0]
    if path.name in _FOLDERS:
        raise ValueError(f"{path} says what a model is: give its folder, {path.parent}")
    if path.suffix == ".safetensors" and config is None:
        tensors, metadata = safetensors_files.read_with_metadata(path)
        if OWN in metadata:
            return _own(path, tensors, metadata[OWN])
    if path.suffix == ".msgpack":
        return _checkpoint(diffusers_files.read_component(path.parent, notes), notes)
    if path.suffix not in (*files.PICKLES, ".safetensors"):
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; known are {', '.join(files.PICKLES)}, .safetensors")
    if config is None and (path.parent / "config.json").is_file() and files.sibling_yaml(path) is None:
        return _checkpoint(diffusers_files.read_component(path.parent, notes), notes)
    return _checkpoint(compvis_files.read(path, config, ema, notes, prediction), notes)


def write_params(path: str | Path, description: Mapping, params: Mapping) -> None:
    """Writes our own trees as they are into one safetensors file, with the description; `read` takes it back."""
    leaves = {}
    for part, tree in params.items():
        leaves |= {f"{part}/{name}": leaf for name, leaf in naming.leaves(tree)}
    parts = {"description": {name: dict(fields) for name, fields in description.items()}, "params": list(params)}
    safetensors_files.write(Path(path), leaves, {OWN: json.dumps(parts)})


def _own(path: Path, tensors: Mapping, text: str) -> Checkpoint:
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its description is not JSON ({str(error)[:100]})") from None
    params: dict = {part: {} for part in parts["params"]}
    for name, tensor in tensors.items():
        *scopes, leaf = name.split("/")
        node = params
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[leaf] = tensor
    description = {
        part: {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        for part, fields in parts["description"].items()
    }
    return Checkpoint(description, params)


def _checkpoint(parts: tuple[dict, dict], notes: list[str]) -> Checkpoint:
    return Checkpoint(*parts, tuple(notes))
