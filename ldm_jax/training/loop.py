"""The one loop. Both stages run through it; what differs between them is in the step, the batches and the hooks.

The host never waits for the step it has just started: metrics are read two steps later, while the device works on the
next ones, so reading them costs nothing and a queue of at most three steps builds up.
"""

import collections
import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax.training.checkpoint import Checkpoints
from ldm_jax.training.metrics import Log
from ldm_jax.training.state import TrainState

PyTree = Any
IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Report:
    """What a hook found: numbers, pictures (name -> (uint8 [H, W, 3], text)), and a score if it judges (lower is better)."""

    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    images: Mapping[str, tuple[np.ndarray, str]] = dataclasses.field(default_factory=dict)
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class Hook:
    """`run(state)` after every `every` steps, and after the last."""

    every: int
    run: Callable[[TrainState], Report]


class Interrupted(Exception):
    """The run was asked to stop, and saved its state at `step` first."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}; its state is saved")
        self.step = step


@contextlib.contextmanager
def stop_signals():
    """Yields a function that says whether Ctrl-C or SIGTERM came. A second signal acts at once."""
    received = []

    def handle(number, frame):
        received.append(number)
        signal.signal(number, previous[number])

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread: the caller's business
            previous[number] = signal.signal(number, handle)

    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    state: TrainState,
    train_step: Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[PyTree],
    *,
    steps: int,
    key: jax.Array,
    batch_size: int,
    log: Log,
    checkpoints: Checkpoints,
    log_every: int,
    checkpoint_every: int,
    hooks: Sequence[Hook] = (),
    max_skipped: int = 25,
) -> TrainState:
    """Trains from `state.step` to `steps`; `batches` must start with the batch of `state.step`.

    Raises:
      Interrupted: Ctrl-C or SIGTERM; the state was saved.
      FloatingPointError: more than `max_skipped` steps in a row gave a loss or gradient that is not finite.
    """
    step = int(state.step)
    window = _Window(log, log_every, batch_size, max_skipped)
    pending: collections.deque = collections.deque()
    score = None

    def drain(keep: int):
        while len(pending) > keep:
            window.add(*pending.popleft())

    with stop_signals() as asked_to_stop:
        while step < steps:
            # CPU time of this thread: on a CPU backend the wall clock would count what the device computes meanwhile
            began = time.thread_time()
            batch = next(batches)
            state, metrics = train_step(state, batch, key)
            step += 1
            pending.append((step, metrics, time.thread_time() - began))
            drain(IN_FLIGHT)

            due = [hook for hook in hooks if step % hook.every == 0 or step == steps]
            stop = asked_to_stop() if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
            save = stop or step % checkpoint_every == 0 or step == steps
            if due or save:
                drain(0)
            for report in [hook.run(state) for hook in due if not stop]:
                if report.scalars:
                    log.scalars(step, report.scalars)
                for name, (picture, text) in report.images.items():
                    log.image(step, name, picture, text)
                score = report.score if report.score is not None else score
            if save:
                checkpoints.save(step, state, score)
            if stop:
                checkpoints.wait()
                raise Interrupted(step)
            if due or save:
                window.resume()
    return state


class _Window:
    """Gathers the metrics of finished steps, and reports their mean every `every` steps."""

    def __init__(self, log: Log, every: int, batch_size: int, max_skipped: int):
        self.log, self.every, self.batch_size, self.max_skipped = log, every, batch_size, max_skipped
        self.rate = 0.0
        self._clear()
        self.resume()

    def _clear(self):
        self.sums, self.count, self.seconds, self.timed, self.host = collections.defaultdict(float), 0, 0.0, 0, 0.0

    def resume(self):
        """Time starts anew: what passed since the last step (compilation, a hook) is not training."""
        self.last = None

    def add(self, step: int, metrics: Mapping[str, jax.Array], host: float):
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}  # waits for the device
        now = time.perf_counter()
        if self.last is not None:
            self.seconds, self.host, self.timed = self.seconds + now - self.last, self.host + host, self.timed + 1
        self.last = now
        skipped = values.pop("skipped", 0)
        if skipped > self.max_skipped:
            broken = ", ".join(f"{name} {value}" for name, value in values.items() if not np.isfinite(value))
            raise FloatingPointError(
                f"{int(skipped)} steps in a row up to step {step} gave a loss or gradient that is not finite ({broken}); no "
                "parameter was changed by them, and the last checkpoint is good. Lower the learning rate, clip gradients "
                "(clip_norm), or look for broken images."
            )
        for name, value in values.items():
            self.sums[name] += value
        self.sums["skipped"] += skipped > 0
        self.count += 1
        if self.timed:
            self.rate = self.timed * self.batch_size / self.seconds
        self.log.progress(step, self.sums["loss"] / self.count, self.rate)
        if step % self.every == 0 or step == self.log.steps:
            means = {f"train/{name}": value / self.count for name, value in self.sums.items() if name != "skipped"}
            if self.sums["skipped"]:
                means["train/skipped_steps"] = self.sums["skipped"]
            if self.timed:
                means["images_per_second"] = self.rate
                means["host_ms"] = 1e3 * self.host / self.timed
                means["step_ms"] = 1e3 * self.seconds / self.timed
            self.log.scalars(step, means)
            self._clear()
