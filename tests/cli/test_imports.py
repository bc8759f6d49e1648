"""What importing costs: commands answer before the libraries that compute are there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_jax.drawing.modes import all_flags
from ldm_jax.models.inception import RESIZE
from ldm_jax.primitives.flags import sample_flags

ROOT = Path(__file__).resolve().parents[2]
COMPUTING = {"jax", "flax", "numpy", "optax", "orbax", "scipy"}
NEVER_NEEDED = {"grain", "nicegui", "orbax", "scipy.ndimage", "scipy.signal", "tensorflow", "torch", "transformers"}
ROOMS = ("app", "evaluation", "plan", "probes", "retrieval")


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
        ("ldm_jax.cli.sample_command", COMPUTING),
        ("ldm_jax.cli.weights", COMPUTING),
        ("ldm_jax.drawing", NEVER_NEEDED),
    ],
)
def test_an_import_brings_no_library_that_it_does_not_need(module, without):
    done = python("-c", f"import sys, {module}; print(*({without!r} & {{*sys.modules}}))")
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_a_command_says_that_it_has_begun_and_refuses_a_flag_in_one_more_line(room):
    done = python("-m", f"ldm_jax.{room}", "--no_such_flag=3")
    begun, refused = done.stderr.splitlines()
    assert begun.endswith(": starting") and ("--no_such_flag" in refused or "required" in refused)
    assert done.returncode == 2


REFUSED = [
    *([room, "--no_such_flag=3"] for room in (*ROOMS, "weights", "sample.py", "train.py")),
    ["app", "--port=70000"],
    ["evaluation", "--workdir=.", "--num=1"],
    ["evaluation", "--workdir=nowhere"],
    ["evaluation", "--workdir=.", "--out=setup.cfg"],
    ["probes", "train", "--kind=classifier", "--data=nowhere", "--out=here"],
    ["retrieval", "find", "--database=nowhere"],
    ["weights", "inspect", "nowhere"],
    ["sample.py", "--num=0"],
    ["sample.py", "--num=few"],
    ["sample.py", "--image="],
    ["sample.py", "--format=gif"],
    ["sample.py", "--out=setup.cfg"],
    ["sample.py", "--workdir=nowhere"],
]


@pytest.mark.parametrize("command", REFUSED, ids=" ".join)
def test_what_is_mistyped_is_refused_before_jax_is_there(command):
    """In the modules that Python itself lists: -X importtime writes a line for each."""
    name, *flags = command
    done = python("-X", "importtime", *([name] if name.endswith(".py") else ["-m", f"ldm_jax.{name}"]), *flags)
    lines = done.stderr.splitlines()
    imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:") and not line.endswith(": starting")]
    assert done.returncode in (1, 2) and len(said) == 1, said
    assert "ldm_jax.primitives.console" in imported and not {"jax", "flax", "orbax", "tensorflow"} & imported


@pytest.mark.parametrize("name", [*ROOMS, "weights", "sample.py", "train.py"])
def test_help_needs_no_jax(name):
    done = python("-X", "importtime", *([name] if name.endswith(".py") else ["-m", f"ldm_jax.{name}"]), "--help")
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 5
    assert not any(line.split("|")[-1].strip() == "jax" for line in done.stderr.splitlines())


def test_what_is_known_without_jax_is_what_there_is():
    from ldm_jax import probes
    from ldm_jax.cli.probes import COLUMNS
    from ldm_jax.scoring import request

    assert sample_flags() == all_flags()
    assert {*COLUMNS} == {*probes.KINDS} and request.RESIZE == RESIZE
