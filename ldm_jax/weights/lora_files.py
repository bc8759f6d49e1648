"""LoRA files (Hu et al. 2022), read and written: low-rank changes of a model's kernels.

    peft        base_model.model.*.lora_A.weight, .lora_B.weight; r and lora_alpha in adapter_config.json
    diffusers   unet.*.lora_A.weight, text_encoder.*, text_encoder_2.*; old ones *.lora.down.weight, *.processor.to_q_lora.down
    kohya       lora_unet_*.lora_down.weight, .lora_up.weight, .alpha; lora_te_*, lora_te1_*, lora_te2_*; blocks named as in
                diffusers or as in CompVis

Names with dots or underscores mean the same here: each is looked up among those of the model's own layout. Factors come out at
the place of the kernels that they change, {"down": [..., in, r], "up": [r, out]}, with alpha / r in `up`.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.primitives.files import place
from ldm_jax.weights import files, layouts, naming, safetensors_files
from ldm_jax.weights.compvis_files import conditioner_layout

_FACTOR = re.compile(r"(.+?)(?:\.lora_linear_layer\.|\.lora_|\.lora\.|_lora\.)(A|B|down|up)(?:\.[^.]+)?\.weight")
_ALPHA = re.compile(r"(.+)\.alpha")
# what the names of other kinds of adapters have in them
_OTHER = {
    "a LoHa": r"\.hada_", "a LoKr": r"\.lokr_", "a LoCon of three factors": r"\.lora_mid\.",
    "a DoRA": r"\.dora_scale|magnitude_vector", "an OFT": r"\.oft_", "a GLoRA": r"\.[ab][12]\.weight$",
    "whole changes of layers": r"\.diff(_b)?$|\.[wb]_norm$", "an (IA)^3": r"\.on_input$",
}  # fmt: skip
# how a name begins -> the part of the model, and of several text encoders which
_PREFIXES = {
    "lora_unet_": ("network", None), "unet.": ("network", None), "transformer.": ("network", None),
    "lora_te1_": ("conditioner", "text_encoder"), "lora_te2_": ("conditioner", "text_encoder_2"),
    "lora_te3_": ("conditioner", "text_encoder_3"), "lora_te_": ("conditioner", "text_encoder"),
    "text_encoder_3.": ("conditioner", "text_encoder_3"), "text_encoder_2.": ("conditioner", "text_encoder_2"),
    "text_encoder.": ("conditioner", "text_encoder"),
}  # fmt: skip
_TEXT_LAYERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out_0": "out_proj"}
_OLD_TEXT = re.compile(r"(?<=self_attn_)(to_q|to_k|to_v|to_out_0)$")
_FILES = ("adapter_model", "pytorch_lora_weights")  # of each .safetensors, or where there is none .bin
PEFT = "base_model.model."  # how names begin in files of peft
WRITTEN = "pytorch_lora_weights.safetensors"  # diffusers' name in a folder
WHOLE, SWAPPED = -1, -2  # of a layer, instead of a number: all of its kernel, and that with its scale and shift exchanged
TEXT_ENCODERS = ("text_encoder_3", "text_encoder_2", "text_encoder")
Scopes = tuple[str, ...]
Layers = dict[str, tuple[naming.Weight, int]]


def read(path: str | Path, description: Mapping[str, Mapping]) -> dict[str, dict]:
    """Factors for the model of `description`, {"network": tree, "conditioner": tree}, float32, of the parts that the file has.

    Raises ValueError for a file that is no LoRA, one of another kind (LoHa, LoKr, DoRA), or for another model: every name is
    accounted for."""
    own = "ldm_jax.load_lora(PATH) is what it learnt, and with_lora takes that"
    path = _file(files.given(path, "a LoRA", own))
    tensors, metadata = files.tensors(path, []), {}
    if path.suffix == ".safetensors":
        metadata = safetensors_files.read_with_metadata(path)[1]
    pairs: dict[str, dict[str, Any]] = {}
    for kind, expression in _OTHER.items():
        if name := next(filter(re.compile(expression).search, tensors), None):
            raise ValueError(f"{path}: {name} is of {kind}; only LoRA is read: merge it where it was trained")
    for name, tensor in tensors.items():
        if found := _FACTOR.fullmatch(name):
            kind, own = {"A": "down", "B": "up"}.get(found[2], found[2]), pairs.setdefault(found[1], {})
            if kind in own:
                raise ValueError(f"{path}: {found[1]} has two factors {kind}, {name} is the second; the file holds two LoRAs")
            if tensor.dtype.kind in "biu":
                why = f"whole numbers ({tensor.dtype}), as quantised weights do, which are not read"
                raise ValueError(f"{path}: {name} holds {why}; take the file in float16, bfloat16 or float32")
            own[kind] = tensor
        elif found := _ALPHA.fullmatch(name):
            pairs.setdefault(found[1], {})["alpha"] = np.asarray(tensor)
        else:
            raise ValueError(f"{path}: {name} is no part of a LoRA (lora_A and lora_B, lora_down and lora_up, alpha)")
    known, usual = _layers(description), _alphas(path, metadata)
    result: dict[str, dict] = {}
    unknown, seen = [], {}
    for name, pair in pairs.items():
        if not {"down", "up"} <= set(pair):
            raise ValueError(f"{path}: {name} has {' and '.join(pair)} without the rest of its LoRA")
        place = _place(name, known)
        if place is None:
            unknown.append(name)
            continue
        scopes, weight, index = place
        if (other := seen.setdefault((scopes, weight.path, index), name)) != name:
            raise ValueError(f"{path}: {other} and {name} are the same layer; the file holds two LoRAs")
        if "alpha" not in pair:
            pair["alpha"] = usual(name, (*pair["down"].shape, 1)[0])
        _add(result, scopes, weight, _factors(f"{path}: {name}", weight, index, pair))
    if unknown:
        raise ValueError(
            f"{path}: of {len(pairs)} adapted layers {len(unknown)} are not in this model, such as {unknown[0]}: it was made "
            "for another one"
        )
    if not result:
        raise ValueError(f"{path}: no LoRA in it")
    return result


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    both = [[path / f"{name}{suffix}" for suffix in (".safetensors", ".bin")] for name in _FILES]
    found = [there[0] for pair in both if (there := [file for file in pair if file.is_file()])]
    found = found or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(f"{path}: one LoRA is expected, {' or '.join(_FILES)}.safetensors; there are {len(found)} files")
    return found[0]


_PARTS = ("unet", "transformer", *TEXT_ENCODERS)  # of a pipeline that adapters change


def _alphas(path: Path, metadata: Mapping[str, str]) -> Any:
    """(name, rank) -> alpha where no tensor says it: by peft's adapter_config.json, or diffusers' metadata, whose
    patterns are matched as peft does; else the rank. Of adapter_config.json the names that peft gives are told alone: a file of
    another program may lie beside it."""
    config, where = path.parent / "adapter_config.json", str(path)
    of_peft: dict[str, Any] = files.read_json(config) if config.is_file() else {}
    in_file: dict[str, Any] = {}
    if "lora_adapter_metadata" in metadata:
        try:
            in_file = json.loads(metadata["lora_adapter_metadata"])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: its metadata lora_adapter_metadata are not JSON ({str(error)[:100]})") from None
        if not isinstance(in_file, dict):
            raise ValueError(f"{path}: its metadata lora_adapter_metadata are a {type(in_file).__name__}, not settings by name")

    def alpha(name: str, rank: int) -> float:
        own = next((f"{part}." for part in _PARTS if name.startswith(f"{part}.")), "")
        said = in_file or (of_peft if name.startswith(PEFT) else {})
        prefix, layer = own if f"{own}lora_alpha" in said else "", name.removeprefix(PEFT).removeprefix(own)
        value, patterns = said.get(f"{prefix}lora_alpha", rank), said.get(f"{prefix}alpha_pattern") or {}
        try:
            value = next((found for pattern, found in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer)), value)
        except (re.error, AttributeError) as error:
            raise ValueError(f"{where if in_file else config}: alpha_pattern={str(patterns)[:100]}: {error}") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where if in_file else config}: the alpha of {name} is {value!r}, not a number")
        return value * (math.sqrt(rank) if said.get(f"{prefix}use_rslora") else 1.0)

    return alpha


def _layers(description: Mapping[str, Mapping]) -> dict[Scopes, Layers]:
    """By the place of a network or text encoder among the parameters: every spelling of a layer, dots as underscores -> its
    kernel, and which of several that are one, or `WHOLE` or `SWAPPED`."""
    network, conditioner = description.get("network"), description.get("conditioner", {"kind": "none"})
    found: dict[Scopes, Layers] = {}
    if network is not None:
        swaps = layouts.mmdit_swaps(network) if network["kind"] == "mmdit" else ()
        found["network",] = _spelled(layouts.network(network), swaps)
    for part, section in conditioner.get("parts", {"": conditioner}).items():
        scopes = ("conditioner", part) if part else ("conditioner",)
        if "towers" in section:
            for name, fields in section["towers"].items():
                found[*scopes, name] = _spelled(layouts.tower(fields))
        elif layout := conditioner_layout(section):
            found[scopes] = _spelled(layout)
    return found


def _tower(scopes: Scopes) -> str | None:
    """Which of several text encoders is at a place; None where there is one, or none."""
    return scopes[-1] if scopes[-1] in TEXT_ENCODERS else None


def _spelled(layout: naming.Layout, swaps: tuple[str, ...] = ()) -> Layers:
    found: Layers = {}
    for weight in layout:
        if weight.kind != "kernel":
            continue
        found[_plain(weight.name)] = weight, WHOLE
        alone = SWAPPED if weight.diffusers[0].startswith(swaps) else WHOLE
        several = len(weight.diffusers) > 1
        found |= {_plain(name): (weight, index if several else alone) for index, name in enumerate(weight.diffusers)}
    return found


def _plain(name: str) -> str:
    name = name.removesuffix(".weight").replace(".processor.", ".")
    name = re.sub(r"to_out$", "to_out.0", name)
    return name.removeprefix("text_model.").replace(".", "_").removeprefix("text_model_")


def _place(name: str, known: Mapping[Scopes, Layers]) -> tuple[Scopes, naming.Weight, int] | None:
    """(part and tower, kernel, which of several) of a layer's name."""
    name = name.removeprefix(PEFT)
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    part, tower = _PREFIXES.get(prefix, (None, None))
    for scopes, layers in known.items():
        which = _tower(scopes)
        if part not in (None, scopes[0]) or (which is not None and tower not in (None, which)):
            continue
        for spelled in dict.fromkeys((_plain(name[len(prefix) :]), _plain(name))):
            if scopes[0] == "conditioner":  # as the network's are called, in files of diffusers before peft
                spelled = _OLD_TEXT.sub(lambda found: _TEXT_LAYERS[found[1]], spelled)
            if spelled in layers:
                return scopes, *layers[spelled]
    return None


