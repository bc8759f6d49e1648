"""What a user asks for on the command line: which of a model's methods answers it, and with what.

    asked = Asked(image=("photo.png",), mask="hole.png", prompt=("a red circle",))
    drawn = draw(ldm, asked)                      pictures, or a ValueError in one sentence before anything compiles

The mode is picked from what is given (`MODES`): a picture and a mask are `inpaint`, a picture alone `image_to_image`. Pictures
keep their size: they are padded to what the model takes by their last rows and columns, and the result is cut back.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax import retrieval
from ldm_jax.api import LatentDiffusion
from ldm_jax.data import label_maps
from ldm_jax.data.decode import decode_rgb
from ldm_jax.diffusion.editing import last_steps


@dataclasses.dataclass(frozen=True)
class Asked:
    """The flags of sample.py, where given. Paths are of images; `palette` and `layout` of JSON, `database` of a folder."""

    prompt: Sequence[str] = ()
    label: Sequence[str] = ()
    map: Sequence[str] = ()
    palette: str | None = None
    layout: Sequence[str] = ()
    database: str | None = None
    like: Sequence[str] = ()
    neighbours: int | None = None
    negative: str | None = None
    image: Sequence[str] = ()
    mask: str | None = None
    outpaint: Sequence[str] | None = None
    source: str | None = None
    strength: float | None = None
    upscale: str | None = None
    size: str | None = None
    tiled: bool = False
    panorama: bool = False
    variations: float | None = None
    interpolate: int | None = None
    num: int = 4
    seed: int = 0
    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None

    def given(self) -> set[str]:
        """Names of what the user gave, of what picks a mode."""
        always = ("num", "seed", "sampler", "steps", "guidance_scale")
        names = {field.name for field in dataclasses.fields(self)} - set(always)
        values = {name: getattr(self, name) for name in names}
        return {name for name, value in values.items() if value not in ((), []) and value is not None and value is not False}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Pictures [N, H, W, 3] in [-1, 1], what each is, how many make a row, and whether they follow each other in time."""

    images: np.ndarray
    words: list[str]
    columns: int
    film: bool = False


@dataclasses.dataclass(frozen=True)
class Mode:
    """`needs`: what picks it; `may`: what else has a meaning then, besides the condition; `how`: for help."""

    needs: frozenset[str]
    may: frozenset[str]
    how: str


def _mode(needs: str, may: str, how: str) -> Mode:
    return Mode(frozenset(needs.split()), frozenset(may.split()), how)


CONDITION = frozenset(("prompt", "label", "map", "layout", "like"))
COMPANIONS = {  # what else may be said beside a condition, and to which kinds of models
    "palette": ("semantic",),
    "negative": ("text", "clip_text", "class", "label"),
    "database": ("retrieval",),
    "neighbours": ("retrieval",),
}
# The first whose needs are met is meant.
MODES = {
    "upscale": _mode("upscale", "tiled", "--upscale SMALL.png"),
    "interpolate": _mode("interpolate", "image size tiled", "--interpolate FRAMES, between two conditions, noises or --image"),
    "variation": _mode("variations", "size tiled", "--variations 0.2: pictures like the first one of the seed"),
    "inpaint": _mode("image mask", "strength tiled", "--image PHOTO.png --mask MASK.png (white: paint)"),
    "outpaint": _mode("image outpaint", "tiled", "--image PHOTO.png --outpaint TOP,BOTTOM,LEFT,RIGHT"),
    "edit": _mode("image source", "strength", '--image PHOTO.png --source "what it shows"'),
    "panorama": _mode("panorama size", "", "--panorama --size HEIGHTxWIDTH"),
    "image_to_image": _mode("image", "strength tiled", "--image PHOTO.png --strength 0.6"),
    "sample": _mode("", "size tiled", "[--size HEIGHTxWIDTH [--tiled]]"),
}
# The flags that tell models of a kind their condition; one of them at a time.
TOLD = {
    "text": ("prompt",),
    "clip_text": ("prompt",),
    "class": ("label",),
    "label": ("label",),
    "semantic": ("map",),
    "layout": ("layout",),
    "retrieval": ("prompt", "like", "label"),
}


def usage(ldm: LatentDiffusion) -> str:
    """One line for each mode that this model has."""
    kind = ldm.conditioning.kind
    flags = {
        "prompt": '--prompt "..."',
        "label": "--label NAME",
        "map": "--map MAP.png [--palette PALETTE.json]",
        "layout": "--layout LAYOUT.json",
        "like": "--like PICTURE.png",
    }
    told = " | ".join(flags[flag] for flag in TOLD.get(kind, ()))
    told = f"--database FOLDER [--neighbours K] ({told})" if kind == "retrieval" else told
    told = f"{told} " if told else ""
    return "\n".join(f"  {name:15} {told}{MODES[name].how}" for name in ldm.abilities)


