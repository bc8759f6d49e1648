"""How a training changes a model that stays as it is: by a low-rank change, a new word, a ControlNet; from
config.diffusion_train.

Each is a part of the parameters, which alone is trained, and a function of the frozen model and that part.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from ldm_jax import models
from ldm_jax.conditioning import Condition, words

PyTree = Any
# the part of the parameters that is trained -> the field that asks for it
FIELDS = {"lora": ("lora", "rank"), "word": ("textual_inversion", "word"), "control": ("control", "picture")}
HINTS = (16, 32, 96, 256)  # widths of the published ControlNets' encoder of pictures


class Adaptation(NamedTuple):
    """part     of the parameters, which alone is trained
    init     (key, shapes of the frozen model's parameters) -> that part; a word's begins later as another one's
    change   (the frozen model's parameters, that part) -> those of them that it changes
    """

    part: str
    init: Callable[[jax.Array, PyTree], PyTree]
    change: Callable[[PyTree, PyTree], PyTree]


def adapts(config: Mapping[str, Any]) -> str:
    """The part that is trained of a model which stays as it is; "" where all of it is trained. ValueError for several."""
    train = config.get("diffusion_train", {})
    found = [part for part, (section, field) in FIELDS.items() if train.get(section, {}).get(field)]
    if len(found) > 1:
        both = " and ".join(f"{'.'.join(FIELDS[part])}={train[FIELDS[part][0]][FIELDS[part][1]]!r}" for part in found)
        raise ValueError(f"config.diffusion_train: {both}: train one after the other")
    return found[0] if found else ""


def field_of(part: str) -> str:
    """The field that asks for training a part, by its whole name."""
    return ".".join(("config.diffusion_train", *FIELDS[part]))


def make_lora(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the network is adapted by config.diffusion_train.lora: {"rank", "targets", "scale"}; None where all of it is trained.
    """
    section = config["diffusion_train"].get("lora", {})
    if not (rank := section.get("rank", 0)):
        return None
    return {"rank": rank, "targets": tuple(section["targets"]), "scale": (section["alpha"] or rank) / rank}


def make_word(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The word that config.diffusion_train.textual_inversion teaches: {"word", "initial", "vectors"}; None for none."""
    section = config.get("diffusion_train", {}).get("textual_inversion", {})
    return dict(section) if section.get("word") else None


def without_word(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the model that is taught a word, before it."""
    if make_word(config) is None:
        return dict(config)
    train = config["diffusion_train"]
    return {**config, "diffusion_train": {**train, "textual_inversion": {**train["textual_inversion"], "word": ""}}}


def control_fields(config: Mapping[str, Any], channels: int, factor: int) -> dict[str, Any] | None:
    """config.network of the ControlNet that config.diffusion_train.control trains, for latents of so many channels, `factor`
    times smaller than pictures; None for none. ValueError unless its encoder of pictures shrinks them as much."""
    section = config.get("diffusion_train", {}).get("control", {})
    if not section.get("picture"):
        return None
    levels = factor.bit_length()
    hints = tuple(section["hint_channels"]) or (HINTS + HINTS[-1:] * levels)[:levels]
    if 2 ** (len(hints) - 1) != factor:
        raise ValueError(
            f"config.diffusion_train.control.hint_channels={list(hints)}: pictures are halved between one and the next, "
            f"{2 ** (len(hints) - 1)} times in all, and latents are {factor} times smaller; give {levels} widths, or ()"
        )
    return {**config["network"], "in_channels": channels, "hint_channels": hints}


def make_adaptation(config: Mapping[str, Any], condition: Condition, control: Any = None) -> Adaptation | None:
    """What config.diffusion_train asks for.

    Args:
      condition: of `make_condition`, which knows the tokenizer, or shapes alone.
      control: initializes a ControlNet, key -> its parameters. Without it, it changes nothing of the frozen model's parameters,
        and is a part beside them.
    """
    part = adapts(config)
    if part == "lora":
        lora = make_lora(config)
        apply = functools.partial(models.apply_lora, scale=lora["scale"])
        return Adaptation(
            part,
            lambda key, shapes: models.init_lora(key, shapes["network"], lora["rank"], lora["targets"]),
            lambda params, learnt: {"network": apply(params["network"], learnt)},
        )
    if part == "word":
        count = make_word(config)["vectors"]
        return Adaptation(
            part,
            lambda key, shapes: {
                name: 0.02 * jax.random.normal(jax.random.fold_in(key, i), shape)
                for i, (name, shape) in enumerate(words.shapes(condition, shapes["conditioner"], count).items())
            },
            lambda params, learnt: {"conditioner": words.with_vectors(condition, params["conditioner"], learnt)},
        )
    if part == "control" and control is not None:
        return Adaptation(
            part,
            lambda key, shapes: control(key),
            lambda params, learnt: {"network": {"network": params["network"], "control": learnt}},
        )
    return None
