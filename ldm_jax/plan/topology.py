"""Chips by name, and what one of them can do, as their makers publish it."""

import dataclasses
import importlib.util
import math
from typing import Any

import jax

from ldm_jax.primitives.choices import choose

HOST = 4  # chips


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak of bfloat16 products in FLOP/s, memory in bytes, its bandwidth and that to the neighbours in bytes/s."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    interconnect: float


# cloud.google.com/tpu/docs: v5e, v5p, v6e; nvidia.com data sheets, dense products, NVLink one way. "cpu" is no measure.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 15.75 * 2**30, 819e9, 200e9),
        Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9),
        Chip("v6e", 918e12, 31.25 * 2**30, 1640e9, 448e9),
        Chip("a100", 312e12, 80e9, 2039e9, 300e9),
        Chip("h100", 989e12, 80e9, 3350e9, 450e9),
        Chip("cpu", 185e9, 24 * 2**30, 20e9, 20e9),
    )
}
TPUS = ("v5e", "v5p", "v6e")


def chip_of(topology: str) -> Chip:
    """The chip that "v5e:16x16" is made of. ValueError names those that are known."""
    return choose(CHIPS, topology.split(":")[0], "topology")


def chips_of(topology: str) -> int:
    """How many chips "v5e:16x16" has. ValueError for a shape that is none."""
    chip_of(topology)
    sides = topology.partition(":")[2].split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"topology={topology!r}: write a chip and a shape, such as v5e:2x2 or v5p:4x4x4")
    return math.prod(map(int, sides))


def has_compiler(topology: str) -> bool:
    """Whether programs for it can be compiled here."""
    name = chip_of(topology).name
    return name == "cpu" or (name in TPUS and importlib.util.find_spec("libtpu") is not None)


def devices_of(topology: str) -> list[Any]:
    """The devices of a topology: "v5e:16x16" through libtpu's description, "cpu:8" of this machine.

    Raises ValueError where there is no compiler for them, or no such topology.
    """
    chip, _, shape = topology.partition(":")
    chip_of(topology)
    if chip == "cpu":
        count = int(shape) if shape.isdigit() else 0
        if not 1 <= count <= len(jax.devices("cpu")):
            raise ValueError(f"topology={topology!r}: this process has {len(jax.devices('cpu'))} CPU devices")
        return jax.devices("cpu")[:count]
    if chip in ("a100", "h100"):
        raise ValueError(f"topology={topology!r}: programs for GPUs are compiled on a machine that has one")
    from jax.experimental import topologies

    sides = [int(side) for side in shape.split("x") if side.isdigit()]
    part = {"chips_per_host_bounds": [*sides, 1, 1][:3]} if math.prod(sides) < HOST else {}  # else whole hosts are expected
    try:
        return list(topologies.get_topology_desc(topology_name=topology, platform="tpu", **part).devices)
    except Exception as error:  # libtpu is missing, or doesn't know the shape
        raise ValueError(
            f"topology={topology!r} can't be compiled for: {str(error).splitlines()[0][:200]}. TPUs need the package libtpu: "
            'pip install "ldm_jax[tpu-plan]"; shapes are such as v5e:1x1, v5e:4x4, v5e:16x16, v5p:2x2x1'
        ) from None
