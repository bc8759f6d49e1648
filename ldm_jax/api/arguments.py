"""What a model's functions are given, looked at before anything is traced.

Each check accepts what plainly means something, and says of the rest in a sentence what is wrong and what to give. Of traced
arrays the shapes are checked; their numbers pass unseen.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import models
from ldm_jax.api.specification import Specification
from ldm_jax.primitives.arrays import extremes

PyTree = Any


def check_count(value: Any, name: str) -> None:
    """ValueError unless it is a whole number of at least 1."""
    if not (is_whole(value) and value >= 1):
        raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")


def is_whole(value: Any) -> bool:
    """Whether it is a number without a fraction, and no bool."""
    known = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return known and bool(np.isfinite(value)) and int(value) == value


def check_arrays(cond: PyTree, name: str) -> None:
    """ValueError unless it is a dict of arrays with a first axis, as `embed` gives."""
    leaves = jax.tree.leaves(cond)
    if not (isinstance(cond, dict) and leaves and all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves)):
        what = "an empty dict" if isinstance(cond, dict) and not cond else f"a {type(cond).__name__}"
        raise ValueError(f"{name} is {what}: give what ldm.embed(params, [...]) returns, a dict of arrays")
    if len({leaf.shape[0] for leaf in leaves}) > 1:
        raise ValueError(f"{name} has {_arrays(cond)}: as many of one as of the other, one a picture")


def check_here(array: Any, name: str, function: str) -> None:
    """ValueError for an array that is traced, where its numbers are needed before anything is."""
    if isinstance(array, jax.core.Tracer):
        raise ValueError(f"{name} is traced: {function} looks at its numbers; call it outside jax.jit, it compiles itself")


def check_size(spec: Specification, size: Any) -> None:
    """ValueError unless `size` is a tuple of as many whole numbers as pictures have sides."""
    sides = len(spec.image_size)
    if not (isinstance(size, (tuple, list)) and len(size) == sides and all(map(is_whole, size))):
        raise ValueError(f"size={size!r}: give {sides} whole numbers, in pixels, such as {spec.image_size}")


def check_cond(spec: Specification, cond: PyTree) -> None:
    """ValueError if the model takes a condition and there is none, or something that `embed` didn't give."""
    if cond is None and spec.condition.kind != "none":
        raise ValueError(f"this model takes {spec.condition.takes}; give cond=ldm.embed(params, [...])")
    if cond is not None:
        check_arrays(cond, "cond")
        width = spec.config.get("network", {}).get("context_dim")
        context = np.shape(cond.get("context", ()))
        if width and spec.condition.kind != "none" and (len(context) != 3 or context[-1] != width):
            raise ValueError(
                f"cond has {_arrays(cond)}: this model's network reads context [B, L, {width}]; give what ldm.embed returns"
            )


def count(cond: PyTree, num: int | None = None) -> int:
    """How many pictures: as many as there are conditions, or `num` where there are none. ValueError where the two differ."""
    if num is not None and not is_whole(num):
        raise ValueError(f"num={num!r}: must be a whole number of pictures")
    if cond is not None:
        check_arrays(cond, "cond")
    batch = num if cond is None else jax.tree.leaves(cond)[0].shape[0]
    if batch is None or batch < 1:
        said = f"num={num}: say how many pictures to draw"
        raise ValueError(said if cond is None else "cond holds no condition: give one a picture")
    batch = int(batch)
    if num is not None and num != batch:
        raise ValueError(f"num={num} for {batch} conditions: leave num out, or give as many conditions")
    return batch


def check_noise(noise: Any, shape: tuple[int, ...]) -> jax.Array:
    """Unit noise as an array. ValueError unless it has the shape of the latents and, where it isn't traced, is finite."""
    noise = noise if isinstance(noise, jax.Array) else np.asarray(noise)
    if noise.shape != shape or not jnp.issubdtype(noise.dtype, jnp.number):
        raise ValueError(f"noise of shape {noise.shape}, {noise.dtype.name}: for these pictures it is float {shape}")
    found = extremes(noise)
    if found is not None and not np.isfinite(found).all():
        raise ValueError("noise has numbers that are not finite")
    return noise


def check_amount(amount: Any, num: int) -> jax.Array:
    """How far a variation goes, float32 [] or [num]. ValueError for other shapes and, where it isn't traced, outside [0, 1]."""
    try:
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(amount))
        numbers = jnp.asarray(amount, jnp.float32) if traced else np.asarray(amount, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"amount={amount!r}: must be a number from 0 to 1, or one a picture") from None
    inside = traced or bool(((numbers >= 0) & (numbers <= 1)).all())
    if numbers.shape not in ((), (num,)) or not inside:
        raise ValueError(f"amount={amount!r}: must be a number from 0 to 1, or one a picture")
    return jnp.asarray(numbers)


def space_of(spec: Specification, noise: Any, size: Any = None) -> tuple[int, ...]:
    """The size in pixels of the pictures that noise [B, *space, C] is for. ValueError if it has other axes, or is not for the
    `size` that was given besides."""
    shape = np.shape(noise)
    if len(shape) != len(spec.image_size) + 2:
        raise ValueError(f"noise of shape {shape}: it has the shape of latents, such as that of ldm.noise(key, 1)")
    full = spec.first_stage.grown(shape[1:-1])
    if size is not None:
        check_size(spec, size)
        if tuple(size) != full:
            raise ValueError(f"noise of shape {shape} is for pictures of {full}, not of size={size}: leave size out")
    return full


def check_alike(cond: PyTree, negative: PyTree, num: int, given: bool) -> None:
    """ValueError unless what guidance leads from has the arrays of what it leads to, for `num` pictures. `given`: whether a
    user gave it."""
    there, here = ({n: tuple(x.shape[1:]) for n, x in c.items() if n not in models.HINT} for c in (negative, cond))
    if there != here and not given:
        raise ValueError(f"cond has {_arrays(cond)}, of this model it is {_arrays(negative)}: give what ldm.embed returns")
    if there != here or any(len(x) != num for n, x in negative.items() if n in there):
        raise ValueError(
            f"negative has {_arrays(negative)}, cond {_arrays(cond)}, for {num} pictures: give one a picture, by ldm.embed"
        )


def _arrays(cond: PyTree) -> str:
    return ", ".join(f"{name} {list(x.shape)}" for name, x in sorted(cond.items()))
