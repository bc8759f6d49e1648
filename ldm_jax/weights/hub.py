"""Which files of a repository on the Hugging Face hub a model needs: repositories hold the same weights in several types,
precisions and frameworks, of which one is read."""

import re
from collections.abc import Iterable, Sequence

# Parts that sampling doesn't need.
_UNREAD = ("safety_checker", "feature_extractor", "image_encoder", "image_processor", "watermarker", "onnx", "openvino")
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".onnx_data", ".pb", ".h5", ".gguf")
_SETTINGS = (".json", ".txt", ".yaml", ".yml", ".model")
_STEM = r"(diffusion_pytorch_model|pytorch_model|model)"
_SHARD = r"(-\d+-of-\d+)?"
# In this order, of each part: whole precision, then the half one, then other variants (such as non_ema).
_KINDS = tuple(
    rf"{_STEM}{variant}{_SHARD}\.{suffix}"
    for suffix in ("safetensors", "bin")
    for variant in ("", r"\.fp16", r"\.(?!fp16)[\w-]+")
)
_INDEX = rf"{_STEM}\.(safetensors|bin)\.index(\.[\w-]+)?\.json"  # of shards; the variant is named last
_FLAX = r"(diffusion_flax_model|flax_model)\.msgpack"


def wanted(names: Iterable[str], half: bool = False) -> list[str]:
    """Of the paths in a repository those that `read` needs: settings, tokenizers, and one set of weights for each part, in half
    precision first if `half`.

    Raises ValueError where there is no model, or several single files to choose from.
    """
    names = sorted(names)
    whole = "model_index.json" in names
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder.split("/")[0] not in _UNREAD and (whole or not folder) and not (whole and "/" in folder):
            folders.setdefault(folder, []).append(file)
    chosen: list[str] = []
    for folder, files in folders.items():
        kept = [file for file in files if file.endswith(_SETTINGS) and not re.fullmatch(_INDEX, file)]
        if folder or not whole:
            kept += _weights(files, half)
        chosen += [f"{folder}/{file}".lstrip("/") for file in kept]
    if not any(name.endswith(_WEIGHTS) for name in chosen):
        raise ValueError(_none(names))
    return chosen


def beside(names: Iterable[str], file: str) -> list[str]:
    """Of the paths in a repository the single file, and what is read beside it: tokenizers, the YAML of its name, and CLIP's
    text encoders in a folder `text_encoders`, which Stable Diffusion 3 needs; T5's, of 10 GB, is for the user to fetch.

    Raises ValueError where the file isn't there.
    """
    names = sorted(names)
    if file not in names:
        near = [name for name in names if name.endswith(_WEIGHTS)] or names
        raise ValueError(f"there is no such file; there are {', '.join(near[:8]) or 'none'}")
    stem = re.escape(re.sub(r"\.\w+$", "", file))
    folder = re.escape(file.rpartition("/")[0] + "/" if "/" in file else "")
    ends = "|".join(map(re.escape, _SETTINGS))
    wanted = rf"{stem}\.ya?ml|{folder}tokenizer(_\d)?/[^/]+({ends})|{folder}text_encoders/clip_[lg]\.safetensors"
    return [name for name in names if name == file or re.fullmatch(wanted, name)]


def _weights(files: Sequence[str], half: bool) -> list[str]:
    """One set of weights of a part, with the index of its shards."""
    kinds = [*_KINDS, _FLAX]
    if half:
        kinds.sort(key=lambda kind: ".fp16" not in kind or "?!" in kind)
    for kind in kinds:
        found = [file for file in files if re.fullmatch(kind, file)]
        if found:
            shards = any("-of-" in file for file in found)
            found = [file for file in found if ("-of-" in file) == shards]
            return found + ([file for file in files if file in map(_index_of, found)] if shards else [])
    single = [file for file in files if file.endswith((".safetensors", ".ckpt")) and "/" not in file]
    return single if len(single) == 1 else []


def _index_of(shard: str) -> str:
    """The index that names a shard: model.fp16-00001-of-00002.safetensors -> model.safetensors.index.fp16.json."""
    stem, variant, _, suffix = re.fullmatch(rf"{_STEM}(\.[\w-]+?)?{_SHARD}\.(\w+)", shard).groups()
    return f"{stem}.{suffix}.index{variant or ''}.json"


def _none(names: Sequence[str]) -> str:
    single = [name for name in names if name.endswith((".safetensors", ".ckpt"))]
    if single:
        return f"it holds several models: name one file of it, hf:owner/name/{single[0]}; there are {', '.join(single[:8])}"
    return f"it holds no weights that can be read; there are {', '.join(names[:8]) or 'no files'}"
