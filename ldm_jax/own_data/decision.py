"""What is decided of a folder of pictures. Nothing here looks at a disk or a clock: a survey and a machine in, fields and
reasons out."""

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm_jax.data.source import slice_bounds
from ldm_jax.data.survey import Survey

Config = Mapping[str, Any]
SIZES = (32, 64, 128, 256)
HELD_OUT = 0.05  # of the pictures, where there is no split
LEAST_A_CLASS = 2  # pictures: with fewer on the average a class is no more than a name of a picture
WORDS = 500  # so many different words of captions are tokens themselves; of more, pieces
IN_MEMORY = 0.25  # of the machine's memory at most
CHANNELS = 4  # of latents


@dataclass(frozen=True)
class Machine:
    """`accelerator`: whether it has one; how many `devices`; `memory` of the host in bytes."""

    accelerator: bool
    devices: int
    memory: float


@dataclass(frozen=True)
class Decision:
    """Fields of the config, {"data.image_size": 64, "conditioner": {...}}, and why: (what, in words)."""

    fields: dict[str, Any]
    reasons: list[tuple[str, str]]


def decide(found: Survey, machine: Machine, *, size: int = 0) -> Decision:
    """What to train on these pictures: everything but the number of steps. `size`: of the pictures, if it is settled.

    ValueError where there are fewer than two pictures, or what is held out has no captions or classes and the others do."""
    fields: dict[str, Any] = {
        "name": _name(found),
        "data.source": found.kind,
        "data.name": found.name or "shapes",
        "data.path": found.path,
        "data.on_error": "skip",
        "evaluation.num": 0,
    }
    reasons = [("pictures", found.said + _of_modes(found))]
    for part in (_split(found), _condition(found, machine), _size(found, machine, size)):
        fields |= part.fields
        reasons += part.reasons
    for part in (_model(found, fields["data.image_size"], machine), _memory(found, fields["data.image_size"], machine)):
        fields |= part.fields
        reasons += part.reasons
    return Decision(fields, reasons)


def _name(found: Survey) -> str:
    """Of the data set or the folder, in letters that a folder may have anywhere."""
    last = found.name.split(":")[0] or re.split(r"[\\/]", found.path.rstrip("\\/"))[-1]
    return re.sub(r"\W+", "_", last).strip("_").lower() or "own_data"


def _of_modes(found: Survey) -> str:
    modes = dict(found.modes)
    total = sum(modes.values())
    said = [
        f"; {words}"
        for mode, words in (
            ("clear", "what is transparent is laid on white"),
            ("grey", "grey as three equal channels"),
            ("unread", f"{modes.get('unread')} of {total} looked at can't be read and are passed by"),
        )
        if modes.get(mode)
    ]
    return "".join(said)


def _split(found: Survey) -> Decision:
    fields = {"data.train_split": found.splits[0], "data.validation_split": found.splits[1]}
    if found.splits[1]:
        return Decision(fields, [("held out", f"{found.held_out}, the folder's own {found.splits[1]} split")])
    if found.train < 2:
        raise ValueError(f"{found.path} holds {found.train} picture: one is held out, so at least 2 are needed")
    # in percent, so that pictures which are added later are parted likewise; at least one picture is on either side
    kept = round(100 * min(1 - HELD_OUT, 1 - 1 / found.train))
    held = found.train - slice_bounds(("", f"{kept}%"), found.train).stop
    fields = {"data.train_split": f"train[:{kept}%]", "data.validation_split": f"train[{kept}%:]"}
    share = f"{held / found.train:.0%} of the pictures, chosen by their names" if found.kind == "folder" else "the last ones"
    return Decision(fields, [("held out", f"{held}, {share}")])


def _condition(found: Survey, machine: Machine) -> Decision:
    """ValueError where the pictures that are held out lack what those to train on have."""
    width = 256 if machine.accelerator else 64
    if found.caption:
        _check_held_out(found)
        words = found.different <= WORDS
        length = min(77, 4 * math.ceil((found.words * (1.0 if words else 1.4) + 2) / 4))
        conditioner = {
            "kind": "text", "n_embed": width, "n_layer": 4 if machine.accelerator else 1, "heads": 4, "dim_head": width // 2,
            "max_seq_len": length, "vocab_size": 2 * WORDS if words else 2048 if found.different < 5000 else 8192,
            "tokenizer": "words" if words else "wordpiece", "null_probability": 0.1,
        }  # fmt: skip
        fields = {"data.caption_column": found.caption, "conditioner": conditioner, "sampling.guidance_scale": 3.0}
        said = f"captions of at most {length} tokens ({found.different} different words); --prompt draws"
        return Decision(fields | {"network.context_dim": width}, [("condition", said)])
    classes = len(found.class_names)
    ways = "metadata.csv with file_name and caption, or a .txt with words beside each"
    why = f"there are neither captions ({ways}) nor classes (folders)"
    if found.label and classes > 1 and found.train >= LEAST_A_CLASS * classes:
        _check_held_out(found)
        conditioner = {"kind": "class", "n_classes": classes + 1, "embed_dim": width, "null_probability": 0.1}
        fields = {"data.label_column": found.label, "conditioner": conditioner, "sampling.guidance_scale": 2.0}
        parts = all(name.isdigit() for name in found.class_names)
        said = f"{classes} classes; --label draws{'; if they are parts of one set, --unconditional' if parts else ''}"
        return Decision(fields | {"network.context_dim": width}, [("condition", said)])
    if found.label:
        why = "there is one class only" if classes < 2 else f"{classes} classes of {found.train} pictures say little of them"
    fields = {
        "conditioner": {"kind": "none"}, "network.use_spatial_transformer": False, "network.context_dim": None,
        "sampling.guidance_scale": 1.0,
    }  # fmt: skip
    return Decision(fields, [("condition", f"none: {why}")])


