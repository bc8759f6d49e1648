"""Words that a text encoder learns later (textual inversion, Gal et al. 2023).

    ldm = ldm.with_embedding("learned_embeds.safetensors")
    cond = ldm.embed(ldm.params, ["a photo of <cat-toy>"])
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ldm_jax import weights
from ldm_jax.api.specification import Specification
from ldm_jax.conditioning import Condition, make_condition, words

PyTree = Any


def with_embedding(
    spec: Specification, params: PyTree, path: str | Path, token: str | None = None
) -> tuple[Specification, PyTree]:
    """A specification whose prompts may hold the word in a file, or `token` in its place, and parameters with its vectors as
    further rows of the text encoder's table. A word of several vectors is several tokens of a prompt.

    Of a combination, such as an inpainting model's, the part that reads prompts learns it.

    ValueError for a model that is not told prompts, without its tokenizer, or with a table of another width."""
    reader, setting = _reader(spec), spec.condition.setting
    if reader is None or setting.tokenizer is None:
        kinds = ", ".join(words.KINDS)
        raise ValueError(
            f"{path}: words are put into models that read prompts by {kinds}, with their tokenizer; this one is "
            f"{spec.condition.kind!r} and takes {spec.condition.takes}"
        )
    part, condition = reader
    section, own = condition.section, params["conditioner"][part] if part else params["conditioner"]
    word, vectors = weights.read_embedding(path)
    vectors = {name or words.TOWER: jnp.asarray(rows) for name, rows in vectors.items()}
    if set(vectors) != set(words.towers(section)):
        those = ", ".join(vectors) if len(vectors) > 1 else "one text encoder"
        raise ValueError(f"{path}: vectors for {those}; this model has {', '.join(words.towers(section))}")
    count = len(next(iter(vectors.values())))
    for name, (_, width) in words.shapes(condition, own, count).items():
        if width != vectors[name].shape[-1]:
            raise ValueError(
                f"{path}: {name}: vectors of {vectors[name].shape[-1]} numbers for a table of {width}; it was made for another "
                "model"
            )
    section, tokenizer = words.told(section, setting.tokenizer, token or word, count)
    whole = spec.config["conditioner"]
    section = {**whole, "parts": {**whole["parts"], part: section}} if part else section
    changed = make_condition(section, dataclasses.replace(setting, tokenizer=tokenizer))
    own = words.with_vectors(changed.parts[part] if part else changed, own, vectors)
    told = Specification({**spec.config, "conditioner": section}, changed, spec.scale, spec.shift)
    told.control = spec.control
    return told, params | {"conditioner": {**params["conditioner"], part: own} if part else own}


def _reader(spec: Specification) -> tuple[str, Condition] | None:
    """What reads prompts by word: "" and the condition, or the name of its part and that; None where nothing does."""
    parts = spec.condition.parts if spec.condition.kind == "combined" else {"": spec.condition}
    return next(((name, part) for name, part in parts.items() if part.kind in words.KINDS), None)
