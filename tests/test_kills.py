"""Killed at random moments, again and again: the end is that of a training never stopped, and nothing is left lying about."""

import os
import random
import signal
import subprocess
import time

import pytest

from tests.runs import STAGES, assert_same_weights
from tests.test_train import ROOT, command, environment, losses, run, trained  # noqa: F401

KILLS = int(os.environ.get("LDM_KILLS", "10"))  # in each chain


@pytest.mark.slow
@pytest.mark.parametrize("chain", range(3))
def test_a_chain_of_kills_ends_as_one_that_was_left_alone(trained, environment, tmp_path, chain):  # noqa: F811
    workdir, rng, killed = tmp_path / "killed", random.Random(chain), []
    began = time.monotonic()
    longest = 25.0  # more than a start takes, so that there is progress
    while len(killed) < KILLS:
        process = subprocess.Popen(
            command(workdir), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        moment = rng.uniform(1.0, longest)
        try:
            assert process.wait(moment) == 0, "it stopped by itself"
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed.append(round(moment, 1))
    done = run(command(workdir), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"chain {chain}: killed {len(killed)} times, after {killed} s; {time.monotonic() - began:.0f} s in all")
    assert killed
    assert_same_weights(trained[0], workdir)
    assert all(losses(workdir, stage) == losses(trained[0], stage) for stage in STAGES)
    lines = [(workdir / stage / "metrics.jsonl").read_text().splitlines() for stage in STAGES]
    assert all(len(set(each)) == len(each) for each in lines)
    left = [str(path) for path in workdir.rglob("*") if "tmp" in path.name or path.name.endswith((".lock", ".removing"))]
    assert not left
