"""Initial parameters: rules that describe themselves, and one fast draw for a whole network.

A rule says how a parameter starts: constant, uniform or normal. It is a Linen initializer, so `module.init` works; but
compiling hundreds of draws from `jax.random` takes a minute on a CPU. `initialize` asks every parameter for its shape and
rule under `eval_shape`, and fills it with a hash of the positions in it: a dozen integer operations, for which eager calls
need no compiler, and which devices that hold a part of a parameter do for their part alone.

The defaults are PyTorch's, which the reference implementations rely on: weights and biases of linear and convolutional
layers uniform within 1/sqrt(fan_in) (kaiming_uniform with a = sqrt(5)), embeddings standard normal, norms the identity.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.errors import ScopeParamShapeError

_describing: contextvars.ContextVar[bool] = contextvars.ContextVar("describing", default=False)


@dataclass(frozen=True, order=True)
class Rule:
    """A parameter's distribution, mean + scale * noise; noise is "uniform" in [-1, 1], "normal", or "" for none."""

    noise: str = ""
    scale: float = 0.0
    mean: float = 0.0

    def __call__(self, key: jax.Array | None, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        if _describing.get():
            return _Described(jnp.zeros(shape, dtype), self)
        return self.draw(jax.random.bits(key, (2,)), shape).astype(dtype)

    def draw(self, seed: jax.Array | np.ndarray, shape: tuple[int, ...]) -> jax.Array:
        """A float32 parameter from a seed of two uint32; computed by numpy if the seed is numpy's."""
        if not self.noise:
            return jnp.full(shape, self.mean, jnp.float32)
        noise = _noise(seed, shape)
        if self.noise == "normal":
            noise = np.float32(math.sqrt(2)) * jax.lax.erf_inv(noise)
        return jnp.asarray(np.float32(self.mean) + np.float32(self.scale) * noise)


ZEROS, ONES = Rule(), Rule(mean=1.0)


def uniform(bound: float) -> Rule:
    """Uniform within [-bound, bound]."""
    return Rule("uniform", bound)


def normal(std: float, mean: float = 0.0) -> Rule:
    """Normal with this deviation and mean."""
    return Rule("normal", std, mean)


def torch_default(fan_in: int) -> Rule:
    """Weights and biases of torch.nn.Linear and torch.nn.Conv2d."""
    return uniform(fan_in**-0.5)


def xavier_uniform(fan_in: int, fan_out: int) -> Rule:
    """Uniform with variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010)."""
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


def parameter(module: nn.Module, name: str, rule: Rule, shape: tuple[int, ...]) -> jax.Array:
    """`module.param(name, rule, shape)`. Of a parameter that is there only the shape is compared: flax traces the rule to know
    it, a third of what tracing a network costs."""
    if not module.has_variable("params", name):
        if not _describing.get():
            return module.param(name, rule, shape)
        module.put_variable("params", name, rule(None, shape))
    value = nn.meta.unbox(module.get_variable("params", name))
    if jnp.shape(value) != tuple(shape):
        raise ScopeParamShapeError(name, "/" + "/".join(module.path), jnp.shape(value), shape)
    return value


def initialize(module: nn.Module, key: jax.Array, *inputs: Any, **kwargs: Any) -> dict:
    """The module's initial parameters, a plain nested dict of float32 arrays, deterministic in `key`.

    `inputs` and `kwargs` are what the module is called with; arrays and `jax.ShapeDtypeStruct`s serve alike, for only
    their shapes matter. May be called under `jit` (with out_shardings) and under `eval_shape`.
    """
    described = _describe(module, inputs, kwargs)
    leaves, treedef = jax.tree.flatten(described, is_leaf=lambda leaf: isinstance(leaf, _Described))
    seeds = jax.random.bits(key, (len(leaves), 2))
    seeds = seeds if isinstance(seeds, jax.core.Tracer) else np.asarray(seeds)
    params = [leaf.rule.draw(seed, leaf.value.shape) for leaf, seed in zip(leaves, seeds, strict=True)]
    return jax.tree.unflatten(treedef, params)


def shapes(module: nn.Module, *inputs: Any, **kwargs: Any) -> dict:
    """The module's parameters as `jax.ShapeDtypeStruct`s, without allocating anything."""
    described = _describe(module, inputs, kwargs)
    return jax.tree.map(lambda leaf: leaf.value, described, is_leaf=lambda leaf: isinstance(leaf, _Described))


def count(params: Any) -> int:
    """The number of scalars in a tree of arrays or of shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _describe(module: nn.Module, inputs: tuple, kwargs: dict) -> dict:
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda *inputs: inputs, *inputs))
    asked = module, structure, tuple((x.shape, x.dtype) for x in leaves), tuple(sorted(kwargs.items()))
    try:
        hash(asked)
    except TypeError:  # an option that is an array
        return _trace(*asked)
    return _described(*asked)


def _trace(module: nn.Module, structure: Any, leaves: tuple, kwargs: tuple) -> dict:
    inputs = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    with _description():
        variables = jax.eval_shape(lambda *a: module.init(jax.random.key(0), *a, **dict(kwargs)), *inputs)
    return variables.get("params", {})


_described = lru_cache(maxsize=64)(_trace)  # a network is asked for its shapes a dozen times before the first step


@contextlib.contextmanager
def _description() -> Iterator[None]:
    token = _describing.set(True)
    try:
        yield
    finally:
        _describing.reset(token)


def _noise(seed: Any, shape: tuple[int, ...]) -> Any:
    """Float32 numbers in (-1, 1) from a seed of two words."""
    if isinstance(seed, np.ndarray):
        return _hash(np.arange(math.prod(shape), dtype=np.uint32).reshape(shape), seed)
    return _traced_noise(seed, shape)


@partial(jax.jit, static_argnums=1)
def _traced_noise(seed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    positions = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):  # by axis, and not as a reshaped vector, to be computed in shards
        positions = positions * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _hash(positions, seed)


def _hash(x: Any, seed: Any) -> Any:
    """Two rounds of an integer hash of avalanche quality, and the upper 24 bits as a number in (-1, 1)."""
    x = x * np.uint32(0x9E3779B9)
    for word, first, second in ((seed[0], 0x21F0AAAD, 0xD35A2D97), (seed[1], 0x7FEB352D, 0x846CA68B)):
        x = x + word
        x = (x ^ (x >> 16)) * np.uint32(first)
        x = (x ^ (x >> 15)) * np.uint32(second)
        x = x ^ (x >> 15)
    return ((x >> 8).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23) - np.float32(1.0)


class _Described(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter together with its rule: flax hands the bare value to the network and the pair to our caller."""

    value: Any
    rule: Rule = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "_Described":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict) -> "_Described":
        return self

    def remove_axis(self, index: int, params: dict) -> "_Described":
        return self
