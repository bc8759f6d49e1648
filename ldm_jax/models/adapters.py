"""Low-rank adaptation (LoRA, Hu et al. 2022): W + scale down up, as a transform of parameters.

A tree of factors has, for some of a network's kernels and at their place, {"down": [..., in, rank], "up": [rank, out]}. Kernels
are [in, out] or [height, width, in, out], and the product over the rank has their shape, so one rule serves linear layers and
convolutions. The network itself knows nothing of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
ATTENTION = ("to_q", "to_k", "to_v", "to_out_0")  # of transformers; what LoRA files of Stable Diffusion usually adapt


def apply_lora(params: PyTree, factors: PyTree, scale: float | jax.Array = 1.0) -> PyTree:
    """`params` with scale down up added to each kernel that `factors` has, in float32 and then the kernel's own type; the
    others are shared. Pure, and differentiable in both; `scale` may be traced, and several adaptations are applied in turn.

    Args:
      params: a model's, or any tree of dicts.
      factors: a tree with {"down": [..., in, rank], "up": [rank, out]} at the places of kernels [..., in, out], as
        `LatentDiffusion.read_lora` and `load_lora` give it.
      scale: 0 leaves the parameters as they are, 1 is the whole adaptation.

    Raises:
      ValueError: factors of kernels that are not there, or of another shape; a scale that is not one number. For one a picture
        use `jax.vmap`.
    """
    if jnp.ndim(scale):
        raise ValueError(f"scale of shape {jnp.shape(scale)}: it must be one number; jax.vmap gives one a picture")
    return _apply(params, factors, scale, "")


def _apply(params: PyTree, factors: PyTree, scale: Any, where: str) -> PyTree:
    if set(factors) == {"down", "up"} and not isinstance(factors["down"], Mapping):
        delta = jnp.matmul(factors["down"].astype(jnp.float32), factors["up"].astype(jnp.float32))
        if jnp.shape(params) != delta.shape:
            raise ValueError(f"{where}: a LoRA for a kernel of shape {delta.shape}, here it is {jnp.shape(params)}")
        return (params.astype(jnp.float32) + scale * delta).astype(params.dtype)
    if missing := [name for name in factors if not isinstance(params, Mapping) or name not in params]:
        raise ValueError(f"{where or 'the model'} has no {missing[0]}: this LoRA belongs to another model")
    return {**params, **{name: _apply(params[name], part, scale, f"{where}/{name}") for name, part in factors.items()}}


def scale_lora(factors: PyTree, scale: float) -> PyTree:
    """The same factors for scale 1: `up` times `scale`."""

    def leaf(path: Any, x: jax.Array) -> jax.Array:
        return x * scale if path[-1].key == "up" else x

    return jax.tree_util.tree_map_with_path(leaf, factors)


def init_lora(key: jax.Array, shapes: PyTree, rank: int, targets: Sequence[str] = ATTENTION) -> PyTree:
    """Factors of `rank` for the kernels of all layers with a name in `targets`, of a network's parameters or their shapes:
    `down` as linear layers begin, U(+-1/sqrt(in)), `up` zeros, so that nothing changes at first.

    ValueError that lists the layers where one of the names is no layer's."""
    found: dict[str, None] = {}
    leaves = [
        (tuple(str(entry.key) for entry in path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    tree: dict = {}
    for path, shape in leaves:
        if path[-1] != "kernel" or len(path) < 2:
            continue
        found[path[-2]] = None
        if path[-2] not in targets:
            continue
        node = tree
        for scope in path[:-1]:
            node = node.setdefault(scope, {})
        *window, into, out = shape
        key, own = jax.random.split(key)
        down = jax.random.uniform(own, (*window, into, rank), minval=-1.0, maxval=1.0) * into**-0.5
        node["kernel"] = {"down": down, "up": jnp.zeros((rank, out))}
    if missing := [name for name in targets if name not in found]:
        those = " or ".join(missing)
        raise ValueError(f"no layer is called {those}; this network's layers are {', '.join(sorted(found))}")
    if not tree:
        raise ValueError(f"a LoRA changes layers; name some of {', '.join(sorted(found))}")
    return tree
