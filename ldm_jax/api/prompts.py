"""Weights in prompts: "a (red:1.4) circle and a (blue star:0.7)".

The context vectors of a part's tokens are multiplied by its weight, then all of the prompt's by one number that restores their
mean magnitude, so that weights shift attention rather than the scale of the whole. (The custom among users of Stable Diffusion
restores the signed mean, which is the same where vectors share a sign, and undefined where they cancel.)
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioning import Conditioning

_WEIGHTED = re.compile(r"\(([^():]+):\s*(\d+\.?\d*|\.\d+)\s*\)")
_LEFT = re.compile(r":\s*[+-]?[\d.]+\s*\)")


def parts(prompt: str) -> list[tuple[str, float]]:
    """[(text, weight)]; what has no weight weighs 1. ValueError for weights that are nested, negative or no numbers."""
    found, end = [], 0
    for match in _WEIGHTED.finditer(prompt):
        found += [(prompt[end : match.start()], 1.0), (match[1], float(match[2]))]
        end = match.end()
    found.append((prompt[end:], 1.0))
    if any(_LEFT.search(text) for text, _ in found):
        raise ValueError(f"prompt {prompt!r}: weights are written (words:1.3), not negative and not one inside another")
    return [(text.strip(), weight) for text, weight in found if text.strip()]


def weighted(conditioning: Conditioning, values: Sequence[str]) -> tuple[list[str], jax.Array | None]:
    """The prompts without their weights, and one weight a token [B, L]; None if no prompt has any."""
    split = [parts(value) for value in values]
    plain = [" ".join(text for text, _ in found) for found in split]
    if all(weight == 1 for found in split for _, weight in found):
        return plain, None
    end = conditioning.null[0, 1]  # the empty prompt is [begin] [end] [pad] ...
    weights = np.ones((len(split), conditioning.null.shape[1]), np.float32)
    for row, found in zip(weights, split):
        for i, (_, weight) in enumerate(found):
            first, last = (
                int(np.argmax(conditioning.tokenize(" ".join(text for text, _ in found[:n])) == end)) for n in (i, i + 1)
            )
            row[first:last] = weight
    return plain, jnp.asarray(weights)


def weigh(context: jax.Array, weights: jax.Array) -> jax.Array:
    """context [B, L, D] with its vectors multiplied by weights [B, L], and the mean magnitude of each prompt restored."""
    changed = context * weights[..., None]
    before, after = (jnp.abs(a).mean((1, 2), keepdims=True) for a in (context, changed))
    return changed * (before / jnp.maximum(after, 1e-12))
