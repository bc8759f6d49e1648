"""CompVis checkpoints: one file of tensors under prefixes, and a YAML.

    betas, alphas_cumprod, ...          the schedule's buffers, checked against the YAML's
    scale_factor                        a buffer where scale_by_std
    model.diffusion_model.*             the network, raw
    model_ema.*                         its average, under names without dots; model_ema.decay, model_ema.num_updates
    first_stage_model.*                 the autoencoder
    cond_stage_model.*                  the conditioner

A first stage alone has no prefix (encoder.*, decoder.*, ...) and the losses' weights besides (loss.*).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ldm_jax.weights import (
    files,
    found_names,
    layouts,
    naming,
    pipelines,
    recognise,
    safetensors_files,
    schedules,
    sd3_files,
    structure,
    torch_files,
    towers,
)
from ldm_jax.weights.descriptions import compvis
from ldm_jax.weights.descriptions import diffusers_export as export
from ldm_jax.weights.layouts import text
from ldm_jax.weights.stored import Stored

NETWORK, EMA, FIRST_STAGE, CONDITIONER = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model."
EMBEDDERS = recognise.EMBEDDERS
NOMINAL = 256  # pixels, of the first stages of the paper
_EMA_NETWORK = "diffusion_model"
_DROPPED = ("lvlb_weights", "logvar", "scale_factor", *schedules.BUFFERS)
_BUFFERS = ("position_ids", "num_batches_tracked")
# Modules that a network or autoencoder of other sizes or options would have.
_NETWORK_OWN = ("time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks", "out")
_STAGE_OWN = ("encoder", "decoder", "quant_conv", "post_quant_conv", "quantize")
_CLIP_PREFIXES = ("transformer.text_model.", "transformer.")  # of FrozenCLIPEmbedder, old and new transformers


def read(path: Path, config: Any, ema: bool, notes: list[str], prediction: str | None = None) -> tuple[dict, dict]:
    """A CompVis checkpoint: its description and parameters. Without a YAML it is recognised by its tensors, where it is one of
    the published models. ValueError for what is missing or misshapen."""
    tensors = found_names.unwrapped(files.tensors(path, notes), ema, notes)
    kind = contents(tensors)
    config = files.sibling_yaml(path) if config is None else config
    if config is None:
        return _recognised(path, tensors, ema, notes, prediction)
    config, where = (config, "config") if isinstance(config, Mapping) else (files.read_yaml(Path(config)), str(config))
    description = compvis.parse(config, where)
    if prediction is not None and "diffusion" in description and description["diffusion"]["prediction"] != prediction:
        raise ValueError(f"{path}: prediction={prediction!r}, but {where} says {description['diffusion']['prediction']}")
    stated = "parameterization" in ((config.get("model") or {}).get("params") or {})
    if kind == "first stage":
        if "first_stage" not in description:
            raise ValueError(f"{path}: holds a first stage, but {where} describes none")
        # The scale of its latents belongs to the diffusion model, and is known if the YAML is one's.
        kept = ("first_stage", "latents") if "network" in description else ("first_stage",)
        tree = _first_stage(path, description["first_stage"], tensors, notes)
        return {part: description[part] for part in kept}, {"first_stage": tree}
    if "network" not in description:
        raise ValueError(f"{path}: holds {_named(kind)}, but {where} describes a first stage alone; give its own YAML")
    if kind != "latent diffusion":
        raise ValueError(f"{path}: holds {_named(kind)}; {where} describes a whole latent diffusion model")
    # STATEMENTS may contradict what the YAML says, but not what it leaves open
    return _whole(path, description, tensors, ema, notes, stated)


def contents(tensors: Mapping[str, Any]) -> str:
    """What a CompVis file holds, by its names: "latent diffusion", "first stage" or "unknown"."""
    # averages of a wrapped network have the wrapper in front: model_ema.modulediffusion_model...
    if any(name.startswith(NETWORK) or (name.startswith(EMA) and _EMA_NETWORK in name) for name in tensors):
        return "latent diffusion"
    for prefix in ("", FIRST_STAGE):
        if all(any(name.startswith(prefix + half) for name in tensors) for half in ("encoder.", "decoder.")):
            return "first stage"
    return "unknown"


def _named(kind: str) -> str:
    article = {"latent diffusion": "a latent diffusion model", "first stage": "a first stage"}
    return article.get(kind, "neither a latent diffusion model (model.diffusion_model.*) nor a first stage (encoder.*)")


def _recognised(
    path: Path, tensors: dict[str, Stored], ema: bool, notes: list[str], prediction: str | None
) -> tuple[dict, dict]:
    """A file that has no YAML."""
    if sd3_files.is_one(tensors):
        if prediction is not None:
            raise ValueError(f"{path}: prediction={prediction!r}, but a Stable Diffusion 3 predicts the flow; leave it out")
        return _three(path, tensors, notes)
    recognise.check_transformers(tensors, str(path))
    kind = contents(tensors)
    if kind != "latent diffusion" and (what := recognise.part_of(tensors)):
        raise ValueError(f"{path}: it holds {what}")
    metadata = safetensors_files.read_with_metadata(path)[1] if path.suffix == ".safetensors" else {}
    try:
        if kind == "first stage":
            inner = naming.within(tensors, FIRST_STAGE) or tensors
            stage = structure.autoencoder(inner, NOMINAL)
            notes.append(f"no YAML: a first stage of {stage['kind'].upper()} kind; the scale of its latents is not said")
            return {"first_stage": stage}, {"first_stage": _first_stage(path, stage, tensors, notes)}
        if kind != "latent diffusion":
            raise ValueError("and nothing that it could be known by")
        description = recognise.describe(tensors, prediction, metadata, notes)
    except ValueError as error:
        raise ValueError(
            f"{path}: no YAML beside it; it holds {_named(kind)}: {error}. Put the model's .yaml into the folder, or name it "
            "(config=..., --config)"
        ) from None
    return _whole(path, description, tensors, ema, notes, prediction is not None)


def _three(path: Path, tensors: dict[str, Stored], notes: list[str]) -> tuple[dict, dict]:
    """A Stable Diffusion 3."""
    description, encoders = sd3_files.describe(path, tensors, notes)
    rest = [name for name in tensors if not name.startswith((NETWORK, FIRST_STAGE, sd3_files.PREFIX))]
    found_names.left_out(rest, "the model", notes)
    network, fields = layouts.mmdit(description["network"]), description["conditioner"]["towers"]
    return description, {
        "network": _part(network, naming.within(tensors, NETWORK), f"{path}: network", notes),
        "first_stage": _first_stage(path, description["first_stage"], naming.within(tensors, FIRST_STAGE), notes),
        "conditioner": {
            tower: _part(layouts.tower(fields[tower]), own, f"{path}: {tower}", notes) for tower, own in encoders.items()
        },
    }


def _first_stage(path: Path, stage: dict, tensors: Mapping[str, Stored], notes: list[str]) -> dict:
    if not any(name.startswith("encoder.") for name in tensors) and (inside := naming.within(tensors, FIRST_STAGE)):
        notes.append(f"names without {FIRST_STAGE}")
        found_names.left_out([name for name in tensors if not name.startswith(FIRST_STAGE)], "a first stage", notes)
        tensors = inside
    kept = dict(tensors)
    for prefix, what in (("loss.", "of the training loss"), (EMA, "of an average")):
        if left := [name for name in kept if name.startswith(prefix)]:
            notes.append(f"{len(left)} tensors {what} ({prefix}*) left out of the first stage")
            kept = {name: tensor for name, tensor in kept.items() if not name.startswith(prefix)}
    return _part(layouts.autoencoder(stage), kept, f"{path}: first stage", notes, _STAGE_OWN)


def _part(
    layout: naming.Layout, tensors: Mapping[str, Stored], where: str, notes: list[str], own: tuple[str, ...] = ()
) -> dict:
    """One part's tree. Tensors in modules that the part doesn't have are left out with a note; those in modules that it has, or
    that are its kind's `own`, say that the configuration is another's, and `match` refuses them."""
    modules = {weight.name.split(".")[0] for weight in layout} | set(own)
    strays = [name for name in tensors if name.split(".")[0] not in modules or name.endswith(_BUFFERS)]
    found_names.left_out(strays, f"the {where.rsplit(': ', 1)[-1]}", notes)
    kept = {name: tensor for name, tensor in tensors.items() if name not in set(strays)}
    return naming.nested(layout, naming.match(layout, kept, where))


def _whole(
    path: Path, description: dict, tensors: dict[str, Stored], ema: bool, notes: list[str], stated: bool
) -> tuple[dict, dict]:
    if "first_stage" in description and description["conditioner"]["kind"] in ("clip_text", "sdxl"):
        description["conditioner"] = pipelines.told("CompVis file", description, str(path))
    raw = naming.within(tensors, NETWORK)
    averaged = naming.within(tensors, EMA)
    first = naming.within(tensors, FIRST_STAGE)
    cond = naming.within(tensors, CONDITIONER) or naming.within(tensors, EMBEDDERS)
    known = (NETWORK, EMA, FIRST_STAGE, CONDITIONER, EMBEDDERS)
    statements = [name for name in STATEMENTS if name in tensors]
    for name in statements:
        STATEMENTS[name](path, description, stated, notes)
    rest = [name for name in tensors if not name.startswith(known) and name not in (*_DROPPED, *statements)]
    found_names.left_out(rest, "the model", notes)
    if "ztsnr" not in statements:
        schedules.check(description["diffusion"], tensors, str(path))
    _scale(path, description, tensors)

    layout = layouts.unet(description["network"])
    steps = {name: averaged.pop(name) for name in ("decay", "num_updates") if name in averaged}
    steps = {name: np.asarray(value).item() for name, value in steps.items() if value.size == 1}
    if averaged:
        smooth = _averages(path, layout, averaged)
        which = ("averaged" if ema else "raw") + " weights of two sets" if raw else "averaged weights, the only ones"
        notes.append(f"network: the {which}" + (f" ({_list(steps)})" if steps else ""))
    elif steps:
        notes.append(f"network: the raw weights; {' and '.join(EMA + name for name in steps)} have no average beside them")
    chosen = smooth if averaged and (ema or not raw) else raw
    what = "averaged network" if chosen is not raw else "network"
    params = {"network": _part(layout, chosen, f"{path}: {what}", notes, _NETWORK_OWN)}
    if averaged and raw and ema:
        _part(layout, raw, f"{path}: network", [], _NETWORK_OWN)
    if description.get("first_stage", {}).get("kind", "none") != "none":
        params["first_stage"] = _first_stage(path, description["first_stage"], first, notes)
    elif first:
        raise ValueError(f"{path}: holds a first stage, but its YAML says it has none")
    params["conditioner"] = _conditioner(path, description, cond, notes)
    return description, params


def _v_prediction(path: Path, description: dict, stated: bool, notes: list[str]) -> None:
    diffusion = description["diffusion"]
    if diffusion["prediction"] != "v" and stated:
        raise ValueError(
            f"{path}: says by its tensor v_pred that the network predicts v, its YAML parameterization: "
            f"{diffusion['prediction']}; change the YAML's to v, or take that line out"
        )
    diffusion["prediction"] = "v"
    notes.append("v_pred: the network predicts v")


def _zero_terminal(path: Path, description: dict, stated: bool, notes: list[str]) -> None:
    description["diffusion"]["zero_terminal_snr"] = True
    description["scheduler"] = export.scheduler(description["diffusion"]) | {"timestep_spacing": "trailing"}
    notes.append("ztsnr: the schedule is rescaled to end at pure noise")


# Empty tensors that say something of the model.
STATEMENTS = {"v_pred": _v_prediction, "ztsnr": _zero_terminal}


def _list(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _scale(path: Path, description: dict, tensors: Mapping[str, Stored]) -> None:
    if "scale_factor" in tensors:
        description["latents"]["scale"] = float(np.asarray(tensors["scale_factor"]))
    elif description["latents"]["scale"] == 0.0:
        raise ValueError(f"{path}: its YAML says scale_by_std, but it has no buffer scale_factor")


def _averages(path: Path, layout: naming.Layout, averaged: Mapping[str, Stored]) -> dict[str, Stored]:
    """The averaged tensors by their true names; the dots that their names lost are those of the raw ones."""
    names = {_EMA_NETWORK + naming.ema_name(weight.name): weight.name for weight in layout}
    if len(names) != len(layout):
        raise ValueError(f"{path}: averaged weights of different parameters have the same name")
    naming.account(names, averaged, f"{path}: averaged network (model_ema.*)")
    return {names[name]: tensor for name, tensor in averaged.items()}


def _conditioner(path: Path, description: dict, tensors: dict[str, Stored], notes: list[str]) -> dict:
    fields, where = description["conditioner"], f"{path}: conditioner"
    if fields["kind"] == "combined":  # a prompt, and pictures, which have no weights
        inner = {**description, "conditioner": fields["parts"]["prompt"]}
        tree = _conditioner(path, inner, tensors, notes)
        fields["parts"]["prompt"] = inner["conditioner"]
        return {"prompt": tree}
    if fields["kind"] == "sdxl":
        return _towers(description, tensors, where, notes)
    if fields["kind"] == "inpaint" and tensors:
        stage = layouts.autoencoder(description["first_stage"])
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}
        naming.match(stage, kept, where)
        notes.append("conditioner: the first stage once more, left out")
        return {}
    if fields["kind"] == "clip_text":
        tensors = _clip(fields, tensors, where)
    return _part(conditioner_layout(fields), tensors, where, notes)


def _towers(description: dict, tensors: dict[str, Stored], where: str, notes: list[str]) -> dict:
    """The text encoders of a Stable Diffusion XL, `embedders.0` and `embedders.1`, or of its refiner, `embedders.0` alone; what
    they are goes into the description."""
    found, trees = {}, {}
    for number in sorted({name.split(".")[0] for name in tensors}):
        own = naming.within(tensors, f"{number}.")
        fields = dict(recognise.OPENCLIP if "model.positional_embedding" in own else recognise.CLIP)
        own = _clip(fields, own, f"{where} {number}")
        name = "text_encoder_2" if "projection_dim" in fields else "text_encoder"
        if name in found:
            raise ValueError(f"{where}: two text encoders of one kind ({name}); Stable Diffusion XL has one of each")
        found[name], trees[name] = fields, _part(conditioner_layout(fields), own, f"{where} {number}", notes)
    found = {name: found[name] for name in towers.TOWERS if name in found}
    description["conditioner"] = towers.conditioner(found, description["network"], True, where)
    return trees


def conditioner_layout(fields: Mapping[str, Any]) -> naming.Layout:
    """The tensors of a conditioner; kinds without weights have none."""
    match fields["kind"]:
        case "class":
            return layouts.class_embedder(fields)
        case "text" | "layout":
            return layouts.bert(fields)
        case "semantic":
            return layouts.spatial_rescaler(fields)
        case "clip_text":
            return layouts.clip_text(fields)
    return []


def _clip(fields: dict, tensors: Mapping[str, Stored], where: str) -> dict[str, Stored]:
    """CLIP's tensors under transformers' names; the sizes, which the YAML leaves to the class, go into `fields`."""
    if "model.positional_embedding" in tensors:
        tensors = text.from_openclip(naming.within(tensors, "model."))
    else:
        for prefix in _CLIP_PREFIXES:
            found = naming.within(tensors, prefix)
            if found:
                tensors = found
                break
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    fields |= text.clip_sizes(tensors, where)
    return tensors


def write(path: str | Path, description: Mapping, params: Mapping, ema: Mapping | None = None) -> None:
    """Writes a whole model, or a first stage alone, as CompVis's code reads it: `path` (.ckpt, which
    `torch.load(weights_only=True)` reads) and beside it the YAML of the same name.

    `params` are the parts' trees; `ema` is the averaged tree of the network, if it is to be written besides the raw.
    Leaves are read one at a time. Raises ValueError for what CompVis's classes cannot express.
    """
    path = Path(path)
    config = compvis.compose(description)
    tensors: dict[str, Any] = {}
    if "network" in params:
        layout = layouts.unet(description["network"])
        tensors |= schedules.buffers(description["diffusion"])
        if description["diffusion"].get("zero_terminal_snr"):
            tensors["ztsnr"] = np.zeros(0, np.float32)
        raw = naming.flattened(layout, params["network"], "network")
        tensors |= naming.prefixed(raw, NETWORK)
        if ema is not None:
            averaged = naming.flattened(layout, ema, "averaged network")
            names = {EMA + _EMA_NETWORK + naming.ema_name(name): tensor for name, tensor in averaged.items()}
            tensors |= {f"{EMA}decay": np.float32(0.9999), f"{EMA}num_updates": np.int32(0), **names}
            config["model"]["params"]["use_ema"] = True
    stage: dict[str, Any] = {}
    if params.get("first_stage"):
        stage = naming.flattened(layouts.autoencoder(description["first_stage"]), params["first_stage"], "first stage")
        tensors |= naming.prefixed(stage, FIRST_STAGE if "network" in params else "")
    if description.get("conditioner", {}).get("kind") == "inpaint":
        tensors |= naming.prefixed(stage, CONDITIONER)
    elif params.get("conditioner"):
        tensors |= naming.prefixed(_write_conditioner(description["conditioner"], params["conditioner"]), CONDITIONER)
    torch_files.write(path, {"state_dict": tensors, "epoch": 0, "global_step": 0})
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def _write_conditioner(fields: Mapping[str, Any], tree: Mapping) -> dict[str, Any]:
    tensors = naming.flattened(conditioner_layout(fields), tree, "conditioner")
    if fields["kind"] != "clip_text":
        return tensors
    if fields["hidden_act"] == "quick_gelu":
        return naming.prefixed(tensors, _CLIP_PREFIXES[0])
    return naming.prefixed(text.to_openclip(tensors), "model.")
