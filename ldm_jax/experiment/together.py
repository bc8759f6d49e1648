"""What the processes of one run must have alike: the config, the working directory, the data. One that is told otherwise than
process 0 would train something else beside it, or wait for it in vain; all of them say so before anything compiles.

With one process there is nothing to compare.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ldm_jax.data import fingerprint
from ldm_jax.data.source import Source, Spread
from ldm_jax.training import distributed, lock
from ldm_jax.workdir import flatten, is_path

PATIENCE = 60.0  # seconds until what one host has made is seen by another, where a network's file system remembers for a while
ROWS = 100  # of a source, of which the contents are compared
OWN = ("data.workers",)  # fields that are a host's own business, as paths are, if only all have one


def check_config(config: Mapping[str, Any]) -> None:
    """ValueError in all processes, with the fields, where one has another config than process 0. Paths may differ."""
    flat = {name: value for name, value in flatten(config).items() if name not in OWN}
    plain = {name: bool(value) if is_path(name) else value for name, value in flat.items()}
    said = distributed.texts(json.dumps(plain, sort_keys=True, default=str))
    first, *others = [json.loads(each) for each in said]
    for index, other in enumerate(others, 1):
        here, there = ({name: of.get(name, "absent") for name in sorted({*first, *other})} for of in (first, other))
        lines = [f"  {name}: {here[name]!r} in process 0, {there[name]!r} there" for name in here if here[name] != there[name]]
        if lines:
            which = f"process {index} of {len(said)}"
            raise ValueError("\n".join([f"{which} has another config than process 0; start all with the same:", *lines]))


def check_place(workdir: Path) -> None:
    """ValueError in all processes where one doesn't see the working directory that process 0 holds (`lock.hold`). Those that
    have copies of a bucket share them otherwise."""
    if jax.process_count() == 1 or distributed.own_disks():
        return
    held = distributed.texts(_held(workdir))[0]
    end = time.monotonic() + PATIENCE
    while _held(workdir) != held and time.monotonic() < end:
        time.sleep(0.2)
    seen = distributed.texts("yes" if _held(workdir) == held else "no")
    if "no" in seen:
        raise ValueError(
            f"process {seen.index('no')} of {len(seen)} doesn't see what process 0 writes into {workdir}: name one folder that "
            "all hosts see in --workdir, or a bucket, of which each has a copy (gs://BUCKET/PATH, or file:///MOUNT/PATH)"
        )


def _held(workdir: Path) -> str:
    """What the lock of a working directory says; "" where there is none."""
    try:
        return (workdir / lock.NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def check_source(source: Source, split: str) -> None:
    """ValueError in all processes where one has other rows than process 0: another number, names of classes, or contents of
    some of them, spread over all."""
    if jax.process_count() == 1:
        return
    some = Spread(source, ROWS)
    digests = [fingerprint.names_digest(source), *(fingerprint.digest_row(some, i, some[i]) for i in range(len(some)))]
    distributed.check_alike(
        f"{len(source)} {fingerprint.total(digests)}",
        f"it has other data of the split {split} ({source.info.name}); all hosts need the same, in config.data.path",
    )