def _factors(where: str, weight: naming.Weight, index: int, pair: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """One layer's, in our axes and with alpha / r in `up`."""
    down, up, alpha = (np.asarray(pair[kind], np.float32) for kind in ("down", "up", "alpha"))
    if alpha.size != 1 or down.ndim < 2 or not down.size or not all(np.isfinite(each).all() for each in (down, up, alpha)):
        raise ValueError(f"{where}: factors and one alpha are expected, finite and of rank 1 or more; the file is damaged")
    rank, out = down.shape[0], weight.shape[0] // (1 if index < 0 else len(weight.diffusers))
    expected = (rank, weight.shape[1]) if weight.dense else (rank, *weight.shape[1:])
    if _bare(up.shape) != _bare((out, rank)) or _bare(down.shape) != _bare(expected):
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise ValueError(f"{where}: factors of shapes {shapes} for a kernel {list(weight.shape)}")
    down = down.reshape(expected)
    down = down.T if weight.dense else down.transpose(2, 3, 1, 0)
    up = up.reshape(out, rank).T * np.float32(alpha.item() / rank)
    if index == SWAPPED:
        up = _exchanged(up)
    if index >= 0:  # q, k or v of a kernel that has all three, head by head
        whole = np.zeros((rank, weight.heads, len(weight.diffusers), out // weight.heads), np.float32)
        whole[:, :, index] = up.reshape(rank, weight.heads, -1)
        up = whole.reshape(rank, -1)
    return {"down": np.ascontiguousarray(down), "up": np.ascontiguousarray(up)}


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without axes of one number behind its first two, which a linear layer may have as a convolution."""
    return (*shape[:2], *(size for size in shape[2:] if size != 1))


def _exchanged(up: np.ndarray) -> np.ndarray:
    """Factors [r, out] of a scale and a shift in the other order."""
    return np.concatenate(np.split(up, 2, axis=1)[::-1], axis=1)


def _add(result: dict, scopes: tuple[str, ...], weight: naming.Weight, factors: dict[str, np.ndarray]) -> None:
    node = result
    *path, leaf = (*scopes, *weight.path)
    for scope in path:
        node = node.setdefault(scope, {})
    if leaf in node:  # the parts of a kernel that is several: ranks side by side
        before = node[leaf]
        factors = {"down": np.concatenate([before["down"], factors["down"]], -1),
                   "up": np.concatenate([before["up"], factors["up"]], 0)}  # fmt: skip
    node[leaf] = factors


def write(path: str | Path, description: Mapping[str, Mapping], factors: Mapping[str, Mapping]) -> None:
    """Writes factors, as `read` gives them, in diffusers' layout: a folder with `WRITTEN`, or a file if `path` ends with
    .safetensors. ValueError if it exists, or for factors of parts that diffusers doesn't adapt."""
    path = place(path, "save_lora")
    file = path if path.suffix == ".safetensors" else path / WRITTEN
    if file.exists():
        raise ValueError(f"{file} exists already; save somewhere else")
    tensors: dict[str, np.ndarray] = {}
    names = {"network": "unet" if description.get("network", {}).get("kind") == "unet" else "transformer"}
    left = dict(_pairs(factors))
    for scopes, layers in _layers(description).items():
        by_path = {weight.path: (weight, index == SWAPPED) for weight, index in layers.values()}  # diffusers' names are last
        for at in [at for at in left if at[: len(scopes)] == scopes and at[len(scopes) :] in by_path]:
            pair, (weight, swapped) = left.pop(at), by_path[at[len(scopes) :]]
            prefix = names.get(scopes[0], _tower(scopes) or "text_encoder")
            tensors |= _written(prefix, weight, pair | {"up": _exchanged(np.asarray(pair["up"]))} if swapped else pair)
    if left:
        raise ValueError(f"factors of {'/'.join(next(iter(left)))}, which is no layer of this model that LoRA files may change")
    if not tensors:
        raise ValueError("no factors to write")
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors_files.write(file, tensors)


def _written(prefix: str, weight: naming.Weight, pair: Mapping[str, Any]) -> dict[str, np.ndarray]:
    down, up = (np.asarray(pair[kind], np.float32) for kind in ("down", "up"))
    down = down.T if weight.dense else down.transpose(3, 2, 0, 1)
    rank, several = up.shape[0], len(weight.diffusers)
    parts = [up] if several == 1 else list(np.moveaxis(up.reshape(rank, weight.heads, several, -1), 2, 0))
    found = {}
    for name, part in zip(weight.diffusers, parts):
        part = part.reshape(rank, -1).T
        if len(weight.shape) == 4 and not naming.is_linear(name):  # a convolution, of size one too
            down, part = down.reshape(rank, *weight.shape[1:]), part[..., None, None]
        name = f"{prefix}.{name.removesuffix('.weight')}"
        found[f"{name}.lora_A.weight"] = np.ascontiguousarray(down)
        found[f"{name}.lora_B.weight"] = np.ascontiguousarray(part)
    return found


def _pairs(tree: Mapping, at: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Mapping]]:
    if set(tree) == {"down", "up"} and not isinstance(tree["down"], Mapping):
        return [(at, tree)]
    return [found for name, part in tree.items() for found in _pairs(part, (*at, name))]
