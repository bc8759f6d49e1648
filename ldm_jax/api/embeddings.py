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
from ldm_jax.conditioning import make_condition, words

PyTree = Any


def with_embedding(
    spec: Specification, params: PyTree, path: str | Path, token: str | None = None
) -> tuple[Specification, PyTree]:
    """A specification whose prompts may hold the word in a file, or `token` in its place, and parameters with its vectors as
    further rows of the text encoder's table. A word of several vectors is several tokens of a prompt.

    ValueError for a model that is not told prompts, without its tokenizer, or with a table of another width."""
    section, setting = spec.config["conditioner"], spec.condition.setting
    if spec.condition.kind not in words.KINDS or setting.tokenizer is None:
        raise ValueError(f"{path}: words are learnt by models that read prompts; this one takes {spec.condition.takes}")
    word, vectors = weights.read_embedding(path)
    vectors = {name or words.TOWER: jnp.asarray(rows) for name, rows in vectors.items()}
    if set(vectors) != set(words.towers(section)):
        those = ", ".join(vectors) if len(vectors) > 1 else "one text encoder"
        raise ValueError(f"{path}: vectors for {those}; this model has {', '.join(words.towers(section))}")
    count = len(next(iter(vectors.values())))
    for name, (_, width) in words.shapes(spec.condition, params["conditioner"], count).items():
        if width != vectors[name].shape[-1]:
            raise ValueError(
                f"{path}: {name}: vectors of {vectors[name].shape[-1]} numbers for a table of {width}; it was made for another "
                "model"
            )
    section, tokenizer = words.told(section, setting.tokenizer, token or word, count)
    condition = make_condition(section, dataclasses.replace(setting, tokenizer=tokenizer))
    told = Specification({**spec.config, "conditioner": section}, condition, spec.scale, spec.shift)
    told.control = spec.control
    return told, params | {"conditioner": words.with_vectors(condition, params["conditioner"], vectors)}
