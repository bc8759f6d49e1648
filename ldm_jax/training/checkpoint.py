"""Checkpoints: Orbax, asynchronous, atomic; params, ema and optimizer as separate items, so that each can be read alone.

    folder/STEP/{params, ema, opt_state, counters}

The metadata hold a checksum of every array (Orbax stores none, and reads zeroed bytes without complaint). A checkpoint that
can't be read or doesn't match its checksums is reported, moved to `folder/../damaged/`, and the one before it is used;
if none is left, that is an error, never a fresh start.
"""

import contextlib
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ldm_jax.training.state import TrainState

PyTree = Any
ITEMS = ("params", "ema", "opt_state")


def _words(x: jax.Array) -> jax.Array:
    """An array's bits as uint32, zero-extended."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    def one(x):
        words = _words(x).reshape(-1)
        # An integer sum is exact in any order, so it is the same on any number of devices. The odd factor tells order.
        position = jax.lax.iota(jnp.uint32, words.size) * jnp.uint32(2654435761) | jnp.uint32(1)
        return jnp.sum(words * position, dtype=jnp.uint32)

    return [one(x) for x in leaves]


def checksums(tree: PyTree) -> dict[str, int]:
    """A 32-bit checksum per array, by path; independent of sharding."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree))
    values = jax.device_get(_checksums(list(leaves)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): int(v) for path, v in zip(paths, values)}


