"""What a person can set for a model, and what it means: `Settings` -> the flags of sample.py.

Programs are compiled for a task, a sampler and counts, so that counts are few: `STEPS`, `NUMBERS`, `FRAMES`. Words, seeds,
guidance scales and pictures compile nothing.
"""

import dataclasses
from typing import Any

import numpy as np

from ldm_jax import build
from ldm_jax.api import LatentDiffusion
from ldm_jax.app.uploads import Picture
from ldm_jax.diffusion import SAMPLERS
from ldm_jax.diffusion.editing import last_steps

# In the order of the page. "trajectory" is the way to a plain sample.
TASKS = ("sample", "image_to_image", "inpaint", "upscale", "interpolate", "trajectory")
STEPS = (1, 2, 4, 8, 12, 20, 30, 50, 100)
NUMBERS = (1, 4, 8, 16)
FRAMES = (8, 12, 16, 24)
SCALES = (1.0, 15.0)
LONGEST = 1000  # characters of a prompt
OF_FEW_STEPS = {"flow_map", "consistency", "tcd"}  # samplers that need networks trained for them


@dataclasses.dataclass(frozen=True)
class Offer:
    """What can be done with a model here.

    tasks     of `TASKS`
    told      "prompt", "label", or "" for models that are told nothing
    classes   names, where told is "label"
    guided    whether a guidance scale has a meaning; negative: whether there may be something to steer away from
    samplers, steps, scale   the model's own sampler first; steps to choose from; the model's own scale
    size      height and width of its pictures
    """

    tasks: tuple[str, ...]
    told: str
    classes: tuple[str, ...]
    guided: bool
    negative: bool
    samplers: tuple[str, ...]
    steps: tuple[int, ...]
    own_steps: int
    scale: float
    size: tuple[int, ...]


def _draws(ldm: LatentDiffusion, sampler: str) -> bool:
    """Whether the model's process and grid go with this sampler."""
    try:
        ldm.specification.recipe(sampler)
    except ValueError:
        return False
    return True


