"""What tests do with trainings: kill one, compare what two have learnt, and what eight devices learn with what one does."""

import signal
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.training import sharding
from ldm_jax.training.checkpoint import load_averaged
from ldm_jax.training.program import Program

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


def assert_eight_devices_learn_what_one_does(program: Program, tokens: bool = False, most: int = 4):
    """Parameters and metrics after two updates, alone and on a mesh of 4 x 2, of random inputs; whole numbers are below `most`.
    With `tokens` the images are such too."""
    assert jax.device_count() == 8
    rng = np.random.default_rng(0)

    def draw(path, x):
        if jnp.issubdtype(x.dtype, jnp.floating) and not (tokens and path[-1].key == "image"):
            return rng.standard_normal(x.shape).astype(x.dtype)
        return rng.integers(0, most, x.shape).astype(x.dtype)

    batch, constants = (jax.tree_util.tree_map_with_path(draw, some) for some in (program.batch, program.constants))
    found = []
    for devices, shape in ((1, (1, 1)), (8, (4, 2))):
        mesh = sharding.make_mesh(*shape, devices=jax.devices()[:devices])
        state = sharding.init_sharded(mesh, program.init_state, 0)
        step = program.compile(mesh, constants)
        for i in range(2):
            state, metrics = step(state, sharding.to_device(mesh, batch), jax.random.key(i))
        found.append(jax.device_get((state.params, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), *found)
