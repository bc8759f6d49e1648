"""Attention: every implementation against the formula, and the rules of choice."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import attention as module
from ldm_jax.models.attention import attention, choose


def qkv(B, T, S, heads, D, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (B, n, heads, D)).astype(dtype) for key, n in zip(keys, (T, S, S), strict=True)]


def formula(q, k, v, causal=False):
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    if causal:
        logits = np.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("shape", [(2, 9, 9, 3, 4), (1, 16, 77, 2, 8), (2, 1, 5, 1, 16), (3, 7, 1, 2, 4)])
def test_formula(shape):
    q, k, v = qkv(*shape)
    np.testing.assert_allclose(attention(q, k, v, "xla"), formula(q, k, v), atol=1e-6)


def test_contexts_of_another_batch_are_refused():
    """They would be cut along the heads and mixed, without a word."""
    q, k = jnp.ones((2, 4, 2, 8)), jnp.ones((3, 5, 2, 8))
    for other in (k, k[:1]):
        with pytest.raises(ValueError, match=f"{len(other)} contexts for a batch of 2"):
            attention(q, other, other)


def test_causal():
    q, k, v = qkv(2, 11, 11, 2, 4)
    np.testing.assert_allclose(attention(q, k, v, causal=True), formula(q, k, v, causal=True), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_chunks_on_cpu(monkeypatch, causal):
    """The loop over batch and rows that long sequences take gives the same numbers and gradients."""
    q, k, v = qkv(2, 24, 24, 2, 4)

    def loss(q, k, v):
        return jnp.sin(attention(q, k, v, "xla", causal=causal)).sum()

    whole = jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    monkeypatch.setattr(module, "CACHE", 200)
    assert "while" in str(jax.make_jaxpr(loss)(q, k, v)) or "scan" in str(jax.make_jaxpr(loss)(q, k, v))
    chunked = jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, chunked)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
def test_derivatives_of_chunks_on_cpu(monkeypatch, dtype, tolerance):
    """Backward, forward, and backward over forward, as losses of few steps take them: those of the formula."""
    q, k, v = qkv(2, 24, 20, 2, 4, dtype)

    def loss(attend, q, k, v):
        return jnp.sin(attend(q, k, v).astype(jnp.float32)).sum()

    def directional(attend, q, k, v):
        return jax.jvp(lambda *qkv: loss(attend, *qkv), (q, k, v), (q[::-1], k[::-1], v[::-1]))[1]

    def plain(q, k, v):
        logits = jnp.einsum("bthd,bshd->bhts", *(a.astype(jnp.float32) for a in (q, k))) * q.shape[-1] ** -0.5
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v.astype(jnp.float32)).astype(q.dtype)

    monkeypatch.setattr(module, "CACHE", 200)
    for function in (loss, directional):
        found, right = (
            jax.value_and_grad(partial(function, attend), argnums=(0, 1, 2))(q, k, v)
            for attend in (partial(attention, implementation="xla"), plain)
        )
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
            scale = max(1.0, float(jnp.abs(other).max()))
            np.testing.assert_allclose(one.astype(jnp.float32) / scale, other.astype(jnp.float32) / scale, atol=tolerance)


def test_a_gradient_on_a_cpu_keeps_no_weights():
    """Of 2 x 2 x 2,048 x 2,048 weights, 67 MB, the gradient needs what a chunk of rows has."""
    q, k, v = (jax.ShapeDtypeStruct((2, 2048, 2, 16), jnp.float32) for _ in range(3))
    program = jax.jit(jax.grad(lambda *qkv: attention(*qkv, "xla").sum(), (0, 1, 2))).lower(q, k, v).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2 * 2 * 2048 * 2048 * 4 / 2


def test_large_logits_do_not_overflow():
    q, k, v = (100 * a for a in qkv(1, 4, 4, 1, 8))
    np.testing.assert_allclose(attention(q, k, v), formula(q, k, v), rtol=1e-4)


def test_bfloat16_in_and_out():
    q, k, v = qkv(1, 32, 32, 2, 16, jnp.bfloat16)
    out = attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), formula(q, k, v), atol=0.03)


@pytest.mark.parametrize(("T", "S", "D"), [(130, 77, 32), (128, 128, 160)])
def test_flash_in_interpreter(T, S, D):
    """The TPU kernel's padding and masking, run by Pallas's interpreter."""
    from jax.experimental.pallas import tpu as pltpu

    q, k, v = qkv(1, T, S, 1, D)
    with pltpu.force_tpu_interpret_mode():
        out = module._flash(q, k, v, False)
    np.testing.assert_allclose(out, formula(q, k, v), atol=2e-5)


def test_cudnn_pads_odd_lengths(monkeypatch):
    """cuDNN itself is stood in for by the same function's XLA form, which takes the same arguments."""
    whole = jax.nn.dot_product_attention

    def stand_in(q, k, v, *, implementation, **options):
        assert implementation == "cudnn" and q.shape[1] % 2 == k.shape[1] % 2 == 0
        return whole(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    for T, S, causal in ((64, 77, False), (9, 9, True), (1, 1, False), (8, 6, False)):
        q, k, v = qkv(2, T, S, 2, 8)
        out = module._cudnn(q, k, v, causal)
        np.testing.assert_allclose(out, formula(q, k, v, causal), atol=1e-5)


class Device:
    def __init__(self, platform, capability=None):
        self.platform, self.compute_capability = platform, capability


def test_choice_of_implementation():
    q, k, _ = qkv(1, 2048, 2048, 1, 40)
    half = q.astype(jnp.bfloat16)
    with pytest.raises(ValueError, match='"cudnn" is not possible: the platform is cpu'):
        choose(q, k, "cudnn")
    with pytest.raises(ValueError, match='"flash" is not possible: the platform is gpu'):
        choose(q, k, "flash", Device("gpu", "8.0"))
    for function in (choose, lambda q, k, name: attention(q, k, k, name)):
        with pytest.raises(ValueError, match="attention='splash' is not known. Did you mean 'flash'"):
            function(q, k, "splash")
    assert choose(half, half) == "xla"

    ampere, hopper, amd, tpu = Device("gpu", "8.0"), Device("gpu", "9.0"), Device("gpu", "gfx942"), Device("tpu")
    assert choose(half, half, device=ampere) == "cudnn"
    assert choose(q, k, device=ampere) == "xla"  # float32
    wide, odd = qkv(1, 8, 8, 1, 160, jnp.bfloat16)[0], qkv(1, 8, 8, 1, 12, jnp.bfloat16)[0]
    assert choose(wide, wide, device=ampere) == choose(odd, odd, device=ampere) == "xla"
    with pytest.raises(ValueError, match="bfloat16 or float16, not in float32"):
        choose(q, k, "cudnn", ampere)
    assert choose(wide, wide, device=hopper) == "cudnn"
    assert choose(half, half, device=amd) == "xla"
    assert choose(q, k, device=tpu) == "flash"
    assert choose(q, k[:, :77], device=tpu) == "xla"


@pytest.mark.parametrize(("T", "S"), [(64, 64), (64, 77)])
def test_bfloat16_logits_lose_no_more_than_bfloat16_does(T, S):
    """The gradient too, against float64's on the same rounded inputs."""
    q, k, v = qkv(2, T, S, 2, 16, jnp.bfloat16)
    weight = jax.random.normal(jax.random.key(9), q.shape)

    def loss(q, k, v):
        return (attention(q, k, v, "xla").astype(jnp.float32) * weight).sum()

    halves = jax.grad(loss, argnums=(0, 1, 2))(q, k, v)
    wholes = jax.grad(loss, argnums=(0, 1, 2))(*(a.astype(jnp.float32) for a in (q, k, v)))
    for half, whole in zip(halves, wholes, strict=True):
        error = np.abs(np.asarray(half, np.float32) - whole).max()
        assert half.dtype == jnp.bfloat16 and error < 0.03 * np.abs(whole).max()


def test_the_lowering_chooses_without_a_context():
    """A program lowered on a CPU for a TPU has the TPU's kernel, and the CPU's program has not."""
    q = jax.ShapeDtypeStruct((1, 1024, 1, 64), jnp.bfloat16)
    for platform, found in (("tpu", True), ("cpu", False)):
        text = jax.jit(attention).trace(q, q, q).lower(lowering_platforms=(platform,)).as_text()
        assert ("tpu_custom_call" in text) == found
