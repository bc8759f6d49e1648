"""Unit vectors, means of blocks, and numbers drawn a row at a time; for any number of spatial axes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.primitives.flags import check_seed

KIND = "threefry2x32"  # of every key that is made here, whatever jax_default_prng_impl says


def extremes(x: Any) -> tuple[float, float] | None:
    """The least and the greatest number of an array, at once, also of one that a function which `jax.jit` traces finds outside;
    None for one that is traced itself."""
    if isinstance(x, jax.core.Tracer):
        return None
    with jax.ensure_compile_time_eval():
        return np.min(x).item(), np.max(x).item()


def unit(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """x [..., D] over its Euclidean norm, in float32; a vector of zeros stays one."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + eps)


def block_mean(x: jax.Array, n: int | Sequence[int] = 2) -> jax.Array:
    """Means of blocks of n pixels along every spatial axis of x [B, ..., C] (numpy or jax), or of n[i] along axis i; what is
    left over at an end is dropped."""
    axes = x.ndim - 2
    sizes = (n,) * axes if isinstance(n, int) else tuple(n)
    counts = [side // size for side, size in zip(x.shape[1:-1], sizes, strict=True)]
    x = x[(slice(None), *(slice(count * size) for count, size in zip(counts, sizes)))]
    blocks = x.reshape(x.shape[0], *(part for pair in zip(counts, sizes) for part in pair), x.shape[-1])
    return blocks.mean(tuple(range(2, 2 * axes + 1, 2)))


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """A key for each row number of int32 [B]: what a row draws does not depend on which rows are drawn beside it, so a batch
    can be cut into pieces."""

    def own(row: jax.Array) -> jax.Array:
        return jax.random.fold_in(key, row)

    # a key of unsafe_rbg is folded otherwise beside others, too
    return threefry(jax.lax.map(own, rows) if jax.random.key_impl(key) == "unsafe_rbg" else jax.vmap(own)(rows))


def row_normal(key: jax.Array, rows: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Unit noise [B, *shape], float32, each row from its own key (`row_keys`)."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape), jnp.float32))(row_keys(key, rows))


def key_of(seed: int) -> jax.Array:
    """The key of a seed from 0 to 2**64 - 1; other seeds, other keys. ValueError for others."""
    check_seed(seed)
    key = jax.random.key(seed % 2**32, impl=KIND)
    return jax.random.fold_in(key, seed >> 32) if seed >> 32 else key


def typed_key(key: jax.Array) -> jax.Array:
    """A typed key, [] or [B]; legacy ones of `jax.random.PRNGKey` (uint32 [..., 2], or [..., 4] where rbg is JAX's default) are
    wrapped. ValueError for anything else."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if hasattr(key, "dtype") and key.dtype == jnp.uint32 and key.ndim and key.shape[-1] in (2, 4):
        return jax.random.wrap_key_data(jnp.asarray(key), impl=KIND if key.shape[-1] == 2 else "rbg")
    raise ValueError(f"key={key!r}: give a random key, jax.random.key(0)")


def threefry(key: jax.Array) -> jax.Array:
    """Typed keys whose numbers under `jax.vmap` are those of each alone. With other kinds (rbg, unsafe_rbg) they depend on the
    keys beside it, so such a key gives one of threefry, made of all its words."""
    if jax.random.key_impl(key) == KIND:
        return key
    words = jax.random.key_data(key)
    made = jax.random.wrap_key_data(words[..., :2], impl=KIND)
    fold = functools.reduce(lambda f, _: jax.vmap(f), key.shape, jax.random.fold_in)
    for i in range(2, words.shape[-1]):
        made = fold(made, words[..., i])
    return made
