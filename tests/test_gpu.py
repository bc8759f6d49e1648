"""What only a GPU can show: cuDNN's attention, pictures as a CPU draws them, and trainings that go on bit for bit.

    JAX_PLATFORMS=cuda,cpu python -m pytest tests/test_gpu.py

Skipped without. Other tests run on the GPU in that way too, with JAX_DEFAULT_MATMUL_PRECISION=highest; those that want eight
devices fail.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.attention import attention
from tests import tiny
from tests.models.test_attention import formula, qkv
from tests.runs import assert_same_weights, kill_after
from tests.test_train import ROOT, command

GPU = next((device for device in jax.devices() if device.platform == "gpu"), None)
pytestmark = pytest.mark.skipif(GPU is None, reason="JAX has no GPU here, or JAX_PLATFORMS doesn't name it")


@pytest.mark.parametrize(
    ("T", "S", "D", "causal"), [(4096, 4096, 40, False), (64, 77, 80, False), (77, 77, 64, True), (256, 256, 32, False)]
)
def test_cudnn(T, S, D, causal):
    """Taken unasked, odd lengths too; no further from the formula, and its gradient from float32's, than bfloat16 is."""
    q, k, v = qkv(2, T, S, 2, D, jnp.bfloat16)
    weight = jax.random.normal(jax.random.key(9), q.shape)

    def loss(q, k, v):
        return (attention(q, k, v, causal=causal).astype(jnp.float32) * weight).sum()

    take = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
    assert "cudnn" in take.as_text()
    np.testing.assert_allclose(attention(q, k, v, causal=causal).astype(jnp.float32), formula(q, k, v, causal), atol=0.03)
    with jax.default_matmul_precision("highest"):
        exact = jax.grad(loss, argnums=(0, 1, 2))(*(a.astype(jnp.float32) for a in (q, k, v)))
    for ours, right in zip(take(q, k, v)[1], exact, strict=True):
        assert np.abs(ours.astype(jnp.float32) - right).max() < 0.03 * max(1.0, np.abs(right).max())


@pytest.mark.parametrize("kind", ["text", "class", "superres"])
def test_a_cpu_draws_the_same_pictures(kind):
    """In float32 products; a GPU rounds them to fewer bits unless it is told otherwise."""
    ldm = tiny.model(kind)
    cond = {
        "text": lambda: ldm.embed(ldm.params, ["a red circle", "a blue star"]),
        "class": lambda: ldm.embed(ldm.params, [1, 2]),
        "superres": lambda: ldm.embed(ldm.params, np.linspace(-1, 1, 2 * 2 * 2 * 3, dtype=np.float32).reshape(2, 2, 2, 3)),
    }[kind]
    drawn = []
    for device in (GPU, jax.devices("cpu")[0]):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            params = jax.device_put(ldm.params, device)
            drawn.append(np.asarray(ldm.sample(params, jax.random.key(3), jax.device_put(cond(), device), steps=4)))
    np.testing.assert_allclose(*drawn, atol=2e-4)


def test_killed_and_gone_on_is_never_stopped(tmp_path):
    """With the flag that forbids operations which add in an order of their own, and compilers that choose by the clock."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": paths, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true"
    environment.pop("JAX_PLATFORMS", None)

    def train(name, home):
        return subprocess.Popen(
            command(tmp_path / name, stages="('first_stage','latents','diffusion')"), cwd=ROOT, stdout=subprocess.DEVNULL,
            env={**environment, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / home)}, stderr=sys.stderr,
        )  # fmt: skip

    whole, stopped = train("whole", "one"), train("stopped", "other")
    kill_after(stopped, tmp_path / "stopped" / "diffusion" / "checkpoints" / "10")
    assert whole.wait(400) == 0
    assert train("stopped", "third").wait(400) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