def choose(ldm: LatentDiffusion, asked: Asked) -> str:
    """The mode that is meant. ValueError if what is given doesn't go together, or not with this model."""
    given, kind = asked.given(), ldm.conditioning.kind
    name = next(name for name, mode in MODES.items() if mode.needs <= given)
    mode = MODES[name]
    meant = " and ".join(f"--{need}" for need in sorted(mode.needs)) or "a plain sample"
    for extra in sorted(given - mode.needs - mode.may - CONDITION - {*COMPANIONS}):
        where = [m.needs - {extra} for m in MODES.values() if extra in m.needs | m.may]
        partners = {" and ".join(f"--{need}" for need in sorted(needs)) for needs in where if needs}
        hint = f"; it goes with {' or '.join(sorted(partners, key=len))}" if partners else ""
        raise ValueError(f"--{extra} has no meaning for {meant}{hint}")
    if name not in ldm.abilities:
        takes = f"it takes {ldm.conditioning.takes}"
        raise ValueError(f"{meant}: this model can't {name}, it can {', '.join(ldm.abilities)}; {takes}")
    conditions, known = sorted(given & CONDITION), TOLD.get(kind, ())
    if len(conditions) > 1:
        raise ValueError(f"give {' or '.join(f'--{flag}' for flag in conditions)}, not both")
    said = {*known, *(flag for flag, kinds in COMPANIONS.items() if kind in kinds)}
    for wrong in sorted(given & (CONDITION | {*COMPANIONS}) - said):
        raise ValueError(f"--{wrong} is nothing to this model, which takes {ldm.conditioning.takes}")
    if known and not conditions:
        raise ValueError(f"this model takes {ldm.conditioning.takes}: give {' or '.join(f'--{flag}' for flag in known)}")
    if kind == "retrieval" and not asked.database:
        raise ValueError("this model draws from neighbours in a data base: give --database, made by ldm_jax.retrieval")
    return name


def draw(ldm: LatentDiffusion, asked: Asked) -> Drawn:
    """What was asked for. ValueError or FileNotFoundError for what can't be read or done."""
    name = choose(ldm, asked)
    how: dict[str, Any] = {option: getattr(asked, option) for option in ("sampler", "steps", "guidance_scale")}
    if asked.tiled:
        how["tile"] = ldm.config["data"]["image_size"]
    if asked.strength is not None:
        last_steps(asked.strength, 1)  # refused before anything compiles
        how["strength"] = asked.strength
    if asked.size:
        how["size"] = _size(asked.size)
    p, key = ldm.params, jax.random.key(asked.seed)
    if name == "upscale":
        low = np.repeat(read_image(asked.upscale)[None], asked.num, 0)
        return Drawn(np.asarray(ldm.upscale(p, key, low, **how)), [asked.upscale] * asked.num, asked.num)
    values, words = _conditions(ldm, asked)
    if name == "interpolate":
        return _film(ldm, asked, key, values, words, how)
    values, words = ([value for value in column for _ in range(asked.num)] for column in (values, words))
    if name in ("sample", "panorama", "variation"):
        if name == "variation":
            how["amount"] = asked.variations
        images = getattr(ldm, name)(p, key, _embedded(ldm, asked, values, how), num=len(words), **how)
        if ldm.conditioning.kind == "semantic":
            images = images[:, : values[0].shape[0], : values[0].shape[1]]
        return Drawn(np.asarray(images), words, asked.num)

    image, mask, (height, width) = _prepared(ldm, asked, name)
    image = np.repeat(image[None], len(words), 0)
    cond = _embedded(ldm, asked, values, how)
    if name in ("inpaint", "outpaint"):
        images = ldm.inpaint(p, key, image, np.repeat(mask[None], len(words), 0), cond, **how)
    elif name == "edit":
        source, _ = _conditions(ldm, dataclasses.replace(asked, **{_flag(asked): [asked.source]}))
        images = ldm.edit(p, key, image, cond, _embedded(ldm, asked, source * len(words), how), **how)
    else:
        images = ldm.image_to_image(p, key, image, cond, **how)
    return Drawn(np.asarray(images[:, :height, :width]), words, asked.num)


def _embedded(ldm: LatentDiffusion, asked: Asked, values: list[Any], how: dict[str, Any]) -> Any:
    """cond, or None; puts the negative one into `how`. Label maps are padded to what the first stage takes."""
    if asked.negative is not None:
        how["negative"] = ldm.embed(ldm.params, [asked.negative] * (asked.interpolate or len(values)))
    if ldm.conditioning.kind == "semantic":
        factor = ldm.first_stage.factor
        values = [np.pad(m, ((0, -m.shape[0] % factor), (0, -m.shape[1] % factor)), "edge") for m in values]
    return ldm.embed(ldm.params, values) if values else None


