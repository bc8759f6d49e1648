"""A disk that is full, that nothing can be written to any more, or that is gone, at any moment of a training: one line says so,
nothing is damaged, and the same command goes on to the end of a training that was left alone."""

import os
import resource
import shutil
import subprocess

import pytest

from ldm_jax.training.checkpoint import verify
from tests.runs import STAGES, assert_same_weights
from tests.test_train import ROOT, command, environment, losses, run, trained  # noqa: F401

# Runs a command on a disk of $SIZE, and once more when there is room.
SMALL_DISK = """
mount -t tmpfs -o size=$SIZE tmpfs "$DISK" || exit 99
"$@" > "$OUT/said-1" 2> "$OUT/error-1"; echo $? > "$OUT/status-1"
find "$DISK" -name "*tmp*" > "$OUT/left"
mount -o remount,size=1g "$DISK"
"$@" > "$OUT/said-2" 2> "$OUT/error-2"; echo $? > "$OUT/status-2"
cp -r "$DISK/run" "$OUT/run"
"""


def one_line(error):
    """The last line of standard error, which holds no traceback."""
    assert "Traceback" not in error, error[-3000:]
    return error.replace("\r", "\n").strip().splitlines()[-1]


def ends_as(trained, workdir):  # noqa: F811
    assert_same_weights(trained[0], workdir)
    for stage in STAGES:
        assert verify(workdir / stage / "checkpoints") is None
        assert losses(workdir, stage).keys() == losses(trained[0], stage).keys()
    assert not [str(path) for path in workdir.rglob("*") if "tmp" in path.name or path.name.endswith(".lock")]
    assert (workdir / "evaluation/0000/results.json").is_file()


def can_mount():
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "24k", "300k", "1500k", "4m", "8m"])
def test_a_full_disk(trained, environment, tmp_path, size):  # noqa: F811
    """config.json, then the first stage's curves, pictures and checkpoints, the cache, the second stage's, the evaluation."""
    if not can_mount():
        pytest.skip("no file system can be mounted here")
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    settings = {"SIZE": size, "DISK": str(tmp_path / "disk"), "OUT": str(tmp_path / "out")}
    arguments = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", *command(tmp_path / "disk" / "run")]
    done = subprocess.run(arguments, env=environment | settings, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    out = {path.name: path.read_text() for path in (tmp_path / "out").glob("*-*")} | {
        "left": (tmp_path / "out" / "left").read_text()
    }
    print(size, out["status-1"], one_line(out["error-1"]), out["said-1"][-300:])
    assert out["status-1"] == "1\n" and "No space left on device" in one_line(out["error-1"])
    assert out["status-2"] == "0\n", out["error-2"][-3000:]
    ends_as(trained, tmp_path / "out" / "run")


def stop_writing(process):
    """From now on no file of the process can grow."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["nothing can be written", "gone"])
@pytest.mark.parametrize(
    "moment", ["first_stage 5/20", "latents: scale", "diffusion 5/20", "evaluation: 4 held-out prompts with 1"]
)
def test_a_disk_that_fails(trained, environment, tmp_path, moment, how):  # noqa: F811
    workdir = tmp_path / "disk" / "run"
    process = subprocess.Popen(
        command(workdir), env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    for said in process.stdout:
        if moment in said:
            if how == "gone":
                (tmp_path / "disk").rename(tmp_path / "unplugged")
            else:
                stop_writing(process)
            break
    _, error = process.communicate(timeout=600)
    print(moment, how, process.returncode, one_line(error))
    assert process.returncode == 1
    if how == "gone":
        assert os.listdir(tmp_path) == ["unplugged"], [str(path) for path in (tmp_path / "disk").rglob("*")]
        (tmp_path / "unplugged").rename(tmp_path / "disk")
    done = run(command(workdir), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    ends_as(trained, workdir)
