"""Checkpoints: Orbax, asynchronous, atomic; params, averages and optimizer as separate items, so that each can be read alone.

    folder/STEP/{params, ema, opt_state, counters, post_hoc}

The metadata hold a checksum of every array (Orbax stores none, and reads zeroed bytes without complaint) and the score that a
hook gave that very state. `Checkpoints` is the training process's: it writes, keeps what was promised, and clears away;
everybody else reads by `load_averaged` and `load_part` of `checkpoint_reader`. A damaged checkpoint is never taken for a good
one, and never for a fresh start.
"""

import asyncio
import concurrent.futures
import contextlib
import gc
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax.primitives.files import identity, write_text
from ldm_jax.training.checkpoint_reader import (
    COMMITTED,
    ITEMS,
    Damaged,
    best_in,
    check,
    checksums,
    compare,
    describe,
    first_line,
    is_whole,
    load_averaged,
    load_part,
    load_post_hoc,
    located,
    quiet,
    read,
    recorded_in,
    sealed,
    steps_in,
    verify,
)
from ldm_jax.training.distributed import agreed
from ldm_jax.training.state import TrainState

__all__ = ["Checkpoints", "best_in", "checksums", "load_averaged", "load_part", "load_post_hoc", "steps_in", "verify"]
PyTree = Any
RETRIES = 4  # of a save that failed, a second after the first, then two, four, eight


