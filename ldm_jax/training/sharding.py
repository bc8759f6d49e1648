"""Where arrays live: a mesh of two axes, `data` (batches are split) and `fsdp` (batches, parameters and optimizer state are).

One device is the trivial mesh and runs the same program. Shardings are read off shapes alone, so nothing in a model
mentions devices; `jit` inserts the collectives.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PyTree = Any
MIN_SIZE = 2**14  # smaller arrays are cheaper to copy than to gather


def make_mesh(data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; `data=-1` takes what `fsdp` leaves. ValueError if the numbers don't fit the devices."""
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or (data < 1 and data != -1):
        raise ValueError(f"mesh data={data}, fsdp={fsdp}: axes must be positive (data=-1: all that is left)")
    if data == -1:
        data = count // fsdp
    if data * fsdp != count:
        raise ValueError(f"mesh data={data} x fsdp={fsdp} needs {data * fsdp} devices; there are {count}")
    # Auto: Linen's convolutions don't state output shardings, which JAX's default (Explicit) axes would demand.
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """A copy of every array on every device."""
    return jax.device_put(tree, replicated(mesh))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def state_shardings(mesh: Mesh, shapes: PyTree) -> PyTree:
    """For every array of at least MIN_SIZE entries, its largest axis that `fsdp` divides; the rest is replicated."""
    fsdp = mesh.shape["fsdp"]

    def spec(x) -> P:
        if fsdp > 1 and np.prod(x.shape, dtype=np.int64) >= MIN_SIZE:
            for axis in sorted(range(len(x.shape)), key=lambda i: (-x.shape[i], -i)):
                if x.shape[axis] % fsdp == 0:
                    return P(*[None] * axis, "fsdp")
        return P()

    return jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), shapes)


def check_batch_size(batch_size: int, mesh: Mesh) -> int:
    """The number of examples that this process loads. ValueError unless the batch divides over devices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {mesh.size} devices; "
            f"nearest that do: {max(batch_size // mesh.size, 1) * mesh.size} and {(batch_size // mesh.size + 1) * mesh.size}"
        )
    return batch_size // jax.process_count()


def to_device(mesh: Mesh, batch: PyTree) -> PyTree:
    """This process's part of a batch (numpy, leading axis) -> global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def init_sharded(mesh: Mesh, init: Callable[[jax.Array], PyTree], seed: int) -> PyTree:
    """`init(key)`, every array created on the devices that will hold it."""
    shardings = state_shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
    return jax.jit(lambda seed: init(jax.random.key(seed)), out_shardings=shardings)(np.uint32(seed))


def compile_step(mesh: Mesh, train_step: Callable, shapes: PyTree, constants: PyTree = None) -> Callable:
    """`train_step(state, batch, key, constants)` over the mesh as a function of the first three; the state is donated, metrics
    come back replicated. `constants` are arguments of the program, not compiled into it."""
    state = state_shardings(mesh, shapes)
    compiled = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state, batch_sharding(mesh), None, replicated(mesh)),
        out_shardings=(state, replicated(mesh)),
    )
    constants = replicate(mesh, constants or {})
    return lambda *arguments: compiled(*arguments, constants)