def _prepared(ldm: LatentDiffusion, asked: Asked, name: str) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
    """The picture and the mask on a canvas that the model takes, and the size of what is wanted of it."""
    if len(asked.image) != 1:
        raise ValueError(f"--image {len(asked.image)} times: one, except for --interpolate")
    image, mask = read_image(asked.image[0]), None
    if name == "inpaint":
        mask = read_mask(asked.mask, image.shape[:2])
    if name == "outpaint":
        top, bottom, left, right = _sides(asked.outpaint)
        mask = np.pad(np.zeros(image.shape[:2], np.float32), ((top, bottom), (left, right)), constant_values=1)
        image = np.pad(image, ((top, bottom), (left, right), (0, 0)), "edge")
    size = image.shape[:2]
    padding = [(0, -side % ldm.first_stage.factor) for side in size]
    return np.pad(image, (*padding, (0, 0)), "edge"), None if mask is None else np.pad(mask, padding, "edge"), size


def _conditions(ldm: LatentDiffusion, asked: Asked) -> tuple[list[Any], list[str]]:
    """What `ldm.embed` takes and its description, an entry a condition; values are empty where there is nothing to embed."""
    flag = _flag(asked)
    said = list(getattr(asked, flag)) if flag else [" ".join(filter(None, (*asked.image, asked.mask)))]
    if ldm.conditioning.kind == "retrieval":
        return [_neighbours(ldm, asked, flag, what) for what in said], said
    match flag:
        case "prompt" | "label" | "layout":
            return said, said
        case "map":
            palette = label_maps.read_palette(asked.palette) if asked.palette else None
            classes = ldm.config["conditioner"]["in_channels"]
            return [label_maps.read_map(path, classes, palette) for path in said], said
    return [], said


def _flag(asked: Asked) -> str | None:
    """The one that tells the condition."""
    return next((flag for flag in CONDITION if getattr(asked, flag)), None)


def _neighbours(ldm: LatentDiffusion, asked: Asked, flag: str, what: str) -> np.ndarray:
    """Vectors [k, D] of the nearest to a prompt or a picture, or of some of a class."""
    k = asked.neighbours or ldm.conditioning.null.shape[1]
    if flag == "like":
        return retrieval.condition(asked.database, k=k, image=retrieval.read_query(asked.database, what))
    return retrieval.condition(asked.database, k=k, seed=asked.seed, **{{"prompt": "text"}.get(flag, flag): what})


def _film(
    ldm: LatentDiffusion, asked: Asked, key: jax.Array, values: list[Any], words: list[str], how: dict[str, Any]
) -> Drawn:
    """Frames between conditions, between the seed's first two noises, or between two pictures."""
    p, frames = ldm.params, asked.interpolate
    if len(asked.image) not in (0, 2):
        raise ValueError(f"--interpolate between {len(asked.image)} pictures: give --image twice, or not at all")
    if asked.image:
        if asked.sampler or asked.guidance_scale not in (None, 1) or asked.negative is not None:
            raise ValueError("--interpolate between pictures inverts them, by ddim without guidance: leave these flags out")
        images = [read_image(path) for path in asked.image]
        if images[0].shape != images[1].shape:
            raise ValueError(f"--interpolate between pictures of {images[0].shape[:2]} and {images[1].shape[:2]}: one size")
        ends = ldm.embed(p, values * 2 if len(values) == 1 else values) if values else None
        how["noise"] = ldm.invert(p, np.stack(images), ends, steps=asked.steps, tile=how.get("tile"))
        how |= {"sampler": "ddim", "guidance_scale": 1.0}
    else:
        how["noise"] = ldm.noise(key, 1 if len(values) > 1 else 2, how.pop("size", None))
    cond = _embedded(ldm, asked, values, how)
    return Drawn(np.asarray(ldm.interpolate(p, key, cond, frames, **how)), words, frames, film=True)


def read_image(path: str | Path) -> np.ndarray:
    """float32 [H, W, 3] in [-1, 1] of any image file: EXIF applied, transparency on white, 16 bits as 8."""
    return decode_rgb(path, str(path)).astype(np.float32) / np.float32(127.5) - np.float32(1)


def read_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """float32 [H, W], 1 where the file is white (or transparent). ValueError if it isn't as large as the picture, or paints
    nothing."""
    mask = (decode_rgb(path, str(path)).mean(-1) >= 127.5).astype(np.float32)
    if mask.shape != size:
        there, wanted = (f"{w} x {h}" for h, w in (mask.shape, size))
        raise ValueError(f"{path} is {there} pixels and the picture {wanted}: they must be of one size")
    if not mask.any():
        raise ValueError(f"{path} is black all over: white is what to paint")
    return mask


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found:
        raise ValueError(f"--size {text!r}: write it HEIGHTxWIDTH, such as 64x256")
    return int(found[1]), int(found[2])


def _sides(values: Sequence[str]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right); one number is all four."""
    values = list(values) * (4 if len(values) == 1 else 1)
    if len(values) != 4 or not all(value.isdigit() for value in values) or not any(map(int, values)):
        raise ValueError(f"--outpaint {','.join(values)}: pixels to add, TOP,BOTTOM,LEFT,RIGHT, or one number for all four")
    return tuple(int(value) for value in values)
