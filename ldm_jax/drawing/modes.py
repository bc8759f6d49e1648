"""What the flags of sample.py mean: which of a model's methods, with what, and its pictures.

    drawn = draw(ldm, {"image": ["photo.png"], "mask": "hole.png", "prompt": ["a red circle"]})

The mode is picked from what is given (`MODES`): a picture and a mask are `inpaint`, a picture alone `image_to_image`. Pictures
keep their size: they are padded to what the model takes by their last rows and columns, and the result is cut back. Every error
is a ValueError in one sentence before anything compiles.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax import build
from ldm_jax.api import LatentDiffusion
from ldm_jax.api.sampling import canvas
from ldm_jax.conditioning import KINDS, Condition
from ldm_jax.data.text_files import read_text
from ldm_jax.drawing.reading import NOTHING, Held, map_size, padded, picture, prepared, size_of
from ldm_jax.primitives.arrays import key_of
from ldm_jax.primitives.choices import did_you_mean
from ldm_jax.primitives.flags import DRAWING_FLAGS, EMPTY, check_numbers

Flags = Mapping[str, Any]
# have a meaning in every mode
ALWAYS = ("num", "seed", "index", "sampler", "grid", "steps", "guidance_scale", "image_guidance_scale", "lora")
PLAN = ("sampler", "grid", "steps", "guidance_scale")  # of these, what a model's functions take under the same names
MOST_AT_ONCE = 64  # plain samples; more are drawn in parts of so many, which differ in rounding only


def all_flags() -> dict[str, tuple[str, Any, str]]:
    """Type, default and help of every flag: those of all kinds of conditions, and those of drawing."""
    found = {}
    for kind in KINDS.values():
        for name, (of_type, text, _) in {**kind.flags, **kind.companions}.items():
            found.setdefault(name, (of_type, EMPTY.get(of_type), text))
    return found | DRAWING_FLAGS


def given(flags: Flags) -> set[str]:
    """Flags that the user set, but those that have a meaning in every mode."""
    return {
        name
        for name, value in flags.items()
        if name not in ALWAYS and value is not None and value is not False and value != [] and value != ()
    }


def with_defaults(flags: Flags) -> dict[str, Any]:
    """All flags. ValueError for one that isn't, and for a text in the place of a list, which would be read letter by letter."""
    known = all_flags()
    for name, value in flags.items():
        if name not in known:
            raise ValueError(f"--{name} is no flag.{did_you_mean(name, known)}")
        if known[name][0] in ("texts", "list") and isinstance(value, str):
            raise ValueError(f"{name}={value!r}: give a list, [{value!r}]")
    return {name: default for name, (_, default, _) in known.items()} | dict(flags)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Pictures [N, H, W, 3] in [-1, 1], what each is, how many make a row, and whether they follow each other in time.
    ValueError for some that are not finite: files would show them black."""

    images: np.ndarray
    words: list[str]
    columns: int
    film: bool = False

    def __post_init__(self):
        finite = np.isfinite(self.images).reshape(len(self.images), -1).all(1)
        if not finite.all():
            raise ValueError(
                f"{np.count_nonzero(~finite)} of {len(finite)} that were drawn are not finite, the first number "
                f"{np.argmin(finite)}: guidance that is too strong, or weights that are broken"
            )


@dataclasses.dataclass(frozen=True)
class Mode:
    """`needs`: flags that pick it; `may`: what else has a meaning then, besides the condition; `usage`: for help."""

    needs: frozenset[str]
    may: frozenset[str]
    usage: str


def _mode(needs: str, may: str, usage: str) -> Mode:
    return Mode(frozenset(needs.split()), frozenset(may.split()), usage)


# The first whose needs are met is meant.
MODES = {
    "upscale": _mode("upscale", "tiled", "--upscale SMALL.png"),
    "interpolate": _mode(
        "interpolate", "image size tiled to_seed", "--interpolate FRAMES, between two conditions, noises or --image"
    ),
    "variation": _mode("variations", "size tiled", "--variations 0.2: pictures like the first one of the seed"),
    "inpaint": _mode("image mask", "strength tiled", "--image PHOTO.png --mask MASK.png (white: paint)"),
    "outpaint": _mode("image outpaint", "tiled", "--image PHOTO.png --outpaint TOP,BOTTOM,LEFT,RIGHT"),
    "edit": _mode("image source", "strength", '--image PHOTO.png --source "what it shows"'),
    "panorama": _mode("panorama size", "", "--panorama --size HEIGHTxWIDTH"),
    "image_to_image": _mode("image", "strength tiled", "--image PHOTO.png --strength 0.6"),
    "sample": _mode("", "size tiled", "[--size HEIGHTxWIDTH [--tiled]]"),
}


def usage(ldm: LatentDiffusion) -> str:
    """One line for each mode that this model has."""
    condition = ldm.condition
    known = " | ".join(f"--{name} {example}" for name, (_, _, example) in condition.flags.items())
    beside = " ".join(f"[--{name} {example}]" for name, (_, _, example) in condition.companions.items())
    told = f"({known}) {beside} " if len(condition.flags) > 1 else f"{known} {beside} " if known else ""
    return "\n".join(f"  {name:15} {told}{MODES[name].usage}" for name in ldm.abilities)


def choose_mode(ldm: LatentDiffusion, flags: Flags) -> str:
    """The mode that is meant. ValueError if what is given doesn't go together, or not with this model."""
    flags = with_defaults(flags)
    named, condition = given(flags), ldm.condition
    of_conditions = {name for kind in KINDS.values() for name in (*kind.flags, *kind.companions)}
    name = next(name for name, mode in MODES.items() if mode.needs <= named)
    mode = MODES[name]
    meant = " and ".join(f"--{need}" for need in sorted(mode.needs)) or "a plain sample"
    for extra in sorted(named - mode.needs - mode.may - of_conditions):
        where = [m.needs - {extra} for m in MODES.values() if extra in m.needs | m.may]
        partners = {" and ".join(f"--{need}" for need in sorted(needs)) for needs in where if needs}
        hint = f"; it goes with {' or '.join(sorted(partners, key=len))}" if partners else ""
        raise ValueError(f"--{extra} has no meaning for {meant}{hint}")
    if name not in ldm.abilities:
        takes = f"it takes {condition.takes}"
        raise ValueError(f"{meant}: this model can't {name}, it can {', '.join(ldm.abilities)}; {takes}")
    telling = {name for kind in KINDS.values() for name in kind.flags}
    conditions = sorted(named & telling)
    if len(conditions) > 1:
        raise ValueError(f"give {' or '.join(f'--{flag}' for flag in conditions)}, not both")
    for wrong in sorted(named & of_conditions - {*condition.flags, *condition.companions}):
        raise ValueError(f"--{wrong} is nothing to this model, which takes {condition.takes}")
    if condition.flags and not conditions:
        raise ValueError(f"this model takes {condition.takes}: give {' or '.join(f'--{flag}' for flag in condition.flags)}")
    condition.check_flags(flags)
    check_numbers(flags)
    return name


