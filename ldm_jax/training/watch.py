"""What watches a loop: means and percentiles of its steps, stacks when it hangs, a trace of some of its steps."""

import collections
import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax.training.metrics import Log


class Window:
    """Gathers the metrics of finished steps, and reports every `every` steps (0: never) and after the last: their means,
    images/s, and mean and percentiles of the time per step. `flops` per step and `peak` per second give `mfu`."""

    def __init__(self, log: Log, every: int, batch_size: int, flops: float = 0.0, peak: float = 0.0):
        self.log, self.every, self.batch_size, self.flops, self.peak = log, every, batch_size, flops, peak
        self.recent: collections.deque[float] = collections.deque(maxlen=200)
        self.rate = 0.0
        self.clear()

    def clear(self):
        """Begins anew."""
        self.sums, self.count, self.seconds, self.host = collections.defaultdict(float), 0, [], 0.0
        self.resume()

    def resume(self):
        """Time starts anew: what passed since the last step (compilation, a hook) is not training."""
        self.last = None

    def add(self, step: int, values: Mapping[str, float], host: float):
        """The metrics of a step that has just finished; `host`: CPU seconds of this thread that it took."""
        now = time.perf_counter()
        if self.last is not None:
            self.seconds.append(now - self.last)
            self.recent.append(now - self.last)
            self.host += host
        self.last = now
        for name, value in values.items():
            self.sums[name] += value > 0 if name == "skipped" else value
        self.count += 1
        if self.seconds:
            self.rate = len(self.seconds) * self.batch_size / sum(self.seconds)
            self.log.seconds_per_step = float(np.median(self.recent))
        self.log.progress(step, self.sums["loss"] / self.count, self.rate)
        if self.every and (step % self.every == 0 or step == self.log.steps):
            self.log.scalars(step, self._report())
            last = self.last
            self.clear()
            self.last = last

    def _report(self) -> dict[str, float]:
        means = {f"train/{name}": value / self.count for name, value in self.sums.items() if name != "skipped"}
        if self.sums["skipped"]:
            means["train/skipped_steps"] = self.sums["skipped"]
        if self.seconds:
            mean = float(np.mean(self.seconds))
            means |= {"images_per_second": self.rate, "host_ms": 1e3 * self.host / len(self.seconds), "step_ms": 1e3 * mean}
            for percent, value in zip((50, 90, 99), np.percentile(self.seconds, (50, 90, 99))):
                means[f"step_ms_p{percent}"] = 1e3 * float(value)
            if self.flops and self.peak:
                means["mfu"] = self.flops / (mean * self.peak)
        return means


class Watchdog:
    """Writes the stacks of all threads to standard error when `beat` was not called for `seconds` (0: off), and again after as
    long; the run goes on. Use as a context manager."""

    def __init__(self, seconds: float):
        if seconds < 0:
            raise ValueError(f"watchdog_seconds={seconds}: must not be negative; 0 is off")
        self.seconds, self.last, self._done, self._thread = seconds, time.monotonic(), threading.Event(), None

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            self.beat()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def beat(self):
        """Something was finished."""
        self.last = time.monotonic()

    def _watch(self):
        told = self.last
        while not self._done.wait(min(self.seconds / 10, 1.0)):
            since = max(self.last, told)
            if time.monotonic() - since > self.seconds:
                told = time.monotonic()
                print(
                    f"process {jax.process_index()}: no step has finished for {told - self.last:.0f} s. What its threads do:",
                    file=sys.stderr,
                    flush=True,
                )
                try:
                    faulthandler.dump_traceback(sys.stderr, all_threads=True)
                except (OSError, ValueError, AttributeError):  # standard error is no file
                    faulthandler.dump_traceback(sys.__stderr__, all_threads=True)


@contextlib.contextmanager
def profiled(folder: str | Path, steps: tuple[int, int]) -> Iterator[Callable[[int, Any], None]]:
    """Yields a function of a step about to begin and the state before it, which traces the steps from `steps[0]` up to, not
    including, `steps[1]` into folder/profile (for TensorBoard or Perfetto). (0, 0): none. ValueError for an empty range."""
    first, last = steps
    if (first, last) != (0, 0) and not 0 <= first < last:
        raise ValueError(f"profile=({first}, {last}): the first step must lie before the last; (0, 0) is off")
    running = False

    def stop():
        nonlocal running
        running = False
        jax.profiler.stop_trace()

    def at(step: int, state: Any):
        nonlocal running
        if running and step >= last:
            jax.block_until_ready(state)
            stop()
        elif not running and step == first and last:
            jax.block_until_ready(state)
            running = True
            jax.profiler.start_trace(str(Path(folder) / "profile"))

    try:
        yield at
    finally:
        if running:
            stop()