class Checkpoints:
    """The checkpoints of one stage under `folder`, for the process (or all the processes) that trains it. Keeps the newest
    `keep` and the one with the lowest `score`. Opening it removes what a killed process left half-written, so there must be
    one at a time (`lock.hold`). Use as a context manager. keep=None keeps all, of one run: one that goes back drops, when
    it saves, what it gave up (see `save`). ValueError for keep < 1."""

    def __init__(self, folder: Any, keep: int | None = 2):
        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep}: at least the newest checkpoint is kept")
        # Orbax reports each of its own phases at warning level, an unclosed event loop when a load fails, and every thread's
        # traceback when a disk is full: what failed is said by us.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        pass_over_late_callbacks()
        self.folder, self.keep = located(folder), keep
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: concurrent.futures.Future | None = None
        self._failures, self._again_at, self._saved = 0, 0.0, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._place = identity(self.folder)
        self._clear()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_):
        try:
            self.close()
        except OSError as error:
            if kind is None:
                raise
            warnings.warn(str(error), stacklevel=2)  # what ended the block is said first

    def close(self):
        """Waits until everything is on disk, and ends the thread that writes. OSError if the last save failed."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def wait(self):
        """Until everything is on disk. OSError if the last save failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first; what process 0 sees, in all processes."""
        found = steps_in(self.folder)
        if jax.process_count() == 1:
            return found
        padded = np.full(1024, -1, np.int64)
        padded[: len(found[-1024:])] = found[-1024:]
        return [int(step) for step in multihost_utils.broadcast_one_to_all(padded.astype(np.int32)) if step >= 0]

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and score of the checkpoint with the lowest score; None if none has one."""
        return best_in(self.folder)

    @property
    def retry_due(self) -> bool:
        """Whether a save failed in the background, and it is time to repeat it with the state of the moment. Several processes
        repeat none: the OSError is raised where it failed, now and not at the next save."""
        pending = self._pending
        failed = pending is not None and pending.done() and pending.exception() is not None
        if failed and jax.process_count() > 1:
            self.wait()
        if failed and not self._again_at:
            self._again_at = time.monotonic() + 2.0**self._failures
        return failed and time.monotonic() >= self._again_at

    def save(
        self,
        step: int,
        state: TrainState,
        score: float | None = None,
        wait: bool = False,
        judged: Mapping[str, Any] | None = None,
    ):
        """Starts writing `state` as of `step` and returns; its buffers may be donated at once. A step already there is left;
        with keep=None it goes, and so do later ones: they are of a run that was given up.

        `score`: what this very state was judged to be worth, lower is better; `judged`: by whom (see `Judge.record`). With
        `wait` it returns when all is on disk. A save that fails leaves the older checkpoints as they are. One process repeats
        it: with `wait` the same state, else the state of the next call (see `retry_due`), RETRIES times in a row, waiting twice
        as long each time.

        Raises:
          OSError: it failed so often; says why.
        """
        self._take_note()
        if self.keep is None and (given_up := [each for each in self.steps if each >= step]) and jax.process_index() == 0:
            for each in given_up:
                _remove(self.folder / str(each))
        while True:
            if step in self.steps:
                return
            self._start(step, state, score, judged)
            if wait:
                self._take_note()
            if not wait or self._failures == 0:
                return
            time.sleep(2.0 ** (self._failures - 1))

    def judge(self, step: int, score: float | None, judged: Mapping[str, Any]):
        """Adds what a look at the state of `step` found that was missed when it was saved (`save` has the arguments)."""
        self.wait()
        if jax.process_index() == 0:
            path = self.folder / str(step) / "_CHECKPOINT_METADATA"
            found = json.loads(path.read_text(encoding="utf-8"))
            found["custom_metadata"] = sealed(found["custom_metadata"] | {"score": _finite(score), "judged": dict(judged)})
            if isinstance(path, Path):
                write_text(path, json.dumps(found))
            else:  # in a bucket an object is replaced whole
                path.write_text(json.dumps(found))

    def _take_note(self):
        """Waits for the save under way. If it failed: a warning, or OSError if that was one too many."""
        try:
            self.wait()
            self._failures = 0
        except OSError as error:
            self._failures += 1
            if self._failures > RETRIES or jax.process_count() > 1:
                raise
            warnings.warn(f"{error} Trying again.", stacklevel=3)
        self._again_at = 0.0

    def _start(self, step: int, state: TrainState, score: float | None, judged: Mapping[str, Any] | None):
        parts = _parts(state)
        meta = {
            "checksums": checksums(parts),
            "arrays": describe(parts),
            "score": _finite(score),
            "judged": dict(judged or {}),
        }
        self._saved += 1
        _number_alike()
        from orbax.checkpoint import v1 as ocp  # here, because importing it takes half a second

        try:
            if identity(self.folder) != self._place:  # Orbax would make a new one, with nothing but this checkpoint in it
                raise FileNotFoundError("the folder is gone, or another is in its place")
            response = ocp.save_checkpointables_async(self.folder / str(step), parts, custom_metadata=sealed(meta))
        except Exception as error:
            self._pending = concurrent.futures.Future()
            self._pending.set_exception(self._failed(step, error))
            return
        self._pending = self._worker.submit(self._settle, step, response)

    def _settle(self, step: int, response: Any):
        """In the background: until the save is committed; then what is no longer kept goes."""
        try:
            # Also ends Orbax's thread and event loop of this save, which nothing else does.
            response.result()
        except Exception as error:
            raise self._failed(step, error) from None
        if jax.process_index() == 0:
            steps, best = steps_in(self.folder), best_in(self.folder)
            kept = {*(steps if self.keep is None else steps[-self.keep :]), *([best[0]] if best else [])}
            for old in set(steps) - kept:
                _remove(self.folder / str(old))
        if self._saved % 8 == 0:
            gc.collect()  # Orbax's handlers and their thread pools hold on to one another

    def _failed(self, step: int, error: BaseException) -> OSError:
        # what Orbax began of it, and doesn't wait for
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        with contextlib.suppress(OSError):
            self._clear()
        return OSError(
            f"checkpoint {self.folder / str(step)} could not be written ({first_line(error)}); the older ones are unharmed."
        )

    def _clear(self):
        """Removes what is half-written or half-removed."""
        if jax.process_index():
            return
        if isinstance(self.folder, Path):
            for path in self.folder.iterdir():
                if ".orbax-checkpoint-tmp" in path.name or path.name.endswith(".removing"):
                    shutil.rmtree(path, ignore_errors=True)
            return
        with contextlib.suppress(FileNotFoundError):  # a bucket has no empty folders
            for path in self.folder.iterdir():
                if path.name.isdecimal() and not is_whole(path):
                    path.rmtree()

    def restore(self, target: TrainState) -> TrainState | None:
        """The newest state that is intact, on the shardings of `target` (ShapeDtypeStructs): any mesh, any number of
        processes. None if none was ever written. What is damaged is reported and moved to `folder/../damaged`.

        Raises:
          ValueError: a checkpoint of another model; or every checkpoint there is damaged.
        """
        self.wait()
        steps = self.steps
        parts = _parts(target)
        for step in reversed(steps):
            with quiet():
                loaded = self._load(step, parts)
            if loaded is not None:
                counters = loaded.pop("counters")
                return TrainState(
                    counters["step"], loaded["params"], loaded.get("ema", {}), loaded["opt_state"], counters["skipped"],
                    loaded.get("post_hoc", {}),
                )  # fmt: skip
        aside = self.folder.parent / "damaged"
        if not steps and not agreed(aside.is_dir() and any(aside.iterdir())):
            return None  # and not the second try of a run whose only checkpoints were damaged
        tried = f" (tried {', '.join(map(str, reversed(steps)))})" if steps else ""
        raise ValueError(
            f"no checkpoint under {self.folder} can be read{tried}; they were moved to {aside}. Start anew "
            "in another workdir, or remove this stage's folder to train it again."
        )

    def verify(self, step: int | None = None) -> str | None:
        """What is wrong with the checkpoint of `step` (the newest, without one), every array of it read; None if it is intact.
        All processes are told the same: it is intact if all of them can read it. FileNotFoundError if there is none."""
        there = self.steps
        step = there[-1] if step is None and there else step
        unseen = step in there and step not in steps_in(self.folder)
        return _of_all("this process doesn't see it" if unseen else verify(self.folder, step) or "") or None

    def _load(self, step: int, parts: Mapping[str, PyTree]) -> dict[str, PyTree] | None:
        """The items of one step, or None (and a warning) if they are damaged. What one process finds wrong, all hear of before
        they do anything together."""
        path, loaded = self.folder / str(step), None
        recorded, reason = _of_each(lambda: recorded_in(path))
        if not reason:
            compare(recorded[1], describe(parts), f"checkpoint {path}")
            loaded, reason = _of_each(lambda: read(path, dict(parts)))
        if not reason:
            _, reason = _of_each(lambda: check(loaded, recorded[0]))
        return self._set_aside(step, reason) if reason else loaded

    def _set_aside(self, step: int, reason: str) -> None:
        aside = self.folder.parent / "damaged"
        message = f"CHECKPOINT {self.folder / str(step)} IS DAMAGED: {reason}. Moved to {aside}; using an older one."
        warnings.warn(message, stacklevel=4)
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            if not isinstance(aside, Path):  # a bucket has no empty folders, and moves into none
                (aside / "about.txt").write_text("Checkpoints that were not as they had been written. Nothing needs them.\n")
            destination, n = aside / str(step), 1
            while destination.exists():
                destination, n = aside / f"{step}-{n}", n + 1
            (self.folder / str(step)).rename(destination)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged-{step}")


