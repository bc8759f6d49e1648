"""What importing costs: commands answer before the libraries that compute are there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPUTING = {"jax", "flax", "numpy", "optax", "orbax", "scipy"}
NEVER_NEEDED = {"grain", "nicegui", "orbax", "scipy.ndimage", "scipy.signal", "tensorflow", "torch", "transformers"}


def python(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


@pytest.mark.parametrize(
    "module, without",
    [
        ("ldm_jax", COMPUTING),
        ("ldm_jax.cli.commands", COMPUTING),
        ("ldm_jax.cli.train", COMPUTING),
        ("ldm_jax.cli.app", COMPUTING),
        ("ldm_jax.cli.sample_command", NEVER_NEEDED),
    ],
)
def test_an_import_brings_no_library_that_it_does_not_need(module, without):
    done = python("-c", f"import sys, {module}; print(*({without!r} & {{*sys.modules}}))")
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.parametrize("room", ["app", "evaluation", "plan", "probes", "retrieval"])
def test_a_command_says_that_it_has_begun_and_refuses_a_flag_in_one_more_line(room):
    done = python("-m", f"ldm_jax.{room}", "--no_such_flag=3")
    begun, refused = done.stderr.splitlines()
    assert begun.endswith(": starting") and ("--no_such_flag" in refused or "required" in refused)
    assert done.returncode == 2
