"""From a checkpoint's names to our parameters and back, by rule.

A layout is the list of `Weight`s that a network of given fields has, spelled as in the reference checkpoint. From it
follow, with no table of pairs:

    our path       every dot is a level of nesting, except before a number, which joins the name in front:
                   input_blocks.1.0.in_layers.0.weight -> input_blocks_1_0 / in_layers_0 / scale
    our leaf       weight -> kernel (linear, convolution), scale (norm), embedding (table)
    our array      kernels [O, I, h, w] -> [h, w, I, O]; [O, I], [O, I, 1], [O, I, 1, 1] -> [I, O]
    EMA name       the reference name with its dots removed
    diffusers name written next to it where the layout is made

Every tensor is accounted for in both directions: `match` fails on missing, left-over and misshapen ones.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ldm_jax.weights.stored import Stored

_LINEAR = re.compile(r"\.to_(q|k|v|out\.0)\.weight$")
LISTED = 8  # names that an error spells out


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor of the reference checkpoint: its name, its shape there, and how other formats spell it.

    `kind` is kernel, scale, embedding, bias, or raw (kept as it is, under its own name). `diffusers` has three names
    where that format splits a fused [q, k, v] kernel or bias, interleaved over `heads` heads.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    diffusers: tuple[str, ...]
    heads: int = 1

    @property
    def path(self) -> tuple[str, ...]:
        joined: list[str] = []
        for part in self.name.split("."):
            if part.isdigit():
                joined[-1] += f"_{part}"
            else:
                joined.append(part)
        if self.kind == "raw":
            return tuple(joined)
        return (*joined[:-1], self.kind)

    @property
    def dense(self) -> bool:
        return self.kind == "kernel" and all(size == 1 for size in self.shape[2:])

    @property
    def ours(self) -> tuple[int, ...]:
        """The shape of our array."""
        if self.kind != "kernel":
            return self.shape
        out, into, *window = self.shape
        return (into, out) if self.dense else (*window, into, out)


Layout = list[Weight]


def to_ours(weight: Weight, tensor: Stored) -> Stored:
    """A tensor in the reference's axis order, as our array; still unread."""
    if weight.kind != "kernel":
        return tensor
    if weight.dense:
        return tensor.map(lambda a: a.reshape(a.shape[:2]).T, weight.ours)
    return tensor.map(lambda a: a.transpose(2, 3, 1, 0), weight.ours)


def from_ours(weight: Weight, array: Any) -> Stored:
    """Our array in the reference's axis order and shape."""
    source = _stored(array)
    if weight.kind != "kernel":
        return source
    axes = (1, 0) if weight.dense else (3, 2, 0, 1)
    return source.map(lambda a: a.transpose(axes).reshape(weight.shape), weight.shape)


def _stored(array: Any) -> Stored:
    """Any array (numpy, jax, `Stored`) as a `Stored`."""
    if isinstance(array, Stored):
        return array
    return Stored(tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))


def match(layout: Layout, tensors: Mapping[str, Stored], where: str) -> dict[str, Stored]:
    """The layout's tensors by reference name. Trailing axes of length one may be missing or extra in the file.

    Raises ValueError naming the tensors that are missing, left over (with the nearest expected name) or misshapen.
    """
    wanted = {weight.name: weight for weight in layout}
    account(wanted, tensors, where)
    wrong = [
        f"{name}: {list(tensors[name].shape)}, expected {list(weight.shape)}"
        for name, weight in wanted.items()
        if _squeezed(tensors[name].shape) != _squeezed(weight.shape)
    ]
    whole = [f"{name}: {tensors[name].dtype}" for name in wanted if tensors[name].dtype.kind in "biu"]
    if whole:
        raise ValueError(f"{where}: {len(whole)} tensors hold whole numbers, as quantised weights do, which are not read; take "
                         f"the checkpoint in float16, bfloat16 or float32:\n{_listed(whole)}")  # fmt: skip
    if wrong:
        raise ValueError(f"{where}: {len(wrong)} tensors do not have the shape that the configuration asks for:\n"
                         + _listed(wrong))  # fmt: skip
    return {
        name: tensors[name]
        if tensors[name].shape == weight.shape
        else tensors[name].map(lambda a, shape=weight.shape: a.reshape(shape), weight.shape)
        for name, weight in wanted.items()
    }