def pass_over_late_callbacks() -> None:
    """From now on what is handed to an event loop that is closed is dropped without a word. After a save that failed,
    tensorstore hands over what it had begun, and would print a traceback for each array."""

    def call_soon_threadsafe(loop: asyncio.BaseEventLoop, *args: Any, **kwargs: Any) -> asyncio.Handle | None:
        return None if loop.is_closed() else before(loop, *args, **kwargs)

    before = asyncio.BaseEventLoop.call_soon_threadsafe
    if before.__module__ != __name__:
        asyncio.BaseEventLoop.call_soon_threadsafe = call_soon_threadsafe


def _of_all(reason: str) -> str:
    """What this process found wrong, or that another one did: "" in all processes, or in none."""
    if jax.process_count() == 1 or bool(multihost_utils.process_allgather(np.array(not reason)).all()):
        return reason
    return reason or "another process can't read it"


def _of_each(look: Callable[[], Any]) -> tuple[Any, str]:
    """What `look()` found, and "" in all processes; or None, and what is wrong, where one of them raised Damaged."""
    found, reason = None, ""
    try:
        found = look()
    except Damaged as damage:
        reason = str(damage)
    reason = _of_all(reason)
    return (None if reason else found), reason


def _number_alike() -> None:
    """Orbax numbers what a process reads and saves, and processes save together under these numbers; those that have read less
    than others, as each may, pass over as many."""
    if jax.process_count() == 1:
        return
    try:
        from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator  # which Orbax exports nowhere
    except ImportError:  # an Orbax that keeps its numbers elsewhere: processes that have read alike, as they do, save as before
        return
    mine = int(OperationIdGenerator.get_current_operation_id())
    most = int(multihost_utils.process_allgather(np.int32(mine)).max())
    for _ in range(most - mine):
        OperationIdGenerator.next_operation_id()


def _finite(score: float | None) -> float | None:
    return float(score) if score is not None and np.isfinite(score) else None


def _parts(state: TrainState) -> dict[str, PyTree]:
    parts = {name: getattr(state, name) for name in ITEMS if jax.tree.leaves(getattr(state, name))}
    return {**parts, "counters": {"step": state.step, "skipped": state.skipped}}


def _remove(path: Any):
    """Renamed first, or in a bucket without its mark first, so that half a checkpoint never counts as one."""
    if not isinstance(path, Path):
        with contextlib.suppress(OSError):
            (path / COMMITTED).unlink(missing_ok=True)
            path.rmtree()
        return
    doomed = path.with_name(f"{path.name}.removing")
    with contextlib.suppress(OSError):
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
