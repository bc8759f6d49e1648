"""Functions of arrays on a mesh whose axes are explicit, as `jax.make_mesh` makes them by default: JAX then tells where a
result lies from where its inputs lie, and refuses what it can't tell, such as replicated noise beside rows that are split."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PyTree = Any
Rows = tuple[int, Any] | None  # how long a batch is, and the axes of the mesh that it is split over


def automatic(function: Callable) -> Callable:
    """`function`, whose work XLA splits by itself where an argument lies on a mesh with explicit axes, or the ambient mesh has
    them. Its results lie on that mesh again: as long as a batch among the arguments, they are split as that is, else
    replicated. The argument `params` is no batch. On other meshes, and without one, nothing is changed.

    What a caller forbids its own code isn't forbidden inside: promoted ranks, and numbers of the host as arguments."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    @jax.numpy_rank_promotion("allow")
    @jax.transfer_guard("allow")
    def call(*arguments, **options):
        leaves, structure = jax.tree.flatten((arguments, options))
        arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}
        mesh = _explicit(arrays.values())
        if mesh is None:
            return function(*arguments, **options)

        def on(placed: dict[int, jax.Array]) -> PyTree:
            arguments, options = structure.unflatten([placed.get(i, leaf) for i, leaf in enumerate(leaves)])
            return function(*arguments, **options)

        given = signature.bind(*arguments, **options).arguments
        rows = _rows(jax.tree.leaves({name: value for name, value in given.items() if name != "params"}))
        made = jax.numpy.zeros(())  # traced by jax.jit, whatever it is made of
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in (made, *arrays.values()))
        return _traced(on, arrays, mesh, rows) if traced else _eager(on, arrays, rows)

    return call


def _explicit(arrays: Any) -> AbstractMesh | None:
    """The mesh with explicit axes that an array lies on, or the ambient one."""
    meshes = (jax.typeof(array).sharding.mesh for array in arrays)
    found = next(filter(_is_explicit, meshes), jax.sharding.get_abstract_mesh())
    return found if _is_explicit(found) else None


def _is_explicit(mesh: AbstractMesh | Mesh) -> bool:
    return AxisType.Explicit in mesh.axis_types


def _freed(mesh: AbstractMesh | Mesh) -> AbstractMesh | Mesh:
    """With automatic axes for explicit ones."""
    return mesh.update(axis_types=tuple(AxisType.Auto if t == AxisType.Explicit else t for t in mesh.axis_types))


def _rows(leaves: list[Any]) -> Rows:
    """Of the first leaf that is split along its first axis."""
    for leaf in leaves:
        spec = jax.typeof(leaf).sharding.spec if isinstance(leaf, jax.Array) else ()
        if len(spec) and spec[0]:
            return len(leaf), spec[0]
    return None


def _split(array: jax.Array, rows: Rows) -> P:
    return P(rows[1]) if rows and array.ndim and len(array) == rows[0] else P()


def _traced(function: Callable, arrays: dict[int, jax.Array], mesh: AbstractMesh, rows: Rows) -> PyTree:
    """While JAX traces. Arrays that are there, and on no such mesh, stay as they are: their numbers may be looked at."""
    arrays = {i: x for i, x in arrays.items() if isinstance(x, jax.core.Tracer) or _on_explicit(x)}

    @jax.jit  # where it only differentiates or maps, too
    def run(arrays):
        with jax.sharding.use_abstract_mesh(_freed(mesh)):
            found = function({i: jax.sharding.reshard(x, P()) if _on_explicit(x) else x for i, x in arrays.items()})
        return jax.tree.map(lambda x: jax.sharding.reshard(x, NamedSharding(mesh, _split(x, rows))), found)

    return run(arrays)


def _on_explicit(array: jax.Array) -> bool:
    return _is_explicit(jax.typeof(array).sharding.mesh)


def _eager(function: Callable, arrays: dict[int, jax.Array], rows: Rows) -> PyTree:
    """Arrays that are there: the same bytes, said to lie on another kind of mesh."""
    ambient = _is_explicit(jax.sharding.get_abstract_mesh())
    on_it = (array.sharding.mesh for array in arrays.values() if _on_explicit(array))
    mesh = jax.sharding.get_mesh() if ambient else next(on_it)
    with jax.set_mesh(_freed(mesh)) if ambient else contextlib.nullcontext():
        placed = {i: _moved(x, _freed(mesh), x.sharding.spec) if _on_explicit(x) else x for i, x in arrays.items()}
        found = function(placed)
        found = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(_freed(mesh), _split(x, rows))), found)
    return jax.tree.map(lambda x: _moved(x, mesh, _split(x, rows)), found)


def _moved(array: jax.Array, mesh: Mesh, spec: P) -> jax.Array:
    pieces = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, NamedSharding(mesh, spec), pieces)
