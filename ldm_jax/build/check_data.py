"""Whether config.data can be meant, beside what every section's numbers and names may be."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.build.adaptation import adapts, field_of
from ldm_jax.build.condition import make_condition
from ldm_jax.build.diffusion import few_steps_kind


def check_data(config: Mapping[str, Any]) -> None:
    """ValueError for crops, views and captions that can't work, with what to do."""
    check_crop(config)
    check_augment(config)
    if wrong := [text for text in config["data"].get("captions", ()) if not isinstance(text, str) or not text.strip()]:
        raise ValueError(f"config.data.captions={config['data']['captions']}: must be texts, {wrong[0]!r} is none")


def check_crop(config: Mapping[str, Any]) -> None:
    """ValueError for crops that pictures are too small for, or that the latents of an earlier stage would hold only one of."""
    data, latents = config["data"], config.get("latents", {})
    size = data["image_size"]
    shortest, short_side = (size if isinstance(size, int) else min(size)), data.get("short_side", 0)
    if 0 < short_side < shortest:
        raise ValueError(
            f"config.data.short_side={short_side}: must be at least config.data.image_size={size}, or 0, or -1 (not resized)"
        )
    first_stage = config["first_stage"]["kind"] != "none"
    if data.get("crop") == "random" and latents.get("cache") and first_stage and "diffusion" in config["stages"]:
        raise ValueError(
            "config.data.crop='random': config.latents.cache=True would hold one crop of every picture; set it to False, or "
            "crop='center'"
        )


STAYING = ("label_map", "boxes", "box_labels", "conditioning")  # columns of what lies on a picture


def check_augment(config: Mapping[str, Any]) -> None:
    """ValueError for augmentation of what is no picture, of one view that is kept, beside what lies on pictures and stays where
    it is, and of a network that can't learn to be told."""
    data, latents = config["data"], config.get("latents", {})
    if not (share := data.get("augment")):
        return
    where = f"config.data.augment={share}"
    if data.get("medium", "image") != "image":
        raise ValueError(f"{where}: pictures are turned and stretched, this is data of medium={data['medium']!r}; set it to 0")
    if "diffusion" not in config["stages"]:
        return
    if latents.get("cache") and config["first_stage"]["kind"] != "none":
        raise ValueError(f"{where}: config.latents.cache=True would hold one view of every picture; set it to False")
    if beside := [column for column in make_condition(config).columns if column in STAYING]:
        raise ValueError(f"{where}: the picture would move, and its {beside[0]} would not; set it to 0")
    if (kind := few_steps_kind(config)) and kind.teacher:
        name = config["diffusion"]["objective"]
        raise ValueError(f"{where}: objective={name!r} learns from a model that isn't told what was done; set it to 0")
    if part := adapts(config):
        raise ValueError(f"{where}: {field_of(part)} leaves the network as it is: it can't learn what was done; set it to 0")
