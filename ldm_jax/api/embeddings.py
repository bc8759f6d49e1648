"""Words that a text encoder learns later (textual inversion, Gal et al. 2023).

    ldm = ldm.with_embedding("learned_embeds.safetensors")
    cond = ldm.embed(ldm.params, ["a photo of <cat-toy>"])
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ldm_jax import weights
from ldm_jax.api.specification import Specification
from ldm_jax.conditioning import make_condition
from ldm_jax.data.tokenizer import Tokenizers

PyTree = Any


def with_embedding(
    spec: Specification, params: PyTree, path: str | Path, token: str | None = None
) -> tuple[Specification, PyTree]:
    """A specification whose prompts may hold the word in a file, or `token` in its place, and parameters with its vectors as
    further rows of the text encoder's table. A word of several vectors is several tokens of a prompt.

    ValueError for a model that is not told prompts through CLIP, without its tokenizer, or with a table of another width."""
    kind, tokenizer = spec.condition.kind, spec.condition.setting.tokenizer
    if kind not in ("clip_text", "sdxl") or tokenizer is None:
        takes = spec.condition.takes
        raise ValueError(f"{path}: words are learnt by models that read prompts through CLIP; this one takes {takes}")
    word, vectors = weights.read_embedding(path)
    word = token or word
    config = copy.deepcopy({name: dict(part) if isinstance(part, dict) else part for name, part in spec.config.items()})
    section, conditioner = config["conditioner"], params["conditioner"]
    if kind == "sdxl":
        fields, parts, trees = section["towers"], tokenizer.parts, conditioner
    else:
        fields, parts, trees = {"": section}, (tokenizer,), {"": conditioner}
    if set(vectors) != set(fields):
        raise ValueError(f"{path}: vectors for {', '.join(vectors) or 'one text encoder'}; this model has {', '.join(fields)}")
    made, grown = [], {}
    for (name, tower), part in zip(fields.items(), parts):
        made.append(part.with_word(word, len(vectors[name])))
        grown[name] = _grown(trees[name], vectors[name], f"{path}: {name or 'text encoder'}", part.vocab_size)
        tower["vocab_size"] += len(vectors[name])
        tower["eos_token_id"] = part.end  # the largest number is not the end any more
    setting = dataclasses.replace(spec.condition.setting, tokenizer=Tokenizers(tuple(made)) if kind == "sdxl" else made[0])
    told = Specification(config, make_condition(section, setting), spec.scale, spec.shift)
    told.control = spec.control
    return told, params | {"conditioner": grown if kind == "sdxl" else grown[""]}


def _grown(tree: PyTree, rows: Any, where: str, known: int) -> PyTree:
    """A text encoder with further rows in its table."""
    table = tree["embeddings"]["token_embedding"]["embedding"]
    if table.shape != (known, rows.shape[-1]):
        raise ValueError(
            f"{where}: vectors of {rows.shape[-1]} numbers after {known} words, for a table {list(table.shape)}; it was made "
            "for another model"
        )
    table = jnp.concatenate([table, jnp.asarray(rows, table.dtype)])
    return {**tree, "embeddings": {**tree["embeddings"], "token_embedding": {"embedding": table}}}