def account(wanted: Iterable[str], found: Iterable[str], where: str) -> None:
    """Raises ValueError unless the two sets of names are equal."""
    wanted, found = set(wanted), set(found)
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if not missing and not extra:
        return
    problems = [f"{where}: {len(wanted & found)} of {len(wanted)} tensors found"]
    if missing:
        problems.append(f"{len(missing)} missing:\n" + _listed(missing, extra))
    if extra:
        problems.append(f"{len(extra)} left over:\n" + _listed(extra, missing or sorted(wanted)))
    problems.append("The weights and their configuration do not belong together.")
    raise ValueError("\n".join(problems))


def _listed(names: list[str], near: list[str] = ()) -> str:
    lines = []
    for name in names[:LISTED]:
        nearest = difflib.get_close_matches(name, near[:2000], 1) if near else []
        lines.append(f"  {name}" + (f" (nearest: {nearest[0]})" if nearest else ""))
    if len(names) > LISTED:
        lines.append(f"  and {len(names) - LISTED} more")
    return "\n".join(lines)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def nested(layout: Layout, tensors: Mapping[str, Stored]) -> dict:
    """The layout's tensors (by reference name) as our tree of parameters."""
    tree: dict = {}
    for weight in layout:
        *scopes, leaf = weight.path
        node = tree
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[leaf] = to_ours(weight, tensors[weight.name])
    return tree


def flattened(layout: Layout, tree: Mapping, where: str) -> dict[str, Stored]:
    """Our tree of parameters as the reference's tensors. Raises ValueError if it is not exactly the layout's."""
    found = dict(leaves(tree))
    account({"/".join(weight.path) for weight in layout}, found, where)
    wrong = [
        f"{name}: {tuple(found[name].shape)}, expected {weight.ours}"
        for weight in layout
        if tuple(found[name := "/".join(weight.path)].shape) != weight.ours
    ]
    if wrong:
        raise ValueError(f"{where}: {len(wrong)} parameters have the wrong shape:\n" + _listed(wrong))
    return {weight.name: from_ours(weight, found["/".join(weight.path)]) for weight in layout}


def leaves(tree: Mapping, scope: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of a tree by their path, joined with slashes."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{scope}{key}/")
        else:
            yield scope + key, value


def from_diffusers(layout: Layout, tensors: Mapping[str, Stored], where: str) -> dict[str, Stored]:
    """Tensors under diffusers names, by reference name; q, k and v are fused where the reference has one tensor."""
    account([name for weight in layout for name in weight.diffusers], tensors, where)
    return {weight.name: _fused(weight, [tensors[name] for name in weight.diffusers]) for weight in layout}


def to_diffusers(layout: Layout, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The inverse of `from_diffusers`."""
    result = {}
    for weight in layout:
        parts = _split(weight, tensors[weight.name])
        if is_linear(weight.diffusers[0]):  # convolutions of size one in the reference
            parts = [part.map(lambda a: a.reshape(a.shape[:2]), part.shape[:2]) for part in parts]
        result |= dict(zip(weight.diffusers, parts, strict=True))
    return result


def is_linear(name: str) -> bool:
    """Whether a tensor of diffusers, by its name, is of a linear layer where the reference has a convolution of size one."""
    return _LINEAR.search(name) is not None


def _fused(weight: Weight, parts: list[Stored]) -> Stored:
    if len(parts) == 1:
        return parts[0]
    rest = _squeezed(parts[0].shape)[1:]
    if any(_squeezed(part.shape) != _squeezed(parts[0].shape) for part in parts):
        raise ValueError(f"{weight.name}: q, k and v have the shapes {[part.shape for part in parts]}")

    def view() -> np.ndarray:
        qkv = [part.view().reshape(weight.heads, -1, *rest) for part in parts]
        return np.stack(qkv, 1).reshape(-1, *rest)

    return Stored((3 * parts[0].shape[0], *rest), parts[0].dtype, view, parts[0].name)


def _split(weight: Weight, tensor: Stored) -> list[Stored]:
    if len(weight.diffusers) == 1:
        return [tensor]
    shape = (tensor.shape[0] // 3, *_squeezed(tensor.shape)[1:])

    def part(index: int) -> Stored:
        return tensor.map(lambda a: a.reshape(weight.heads, 3, -1, *shape[1:])[:, index].reshape(shape), shape)

    return [part(index) for index in range(3)]


def ema_name(name: str) -> str:
    """The name of a parameter's average in a CompVis checkpoint, after `model_ema.`."""
    return name.replace(".", "")


def within(tensors: Mapping[str, Stored], prefix: str) -> dict[str, Stored]:
    """The tensors under a prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def prefixed(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The rules with this before every name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}
