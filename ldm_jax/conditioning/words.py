"""Words that a text encoder is given later (textual inversion, Gal et al. 2023): further rows of its table of words.

The tokenizer numbers a new word after all that it knows, and its vectors are put there. Rows behind them, which no word has
(`config.conditioner.vocab_size` is a most), move on.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioning.condition import Condition
from ldm_jax.data.tokenizer import Tokenizer, Tokenizers

PyTree = Any
KINDS = ("text", "clip_text", "sdxl")  # that read prompts by word
TOWER = "text_encoder"  # what the one of a model with one is called
_CLIP = (("embeddings", "token_embedding", "embedding"), 0)
# what a text encoder has by word, the table first: at which place, along which axis
_PLACES = {
    "text": ((("transformer", "token_emb", "embedding"), 0), (("transformer", "to_logits", "kernel"), -1),
             (("transformer", "to_logits", "bias"), -1)),
    "clip_text": (_CLIP,), "sdxl": (_CLIP,),
}  # fmt: skip


def towers(section: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of every text encoder of config.conditioner, by name."""
    return dict(section["towers"]) if section["kind"] == "sdxl" else {TOWER: section}


def _tokenizers(section: Mapping[str, Any], tokenizer: Any) -> dict[str, Tokenizer | None]:
    parts = tokenizer.parts if isinstance(tokenizer, Tokenizers) else [tokenizer] * len(towers(section))
    return dict(zip(towers(section), parts))


def _trees(section: Mapping[str, Any], params: PyTree) -> dict[str, PyTree]:
    return dict(params) if section["kind"] == "sdxl" else {TOWER: params}


def told(section: Mapping[str, Any], tokenizer: Any, word: str, count: int) -> tuple[dict[str, Any], Any]:
    """config.conditioner and the tokenizer (None: not known yet) of a model that knows one more word, of `count` tokens."""
    section = copy.deepcopy({name: dict(part) if isinstance(part, Mapping) else part for name, part in section.items()})
    made = {name: part and part.with_word(word, count) for name, part in _tokenizers(section, tokenizer).items()}
    for name, fields in towers(section).items():
        fields["vocab_size"] += count
        if section["kind"] != "text" and made[name] is not None:
            fields["eos_token_id"] = made[name].end  # the largest number is not the end any more
    if tokenizer is None:
        return section, None
    return section, Tokenizers(tuple(made.values())) if section["kind"] == "sdxl" else made[TOWER]


def shapes(condition: Condition, params: PyTree, count: int) -> dict[str, tuple[int, int]]:
    """The shape of `count` vectors for every text encoder."""
    section = condition.section
    return {name: (count, _table(section, tree).shape[-1]) for name, tree in _trees(section, params).items()}


def _table(section: Mapping[str, Any], tree: PyTree) -> jax.Array:
    path, _ = _PLACES[section["kind"]][0]
    for name in path:
        tree = tree[name]
    return tree


def with_vectors(condition: Condition, params: PyTree, vectors: Mapping[str, jax.Array]) -> PyTree:
    """Parameters of a conditioner, which lack the last word of `condition` (of `told`), with its vectors, [n, D] by text
    encoder."""
    section, made = condition.section, {}
    parts = _tokenizers(section, condition.setting.tokenizer)
    for name, tree in _trees(section, params).items():
        count, part = len(vectors[name]), parts[name]
        at = (towers(section)[name]["vocab_size"] if part is None else part.vocab_size) - count
        made[name] = tree
        for i, (path, axis) in enumerate(_PLACES[section["kind"]]):
            made[name] = _inserted(made[name], path, vectors[name], at, axis, first=i == 0)
    return made if section["kind"] == "sdxl" else made[TOWER]


def _inserted(tree: PyTree, path: Sequence[str], rows: jax.Array, at: int, axis: int, first: bool) -> PyTree:
    """`tree` with further entries at a place: the rows themselves, or zeros where nothing is learnt of them."""
    if path:
        return {**tree, path[0]: _inserted(tree[path[0]], path[1:], rows, at, axis, first)}
    shape = list(tree.shape)
    shape[axis] = len(rows)
    added = rows.astype(tree.dtype) if first else jnp.zeros(shape, tree.dtype)
    before, behind = jnp.split(tree, [at], axis)
    return jnp.concatenate([before, added, behind], axis)


def initial(condition: Condition, params: PyTree, text: str, count: int) -> dict[str, np.ndarray]:
    """Vectors that `count` new tokens begin with, float32 [count, D] by text encoder: those of the tokens of `text`, the last
    one again where there are more. `params` need not know the new word.

    ValueError for a text of no or of more tokens, or with words that the model doesn't know."""
    numbers = initial_tokens(condition, text, count)
    return {
        name: np.asarray(_table(condition.section, tree)[jnp.asarray(numbers[name])], np.float32)
        for name, tree in _trees(condition.section, params).items()
    }


def initial_tokens(condition: Condition, text: str, count: int) -> dict[str, list[int]]:
    """The numbers of the tokens as which `count` new ones begin, by text encoder. ValueError as of `initial`."""
    found = {}
    for name, tokenizer in _tokenizers(condition.section, condition.setting.tokenizer).items():
        numbers = known(tokenizer, text, condition.length)
        if not 1 <= len(numbers) <= count:
            raise ValueError(
                f"config.diffusion_train.textual_inversion.initial={text!r} is {len(numbers)} tokens: give a text of 1 to "
                f"{count}, or set textual_inversion.vectors to {max(len(numbers), 1)}"
            )
        found[name] = [*numbers, *[numbers[-1]] * (count - len(numbers))]
    return found


def is_whole_in(condition: Condition, word: str, text: str) -> bool:
    """Whether a row of tokens that a text becomes has all those of a word that was added: none is cut off."""
    tokenizer = next(iter(_tokenizers(condition.section, condition.setting.tokenizer).values()))
    own, row = known(tokenizer, word, condition.length), tokenizer.encode_one(text, condition.length).tolist()
    return any(row[i : i + len(own)] == own for i in range(len(row) - len(own) + 1))


def known(tokenizer: Tokenizer, text: str, length: int) -> list[int]:
    """The numbers of a text's tokens, without begin and end. ValueError for words that the tokenizer doesn't know."""
    row = tokenizer.encode_one(text, length, strict=True).tolist()
    return row[1 : row.index(tokenizer.end)]
