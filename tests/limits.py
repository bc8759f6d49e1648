"""What a hostile input may take of a reader: two seconds of its thread's processor time and 200 MB."""

import resource
import time
from pathlib import Path

SECONDS, MEGABYTES = 2.0, 200.0
TOGETHER = 10  # inputs whose memory is looked at together


def resident(what: str) -> float:
    """Megabytes of this process: "VmRSS" now, "VmHWM" at most since `forget`."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if what in line) / 1024


def forget() -> bool:
    """Lets the kernel count the peak of this process's memory anew. False where it can't."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class Limits:
    """`with limits:` around every reading; AssertionError for one that takes too long, or for a few that take too much memory
    together. `most`: seconds and megabytes at worst so far."""

    def __init__(self):
        self.most, self.count, self.counts_anew = [0.0, 0.0], 0, forget()
        self.before = self._now()

    def _now(self) -> float:
        return resident("VmRSS") if self.counts_anew else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def __enter__(self):
        self.began = time.thread_time()  # other threads of a long run have work of their own

    def __exit__(self, *_):
        seconds = time.thread_time() - self.began
        self.most[0] = max(self.most[0], seconds)
        assert seconds < SECONDS, f"{seconds:.1f} s"
        self.count += 1
        if self.count % TOGETHER == 0:
            peak = resident("VmHWM") if self.counts_anew else self._now()
            self.most[1] = max(self.most[1], peak - self.before)
            assert peak - self.before < MEGABYTES, f"{peak - self.before:.0f} MB in the last {TOGETHER} inputs"
            self.counts_anew = forget()
            self.before = self._now()