def _describe(tree: PyTree) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(x.dtype).name}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _compare(found: Mapping[str, str], expected: Mapping[str, str], what: str):
    """ValueError naming the arrays whose name, type or shape differ."""
    if found == expected:
        return
    lines = [f"  {name}: not in the checkpoint" for name in expected if name not in found]
    lines += [f"  {name}: not in the model" for name in found if name not in expected]
    lines += [
        f"  {name}: {found[name]} in the checkpoint, {expected[name]} in the model"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    # the average and the optimizer's moments mirror the parameters, and differ where these do
    lines = [line for line in lines if line.startswith("  params/")] or lines
    more = f"\n  ... and {len(lines) - 8} more" if len(lines) > 8 else ""
    raise ValueError(f"{what} belongs to another model:\n" + "\n".join(lines[:8]) + more)


class Checkpoints:
    """The checkpoints of one stage under `folder`. Keeps the newest `keep` and the one with the lowest `score`."""

    def __init__(self, folder: Path, keep: int = 2):
        # Orbax reports each of its own phases at warning level, and an unclosed event loop when a load fails.
        logging.getLogger("absl").setLevel(logging.ERROR)
        policies = ocp.training.preservation_policies
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._orbax = ocp.training.Checkpointer(
            str(self.folder),
            # Without LatestN the best alone would survive, and a resumed run would go back to it.
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    # reverse=True is Orbax's word for "lower is better"
                    policies.BestN(get_metric_fn=lambda m: (m or {}).get("score", np.inf), reverse=True, n=1),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_):
        self.close()

    def wait(self):
        """Until everything is on disk."""
        self._orbax.wait()

    def close(self):
        """Waits, and frees what Orbax holds."""
        self._orbax.close()

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        return sorted(c.step for c in self._orbax.checkpoints)

    def save(self, step: int, state: TrainState, score: float | None = None):
        """Starts writing `state` as of `step` and returns; its buffers may be donated at once. A step already there is left."""
        if step in self.steps:
            return
        parts = self._parts(state)
        meta = {"checksums": checksums(parts), "arrays": _describe(parts)}
        metrics = {"score": float(score)} if score is not None and np.isfinite(score) else None
        self._orbax.save_checkpointables_async(step, parts, force=True, metrics=metrics, custom_metadata=meta)

    def restore(self, target: TrainState) -> TrainState | None:
        """The newest readable state, on the shardings of `target` (ShapeDtypeStructs); None if none was ever written.

        Raises:
          ValueError: a checkpoint of another model; or every checkpoint there is damaged.
        """
        steps = self.steps
        if not steps:
            return None
        for step in reversed(steps):
            parts = self._parts(target)
            with _quiet():
                loaded = self._load(step, parts)
            if loaded is None:
                continue
            return TrainState(
                loaded["counters"]["step"],
                loaded["params"],
                loaded.get("ema", {}),
                loaded["opt_state"],
                loaded["counters"]["skipped"],
            )
        raise ValueError(
            f"no checkpoint under {self.folder} can be read (tried {', '.join(map(str, reversed(steps)))}); they were moved to "
            f"{self.folder.parent / 'damaged'}. Start anew in another workdir, or remove this stage's folder to train it again."
        )

    def _load(self, step: int, parts: Mapping[str, PyTree]) -> dict[str, PyTree] | None:
        """The items of one step, or None (and a warning) if they are damaged."""
        try:
            meta = self._orbax.checkpointables_metadata(step).custom_metadata
            recorded, arrays = meta["checksums"], meta["arrays"]
        except Exception as error:  # Orbax raises whatever its layers raise; any of it means: not readable
            return self._set_aside(step, f"its description can't be read ({_first_line(error)})")
        _compare(arrays, _describe(parts), f"checkpoint {self.folder / str(step)}")
        try:
            loaded = self._orbax.load_checkpointables(step, dict(parts))
        except Exception as error:
            return self._set_aside(step, f"it can't be read ({_first_line(error)})")
        wrong = [name for name, value in checksums(loaded).items() if value != recorded[name]]
        if wrong:
            return self._set_aside(step, f"the contents of {len(wrong)} arrays changed on disk ({', '.join(wrong[:3])})")
        return loaded

    def _set_aside(self, step: int, reason: str) -> None:
        aside = self.folder.parent / "damaged"
        message = f"CHECKPOINT {self.folder / str(step)} IS DAMAGED: {reason}. Moved to {aside}; using an older one."
        warnings.warn(message, stacklevel=4)
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            destination, n = aside / str(step), 1
            while destination.exists():
                destination, n = aside / f"{step}-{n}", n + 1
            (self.folder / str(step)).rename(destination)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged-{step}")
        self._orbax.reload()

    @staticmethod
    def _parts(state: TrainState) -> dict[str, PyTree]:
        parts = {name: getattr(state, name) for name in ITEMS if jax.tree.leaves(getattr(state, name))}
        return {**parts, "counters": {"step": state.step, "skipped": state.skipped}}


def load_averaged(folder: Path, step: int | None = None) -> PyTree:
    """The parameters to use from a stage's newest checkpoint (or that of `step`): ema where there is one, else params.

    Arrays are read onto the default device, without building any model or reading the optimizer's state.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: it can't be read, or its contents changed on disk.
    """
    folder = Path(folder).absolute()
    with Checkpoints(folder) as checkpoints, _quiet():
        steps = checkpoints.steps
        if not steps:
            raise FileNotFoundError(f"{folder} holds no checkpoint")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise ValueError(f"{folder} has no checkpoint of step {step}; there are {steps}")
        try:
            item = "ema" if (folder / str(step) / "ema").is_dir() else "params"
            metadata = checkpoints._orbax.checkpointables_metadata(step)
            shapes, recorded = metadata.metadata[item], metadata.custom_metadata["checksums"]
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
            loaded = checkpoints._orbax.load_checkpointables(step, {item: target})
        except Exception as error:
            raise ValueError(f"checkpoint {folder / str(step)} can't be read: {_first_line(error)}") from error
        wrong = [name for name, value in checksums(loaded).items() if value != recorded[name]]
        if wrong:
            raise ValueError(f"checkpoint {folder / str(step)}: the contents of {', '.join(wrong[:3])} changed on disk")
        return loaded[item]


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


@contextlib.contextmanager
def _quiet():
    """Orbax and asyncio log whole tracebacks for loads whose failure is handled here."""
    names = ("asyncio", "absl", "root")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
