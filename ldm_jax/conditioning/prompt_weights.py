"""Weights in prompts: "a (red:1.4) circle and a (blue star:0.7)".

The context vectors of a part's tokens are multiplied by its weight, then all of the prompt's by one number that restores their
mean magnitude, so that weights shift attention rather than the scale of the whole. (The custom among users of Stable Diffusion
restores the signed mean, which is the same where vectors share a sign, and undefined where they cancel.)

A weight lies in (0, 5], and what it weighs has a letter: "(ratio 16:9)" and "( :3 )" are plain text. So is what a backslash
stands before: "\\\\(red:1.4\\\\)".
"""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

MOST = 5.0
_WEIGHT = r":\s*(\d+\.?\d*|\.\d+)\s*\)"
_WEIGHTED = re.compile(r"(?<!\\)\(((?:[^()\\]|\\.)+?)" + _WEIGHT)
_AROUND = re.compile(r"(?<!\\)\([^()]*\0[^()]*" + _WEIGHT)


def parts(prompt: str) -> list[tuple[str, float]]:
    """[(text, weight)]; what has no weight weighs 1. ValueError for a weight inside another."""
    found, end, outside = [], 0, ""
    for match in _WEIGHTED.finditer(prompt):
        if not 0 < float(match[2]) <= MOST or not any(map(str.isalpha, match[1])):
            continue
        found += [(prompt[end : match.start()], 1.0), (match[1], float(match[2]))]
        outside += prompt[end : match.start()] + "\0"
        end = match.end()
    found.append((prompt[end:], 1.0))
    if (around := _AROUND.search(outside + prompt[end:])) and 0 < float(around[1]) <= MOST:
        raise ValueError(f"prompt {prompt!r}: one weight inside another; write (words:1.3) (other words:1.2) side by side")
    plain = ((re.sub(r"\\([()\\])", r"\1", text).strip(), weight) for text, weight in found)
    return [(text, weight) for text, weight in plain if text]


def weighted(prompts: Sequence[str], tokenize: Callable[[str], np.ndarray]) -> tuple[list[str], np.ndarray | None]:
    """The prompts without their weights, and one weight a token, float32 [B, L]; None if no prompt has any."""
    split = [parts(prompt) for prompt in prompts]
    plain = [" ".join(text for text, _ in found) for found in split]
    if all(weight == 1 for found in split for _, weight in found):
        return plain, None
    empty = tokenize("")
    end = empty[1]  # the empty prompt is [begin] [end] [pad] ...
    weights = np.ones((len(split), len(empty)), np.float32)
    for row, found in zip(weights, split):
        for i, (_, weight) in enumerate(found):
            first, last = (int(np.argmax(tokenize(" ".join(text for text, _ in found[:n])) == end)) for n in (i, i + 1))
            row[first:last] = weight
    return plain, weights


def weigh(context: jax.Array, weights: jax.Array) -> jax.Array:
    """context [B, L, D] with its vectors multiplied by weights [B, L], and the mean magnitude of each prompt restored."""
    changed = context * weights[..., None]
    before, after = (jnp.abs(a).mean((1, 2), keepdims=True) for a in (context, changed))
    return changed * (before / jnp.maximum(after, 1e-12))