def with_prompts(ldm: LatentDiffusion, flags: Flags, path: str) -> dict[str, Any]:
    """The flags with the lines of a text file (blank ones left out) as prompts, or as classes, after those that are given.
    ValueError or FileNotFoundError for a file that can't be read or has no lines, and for a model that takes neither."""
    name = next((name for name in ("prompt", "label", "infill", "describe") if name in ldm.condition.flags), None)
    if name is None:
        raise ValueError(f"--prompts is nothing to this model, which takes {ldm.condition.takes}")
    if not Path(path).exists() or Path(path).is_dir():  # a pipe of the shell's is no file, and can be read
        raise FileNotFoundError(f"--prompts {path}: no such file; it has a {name} a line")
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"--prompts {path}: it has no lines; write a {name} a line")
    return {**flags, name: [*(flags.get(name) or []), *lines]}


def alone(ldm: LatentDiffusion, flags: Flags, index: int) -> dict[str, Any]:
    """The flags that draw picture `index` of those that `flags` draw, and nothing else: with its own condition. Frames of a
    film are drawn together and keep all conditions. ValueError if there are fewer pictures."""
    flags = with_defaults(flags) | {"index": index}
    if flags["interpolate"] is not None:
        if index >= flags["interpolate"]:
            raise ValueError(f"--index={index}: the film has {flags['interpolate']} frames, from 0")
        return flags
    told = telling_flag(ldm.condition, flags)
    said = [] if told is None or isinstance(flags[told], str) else flags[told]
    if len(said) > 1:
        if index >= len(said) * flags["num"]:
            raise ValueError(f"--index={index}: {len(said)} conditions, --num={flags['num']} pictures each, from 0")
        flags[told] = [said[index // flags["num"]]]
    return flags | {"num": 1}


def draw(ldm: LatentDiffusion, flags: Flags, held: Held = NOTHING) -> Drawn:
    """What the flags say; with an index, that picture alone, as it is among the others up to rounding. `held`: pictures (and
    a mask) that are no files: the flags image, mask and upscale may name them. ValueError or FileNotFoundError for what can't
    be read or done."""
    name, flags = choose_mode(ldm, flags), with_defaults(flags)
    ldm = with_loras(ldm, flags["lora"])
    index = flags["index"]
    flags = flags if index is None else alone(ldm, flags, index)
    options: dict[str, Any] = {option: flags[option] for option in PLAN}
    if flags["image_guidance_scale"] is not None:
        options["image_guidance_scale"] = flags["image_guidance_scale"]
    if flags["tiled"]:
        options["tile"] = ldm.specification.image_size
    if flags["strength"] is not None:
        options["strength"] = flags["strength"]
    if flags["size"]:
        options["size"] = size_of(flags["size"], len(ldm.specification.image_size))
        build.make_medium(ldm.config).check_size(options["size"])
    p, num = ldm.params, flags["num"]
    first = key = key_of(flags["seed"])
    if index is not None and name != "interpolate":
        key = jax.random.fold_in(key, index)[None]  # one a picture: see `LatentDiffusion.sample`
    if name == "upscale":
        low = np.repeat(picture(ldm, flags["upscale"], held)[None], num, 0)
        return Drawn(np.asarray(ldm.upscale(p, key, low, **options)), [flags["upscale"]] * num, num)
    values, words = _conditions(ldm, flags)
    if name == "interpolate":
        film = _film(ldm, flags, key, values, words, options, held)
        return film if index is None else Drawn(film.images[index : index + 1], film.words[index : index + 1], 1)
    values, words = ([value for value in column for _ in range(num)] for column in (values, words))
    if name in ("sample", "panorama", "variation"):
        cut = _within(map_size(ldm, values))
        if name == "sample" and len(words) > MOST_AT_ONCE:
            return Drawn(_in_parts(ldm, flags, first, values, len(words), options)[cut], words, num)
        beside = int(name == "variation" and index is not None)  # all take the noise of the first, which is drawn with it
        if name == "variation":
            options["amount"] = flags["variations"]
        if beside:
            key, values = jax.numpy.stack([jax.random.fold_in(first, 0), key[0]]), values * 2
        cond = _embedded(ldm, flags, values, options)
        if beside:
            options["noise"] = ldm.noise(key[:1], 1, options.pop("size", None) or canvas(ldm.specification, cond))
        images = getattr(ldm, name)(p, key, cond, num=len(words) + beside, **options)[beside:]
        return Drawn(np.asarray(images[cut]), words, num)

    image, mask, size = prepared(ldm, flags, name, held)
    map_size(ldm, values, size)
    shown = image.shape[:-1]
    image = np.repeat(image[None], len(words), 0)
    if name in ("inpaint", "outpaint"):
        if ldm.condition.inpainting_part:  # a combination takes its prompts beside the picture, and embeds both together
            cond = _told(ldm, values, shown) or None
            if flags["negative"] is not None:
                options["negative"] = _told(ldm, values, shown, flags["negative"])
        else:
            cond = _embedded(ldm, flags, values, options, shown)
        images = ldm.inpaint(p, key, image, np.repeat(mask[None], len(words), 0), cond, **options)
    elif name == "edit":
        cond = _embedded(ldm, flags, values, options, shown)
        source, _ = _conditions(ldm, flags | {telling_flag(ldm.condition, flags): [flags["source"]]})
        map_size(ldm, source, size, "source")
        images = ldm.edit(p, key, image, cond, _embedded(ldm, flags, source * len(words), options, shown), **options)
    else:
        images = ldm.image_to_image(p, key, image, _embedded(ldm, flags, values, options, shown), **options)
    return Drawn(np.asarray(images[_within(size)]), words, num)


def _within(size: Sequence[int] | None) -> tuple[slice, ...]:
    """Of arrays [B, *space, C], the first `size` of every axis; all where it is None."""
    return (slice(None), *map(slice, size or ()))


def with_loras(ldm: LatentDiffusion, said: Sequence[str]) -> LatentDiffusion:
    """The model with every FILE or FILE:SCALE of --lora merged. ValueError for what is no LoRA of this model."""
    for text in said:
        path, _, scale = text.rpartition(":")
        weighted = path and re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", scale)
        ldm = ldm.with_lora(path if weighted else text, float(scale) if weighted else 1.0)
    return ldm


def _in_parts(
    ldm: LatentDiffusion, flags: Flags, key: jax.Array, values: list[Any], count: int, options: dict[str, Any]
) -> np.ndarray:
    """`count` pictures of `sample`, MOST_AT_ONCE at a time, so that there is one compilation and memory for as many."""
    images = []
    for start in range(0, count, MOST_AT_ONCE):
        rows = np.minimum(np.arange(start, start + MOST_AT_ONCE), count - 1)
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
        cond = _embedded(ldm, flags, [values[row] for row in rows] if values else [], options)
        images.append(np.asarray(ldm.sample(ldm.params, keys, cond, num=len(rows), **options))[: count - start])
    return np.concatenate(images)


def _told(ldm: LatentDiffusion, values: list[Any], size: Sequence[int], negative: str | None = None) -> list[Any]:
    """What `ldm.embed` takes for pictures of `size` pixels, or for what each is led away from. Label maps are padded to sides
    that the first stage takes."""
    if ldm.condition.kind == "semantic":
        values = [padded(ldm, value) for value in values]
    return [ldm.condition.told(value, size, negative) for value in values]


def _embedded(
    ldm: LatentDiffusion, flags: Flags, values: list[Any], options: dict[str, Any], size: Sequence[int] | None = None
) -> Any:
    """cond, or None; puts the negative one into `options`. `size`: of what is drawn, where `options` don't say it."""
    if not values:
        return None
    size, num = size or options.get("size") or ldm.specification.image_size, flags["interpolate"] or len(values)
    cond = ldm.embed(ldm.params, _told(ldm, values, size))
    if flags["negative"] is not None:
        negative = ldm.embed(ldm.params, _told(ldm, values[:1], size, flags["negative"]) * num)
        if "concat" in cond:  # a picture to change is no part of what is led away from
            null = ldm.specification.null(ldm.params, num, canvas(ldm.specification, cond), cond)
            negative |= {"concat": null["concat"]}
        options["negative"] = negative
    return cond


def _conditions(ldm: LatentDiffusion, flags: Flags) -> tuple[list[Any], list[str]]:
    """What `ldm.embed` takes and its description, an entry a condition; values are empty where there is nothing to embed."""
    if telling_flag(ldm.condition, flags) is None:
        return [], [" ".join(filter(None, (*flags["image"], flags["mask"])))]
    return ldm.condition.read(flags)


def telling_flag(condition: Condition, flags: Flags) -> str | None:
    """The one that tells the condition; None where none does."""
    return next((flag for flag in condition.flags if flags[flag]), None)


def _film(
    ldm: LatentDiffusion,
    flags: Flags,
    key: jax.Array,
    values: list[Any],
    words: list[str],
    options: dict[str, Any],
    held: Held,
) -> Drawn:
    """Frames between conditions, between two noises (the seed's first two, or the first of two seeds), or between two
    pictures."""
    p, frames, paths, other = ldm.params, flags["interpolate"], flags["image"], flags["to_seed"]
    if frames < len(values):
        raise ValueError(f"--interpolate={frames} between {len(values)} conditions: give as many frames as conditions, or more")
    if len(paths) not in (0, 2):
        raise ValueError(f"--interpolate between {len(paths)} pictures: give --image twice, or not at all")
    if paths:
        if flags["sampler"] or flags["grid"] or flags["guidance_scale"] not in (None, 1) or flags["negative"] is not None:
            raise ValueError("--interpolate between pictures inverts them, by ddim without guidance: leave these flags out")
        if "size" in options:
            raise ValueError("--size has no meaning for --interpolate between pictures, which keep theirs")
        if other is not None:
            raise ValueError("--to_seed has no meaning for --interpolate between pictures, whose noise is found")
        images = [picture(ldm, path, held) for path in paths]
        if images[0].shape != images[1].shape:
            raise ValueError(f"--interpolate between pictures of {images[0].shape[:-1]} and {images[1].shape[:-1]}: one size")
        size = map_size(ldm, values, images[0].shape[:-1])
        images = np.stack([padded(ldm, image) for image in images])
        shown = images.shape[1:-1]
        ends = ldm.embed(p, _told(ldm, values * 2 if len(values) == 1 else values, shown)) if values else None
        options["noise"] = ldm.invert(p, images, ends, steps=flags["steps"], tile=options.get("tile"))
        options |= {"sampler": "ddim", "guidance_scale": 1.0}
        cond = _embedded(ldm, flags, values, options, shown)
    else:
        if other is not None and len(values) > 2:
            raise ValueError(f"--to_seed with {len(values)} conditions: two seeds go with one condition, or with two")
        size = map_size(ldm, values)
        cond = _embedded(ldm, flags, values, options)
        full = options.get("size") or canvas(ldm.specification, cond)
        options["noise"] = ldm.noise(key, 1 if len(values) > 1 or other is not None else 2, full)
        if other is not None:
            options["noise"] = jax.numpy.concatenate([options["noise"], ldm.noise(key_of(other), 1, full)])
    images = ldm.interpolate(p, key, cond, frames, **options)[_within(size)]
    return Drawn(np.asarray(images), _of_frames(words, frames), frames, film=True)


def _of_frames(words: list[str], frames: int) -> list[str]:
    """What each frame is: the only thing that was asked for; or of several one each, where it is reached, and else nothing."""
    if len(words) == 1:
        return words * frames
    at = {round(i * (frames - 1) / (len(words) - 1)): word for i, word in enumerate(words)}
    return [at.get(i, "") for i in range(frames)]


def trajectory(ldm: LatentDiffusion, flags: Flags) -> Drawn:
    """The way to the first picture that flags of a plain sample draw, from its noise: steps + 1 pictures, see
    `LatentDiffusion.trajectory`. ValueError for other flags, and as `draw`."""
    name, flags = choose_mode(ldm, flags), with_defaults(flags)
    ldm = with_loras(ldm, flags["lora"])
    values, words = _conditions(ldm, flags)
    if others := given(flags) - {*ldm.condition.flags, *ldm.condition.companions}:
        raise ValueError(f"--{min(others)} has no meaning for the way to a picture, which is of a plain sample")
    if name != "sample" or len(words) > 1:
        raise ValueError(f"the way to a picture is of a plain sample of one condition, not of {len(words)} by {name}")
    options = {option: flags[option] for option in PLAN}
    cond = _embedded(ldm, flags, values, options)
    frames = ldm.trajectory(ldm.params, key_of(flags["seed"]), cond, num=1, **options)
    return Drawn(np.asarray(frames[:, 0]), words, len(frames), film=True)
