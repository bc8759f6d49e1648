"""The text of Stable Diffusion XL, its refiner and Stable Diffusion 3: towers, and what the network is told besides."""

from collections.abc import Mapping
from typing import Any

PIPELINE = "StableDiffusionXL"  # how the names of diffusers' classes for these models begin
TOWERS = ("text_encoder", "text_encoder_2")
THIRD = "text_encoder_3"  # T5, of Stable Diffusion 3, which may be missing
TOKENS = 256  # of T5, by default
BASE, REFINER = ("original_size", "crop", "target_size"), ("original_size", "crop", "aesthetic_score")
_NUMBERS = {BASE: 6, REFINER: 5}
_OF_ONE = ("kind", "layer")  # fields of a tower that stands alone
OPENCLIP_PAD = 0  # "!", which OpenCLIP's tokenizers fill rows up with


def of_pipeline(name: str) -> tuple[str, ...]:
    """Which parts of a pipeline of diffusers are towers, in order; () for pipelines with one or none."""
    if name.startswith("StableDiffusion3"):
        return (*TOWERS, THIRD)
    return TOWERS if name.startswith(PIPELINE) else ()


def tokenizer(tower: str) -> str:
    """What the part is called that has a tower's tokenizer."""
    return tower.replace("text_encoder", "tokenizer")


def pipeline(fields: Mapping[str, Any]) -> str:
    """The class of diffusers that draws with a conditioner of kind "sdxl"."""
    return f"{PIPELINE}Pipeline" if tuple(fields["time_ids"]) == BASE else f"{PIPELINE}Img2ImgPipeline"


def index(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What its model_index.json says besides its parts."""
    if fields["kind"] == "sd3":
        missing = [] if THIRD in fields["towers"] else [THIRD, tokenizer(THIRD)]
        return {name: [None, None] for name in ("feature_extractor", "image_encoder", *missing)}
    said: dict[str, Any] = {"force_zeros_for_empty_prompt": fields.get("zero_empty", True)}
    said |= {name: [None, None] for name in ("feature_extractor", "image_encoder")}
    missing = [part for part in TOWERS if part not in fields["towers"]]
    said |= {name: [None, None] for part in missing for name in (part, tokenizer(part))}
    return said | ({} if tuple(fields["time_ids"]) == BASE else {"requires_aesthetics_score": True})


def conditioner(towers: Mapping[str, Mapping], network: Mapping[str, Any], zero_empty: bool, where: str) -> dict[str, Any]:
    """The conditioner of these towers (fields by name, the one that is pooled last). Which numbers the network is told besides,
    and how wide their sinusoids are, follows from the width of what it takes. ValueError where that can't be."""
    last = list(towers.values())[-1]
    pooled, wide = last.get("projection_dim"), network.get("adm_in_channels")
    if network.get("num_classes") != "sequential" or wide is None:
        raise ValueError(f"{where}: its U-Net takes no sizes (addition_embed_type text_time), so it is no Stable Diffusion XL")
    if pooled is None:
        raise ValueError(f"{where}: its last text encoder has no text_projection, which Stable Diffusion XL pools by")
    context = sum(tower["hidden_size"] for tower in towers.values())
    if context != network["context_dim"]:
        raise ValueError(f"{where}: its text encoders give {context} numbers a token, its U-Net takes {network['context_dim']}")
    time_ids = BASE if len(towers) > 1 else REFINER
    if (wide - pooled) % _NUMBERS[time_ids] or wide <= pooled:
        raise ValueError(
            f"{where}: its U-Net takes {wide} numbers beside the prompt; {pooled} are of the text, and {wide - pooled} "
            f"left for {', '.join(time_ids)}, which are {_NUMBERS[time_ids]}"
        )
    kept = {name: {key: value for key, value in fields.items() if key not in _OF_ONE} for name, fields in towers.items()}
    dim = (wide - pooled) // _NUMBERS[time_ids]
    return {"kind": "sdxl", "towers": kept, "time_ids": time_ids, "time_embed_dim": dim, "zero_empty": zero_empty}


def of_three(towers: Mapping[str, Mapping], network: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The conditioner of Stable Diffusion 3, of two CLIP towers and perhaps T5 (fields by name). ValueError where they don't
    belong to the network."""
    clip, t5 = [fields for name, fields in towers.items() if name != THIRD], towers.get(THIRD)
    if network["kind"] != "mmdit" or len(clip) != len(TOWERS):
        raise ValueError(f"{where}: a Stable Diffusion 3 has a transformer and the parts {', '.join(TOWERS)}")
    if any(fields.get("projection_dim") is None for fields in clip):
        raise ValueError(f"{where}: its text encoders have no text_projection, which Stable Diffusion 3 pools by")
    pooled, wide = (sum(fields[name] for fields in clip) for name in ("projection_dim", "hidden_size"))
    if pooled != network["pooled_dim"] or wide > network["context_dim"] or (t5 and t5["d_model"] != network["context_dim"]):
        beside = f", T5 {t5['d_model']}" if t5 else ""
        raise ValueError(
            f"{where}: its text encoders give {pooled} pooled numbers and {wide} a token{beside}; its transformer takes "
            f"{network['pooled_dim']} and {network['context_dim']}"
        )
    kept = {name: {key: value for key, value in fields.items() if key not in _OF_ONE} for name, fields in towers.items()}
    return {"kind": "sd3", "towers": kept, "max_sequence_length": TOKENS}
