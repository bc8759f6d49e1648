"""Ctrl-C and SIGTERM at every stage of a run: one line, status 75, and the end of a run that was never stopped."""

import signal
import subprocess
import threading
import time

import pytest

from tests.runs import STAGES, assert_same_weights
from tests.test_train import ROOT, command, environment, losses, run, trained  # noqa: F401

# What has just been printed, seconds from then on, the signal.
MOMENTS = [
    ("shapes: first_stage", 0.5, signal.SIGTERM),  # imports
    ("captions to validation", 1.0, signal.SIGINT),  # the first program is compiled
    ("captions to validation", 4.0, signal.SIGTERM),
    ("first_stage 10/20", 0.0, signal.SIGTERM),  # a checkpoint is written
    ("latents: scale", 0.0, signal.SIGINT),  # latents are encoded
    ("latents: 96 in", 1.0, signal.SIGTERM),  # the second stage is compiled
    ("diffusion 20/20  train", 0.0, signal.SIGINT),  # the last checkpoint, pictures
    ("held-out prompts with 1 object", 0.0, signal.SIGTERM),  # evaluation
]


def stopped(arguments, environment, line, wait, number):  # noqa: F811
    """The status and standard error of a run that got a signal so long after it had printed the line."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under `nohup ... &`, and by children then
    process = subprocess.Popen(
        arguments, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    errors = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    for said in process.stdout:
        if line in said:
            time.sleep(wait)
            process.send_signal(number)
            break
    process.stdout.read()
    status = process.wait(300)
    reader.join()
    return status, errors[0]


@pytest.mark.slow
def test_a_run_stopped_everywhere_ends_as_one_that_was_left_alone(trained, environment, tmp_path):  # noqa: F811
    workdir = tmp_path / "stopped"
    for line, wait, number in MOMENTS:
        status, error = stopped(command(workdir), environment, line, wait, number)
        said = [text for text in error.replace("\r", "\n").splitlines() if "To go on: python" in text]
        assert status == 75 and len(said) == 1 and "Traceback" not in error, (line, status, error[-2000:])
        assert not (workdir / "training.lock").exists(), line
    done = run(command(workdir), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_weights(trained[0], workdir)
    for stage in STAGES:
        # a logged loss is a mean since the line before, or since the start: those of the last lines cover the same steps
        here, there = losses(workdir, stage), losses(trained[0], stage)
        assert here.keys() == there.keys() and here[20] == there[20]
    assert not [str(path) for path in workdir.rglob("*") if "tmp" in path.name or path.name.endswith((".lock", ".stale"))]
    assert (workdir / "evaluation/0000/results.json").is_file()
