"""Initial parameters: rules that describe themselves, and one fast draw for a whole network.

A rule says how a parameter starts: constant, uniform or normal. It is a Linen initializer, so `module.init` works; but
compiling hundreds of separate random draws takes a minute on a CPU. `initialize` instead asks every parameter for its
shape and rule under `eval_shape`, draws a few long vectors, and cuts them into parameters.

The defaults are PyTorch's, which the reference implementations rely on: weights and biases of linear and convolutional
layers uniform within 1/sqrt(fan_in) (kaiming_uniform with a = sqrt(5)), embeddings standard normal, norms the identity.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

CHUNK = 2**26  # numbers drawn at once, unless one parameter has more: bounds the transient memory
BLOCK = 2**18  # numbers drawn per round of the loop
_describing: contextvars.ContextVar[bool] = contextvars.ContextVar("describing", default=False)


@dataclass(frozen=True, order=True)
class Rule:
    """A parameter's distribution, mean + scale * noise; noise is "uniform" in [-1, 1], "normal", or "" for none."""

    noise: str = ""
    scale: float = 0.0
    mean: float = 0.0

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        if _describing.get():
            return _Described(jnp.zeros(shape, dtype), self)
        if not self.noise:
            return jnp.full(shape, self.mean, dtype)
        return _draw(key, ((self, math.prod(shape)),)).reshape(shape).astype(dtype)


ZEROS, ONES = Rule(), Rule(mean=1.0)


def uniform(bound: float) -> Rule:
    return Rule("uniform", bound)


def normal(std: float, mean: float = 0.0) -> Rule:
    return Rule("normal", std, mean)


def torch_default(fan_in: int) -> Rule:
    """Weights and biases of torch.nn.Linear and torch.nn.Conv2d."""
    return uniform(fan_in**-0.5)


def xavier_uniform(fan_in: int, fan_out: int) -> Rule:
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


def initialize(module: nn.Module, key: jax.Array, *inputs: Any, **kwargs: Any) -> dict:
    """The module's initial parameters, a plain nested dict of float32 arrays, deterministic in `key`.

    `inputs` and `kwargs` are what the module is called with; arrays and `jax.ShapeDtypeStruct`s serve alike, for only
    their shapes matter. May be called under `jit` (with out_shardings) and under `eval_shape`.
    """
    described = _describe(module, inputs, kwargs)
    leaves, treedef = jax.tree.flatten(described, is_leaf=lambda leaf: isinstance(leaf, _Described))
    rules, forms = [leaf.rule for leaf in leaves], [leaf.value for leaf in leaves]
    params: list[Any] = [None if rule.noise else rule(key, form.shape) for rule, form in zip(rules, forms, strict=True)]
    noisy = sorted((i for i, rule in enumerate(rules) if rule.noise), key=lambda i: rules[i])
    for draw, group in enumerate(_groups(noisy, [form.size for form in forms])):
        runs: dict[Rule, int] = {}
        for i in group:
            runs[rules[i]] = runs.get(rules[i], 0) + forms[i].size
        vector = _draw(jax.random.fold_in(key, draw), tuple(runs.items()))
        if not isinstance(vector, jax.core.Tracer):
            vector = np.asarray(vector)  # whose slices need no compilation
        offset = 0
        for i in group:
            params[i] = jnp.asarray(vector[offset : offset + forms[i].size].reshape(forms[i].shape))
            offset += forms[i].size
    return jax.tree.unflatten(treedef, params)


def shapes(module: nn.Module, *inputs: Any, **kwargs: Any) -> dict:
    """The module's parameters as `jax.ShapeDtypeStruct`s, without allocating anything."""
    described = _describe(module, inputs, kwargs)
    return jax.tree.map(lambda leaf: leaf.value, described, is_leaf=lambda leaf: isinstance(leaf, _Described))


def count(params: Any) -> int:
    """The number of scalars in a tree of arrays or of shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _describe(module: nn.Module, inputs: tuple, kwargs: dict) -> dict:
    with _description():
        variables = jax.eval_shape(lambda *a: module.init(jax.random.key(0), *a, **kwargs), *inputs)
    return variables.get("params", {})


@contextlib.contextmanager
def _description() -> Iterator[None]:
    token = _describing.set(True)
    try:
        yield
    finally:
        _describing.reset(token)


def _groups(indices: list[int], sizes: list[int]) -> list[list[int]]:
    """The indices in consecutive groups of at most CHUNK numbers."""
    groups: list[list[int]] = []
    total = CHUNK
    for i in indices:
        if total + sizes[i] > CHUNK:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += sizes[i]
    return groups


@partial(jax.jit, static_argnums=1)
def _draw(key: jax.Array, runs: tuple[tuple[Rule, int], ...]) -> jax.Array:
    """One vector with as many draws from each rule in turn as it asks for.

    It is made by a loop over blocks, for XLA fuses no consumer into a loop; the slices of a plain draw would each be
    compiled with the whole generator inside.
    """
    total = sum(size for _, size in runs)
    block = min(total, BLOCK)
    blocks = -(-total // block)

    def per_number(values: list[Any]) -> jax.Array:
        parts = [jnp.full((size,), value) for value, (_, size) in zip(values, runs, strict=True)]
        return jnp.pad(jnp.concatenate(parts), (0, blocks * block - total)).reshape(blocks, block)

    def one(inputs: tuple[jax.Array, ...]) -> jax.Array:
        key, is_normal, scale, mean = inputs
        noise = jax.random.uniform(key, (block,), minval=np.nextafter(np.float32(-1), np.float32(0)))
        return mean + scale * jnp.where(is_normal, math.sqrt(2) * jax.lax.erf_inv(noise), noise)

    rules = [rule for rule, _ in runs]
    columns = [rule.noise == "normal" for rule in rules], [rule.scale for rule in rules], [rule.mean for rule in rules]
    return jax.lax.map(one, (jax.random.split(key, blocks), *map(per_number, columns))).reshape(-1)[:total]


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
