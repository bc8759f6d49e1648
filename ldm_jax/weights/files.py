"""Finding and opening the files of a checkpoint: tensors by name from any format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ldm_jax.primitives import files as primitives
from ldm_jax.weights import found_names, msgpack_files, pickles, safetensors_files
from ldm_jax.weights.stored import Stored, named

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_JSON_LIMIT = 1 << 25
_YAML_LIMIT = 1 << 16  # the reader of YAML is slow: half a second
_YAML_NODES = 20_000
_YAML_BRACKETS = 2_000  # nested, each makes all others slower
_FLAX = ("diffusion_flax_model.msgpack", "flax_model.msgpack")


def tensors(path: Path, notes: list[str]) -> dict[str, Stored]:
    """All tensors of one file by name, nested mappings joined by dots; what else it holds goes to `notes`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    if path.suffix == ".safetensors":
        return safetensors_files.read(path)
    if path.suffix == ".msgpack":
        return named(msgpack_files.read(path), path)
    content, dropped = pickles.read(path)
    if dropped:
        notes.append(f"{path.name}: dropped, as inert: {', '.join(dropped)}")
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    found, rest = found_names.flattened(content)
    if rest:
        notes.append(f"{path.name}: left out, for they are no tensors: {', '.join(rest[:12])}")
    if not found:
        raise ValueError(f"{path}: a {type(content).__name__} without a tensor among {', '.join(rest[:8]) or 'nothing'}")
    return named(found, path)


def given(path: str | Path, what: str, of_training: str) -> Path:
    """The file or folder that is to be put onto a model, `~` written out.

    Args:
      what: it is, such as "a LoRA".
      of_training: what is done with a working directory that learnt one, with PATH in the place of its name.

    Raises:
      ValueError: there is nothing, it is an address or a name of the hub, or a working directory.
    """
    if str(path).startswith(primitives.HUB) and not Path(path).exists():
        raise ValueError(f"{path}: {what} is read from a file or folder of this machine; download it, and name that")
    path = primitives.of_this_machine(path, what)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_dir() and primitives.is_workdir(path):
        way_out = of_training.replace("PATH", repr(str(path)))
        raise ValueError(f"{path} is a working directory, and {what} is a file or folder: {way_out}")
    return path


def folder_tensors(folder: Path, notes: list[str]) -> tuple[dict[str, Stored], bool]:
    """The tensors of a diffusers model folder, and whether they are flax's (names and axis order)."""
    candidates: list[Path] = []
    plain = [(stem, suffix) for suffix in (".safetensors", ".bin") for stem in _STEMS]
    for stem, suffix in plain:
        candidates += [folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"]
    for stem, suffix in plain:  # variants such as .fp16 and .non_ema, if there is nothing else
        candidates += sorted(folder.glob(f"{stem}.*{suffix}")) + sorted(folder.glob(f"{stem}{suffix}.index.*.json"))
    candidates += [folder / name for name in _FLAX]
    there = [path for path in candidates if path.is_file() and "-of-" not in path.name]
    found = next(filter(_is_complete, there), there[0] if there else None)
    if found is None:
        if broken := next((path for path in sorted(folder.iterdir()) if path.is_symlink() and not path.exists()), None):
            raise ValueError(f"{primitives.to_nothing(broken)}; copy the files themselves, as cp -rL does")
        shards = sorted(path.name for path in folder.glob("*-of-*"))
        if shards:
            raise ValueError(f"{folder}: shards ({shards[0]}, ...) without their index .json; copy that file as well")
        raise ValueError(f"{folder}: no weights; expected one of {', '.join(f'{s}.safetensors' for s in _STEMS)}, or .bin")
    notes.append(f"weights from {found.parent.name}/{found.name}")
    if found.suffix == ".msgpack":
        return named(msgpack_files.read(found), found), True
    if found.suffix != ".json":
        return tensors(found, notes), False
    if ".safetensors" in found.name:
        return safetensors_files.read_sharded(found), False
    return _sharded_pickles(found, notes), False


def _is_complete(path: Path) -> bool:
    """Whether all shards of an index are there, which may be of a variant that was not copied; any other file is whole."""
    shards = safetensors_files.shard_names(path).values() if path.suffix == ".json" else ()
    return all((path.parent / name).is_file() for name in shards)


def _sharded_pickles(index: Path, notes: list[str]) -> dict[str, Stored]:
    shards = sorted(set(safetensors_files.shard_names(index).values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"{index}: missing shards {', '.join(missing)}; copy all {len(shards)} files")
    result: dict[str, Stored] = {}
    for name in shards:
        result |= tensors(index.parent / name, notes)
    return result


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of at most `_JSON_LIMIT` bytes. ValueError naming the file if it is anything else."""
    _limit(path, _JSON_LIMIT)
    try:
        return primitives.read_json(path, "Copy the file again.", expect=dict)
    except ValueError as error:  # numbers of thousands of digits are refused without a name
        raise error if str(path) in str(error) else ValueError(f"{path}: not valid JSON ({error})") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of at most `_YAML_LIMIT` bytes, by the safe loader. ValueError naming the file if it is
    anything else, has a name twice, refers to itself, or grows beyond `_YAML_NODES` values by its aliases."""
    _limit(path, _YAML_LIMIT)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.count("[") + text.count("{") > _YAML_BRACKETS:
            raise ValueError(f"more than {_YAML_BRACKETS} brackets")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _grown(node, {})
        content = None if node is None else loader.construct_document(node)
    except Exception as error:  # constructors of dates and numbers raise what they like
        raise ValueError(f"{path}: not valid YAML ({str(error)[:200] or type(error).__name__})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: an empty YAML, or not a mapping")
    return content


def _limit(path: Path, most: int) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder where a file is meant")
    if path.is_file() and (size := path.stat().st_size) > most:
        raise ValueError(f"{path}: {size:,} bytes are too many for a configuration; at most {most:,} are read")


def _grown(node: Any, sizes: dict[int, int]) -> int:
    """How many values a node stands for, its aliases written out."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError("a value that contains itself")
        return sizes[id(node)]
    sizes[id(node)] = 0
    children = node.value
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in children if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(names) > len(set(names)):
            raise ValueError("a name stands twice in one mapping")
        children = [each for pair in children for each in pair]
    total = 1 + sum(_grown(child, sizes) for child in children)
    if total > _YAML_NODES:
        raise ValueError(f"its aliases stand for more than {_YAML_NODES:,} values")
    sizes[id(node)] = total
    return total


def sibling_yaml(path: Path) -> Path | None:
    """The configuration that belongs to a CompVis file: of the same name, called config, or the only one beside it."""
    beside = sorted(path.parent.glob("*.yaml")) + sorted(path.parent.glob("*.yml"))
    for stem in (path.stem, "config"):
        for candidate in beside:
            if candidate.stem == stem:
                return candidate
    return beside[0] if len(beside) == 1 else None
