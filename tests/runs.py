"""What tests do with whole trainings: kill one, and compare what two have learnt."""

import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np

from ldm_jax.training.checkpoint import load_averaged

STAGES = ("first_stage", "diffusion")


def kill_after(process: subprocess.Popen, checkpoint: Path, patience: float = 800):
    """SIGKILL as soon as the checkpoint is whole; AssertionError if the process ends before, or within `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (checkpoint / "commit_success.txt").exists():
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def assert_same_weights(one: Path, other: Path):
    """The averages at the end of both stages are equal, bit for bit."""
    for stage in STAGES:
        jax.tree.map(np.testing.assert_array_equal, *(load_averaged(run / stage / "checkpoints") for run in (one, other)))
