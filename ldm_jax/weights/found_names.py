"""Names of tensors as files in the wild have them, brought to the names of the model that they were saved from.

Distributed and compiled training wraps a model, and with it every name: module., _orig_mod., _fsdp_wrapped_module., anywhere.
Training frameworks put the state dict under a name of their own, and some an average beside it: state_dict., model., net.,
params., params_ema., ema., at any depth and combined. A first stage alone keeps the name that it had in its model.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ldm_jax.weights.stored import Stored

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
NESTS = {
    "state_dict", "model_state_dict", "model_state", "state", "model", "models", "net", "network", "params", "weights",
    "checkpoint", "pytorch", "module_state_dict", "generator",
}  # fmt: skip
AVERAGES = {
    "ema", "params_ema", "model_ema", "ema_model", "ema_state_dict", "model_ema_state_dict", "ema_params", "ema_weights",
    "state_dict_ema", "shadow_params", "averaged_model", "n_averaged_model",
}  # fmt: skip
# Where the names of a model begin: CompVis's parts, and those of an autoencoder.
WHOLE = re.compile(r"(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\.|model_ema\.[^.]+$")
STAGE = re.compile(r"(encoder|decoder|quant_conv|post_quant_conv|quantize|loss)\.")
STAGE_NAMES = ("first_stage_model", "first_stage", "autoencoder", "vae", "ae", "vqvae", "vqgan")
USUAL = ("state_dict", "model_state_dict", "model", "params")  # where a training checkpoint has its weights
DEPTH = 8


def flattened(content: Mapping, most: int = 1_000_000) -> tuple[dict[str, Stored], list[str]]:
    """The tensors of nested mappings by their dotted names, without the `USUAL` first one, and the names at the top of what
    else there is."""
    tensors: dict[str, Stored] = {}
    rest: dict[str, None] = {}
    todo: list[tuple[str, Any, int]] = [("", content, 0)]
    usual = [key for key in USUAL if isinstance(content.get(key), Mapping)][:1]
    for name, value, depth in todo:  # grows while it is walked
        if isinstance(value, Stored):
            tensors[name] = value
        elif isinstance(value, Mapping) and (value or not depth) and depth < DEPTH:
            if len(todo) + len(value) > most:
                raise ValueError(f"more than {most:,} entries")
            scope = "" if not name or (depth == 1 and name in usual and "diffusion_model" not in value) else f"{name}."
            todo += [(f"{scope}{key}", each, depth + 1) for key, each in value.items()]
        elif name:
            rest[name.split(".")[0]] = None
    return tensors, list(rest)


def unwrapped(tensors: Mapping[str, Stored], ema: bool, notes: list[str]) -> dict[str, Stored]:
    """The tensors under the names of the model itself; of raw and averaged ones the set that `ema` asks for, where a wrapper
    says which is which. What was stripped goes to `notes`; names that belong to no model stay as they are.

    ValueError if two tensors of one file come to the same name.
    """
    clean = {name: [part for part in name.split(".") if part not in WRAPPERS] for name in tensors}
    whole = any(WHOLE.match(".".join(parts[i:])) for parts in clean.values() for i in range(len(parts)))
    starts = {name: _beginning(parts, WHOLE if whole else STAGE) for name, parts in clean.items()}
    nests = {tuple(clean[name][:start]) for name, start in starts.items() if start}
    sets: dict[bool, dict[str, str]] = {False: {}, True: {}}
    stripped: dict[str, None] = {}
    for name, parts in clean.items():
        start = starts[name]
        if start is None:  # no part of a model, but perhaps beside one, as its buffers are
            start = max((len(nest) for nest in nests if tuple(parts[: len(nest)]) == nest), default=0)
        averaged = any(part.lower() in AVERAGES for part in parts[:start])
        stripped |= dict.fromkeys(sorted({part for part in name.split(".") if part in WRAPPERS} | set(parts[:start])))
        target = ".".join(parts[start:])
        if target in sets[averaged]:
            raise ValueError(f"{sets[averaged][target]} and {name} are both the tensor {target}: the file holds two models")
        sets[averaged][target] = name
    if stripped:
        notes.append(f"names without {', '.join(f'{name}.' for name in stripped)}")
    raw, smooth = sets[False], sets[True]
    if smooth:
        both = set(smooth) & set(raw)
        which = ("averaged" if ema else "raw") + " weights of two sets" if both else "averaged weights, the only ones"
        notes.append(f"the {which}")
        chosen = raw | smooth if ema else smooth | raw
        return {target: tensors[name] for target, name in chosen.items()}
    return {target: tensors[name] for target, name in raw.items()}


def _beginning(parts: list[str], anchor: re.Pattern) -> int | None:
    """How many leading parts of a name wrap it; None if it is no model's."""
    for i, part in enumerate(parts):
        if anchor.match(".".join(parts[i:])):
            return i
        if part.lower() not in NESTS | AVERAGES | set(STAGE_NAMES):
            break
    return None


def left_out(names: Iterable[str], what: str, notes: list[str]) -> None:
    """One line in `notes` on tensors that no part of the model has."""
    names = sorted(names)
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        notes.append(f"left out, for {what} has none: {', '.join(name[:80] for name in names[:4])}{more}")
