"""python -m ldm_jax.plan: what a config costs on chips that aren't there.

    python -m ldm_jax.plan --config=configs/imagenet_f8.py --topology=v5e:16x16 --mesh=data=-1,fsdp=4

The real training step is compiled ahead of time for every mesh and topology that is named, by the compiler of those chips
(TPUs: the package libtpu, `pip install -e ".[tpu-plan]"`; "cpu:8" for eight devices of this machine), and the program is read:
memory, operations, traffic. No chip, no data and no weights are needed. Without libtpu there is the analytic part alone.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from ldm_jax.cli import configs
from ldm_jax.cli.overrides import overridden
from ldm_jax.primitives.console import Parser, check_positive, print_anything

GIB = 2**30


def main(arguments: list[str] | None = None) -> int:
    """Prints a table, or JSON lines; returns the exit status."""
    parser = Parser(prog="python -m ldm_jax.plan", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="a file of configs/, or its name")
    parser.add_argument("--stage", choices=("first_stage", "diffusion"), help="default: the diffusion model")
    parser.add_argument("--topology", action="append", default=[], help="such as v5e:2x2, v5p:4x4x4, cpu:8; repeatable")
    parser.add_argument("--mesh", action="append", default=[], help="such as data=-1,fsdp=4,tensor=1; repeatable")
    parser.add_argument("--batch-size", type=int, help="of one update, over all chips; default: the config's")
    parser.add_argument("--largest-batch", action="store_true", help="also find the largest batch that fits, by doubling")
    parser.add_argument("--sampling", action="store_true", help="the sampling program, --batch-size pictures on one chip each")
    parser.add_argument("--set", action="append", default=[], help="a field: diffusion_train.accumulate=4; repeatable")
    parser.add_argument("--price", type=float, default=0.0, help="of a chip for an hour, for the cost")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each plan")
    print_anything()
    chosen = parser.parse_args(arguments)
    # before jax: the host's own platform is the CPU, and libtpu must not look for a TPU here
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    cpus = [int(name.split(":")[1]) for name in chosen.topology if name.startswith("cpu:") and name[4:].isdigit()]
    if cpus:
        os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={max(cpus)}")
    from ldm_jax import plan

    try:
        check_positive(batch_size=chosen.batch_size)
        if not 0 <= chosen.price < math.inf:
            raise ValueError(f"--price={chosen.price:g}: what a chip costs for an hour, 0 or above")
        config = read_config(chosen.config, chosen.set)
        found = plan.sweep(
            config,
            chosen.stage,
            chosen.topology or [None],
            [read_mesh(text) for text in chosen.mesh] or [None],
            batch_size=chosen.batch_size,
            largest=chosen.largest_batch,
            sampling=chosen.sampling,
        )
        rows = []
        for row in found:
            rows.append(row)
            if chosen.json:
                print(json.dumps(plan.as_dict(row, chosen.price)), flush=True)
            else:
                print(plan.in_words(row, chosen.price), flush=True)
        if not chosen.json and len(rows) > 1:
            print(plan.table(rows))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_config(name: str, assignments: Sequence[str] = ()) -> dict[str, Any]:
    """The config of a file, or of that name, with fields set, "section.field=value". ValueError if there is none, or no such
    field."""
    return overridden(configs.load(*configs.find(name)), [f"--config.{each}" for each in assignments]).to_dict()


def read_mesh(text: str) -> dict[str, int]:
    """ "data=-1,fsdp=4" -> {"data": -1, "fsdp": 4}."""
    try:
        found = {name.strip(): int(value) for name, _, value in (part.partition("=") for part in text.split(","))}
    except ValueError:
        found = {"": 0}
    if not found or set(found) - {"data", "fsdp", "tensor"}:
        raise ValueError(f"--mesh {text}: write data=-1,fsdp=4,tensor=1")
    return found
