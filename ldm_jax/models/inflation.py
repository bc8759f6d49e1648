"""From a network of pictures to one of films: the kernels of two axes as the middle of those of three.

A film that stands still is then to the one what its frames are to the other, at its borders too where windows are of one frame.
So video models begin with autoencoders of pictures (Blattmann et al. 2023, "Align your latents", section 3).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

PyTree = Any
# How names end of blocks that change nothing at first.
OVER_TIME = "_time"  # those that a network of films has besides
BY_PLACE = "_placed"  # those of `context_waves`


def inflated(params: PyTree, shapes: PyTree) -> PyTree:
    """`params` with every kernel [*window, in, out] that `shapes` has with one axis more in front, [d, *window, in, out], at
    the middle of that one among zeros. All other leaves as they are, whether `shapes` has them or not."""
    if isinstance(params, Mapping):
        known = shapes if isinstance(shapes, Mapping) else {}
        return {name: inflated(part, known[name]) if name in known else part for name, part in params.items()}
    wanted = getattr(shapes, "shape", ())
    if params.ndim < 3 or wanted[1:] != params.shape:
        return params
    return jnp.zeros(wanted, params.dtype).at[wanted[0] // 2].set(params)
