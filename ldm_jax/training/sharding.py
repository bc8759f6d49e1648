"""Arrays on a mesh of devices by the rules of `primitives.placement`, and the compiled step.

One device is the trivial mesh and runs the same program. The compiler inserts the collectives. While a step is traced, its mesh
is JAX's ambient mesh (`jax.sharding.get_abstract_mesh()`).
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax.primitives.arrays import KIND
from ldm_jax.primitives.placement import AXES, ROWS, spec
from ldm_jax.training import distributed

PyTree = Any


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; one axis may be -1: the rest. Neighbouring devices share `tensor`, then `fsdp`; slices and hosts
    share `data` only. ValueError if the numbers don't fit the devices."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    said, count = ", ".join(f"{name}={size}" for name, size in sizes.items()), len(devices)
    if any(size < 1 and size != -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh {said}: axes must be positive, and one of them may be -1 (all that is left)")
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    sizes = {name: count // known if size == -1 else size for name, size in sizes.items()}
    if int(np.prod(list(sizes.values()))) != count:
        needed = f"a multiple of {known} devices" if -1 in (data, fsdp, tensor) else f"{known} devices"
        raise ValueError(f"mesh {said} needs {needed}; there are {count}")
    # Auto: Linen's convolutions don't state output shardings, which JAX's default (Explicit) axes would demand.
    return Mesh(_ordered(devices, *sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3)


def _ordered(devices: list[jax.Device], data: int, fsdp: int, tensor: int) -> np.ndarray:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh((data, fsdp, tensor), devices, allow_split_physical_axes=True)
    if data % slices:
        raise ValueError(f"mesh data={data}: must be a multiple of the {slices} slices, which only `data` may span")
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def _specs(mesh: Any, tree: PyTree) -> PyTree:
    def one(path, x) -> P:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return P()
        return spec(mesh, jax.tree_util.keystr(path, simple=True, separator="/"), x.shape)

    return jax.tree_util.tree_map_with_path(one, tree)


def state_shardings(mesh: Mesh, shapes: PyTree) -> PyTree:
    """A sharding for every array of a state, of parameters or of constants, by `spec`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), _specs(mesh, shapes), is_leaf=lambda x: isinstance(x, P))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device has a copy of."""
    return NamedSharding(mesh, P())


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """A copy of every array on every device."""
    return place(tree, jax.tree.map(lambda x: replicated(mesh), tree))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays where `shardings` say: those of all processes together, or those that every process has a copy of."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    leaves, structure = jax.tree.flatten(tree)
    wanted = structure.flatten_up_to(shardings)
    spread = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not x.is_fully_addressable]
    moved = jax.jit(_same, out_shardings=[wanted[i] for i in spread])([leaves[i] for i in spread]) if spread else []
    for i, x in enumerate(leaves):
        if i in spread:
            leaves[i] = moved[spread.index(i)]
        else:
            x = np.asarray(x)
            leaves[i] = jax.make_array_from_callback(x.shape, wanted[i], lambda index, x=x: x[index])
    return jax.tree.unflatten(structure, leaves)


def check_weights(mesh: Mesh, tree: PyTree, what: str) -> None:
    """ValueError in all processes of a mesh of several, unless all have read the same numbers: replicas that differ would train
    on without a word. Arrays that are spread over processes are not looked at. `what` they are, and where they come from."""
    if not mesh.is_multi_process:
        return
    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            continue
        x = np.asarray(x)
        digest.update(f"{jax.tree_util.keystr(path)}:{x.dtype}:{x.shape};".encode())
        digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
    distributed.check_alike(digest.hexdigest(), f"it has other weights of {what}; all hosts need the same files")


def _same(arrays: list[jax.Array]) -> list[jax.Array]:
    return arrays


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over `data` and `fsdp`; devices along `tensor` have the same rows."""
    return NamedSharding(mesh, ROWS)


def constrain(tree: PyTree) -> PyTree:
    """In a traced step: gradients or parameters, held to their rule on the ambient mesh. Elsewhere nothing changes."""
    mesh = jax.sharding.get_abstract_mesh()
    if not _ours(mesh):
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, _specs(mesh, tree))


def constrain_rows(tree: PyTree, axis: int = 0) -> PyTree:
    """In a traced step: arrays whose axis number `axis` is the batch's, split as a batch is. Elsewhere nothing changes."""
    if not _ours(jax.sharding.get_abstract_mesh()):
        return tree
    rows = P(*[None] * axis, *ROWS)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, rows), tree)


