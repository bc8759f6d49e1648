"""From one network to another that does the same at first.

A network of films has the kernels of one of pictures as the middle of its own: a film that stands still is to it what its
frames are to the other, at its borders too where windows are of one frame. So video models begin with autoencoders of pictures
(Blattmann et al. 2023, "Align your latents", section 3). A network that is told a picture beside its latents doesn't see it at
first (Brooks et al. 2023, section 3.2).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

PyTree = Any
# How names end of blocks that change nothing at first.
OVER_TIME = "_time"  # those that a network of films has besides
BY_PLACE = "_placed"  # those of `context_waves`
FIRST, LAST = "input_blocks_0_0", "out_2"  # the U-Net's outermost convolutions


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


def widened(params: PyTree, shapes: PyTree) -> PyTree:
    """A U-Net's `params` with as many input channels as `shapes` has, which predicts as many: further ones, behind its own, are
    multiplied by zeros."""
    if not all(name in tree for name in (FIRST, LAST) for tree in (params, shapes)):
        return params
    kernel, wanted = params[FIRST]["kernel"], shapes[FIRST]["kernel"]
    more = wanted.shape[-2] - kernel.shape[-2]
    if kernel.ndim != wanted.ndim or more <= 0 or params[LAST]["bias"].shape != shapes[LAST]["bias"].shape:
        return params
    further = [(0, 0)] * kernel.ndim
    further[-2] = (0, more)
    return {**params, FIRST: {**params[FIRST], "kernel": jnp.pad(kernel, further)}}
