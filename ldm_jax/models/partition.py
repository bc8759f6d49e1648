"""Which devices a network is compiled for: their platform, and the axes over which its activations are split.

A program that is traced under `jax.set_mesh(mesh)`, with axes named data, fsdp and tensor, is compiled for that mesh: nothing
more need be said, and the platform is the one that it is lowered for. Whoever has other names says so inside the function that
is traced:

    def step(params, x, t, cond):
        with partitioned(mesh):
            return network.apply({"params": params}, x, t, cond)

    jax.jit(step, in_shardings=...)

Either way `constrain` keeps activations on the batch axes, and `gathered` makes a layer's kernel whole where it is used, in the
type that is computed in, so that XLA doesn't split the layer instead; attention kernels run under `jax.shard_map`, each device
on its own part; and what is best on the mesh's platform is computed, which may not be the platform of the process (a TPU's
program compiled on a CPU). The context must be entered inside the traced function: `jit` does not know of it, and would reuse
what it traced outside.

Without either nothing is constrained, and the platform is chosen when the program is lowered.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax.primitives import placement


@dataclass(frozen=True)
class Partition:
    """A mesh, those of its axes that split the batch, and the one that splits attention heads (None: none does)."""

    mesh: Mesh | jax.sharding.AbstractMesh
    batch_axes: tuple[str, ...]
    heads_axis: str | None

    @property
    def device(self) -> Any:
        """One of the mesh's devices; None where the mesh is the ambient one, which doesn't tell them."""
        return self.mesh.devices.flat[0] if isinstance(self.mesh, Mesh) else None

    @property
    def platform(self) -> str | None:
        """ "cpu", "gpu" or "tpu"; None where it is known only when the program is lowered."""
        return self.device and self.device.platform

    def batch(self, size: int) -> tuple[str, ...]:
        """The batch axes that divide a batch of `size`, as many from the left as do; the others see it whole."""
        axes, parts = [], 1
        for axis in self.batch_axes:
            parts *= self.mesh.shape[axis]
            if size % parts:
                break
            axes.append(axis)
        return tuple(axes)

    def heads(self, count: int) -> str | None:
        """The axis that splits `count` heads, or None if it does not divide them."""
        return self.heads_axis if self.heads_axis and count % self.mesh.shape[self.heads_axis] == 0 else None


_partition: contextvars.ContextVar[Partition | None] = contextvars.ContextVar("partition", default=None)


@contextlib.contextmanager
def partitioned(
    mesh: Mesh, batch_axes: Sequence[str] = ("data", "fsdp"), heads_axis: str | None = "tensor"
) -> Iterator[Partition]:
    """Networks traced inside are compiled for `mesh`, their batch split over `batch_axes`, attention heads over `heads_axis`.

    Axes that the mesh lacks are left out. Inside a `jax.shard_map` the axes that it splits are left out as well, since there a
    network sees one device's part.
    """
    unknown = set(mesh.axis_names).isdisjoint({*batch_axes, heads_axis})
    if unknown and mesh.size > 1:
        raise ValueError(
            f"the mesh has axes {mesh.axis_names}, and none of batch_axes={tuple(batch_axes)}, heads_axis={heads_axis!r}"
        )
    axes = tuple(axis for axis in batch_axes if axis in mesh.axis_names)
    token = _partition.set(Partition(mesh, axes, heads_axis if heads_axis in mesh.axis_names else None))
    try:
        yield _partition.get()
    finally:
        _partition.reset(token)


def current() -> Partition | None:
    """The partition that holds here: that of the context, or of the ambient mesh, less the axes of an enclosing
    `jax.shard_map`."""
    partition, ambient = _partition.get(), jax.sharding.get_abstract_mesh()
    if partition is None:
        if not {*placement.AXES} <= {*ambient.axis_names} or ambient.size == 1:
            return None
        partition = Partition(ambient, placement.AXES[:2], placement.AXES[2])
    manual = set(ambient.manual_axes)
    if not manual:
        return partition
    axes = tuple(axis for axis in partition.batch_axes if axis not in manual)
    return Partition(partition.mesh, axes, None if partition.heads_axis in manual else partition.heads_axis)


def splits(partition: Partition | None) -> bool:
    """Whether anything is split: there is a context, and its axes span more than one device."""
    if partition is None:
        return False
    axes = (*partition.batch_axes, *([partition.heads_axis] if partition.heads_axis else []))
    return math.prod(partition.mesh.shape[axis] for axis in axes) > 1


def constrain(x: jax.Array) -> jax.Array:
    """x [B, ...], split over the batch axes and over nothing else, as is its gradient; x itself where nothing is split."""
    partition = current()
    if not splits(partition):
        return x
    # inside a shard_map a constraint may not name the concrete mesh; of the ambient one it needn't
    if partition.device is None or jax.sharding.get_abstract_mesh().manual_axes:
        return jax.lax.with_sharding_constraint(x, P(partition.batch(x.shape[0]) or None))
    return jax.lax.with_sharding_constraint(x, NamedSharding(partition.mesh, P(partition.batch(x.shape[0]) or None)))


def gathered(x: jax.Array, path: Sequence[str], dtype: Any) -> jax.Array:
    """A parameter in `dtype`, whole along `fsdp` for the layer that uses it: what crosses between devices is `dtype`, and its
    gradient goes back to where the parameter is held. Where nothing is split by `placement.spec`, a cast."""
    partition = current()
    mesh = partition and partition.mesh
    if not splits(partition) or not {*placement.AXES} <= {*mesh.axis_names} or jax.sharding.get_abstract_mesh().manual_axes:
        return x.astype(dtype)
    held = placement.spec(mesh, "/".join(path), x.shape)
    if "fsdp" not in held:
        return x.astype(dtype)
    whole = P(*(None if axis == "fsdp" else axis for axis in held))
    if partition.device is not None:
        held, whole = NamedSharding(mesh, held), NamedSharding(mesh, whole)

    def to(sharding: Any) -> Callable[[Any, jax.Array], jax.Array]:
        return lambda _, x: jax.lax.with_sharding_constraint(x, sharding)

    # The barrier keeps XLA from gathering first and casting afterwards. A gradient is asked for whole, then where it is held:
    # one product and a reduce-scatter. Asked for in pieces at once, a TPU's compiler makes it in a loop that reads all of its
    # factors for every piece.
    here = jax.lax.optimization_barrier(to(held)(None, x.astype(dtype)))
    return jax.custom_derivatives.linear_call(to(whole), lambda _, g: to(held)(_, to(whole)(_, g)), (), here)


def by_device(kernel: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`kernel` of arrays [B, L, heads, D] that gives another such array, by every device for its own rows and heads."""
    partition = current()
    if not splits(partition):
        return kernel(*arrays)
    B, _, heads, _ = arrays[0].shape
    spec = P(partition.batch(B) or None, None, partition.heads(heads), None)
    inside = jax.sharding.get_abstract_mesh().manual_axes
    mesh = {} if inside or partition.device is None else {"mesh": partition.mesh}
    # Kernels state no varying axes, so shard_map can't check them.
    return jax.shard_map(kernel, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False, **mesh)(*arrays)


