"""What sample.py can be told, in plain tables: commands read them, and refuse what can't be meant, before jax is imported.

A flag is (type, default, help) or, of a condition, (type, help, example); its type is one of "text", "texts" (may be repeated),
"list" (by commas), "number", "integer" and "switch".
"""

from collections.abc import Mapping
from typing import Any

CONDITION_FLAGS: dict[str, tuple[str, str, str]] = {
    "label": ("texts", "A class, by name or number; may be repeated.", "NAME"),
    "negative": ("text", "What to steer away from: a prompt or a class.", '"..."'),
    "prompt": ("texts", "What to draw; may be repeated. '(word:1.3)' weighs a part; '\\(' is a plain parenthesis.", '"..."'),
    "picture": ("text", "The picture that --prompt says how to change.", "PHOTO.png"),
    "map": ("texts", "A label map: a PNG of class numbers, or of colours with --palette; may be repeated.", "MAP.png"),
    "palette": ("text", "JSON: [[r, g, b], ...] or {name: [r, g, b], ...}, for --map.", "PALETTE.json"),
    "layout": ("texts", "JSON: what is where; may be repeated.", "LAYOUT.json"),
    "like": ("texts", "A picture: a retrieval model draws from its neighbours; may be repeated.", "PICTURE.png"),
    "database": ("text", "Where a retrieval model finds its neighbours.", "FOLDER"),
    "neighbours": ("integer", "How many of them; default: as many as in training.", "K"),
    "infill": ("texts", "A sentence with ___ for each word to draw; ... at its end: any more.", '"a ___ ..."'),
    "describe": ("texts", "A picture to say in words; may be repeated.", "PHOTO.png"),
}
DRAWING_FLAGS: dict[str, tuple[str, Any, str]] = {
    "image": ("texts", [], "A picture to start from. Alone: drawn anew at --strength."),
    "mask": ("text", None, "White, or strokes on a clear layer, where --image is painted anew; the rest stays, bit for bit."),
    "outpaint": ("list", None, "Pixels to add around --image: TOP,BOTTOM,LEFT,RIGHT, or one number."),
    "source": ("text", None, "What --image shows, in the words of the condition: edits it through its noise."),
    "strength": ("number", None, "How much of --image may change, in (0, 1]."),
    "upscale": ("text", None, "A small picture, for super-resolution."),
    "size": ("text", None, "HEIGHTxWIDTH in pixels; default: the training size."),
    "tiled": ("switch", False, "Large canvases in windows of the training size."),
    "panorama": ("switch", False, "The same, and the right end continues at the left."),
    "variations": ("number", None, "How far from the seed's first picture, in [0, 1]."),
    "interpolate": ("integer", None, "Frames between conditions, noises or two pictures."),
    "to_seed": ("integer", None, "With --interpolate: the seed whose first picture ends the film."),
    "num": ("integer", 4, "How many pictures for each condition."),
    "seed": ("integer", 0, "The same seed draws the same pictures."),
    "index": ("integer", None, "Of the pictures that the other flags draw, this one alone, from 0."),
    "sampler": ("text", None, "ddim, dpmpp_2m, dpmpp_2m_karras, ...; default: the config's."),
    "grid": ("text", None, "At which levels the sampler steps: trailing, karras, log_snr, ...; default: the config's."),
    "steps": ("integer", None, "Sampling steps; default: the config's."),
    "guidance_scale": ("number", None, "1 is off; default: the config's."),
    "image_guidance_scale": ("number", None, "How much --picture counts, for models that are told one and a prompt."),
    "lora": ("texts", [], "A LoRA file or folder to draw with, FILE or FILE:0.8 for a part of it; may be repeated."),
}
# Suffix -> Pillow's format and how it is written. WebP is without loss, JPEG can't be.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
}
# Words, of which there may be none; whatever else is given has something behind it.
MAY_BE_EMPTY = ("prompt", "negative", "source")
EMPTY = {"texts": [], "switch": False}  # the default of a type, where it isn't None


def sample_flags() -> dict[str, tuple[str, Any, str]]:
    """Type, default and help of every flag that says what to draw."""
    of_conditions = {name: (of_type, EMPTY.get(of_type), text) for name, (of_type, text, _) in CONDITION_FLAGS.items()}
    return of_conditions | DRAWING_FLAGS


def of_condition(*names: str) -> dict[str, tuple[str, str, str]]:
    """Of a condition's class: {name: (type, help, example)}."""
    return {name: CONDITION_FLAGS[name] for name in names}


def check_numbers(flags: Mapping[str, Any]) -> None:
    """ValueError for a number that no model could draw with."""
    bounds = {"num": 1, "steps": 1, "interpolate": 2, "neighbours": 1}
    for name, least in bounds.items():
        if flags[name] is not None and flags[name] < least:
            raise ValueError(f"--{name}={flags[name]}: must be at least {least}")
    if flags["variations"] is not None and not 0 <= flags["variations"] <= 1:
        raise ValueError(f"--variations={flags['variations']}: must lie in [0, 1]")
    if flags["index"] is not None and not 0 <= flags["index"] < 2**31:
        raise ValueError(f"--index={flags['index']}: must be a whole number from 0 to 2**31 - 1")
    if flags["strength"] is not None and not 0 < flags["strength"] <= 1:
        raise ValueError(f"--strength={flags['strength']}: must lie in (0, 1]")
    for name in ("seed", "to_seed"):
        if flags[name] is not None:
            check_seed(flags[name], f"--{name}")


def check_seed(seed: Any, what: str = "seed") -> None:
    """ValueError for one that `arrays.key_of` has no key for."""
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"{what}={seed!r}: must be a whole number from 0 to 2**64 - 1")