def offer(ldm: LatentDiffusion) -> Offer:
    """Of models of pictures that are told a prompt, a class, a picture or nothing; others have no tasks."""
    condition, sampling, kind = ldm.condition, ldm.config["sampling"], build.few_steps_kind(ldm.config)
    told = next((name for name in ("prompt", "label") if tuple(condition.flags) == (name,)), "")
    here = build.make_medium(ldm.config).name == "image" and bool(told) == bool(condition.flags)
    here = here and set(condition.companions) <= {"negative"} and (told != "label" or hasattr(condition, "names"))
    tasks = [name for name in TASKS if name in ldm.abilities or name == "trajectory" and "sample" in ldm.abilities]
    guided = bool(told) and (ldm.specification.told_guidance or kind is None or sampling["guidance_scale"] != 1)
    others = [] if kind else [n for n in sorted({*SAMPLERS} - OF_FEW_STEPS - {sampling["sampler"]}) if _draws(ldm, n)]
    return Offer(
        tasks=tuple(tasks) if here else (),
        told=told,
        classes=tuple(condition.names) if here and told == "label" else (),
        guided=guided,
        negative="negative" in condition.companions and guided and not ldm.specification.told_guidance,
        samplers=(sampling["sampler"], *others),
        steps=tuple(sorted({*STEPS, int(sampling["steps"])})),
        own_steps=int(sampling["steps"]),
        scale=float(sampling["guidance_scale"]),
        size=tuple(ldm.specification.image_size),
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a person has set. `text`: a prompt or a class; `to_text`, `to_seed`: where an interpolation ends, "" and None: where
    it begins. `sampler`, `steps` and `scale` None: the model's own. `mask`: float32 [H, W], 1 where to paint."""

    task: str = "sample"
    text: str = ""
    to_text: str = ""
    negative: str = ""
    seed: int = 0
    to_seed: int | None = None
    num: int = 4
    frames: int = 8
    sampler: str | None = None
    steps: int | None = None
    scale: float | None = None
    strength: float = 0.6
    picture: Picture | None = None
    mask: np.ndarray | None = None


def flags_of(offered: Offer, settings: Settings) -> dict[str, Any]:
    """The flags of sample.py that draw this ("trajectory": that draw where it ends). ValueError in one sentence for what can't
    be meant."""
    check(offered, settings)
    task, own = settings.task, settings.sampler in (None, offered.samplers[0])
    film = task in ("interpolate", "trajectory")
    flags = {
        "num": 1 if film else settings.num,
        "seed": settings.seed,
        "sampler": None if own else settings.sampler,
        "steps": settings.steps or offered.own_steps,
        "guidance_scale": (offered.scale if settings.scale is None else float(settings.scale)) if offered.guided else None,
    }
    if offered.told:
        ends = [settings.to_text] if task == "interpolate" and settings.to_text not in ("", settings.text) else []
        flags[offered.told] = [settings.text, *ends]
    if settings.negative and offered.negative:
        flags["negative"] = settings.negative
    if task == "interpolate":
        flags |= {"interpolate": settings.frames, "to_seed": settings.to_seed}
    if task == "upscale":
        flags["upscale"] = settings.picture.name
    if task in ("image_to_image", "inpaint"):
        flags |= {"image": [settings.picture.name], "strength": settings.strength}
    if task == "inpaint":
        flags["mask"] = mask_name(settings.picture)
    return flags


def mask_name(picture: Picture) -> str:
    """What the mask of a picture is called, in flags and as a file."""
    return f"{picture.name.rsplit('.', 1)[0]}_mask.png"


def check(offered: Offer, settings: Settings) -> None:
    """ValueError in one sentence for what the page doesn't offer, or what is missing."""
    if settings.task not in offered.tasks:
        raise ValueError(f"{settings.task}: this model can {', '.join(offered.tasks) or 'do nothing'} here")
    for name, value, choices in (
        ("steps", settings.steps or offered.own_steps, offered.steps),
        ("pictures", settings.num, NUMBERS),
        ("frames", settings.frames, FRAMES),
        ("sampler", settings.sampler or offered.samplers[0], offered.samplers),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r}: choose one of {', '.join(map(str, choices))}")
    scale = offered.scale if settings.scale is None else settings.scale
    if offered.guided and not min(SCALES[0], offered.scale) <= scale <= max(SCALES[1], offered.scale):
        raise ValueError(f"guidance scale {scale:g}: choose one from {SCALES[0]:g} to {SCALES[1]:g}")
    for text in (settings.text, settings.to_text, settings.negative):
        if len(text) > LONGEST:
            raise ValueError(f"a prompt of {len(text)} letters: at most {LONGEST}")
    for seed in (settings.seed, settings.to_seed):
        if seed is not None and not (type(seed) is int and 0 <= seed < 2**64):
            raise ValueError(f"seed {seed}: a whole number from 0 to 2**64 - 1")
    if offered.told == "label" and settings.text not in offered.classes:
        raise ValueError("choose a class first")
    same = settings.to_text in ("", settings.text) and settings.to_seed in (None, settings.seed)
    if settings.task == "interpolate" and same:
        raise ValueError("the film would end where it begins: give it another seed or other words for its end")
    if settings.task in ("image_to_image", "inpaint", "upscale") and settings.picture is None:
        raise ValueError("give a picture first: upload one, or take one that was drawn here")
    if settings.task in ("image_to_image", "inpaint"):
        last_steps(settings.strength, 1)
    if settings.task == "inpaint" and (settings.mask is None or not settings.mask.any()):
        raise ValueError("paint over the part that is to be drawn anew first")


def program_of(offered: Offer, settings: Settings) -> tuple[Any, ...]:
    """What is compiled for these settings: those with the same tuple share it. For settings that `check` lets pass."""
    steps = settings.steps or offered.own_steps
    of_task: tuple[Any, ...] = (settings.num,)
    if settings.task in ("image_to_image", "inpaint"):
        of_task = settings.num, last_steps(settings.strength, steps)
    if settings.task == "upscale":
        of_task = settings.num, *settings.picture.pixels.shape
    if settings.task == "trajectory":
        of_task = ()
    if settings.task == "interpolate":
        of_task = settings.frames, settings.to_text in ("", settings.text), settings.to_seed is None
    return settings.task, settings.sampler or offered.samplers[0], steps, *of_task