def in_parts(
    function: Callable[[Any, jax.Array], jax.Array], params: Any, x: jax.Array, rows: int, tpu_least: int = 1
) -> jax.Array:
    """`function(params, x)`, a function of every row of x [B, ...] by itself, of at most `rows` rows at a time on every device,
    one part after the other: the memory of one part. A TPU takes rows one by one where a part would have fewer than
    `tpu_least`."""
    partition = current()
    axes = partition.batch(len(x)) if splits(partition) else ()
    here = len(x) // math.prod(partition.mesh.shape[axis] for axis in axes) if axes else len(x)
    size = next(size for size in range(min(here, max(rows, 1)), 0, -1) if here % size == 0)
    tpu_size = size if size >= tpu_least else 1
    if size == tpu_size == here:
        return function(params, x)

    def parted(size: int) -> Callable[[Any, jax.Array], jax.Array]:
        def run(params: Any, x: jax.Array) -> jax.Array:
            if size == len(x):
                return function(params, x)
            y = jax.lax.map(lambda part: function(params, part), x.reshape(-1, size, *x.shape[1:]))
            return y.reshape(-1, *y.shape[2:])

        return run

    def local(params: Any, x: jax.Array) -> jax.Array:
        if size == tpu_size:
            return parted(size)(params, x)
        return by_platform(params, x, default=parted(size), tpu=parted(tpu_size))

    if not axes:
        return local(params, x)
    mesh = {} if jax.sharding.get_abstract_mesh().manual_axes or partition.device is None else {"mesh": partition.mesh}
    return jax.shard_map(local, in_specs=(P(), P(axes)), out_specs=P(axes), check_vma=False, **mesh)(params, x)


def by_platform(*arrays: Any, default: Callable[..., Any], **platforms: Callable[..., Any]) -> Any:
    """The function of the platform that is compiled for, `default` where it has none, applied to the arrays.

    `platforms` are among cpu, cuda and tpu, as `jax.lax.platform_dependent` calls them.
    """
    partition = current()
    platform = partition and partition.platform
    if platform is None:
        return jax.lax.platform_dependent(*arrays, default=default, **platforms)
    return platforms.get("cuda" if platform == "gpu" else platform, default)(*arrays)


def likely_platform() -> str:
    """The platform that is compiled for, where it is known: the mesh's, else that of the process's first device, which it need
    not be. For a choice that changes no number."""
    partition = current()
    return (partition and partition.platform) or jax.default_backend()