def _ours(mesh: Any) -> bool:
    return set(AXES) <= set(mesh.axis_names) and mesh.size > 1


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> int:
    """The number of rows that this process loads. ValueError unless the batch divides over the devices that split it, and every
    device's share into `accumulate` parts."""
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate}: a batch is cut into at least 1 part")
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    unit, parts = shards * accumulate, f" in {accumulate} parts" if accumulate > 1 else ""
    if batch_size < 1 or batch_size % unit:
        near = max(batch_size // unit, 1) * unit, (max(batch_size, 0) // unit + 1) * unit
        raise ValueError(
            f"batch_size={batch_size} does not divide over {shards} devices{parts}; nearest that do: "
            + " and ".join(str(size) for size in sorted(set(near)))
        )
    return len(local_rows(mesh, batch_size))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """int64 [b]: which rows of a batch this process loads, in order: those that its devices hold. Others may load some of them
    too, where `tensor` spans processes; nor need they be contiguous, as a TPU's mesh may interleave processes."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places]))


def whole(mesh: Mesh, rows: np.ndarray) -> np.ndarray:
    """The whole batch [B, ...] of numbers of which every process has its own rows [b, ...] (`local_rows`); whole numbers of at
    most 32 bits."""
    if jax.process_count() == 1:
        return rows
    return np.asarray(replicate(mesh, to_device(mesh, rows)))


def to_device(mesh: Mesh, batch: PyTree) -> PyTree:
    """This process's rows of a batch (numpy, leading axis; `local_rows`) -> global arrays split over the mesh."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    per_shard = len(jax.tree.leaves(batch)[0]) // len(local_rows(mesh, shards))
    rows = local_rows(mesh, shards * per_shard)

    def one(x: np.ndarray) -> jax.Array:
        shape = (shards * per_shard, *x.shape[1:])
        return jax.make_array_from_callback(
            shape, sharding, lambda index: x[np.searchsorted(rows, np.arange(shape[0])[index[0]])]
        )

    return jax.tree.map(one, batch)


def seed_key(seed: int) -> jax.Array:
    """`primitives.arrays.key_of` without a program for each seed: a typed key for one from 0 to 2^64 - 1.
    ValueError outside."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed}: must lie between 0 and 2^64 - 1")
    return _key(np.uint32(seed % 2**32), np.uint32(seed >> 32))


def _key(low: jax.Array, high: jax.Array) -> jax.Array:
    key = jax.random.key(low, impl=KIND)
    folded = jax.random.fold_in(key, high)
    data = jax.numpy.where(high > 0, jax.random.key_data(folded), jax.random.key_data(key))
    return jax.random.wrap_key_data(data, impl=KIND)


def init_sharded(mesh: Mesh, init: Callable[[jax.Array], PyTree], seed: int) -> PyTree:
    """`init(key)`, every array created on the devices that will hold it. `seed` as in `seed_key`."""
    seed_key(seed)
    shardings = state_shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
    make = jax.jit(lambda low, high: init(_key(low, high)), out_shardings=shardings)
    return make(np.uint32(seed % 2**32), np.uint32(seed >> 32))


class CompiledStep:
    """`step(state, batch, key) -> (state, metrics)` over a mesh; `step.lower(...)` gives JAX's lowered program, also of shapes
    and for devices that aren't there. `jitted` takes the constants as a fourth argument."""

    def __init__(self, mesh: Mesh, jitted: Any, constants: PyTree):
        self.mesh, self.jitted, self.constants = mesh, jitted, constants

    def __call__(self, state: PyTree, batch: PyTree, key: jax.Array) -> tuple[PyTree, dict[str, jax.Array]]:
        """One step; the state's buffers are given away."""
        with jax.set_mesh(self.mesh):
            return self.jitted(state, batch, key, self.constants)

    def lower(self, state: PyTree, batch: PyTree, key: PyTree) -> Any:
        """The program for arguments of these shapes (arrays or `jax.ShapeDtypeStruct`)."""
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(state, batch, key, self.constants)


def compiler_options(mesh: Mesh, rows: int) -> dict[str, Any]:
    """What the compiler of the mesh's devices is told of a step that looks at `rows` rows at a time on every device.

    A TPU's cuts two to seven images into strips and makes those the batch. Of the encoder at 512 px and four images, that moves
    45 GB in place of 6.3, by the compiler's own count; from eight on, and with one, it does what is best unasked.
    """
    if mesh.devices.flat[0].platform != "tpu" or rows < 2:
        return {}
    return {"xla_tpu_run_space_to_batch": False, "xla_tpu_run_space_to_batch_on_new_platforms": False}


def compile_step(
    mesh: Mesh, train_step: Callable, shapes: PyTree, constants: PyTree = None, options: Mapping[str, Any] | None = None
) -> CompiledStep:
    """`train_step(state, batch, key, constants)` over the mesh as a function of the first three; the state, of these `shapes`,
    is donated, metrics come back replicated. `constants` (frozen networks, of any dtype) are arguments of the program, split as
    parameters are; they may be `jax.ShapeDtypeStruct`s if the step is only lowered. `options`: the compiler's."""
    constants = constants or {}
    state, fixed = state_shardings(mesh, shapes), state_shardings(mesh, constants)
    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state, batch_sharding(mesh), replicated(mesh), fixed),
        out_shardings=(state, replicated(mesh)),
        compiler_options=dict(options or {}),
    )
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(constants)):
        check_weights(mesh, constants, "the networks that stay as they are, which paths of the config name")
        constants = place(constants, fixed)
    return CompiledStep(mesh, jitted, constants)
