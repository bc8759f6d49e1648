"""A training that saves, judges and draws for as long as it is told: what it holds grows by no more than is known."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.test_train import ROOT, command, environment  # noqa: F401

# What a save of this model costs for good, in MB: tensorstore 0.1.86 keeps what its `KvStore.Spec.to_json` and
# `experimental_collect_matching_metrics` return, and Orbax calls both for every array. 0.3 was seen; more would be ours.
KEPT = 0.4
MINUTES = float(os.environ.get("LDM_SOAK_MINUTES", "3"))
BUSY = {
    "first_stage_train.steps": 2,
    "diffusion_train.steps": 10_000_000,
    "diffusion_train.post_hoc": "()",
    "checkpoint.snapshots": 0,
    "checkpoint.every": 10,
    "log.every": 5,
    "log.validation_every": 10,
    "log.images_every": 20,
}


def held(process: int) -> tuple[int, int, float]:
    """Open handles, threads and resident memory in MB of a process."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    return len(os.listdir(f"/proc/{process}/fd")), int(fields["Threads"]), int(fields["VmRSS"].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts what /proc shows")
def test_handles_threads_and_memory_are_flat(environment, tmp_path):  # noqa: F811
    workdir, seen = tmp_path / "soak", []
    said = open(tmp_path / "said.txt", "w")
    process = subprocess.Popen(command(workdir, **BUSY), env=environment, cwd=ROOT, stdout=said, stderr=said)
    try:
        while not list(workdir.glob("diffusion/checkpoints/[1-9]*")):
            assert process.poll() is None, (tmp_path / "said.txt").read_text()[-3000:]
            time.sleep(1)
        end = time.monotonic() + 60 * MINUTES
        while time.monotonic() < end:
            time.sleep(2)
            assert process.poll() is None, (tmp_path / "said.txt").read_text()[-3000:]
            seen.append(held(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75
    step = max(int(path.name) for path in (workdir / "diffusion/checkpoints").iterdir() if path.name.isdigit())
    parts = np.array_split(np.array(seen)[len(seen) // 6 :], 5)  # after everything has been compiled and drawn once
    medians = np.array([np.median(part, axis=0) for part in parts])
    resting = np.array([np.min(part, axis=0) for part in parts])  # between saves, which have handles and threads of their own
    print(f"{MINUTES:g} minutes, {step} steps, {step // 10} saves; handles, threads, MB by fifths:", medians.round().tolist())
    print("at rest:", resting.round().tolist())
    assert np.ptp(resting[:, 0]) <= 10 and np.ptp(resting[:, 1]) <= 6
    assert medians[-1, 2] < medians[0, 2] + 20 + KEPT * step / BUSY["checkpoint.every"]
    kept = [path for path in (workdir / "diffusion/checkpoints").iterdir() if path.name.isdigit()]
    assert len(kept) <= 3