def _check_held_out(found: Survey) -> None:
    if found.lacking:
        raise ValueError(f"{found.lacking}; or leave them all aside, --unconditional")


def _size(found: Survey, machine: Machine, size: int) -> Decision:
    shorts = np.array([min(sides) for sides in found.sides])
    longs = np.array([max(sides) for sides in found.sides])
    most = 256 if machine.accelerator else 64
    typical = int(np.percentile(shorts, 25, method="lower"))  # three quarters of the pictures are only ever shrunk
    chosen = size or max([side for side in SIZES if side <= min(typical, most)], default=SIZES[0])
    if shorts.min() == longs.max():
        said = f"of {shorts.min()} px"
    else:
        said = f"with short sides of {shorts.min()} to {shorts.max()} px; the middle is cut out"
    if larger := int((shorts < chosen).sum()):
        said += f"; {larger / len(shorts):.0%} of them are enlarged"
    if not size and chosen == most and typical >= 2 * most:
        said += f"; more pixels would take longer on {'this accelerator' if machine.accelerator else 'a CPU'}: --size"
    fields = {"data.image_size": chosen, "first_stage.resolution": chosen}
    return Decision(fields, [("size", f"{chosen} x {chosen}, from pictures {said}")])


def _model(found: Survey, size: int, machine: Machine) -> Decision:
    """Autoencoder and U-Net: latents of at most 16 x 16 on a CPU, 32 x 32 on an accelerator."""
    levels = max(2, math.ceil(math.log2(size / (32 if machine.accelerator else 16))))
    latent = size // 2**levels
    batch = (32, 64) if machine.accelerator else (8, 32 if latent <= 8 else 16)
    batch = tuple(machine.devices * math.ceil(each / machine.devices) for each in batch)
    fields = {
        "first_stage.ch": 64 if machine.accelerator else 16,
        "first_stage.ch_mult": (1, 2, 4, *[4] * (levels - 2)),
        "first_stage.norm_num_groups": 8 if machine.accelerator else 4,
        "first_stage.z_channels": CHANNELS,
        "first_stage.embed_dim": CHANNELS,
        "network.in_channels": CHANNELS,
        "network.out_channels": CHANNELS,
        "network.model_channels": 128 if machine.accelerator else 64,
        "network.channel_mult": (1, 2) if machine.accelerator else (1, 1),
        "network.attention_resolutions": (1, 2) if latent <= 8 else (2,),
        "diffusion.scale": 1.0,  # as published: more noise, as the default has it, made no difference on photos
        "first_stage_train.batch_size": batch[0],
        "diffusion_train.batch_size": batch[1],
        "latents.scale_batches": min(64, max(4, math.ceil(found.train / batch[1]))),
        "evaluation.batch_size": 16 * machine.devices,
    }
    batches = f"batches of {batch[0]} pictures for the autoencoder, {batch[1]} for diffusion"
    said = f"latents of {latent} x {latent} x {CHANNELS}; {batches}"
    return Decision(fields, [("model", said)])


def _memory(found: Survey, size: int, machine: Machine) -> Decision:
    """Decoded pictures, and moments of latents (twice four channels of float32, at a sixteenth of the pixels), in memory."""
    pixels = (found.train + found.held_out) * size**2
    aspect = float(np.mean([max(sides) / min(sides) for sides in found.sides]))
    fits = pixels * (3 * aspect + 2) < IN_MEMORY * machine.memory
    workers = 0 if fits or not machine.accelerator else 8
    said = [] if fits else [("memory", f"{found.train} pictures are read anew at every visit: too many for the memory")]
    return Decision({"data.in_memory": fits, "data.workers": workers}, said)


def apply(config: Config, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config with these fields; a whole section where a section is named."""
    changed = copy.deepcopy(dict(config))
    for name, value in fields.items():
        *section, field = name.split(".")
        (changed[section[0]] if section else changed)[field] = copy.deepcopy(value)
    return changed


def unconditional(config: Config) -> dict[str, Any]:
    """The config without a condition, whatever it had: network and sampling as they are then."""
    network = config["network"]
    channels = network["in_channels"] if network["kind"] == "dit" else network["out_channels"]
    if network["kind"] == "unet" and config["diffusion"].get("learned_variance"):
        channels //= 2
    fields = {"conditioner": {"kind": "none"}, "sampling.guidance_scale": 1.0, "network.in_channels": channels}
    for name, off in (("use_spatial_transformer", False), ("context_dim", None), ("num_classes", None)):
        if name in network:
            fields[f"network.{name}"] = off
    return apply(config, fields)
