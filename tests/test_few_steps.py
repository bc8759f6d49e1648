"""Models of few steps as a user trains and draws them: from nothing, and from a trained model. Pictures mean nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax.training.checkpoint import load_averaged
from tests.test_train import TINY

ROOT = Path(__file__).resolve().parents[1]
SMALL = {**TINY, "diffusion_train.post_hoc": "()", "diffusion_train.steps": 6, "log.validation_every": 6, "log.images_every": 6}
del SMALL["sampling.steps"], SMALL["checkpoint.snapshots"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with an ordinary model in it, and the environment to train others beside it."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HOME": str(home), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    folder = tmp_path_factory.mktemp("runs")
    done = train(folder / "teacher", environment, "shapes", stages="('first_stage','latents','diffusion')")
    assert done.returncode == 0, done.stderr
    return folder, environment


def train(workdir, environment, config, **overrides):
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in {**SMALL, **overrides}.items()]
    arguments = [sys.executable, str(ROOT / "train.py"), f"--config={config}", f"--workdir={workdir}", *flags]
    return subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)


def draw(workdir, environment, *flags):
    arguments = [sys.executable, "sample.py", f"--workdir={workdir}", "--prompt=a red circle", "--num=2", *flags]
    return subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)


def leaves(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in found}


def test_mean_flow_goes_on_from_a_trained_model(runs):
    folder, environment = runs
    stages = {"first_stage__path": folder / "teacher", "stages": "('latents','diffusion')"}
    start = {"diffusion_train__start_from": folder / "teacher", "diffusion_train__learning_rate": 1e-12}
    other = train(folder / "other_times", environment, "shapes_few_steps:mean_flow", **stages, **start)
    assert other.returncode == 1 and "config.diffusion.time_scale=4.0" in other.stderr and "Traceback" not in other.stderr
    start["diffusion__time_scale"] = 1000
    done = train(folder / "mean_flow", environment, "shapes_few_steps:mean_flow", **stages, **start)
    assert done.returncode == 0, done.stderr
    there, here = (leaves(load_averaged(folder / name / "diffusion" / "checkpoints")) for name in ("teacher", "mean_flow"))
    new = set(here) - set(there)
    assert new and all("step_embed" in name for name in new) and not set(there) - set(here)
    for name, value in there.items():
        np.testing.assert_allclose(here[name], value, atol=1e-6, err_msg=name)
    drawn = draw(folder / "mean_flow", environment, "--steps=2")
    assert drawn.returncode == 0, drawn.stderr
    assert "trained for 1 to 4 steps of flow_map by mean_flow" in drawn.stdout and "guidance scale 3 inside" in drawn.stdout
    assert "2 pictures in" in drawn.stdout
    # told no step it is an ordinary model, and any solver draws with it
    solved = draw(folder / "mean_flow", environment, "--steps=3", "--sampler=dpmpp_2m")
    assert solved.returncode == 0, solved.stderr
    wrong = draw(folder / "teacher", environment, "--steps=2", "--sampler=flow_map")
    assert wrong.returncode != 0 and "takes no step's length" in wrong.stderr and "Traceback" not in wrong.stderr


def test_a_student_learns_from_a_frozen_model(runs):
    folder, environment = runs
    options = {
        "first_stage__path": folder / "teacher", "stages": "('latents','diffusion')",
        "diffusion_train__start_from": folder / "teacher", "diffusion__options__warmup": 2,
        "diffusion_train__decay": "constant",
    }  # fmt: skip
    done = train(folder / "student", environment, "shapes_few_steps:scm_distillation", **options)
    assert done.returncode == 0, done.stderr
    kept = load_averaged(folder / "student" / "diffusion" / "checkpoints")
    assert set(kept) == {"network", "conditioner"}  # the teacher is not stored again
    ldm = ldm_jax.load(folder / "student")
    assert "by scm_distillation" in ldm.describe()
    images = ldm.sample(ldm.params, jax.random.key(0), ldm.embed(ldm.params, ["a red circle"]), steps=2)
    assert np.isfinite(images).all()
    # going on needs the teacher again
    moved = {**options, "diffusion_train__steps": 8, "diffusion_train__start_from": folder / "gone"}
    gone = train(folder / "student", environment, "shapes_few_steps:scm_distillation", **moved)
    assert gone.returncode == 1 and "there is no such file or folder" in gone.stderr
    on = train(folder / "student", environment, "shapes_few_steps:scm_distillation", **options | {"diffusion_train__steps": 8})
    assert on.returncode == 0 and "going on from step 6" in on.stdout, on.stderr


def test_a_teacher_of_another_process_is_refused(runs):
    folder, environment = runs
    options = {"first_stage__path": folder / "teacher", "diffusion_train__start_from": folder / "teacher"}
    shutil.rmtree(folder / "other", ignore_errors=True)
    done = train(folder / "other", environment, "shapes_few_steps:reflow", stages="('latents','diffusion')", **options)
    assert done.returncode == 1 and "config.diffusion.schedule='flow'" in done.stderr and "Traceback" not in done.stderr
