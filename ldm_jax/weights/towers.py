"""The text of Stable Diffusion XL and its refiner: CLIP towers side by side, and what else the network is told of a picture."""

from collections.abc import Mapping
from typing import Any

PIPELINE = "StableDiffusionXL"  # how the names of diffusers' classes for these models begin
TOWERS = ("text_encoder", "text_encoder_2")
BASE, REFINER = ("original_size", "crop", "target_size"), ("original_size", "crop", "aesthetic_score")
_NUMBERS = {BASE: 6, REFINER: 5}
_OF_ONE = ("kind", "layer")  # fields of a tower that stands alone
OPENCLIP_PAD = 0  # "!", which OpenCLIP's tokenizers fill rows up with


def pipeline(fields: Mapping[str, Any]) -> str:
    """The class of diffusers that draws with a conditioner of kind "sdxl"."""
    return f"{PIPELINE}Pipeline" if tuple(fields["time_ids"]) == BASE else f"{PIPELINE}Img2ImgPipeline"


def index(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What its model_index.json says besides its parts."""
    said: dict[str, Any] = {"force_zeros_for_empty_prompt": fields.get("zero_empty", True)}
    said |= {name: [None, None] for name in ("feature_extractor", "image_encoder")}
    missing = [part for part in TOWERS if part not in fields["towers"]]
    said |= {name: [None, None] for part in missing for name in (part, part.replace("text_encoder", "tokenizer"))}
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
