"""Where arrays live on a mesh of devices: three axes, and one table of rules.

    data      batches are split over it; across slices and hosts, where links are slow
    fsdp      batches, parameters, optimizer state and averages are split over it
    tensor    heads and feed-forward features are split over it; every device of it sees the same rows

A rule reads an array's path and shape, so nothing in a model says where its parameters are, and the average and the optimizer's
moments, whose paths end as the parameters' do, follow them.
"""

import math
import re
from typing import Any

from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))  # the leading axis of a batch
MIN_SIZE = 2**14  # smaller arrays are cheaper to copy than to gather

# How a parameter's path ends -> the axis that `tensor` splits. Heads and features are split where they are made (columns) and
# where they are summed again (rows), so a block needs one sum at its end (Shoeybi et al. 2019, section 3). A kernel that makes
# several things at once (qkv, a gated layer) is cut in the middle of them, and the compiler moves the pieces.
TENSOR_RULES = (
    (r"(to_[qkv]|[qkv]_proj|qkv)/kernel", 1),  # attention's queries, keys, values
    (r"(to_[qkv]|[qkv]_proj|qkv)/bias", 0),
    (r"(to_out|to_out_0|out_proj|attn/proj)/kernel", 0),  # attention's output
    (r"(net_0/proj|net_0_0|fc1)/kernel", 1),  # feed-forward, first layer
    (r"(net_0/proj|net_0_0|fc1)/bias", 0),
    (r"(net_2|fc2)/kernel", 0),  # feed-forward, second layer
)
_TENSOR = [(re.compile(rf"(^|/){ending}$"), axis) for ending, axis in TENSOR_RULES]


def spec(mesh: Any, path: str, shape: tuple[int, ...]) -> P:
    """How the array at `path` ("a/b/kernel") is split: by TENSOR_RULES over `tensor`, and, if it has at least MIN_SIZE entries,
    its largest axis that is left and that `fsdp` divides over `fsdp`."""
    axes: list[str | None] = [None] * len(shape)
    size, fsdp, tensor = math.prod(shape), mesh.shape["fsdp"], mesh.shape["tensor"]
    if tensor > 1 and size >= tensor:
        for ending, axis in _TENSOR:
            if ending.search(path) and axis < len(shape) and shape[axis] % tensor == 0:
                axes[axis] = "tensor"
                break
    if fsdp > 1 and size >= MIN_SIZE:
        for axis in sorted(range(len(shape)), key=lambda i: (-shape[i], -i)):
            if axes[axis] is None and shape[axis] % fsdp == 0:
                axes[axis] = "fsdp"
                break
    while axes and axes[-1] is None:
        axes.pop()
    return P(*axes)
