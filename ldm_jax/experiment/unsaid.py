"""What no array's shape says of a model: fields of a config with which the same parameters compute something else. A model that
another training made has to be given them as they were there."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm_jax import api, build, models
from ldm_jax.primitives.files import is_workdir

CLIP = {name: getattr(models.CLIPText, name) for name in ("num_attention_heads", "hidden_act", "layer_norm_eps")}
EMBEDDER = {name: getattr(models.TransformerEmbedder, name) for name in ("heads", "dim_head")}
# section of a config -> kind -> fields, with the values that hold where a config lacks them
FIELDS: dict[str, dict[str, dict[str, Any]]] = {
    "network": {
        "unet": {name: getattr(models.UNet, name) for name in (
            "use_new_attention_order", "norm_num_groups", "norm_eps", "flip_sin_to_cos", "freq_shift", "downsample_padding",
            "middle_attention_groups",
        )},
        "dit": {"num_heads": None, "freq_shift": models.DiT.freq_shift, "mlp_norm_eps": models.DiT.mlp_norm_eps},
        "mmdit": {"num_heads": None},
    },
    "first_stage": {
        "kl": {"norm_num_groups": models.Autoencoder.norm_num_groups},
        "vq": {name: getattr(models.Autoencoder, name) for name in ("norm_num_groups", "fsq_levels", "unit_codes")},
        "text": {"heads": models.TextAutoencoder.heads},
    },
    "conditioner": {
        "clip_text": CLIP | {"layer": "last"}, "tower": CLIP, "sdxl": {"time_ids": None, "zero_empty": True},
        "text": EMBEDDER, "layout": EMBEDDER, "instruct": {"factor": 1.0},
    },
}  # fmt: skip
Difference = tuple[str, Any, Any]  # a field's name within its section, its value here, its value there


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], part: str) -> list[Difference]:
    """Those fields of config.`part` that are otherwise in a model of the same kind; of two configs or descriptions."""
    return list(_compared(ours.get(part, {}), theirs.get(part, {}), FIELDS[part]))


def _compared(
    here: Mapping[str, Any], there: Mapping[str, Any], known: Mapping[str, Any], at: str = ""
) -> Iterator[Difference]:
    kind = here.get("kind")
    if kind != there.get("kind"):
        return
    for group, usual in (("parts", {}), ("towers", {"kind": "tower"})):
        ours, theirs = here.get(group, {}), there.get(group, {})
        for name in ours:
            if name in theirs and "d_model" not in ours[name]:  # T5's fields have no other values
                yield from _compared({**usual, **ours[name]}, {**usual, **theirs[name]}, known, f"{at}{group}.{name}.")
    if kind == "unet" and _heads(here) != _heads(there):
        for name in ("num_heads", "num_head_channels"):
            if not _same(*(pair := [_plain(of.get(name, -1)) for of in (here, there)])):
                yield (at + name, *pair)
    for name, usual in known.get(kind, {}).items():
        if not _same(*(pair := [_plain(of.get(name, usual)) for of in (here, there)])):
            yield (at + name, *pair)


def _same(one: Any, other: Any) -> bool:
    return one == other or (isinstance(one, float) and isinstance(other, float) and math.isclose(one, other, rel_tol=1e-5))


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _heads(network: Mapping[str, Any]) -> list[Any]:
    """How many heads a U-Net has at each level that has attention; those of the last one are the middle's too."""
    found, mult = [], network["channel_mult"]
    width, heads = network.get("num_head_channels", -1), network.get("num_heads", -1)
    for level, by in enumerate(mult):
        if 2**level in network["attention_resolutions"] or level == len(mult) - 1:
            own = heads[level] if isinstance(heads, list | tuple) else heads
            found.append(own if width == -1 else network["model_channels"] * by // width)
    return found


def of_first_stage(path: str, workdir: Path, field: str) -> Mapping[str, Any]:
    """`api.description_of` the first stage that a field names; {} for checkpoints without a config.json beside them."""
    place = api.resolve(path, workdir, field)
    return {} if (place / "first_stage").is_dir() and not is_workdir(place) else api.description_of(place)


def check(config: Mapping[str, Any], workdir: Path) -> None:
    """ValueError where a model that stays as it is while the diffusion model learns is described otherwise than it is: the one
    that is adapted or learnt from, the first stage, a text encoder; or where what is named holds no such part."""
    kind, start = build.few_steps_kind(config), config["diffusion_train"]["start_from"]
    kept = start and (build.adapts(config) or (kind and kind.teacher))
    there = api.description_of(start) if start else {}
    if start and "network" not in there:
        only = ", ".join(part for part in FIELDS if part in there)
        raise ValueError(f"config.diffusion_train.start_from={start!r} holds {only}, no diffusion model to start from")
    if kept:
        for part in ("network", "conditioner"):
            _refuse(differences(config, there, part), part, start)
    if (path := config["first_stage"].get("path")) and config["first_stage"]["kind"] != "none":
        there = of_first_stage(path, workdir, "config.first_stage.path")
        _refuse(differences(config, there, "first_stage"), "first_stage", path)
    if not build.adapts(config) and build.make_condition(config).frozen:
        section = config["conditioner"]
        for name, own in section.get("parts", {"": section}).items():
            if not isinstance(path := own.get("path"), str) or not Path(path).exists():
                continue
            there = api.description_of(path).get("conditioner")
            if there is None:
                raise ValueError(f"config.conditioner.path={path!r}: there is no text encoder in it; name a model that has it")
            there = next((of for of in there.get("parts", {"": there}).values() if of.get("kind") == own["kind"]), {})
            found = differences({"conditioner": own}, {"conditioner": there}, "conditioner")
            found = [one for one in found if one[0] != "layer"]  # which of an encoder's is read is this training's to say
            _refuse(found, f"conditioner.parts.{name}" if name else "conditioner", path)


def _refuse(found: list[Difference], where: str, path: str) -> None:
    for name, here, there in found:
        said = f"config.{where}.{name}={here!r}: the model in {path}, which stays as it is, has {there!r}"
        raise ValueError(f"{said}; set it to that")


def said(ours: Mapping[str, Any], theirs: Mapping[str, Any], part: str) -> tuple[list[str], list[str]]:
    """`differences` in words, here and there, for a model that a training goes on from."""
    found = differences(ours, theirs, part)
    return [f"{name}={here!r}" for name, here, _ in found], [f"{name}={there!r}" for name, _, there in found]
