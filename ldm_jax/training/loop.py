"""The one loop. Both stages run through it; what differs between them is in the step, the batches and the hooks.

The host never waits for the step it has just started: metrics are read two steps later, while the device works on the
next ones, so reading them costs nothing and a queue of at most three steps builds up. Batches are put on the device ahead of
the step that takes them. No second thread does so: all processes must start the same programs in the same order.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ldm_jax.primitives.arrays import typed_key
from ldm_jax.training import distributed
from ldm_jax.training.checkpoint import Checkpoints
from ldm_jax.training.judge import Judge
from ldm_jax.training.metrics import Log
from ldm_jax.training.state import TrainState
from ldm_jax.training.watch import Watchdog, Window, profiled

PyTree = Any
IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Report:
    """What a hook found: numbers, pictures (name -> (uint8 [H, W, 3], text)), and of which numbers more is better."""

    scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
    images: Mapping[str, tuple[np.ndarray, str]] = dataclasses.field(default_factory=dict)
    higher: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Hook:
    """`run(state)` after every `every` steps, and after the last; never, if `every` is 0."""

    every: int
    run: Callable[[TrainState], Report]


class Interrupted(Exception):
    """The run was asked to stop, and saved its state at `step` first."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}; its state is saved")
        self.step = step


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether to stop, to be called once a step: after Ctrl-C, SIGTERM, or the end of the terminal
    (SIGHUP, unless `nohup` keeps it away).

    In one process, a second signal acts at once. Of several, one signalled process is enough, and all are told to stop at the
    same step: SIGTERM is left to JAX's preemption notifier, which agrees with the others, and the rest is passed on to it.
    """
    several, received, previous = jax.process_count() > 1, [], {}

    def handle(number: int, frame: Any):
        received.append(number)
        signal.signal(number, previous[number])
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    def asked() -> bool:
        return distributed.asked_to_stop() if several else bool(received)

    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    ended = (hangup,) if hangup is not None and signal.getsignal(hangup) == signal.SIG_DFL else ()
    for number in (signal.SIGINT, *ended, *(() if several else (signal.SIGTERM,))):
        with contextlib.suppress(ValueError):  # not in the main thread: the caller's business
            previous[number] = signal.signal(number, handle)
    try:
        distributed.ask_alike()
        with distributed.held("training"):
            yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    state: TrainState,
    train_step: Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterable[PyTree] | Callable[[int], Iterable[PyTree]],
    *,
    steps: int,
    key: jax.Array,
    batch_size: int,
    log: Log,
    checkpoints: Checkpoints,
    log_every: int,
    checkpoint_every: int,
    hooks: Sequence[Hook] = (),
    judge: Judge | None = None,
    max_skipped: int = 25,
    rewinds: int = 3,
    prefetch: int = 2,
    watchdog_seconds: float = 0.0,
    profile: tuple[int, int] = (0, 0),
    flops_per_step: float = 0.0,
    peak_flops: float = 0.0,
) -> TrainState:
    """Trains from `state.step` to `steps`.

    batches            those from the batch of `state.step` on; or a function of a step that gives them, which rewinding needs
    log_every, checkpoint_every, a hook's every
                       in steps; 0 is off. The last state is always saved, and so is that at which a run stops
    judge              by which of the hooks' numbers a state is the best so far, which is saved at once; and when to stop early
    max_skipped        so many steps in a row may have a loss or gradient that is not finite. After more, the run goes back to
                       its last checkpoint, and takes another key until it is past the step that failed; `rewinds` times
    prefetch           batches held ready on the device
    watchdog_seconds   all stacks are written to standard error when no step has finished for so long; 0: off
    profile            (first, last) step to trace into log.folder/profile; (0, 0): none
    flops_per_step, peak_flops
                       of all devices together; with both, the log has `mfu`, the fraction of the peak that is used

    Raises:
      Interrupted: Ctrl-C, SIGTERM or SIGHUP; the state was saved.
      FloatingPointError: not finite, and rewinding did not help, or there was nothing to go back to.
      OSError: a checkpoint could not be written, time and again.
    """
    for name, value in {"log_every": log_every, "checkpoint_every": checkpoint_every, "prefetch": prefetch}.items():
        if value < 0:
            raise ValueError(f"{name}={value}: must not be negative; 0 is off")
    key = typed_key(key)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), state)
    judge = judge or Judge()
    run = _Run(log, checkpoints, hooks, judge, steps, log_every, checkpoint_every, batch_size, flops_per_step, peak_flops)
    with stop_signals() as asked_to_stop, Watchdog(watchdog_seconds) as watchdog, profiled(log.folder, profile) as tracing:
        run.asked_to_stop, run.beat, run.tracing, other_until = asked_to_stop, watchdog.beat, tracing, 0
        for rewound in itertools.count():
            start = int(state.step)
            stream = batches(start) if callable(batches) else batches
            keys = key, jax.random.fold_in(key, rewound), other_until
            try:
                return run.go(state, train_step, _ahead(itertools.islice(stream, steps - start), prefetch), keys, max_skipped)
            except _NotFinite as failure:
                state = None  # frees what is given up
                checkpoints.wait()  # until what was on its way is there to go back to
                if not callable(batches) or rewound == rewinds or not checkpoints.steps:
                    helped = f", and going back {rewound} times did not help" if rewound else ""
                    raise FloatingPointError(
                        f"{failure}; no parameter was changed by them{helped}. Lower the learning rate, clip gradients "
                        "(clip_norm), or look for broken images."
                    ) from None
                zero = jax.device_put(np.int32(0), target.skipped.sharding)
                state = dataclasses.replace(checkpoints.restore(target), skipped=zero)
                other_until = failure.step
                log.rewind(int(state.step))
                log.say(f"{log.stage}: {failure}; back to step {int(state.step)} with another key ({rewound + 1} of {rewinds})")
            finally:
                if hasattr(stream, "close"):
                    stream.close()


class _NotFinite(Exception):
    def __init__(self, skipped: int, step: int, broken: str):
        super().__init__(f"{skipped} steps in a row up to step {step} gave a loss or gradient that is not finite ({broken})")
        self.step = step


class _Run:
    """What a pass through the steps needs besides state, batches and key."""

    def __init__(self, log, checkpoints, hooks, judge, steps, log_every, checkpoint_every, batch_size, flops, peak):
        self.log, self.checkpoints, self.hooks, self.judge, self.steps = log, checkpoints, hooks, judge, steps
        self.checkpoint_every = checkpoint_every
        self.window = Window(log, log_every, batch_size, flops, peak)

    def go(
        self,
        state: TrainState,
        train_step: Callable,
        batches: Iterator[PyTree],
        keys: tuple[jax.Array, jax.Array, int],
        max_skipped: int,
    ) -> TrainState:
        """From `state` to the last step. `keys`: the run's key, and another one for the steps before the third number."""
        step, pending = int(state.step), collections.deque()
        key, other_key, other_until = keys
        self.judge.recall(self.checkpoints.folder, step)
        if self.judge.missed:
            score, _ = self._look(step, state, self._due(step))
            self.checkpoints.judge(step, score, self.judge.record)
        self.window.clear()

        def drain(keep: int):
            while len(pending) > keep:
                number, metrics, host = pending.popleft()
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}  # waits for the device
                self.beat()
                skipped = int(values.get("skipped", 0))
                if skipped > max_skipped:
                    broken = ", ".join(f"{name} {value}" for name, value in values.items() if not np.isfinite(value))
                    raise _NotFinite(skipped, number, broken)
                self.window.add(number, values, host)

        while step < self.steps and not self.judge.tired:
            self.tracing(step, state)
            # CPU time of this thread: on a CPU backend the wall clock would count what the device computes meanwhile
            began = time.thread_time()
            batch = next(batches, None)
            if batch is None:
                raise ValueError(f"the batches ended at step {step}, before step {self.steps}")
            state, metrics = train_step(state, batch, other_key if step < other_until else key)
            del batch
            step += 1
            pending.append((step, metrics, time.thread_time() - began))
            drain(IN_FLIGHT)

            last = step == self.steps
            stop = self.asked_to_stop()
            due, judged = self._due(step), {}
            if stop and due:  # whoever asked may not wait for them: they look when the run goes on
                due, judged = [], {"looked": False}
            save = stop or last or _is_due(step, self.checkpoint_every) or self.checkpoints.retry_due
            if due or save:
                drain(0)
            score, better = self._look(step, state, due) if due else (None, False)
            if self.judge.tired and not last:
                self._look(step, state, [hook for hook in self.hooks if hook.every and hook not in due])
                last = True
            if save := save or better or last:
                self.checkpoints.save(step, state, score, wait=stop or last, judged=self.judge.record | judged)
                self.beat()
            if stop:
                raise Interrupted(step)
            if due or save:
                self.window.resume()
        if self.judge.tired:
            self.log.say(f"{self.log.stage}: {self.judge.in_words(step)}")
        # A signal that came after the last look at it. Several processes see it where they are asked next, together.
        if jax.process_count() == 1 and self.asked_to_stop():
            raise Interrupted(step)
        return state

    def _due(self, step: int) -> list[Hook]:
        return [hook for hook in self.hooks if hook.every and (step % hook.every == 0 or step == self.steps)]

    def _look(self, step: int, state: TrainState, due: Sequence[Hook]) -> tuple[float | None, bool]:
        """Runs the hooks; the score of this state, if one judges it, and whether it is the best so far."""
        scalars: dict[str, float] = {}
        higher: frozenset[str] = frozenset()
        for report in (hook.run(state) for hook in due):
            if report.scalars:
                self.log.scalars(step, report.scalars)
            for name, (picture, text) in report.images.items():
                self.log.image(step, name, picture, text)
            scalars |= report.scalars
            higher |= report.higher
            self.beat()
        return self.judge.look(scalars, higher)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _ahead(batches: Iterator[PyTree], count: int) -> Iterator[PyTree]:
    """The batches, so many of them made before they are asked for."""
    ready = collections.deque(itertools.islice(batches, count))
    for batch in batches:
        ready.append(batch)
        yield ready.popleft()
    yield from ready
