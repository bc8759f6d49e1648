"""Scaled dot-product attention, and the choice of its implementation.

    attention(q, k, v) = softmax(q k^T / sqrt(D)) v

`implementation` is one of

    "xla"    logits materialised, bfloat16's in bfloat16; batch and heads merged in front, softmax in float32 and normalised
             after the value product. On a CPU, many logits are made one batch item and some rows at a time, to stay within
             its caches.
    "cudnn"  flash attention of cuDNN: an NVIDIA GPU, bfloat16 or float16, head width a multiple of 8 up to 128 (256
             from Hopper on). Odd lengths (CLIP's 77 tokens) are padded to even ones: cuDNN has no gradient for them.
    "flash"  flash attention for TPUs (Pallas): any float type; lengths, and heads wider than 128, are padded to
             multiples of 128.
    "auto"   cudnn on a GPU wherever its limits allow it; flash on a TPU where q and k both have 1,024 tokens or more;
             xla otherwise.

"auto" chooses for the platform that is compiled for: the mesh's inside `partitioned(mesh)`, else whatever the program is
lowered for. A named implementation that cannot serve raises ValueError; outside `partitioned` it is held against the
process's first device. float32 always is "xla" on a GPU, as cuDNN has no such kernel. Inside `partitioned` every device
attends to its own part of the batch and of the heads. "flash" and "cudnn" have no forward-mode derivative; "xla" has.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.models.partition import by_device, current
from ldm_jax.primitives.choices import check_choice

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "flash")
FLASH_BLOCK = 128
LONG = 1024  # tokens, from where on a TPU's flash attention saves memory
CACHE = 2**20  # logits that a CPU keeps in its caches


def attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "auto", *, causal: bool = False) -> jax.Array:
    """q [B, T, heads, D], k and v [B, S, heads, D] -> [B, T, heads, D], in q's dtype.

    With `causal`, token i sees no token after it; T and S must be equal. ValueError for another B of k than of q.
    """
    check_choice(implementation, IMPLEMENTATIONS, "attention")
    if len(k) != len(q):  # they would be mixed with each other
        raise ValueError(f"{len(k)} contexts for a batch of {len(q)}: give one a picture")
    kernels = {
        "xla": partial(_xla, causal=causal),
        "cudnn": partial(_cudnn, causal=causal),
        "flash": partial(_flash, causal=causal),
    }
    on_cpu = partial(_xla_on_cpu, causal=causal) if _exceeds_caches(q, k) else kernels["xla"]

    def on(device: Any) -> Any:
        chosen = choose(q, k, implementation, device)
        return on_cpu if chosen == "xla" and device.platform == "cpu" else kernels[chosen]

    partition = current()
    device = partition and partition.device
    if device is not None:
        return by_device(on(device), q, k, v)
    if implementation not in ("auto", "xla"):
        # under an ambient mesh the program may be for devices that aren't here: its compiler says what they can't do
        return by_device(on(jax.devices()[0]) if partition is None else kernels[implementation], q, k, v)
    branches = {} if on_cpu is kernels["xla"] else {"cpu": on_cpu}
    if implementation == "auto":
        if _is_long(q, k):
            branches["tpu"] = kernels["flash"]
        if _gpu() is not None and not _cudnn_obstacle(q, _gpu()):
            branches["cuda"] = kernels["cudnn"]
    if not branches:
        return kernels["xla"](q, k, v)
    return by_device(lambda q, k, v: jax.lax.platform_dependent(q, k, v, default=kernels["xla"], **branches), q, k, v)


def choose(q: jax.Array, k: jax.Array, implementation: str = "auto", device: Any = None) -> str:
    """The implementation that serves these arrays on a device, by default the process's first.

    Raises ValueError if the named one can't.
    """
    check_choice(implementation, IMPLEMENTATIONS, "attention")
    device = device or jax.devices()[0]
    if implementation == "auto":
        if device.platform == "gpu" and not _cudnn_obstacle(q, device):
            return "cudnn"
        return "flash" if device.platform == "tpu" and _is_long(q, k) else "xla"
    platform = {"cudnn": "gpu", "flash": "tpu"}.get(implementation, device.platform)
    obstacle = f"the platform is {device.platform}" if device.platform != platform else None
    if implementation == "cudnn":
        obstacle = obstacle or _cudnn_obstacle(q, device)
    if obstacle:
        raise ValueError(f'attention "{implementation}" is not possible: {obstacle}; use "auto" or "xla"')
    return implementation


def _is_long(q: jax.Array, k: jax.Array) -> bool:
    return min(q.shape[1], k.shape[1]) >= LONG


def _exceeds_caches(q: jax.Array, k: jax.Array) -> bool:
    return q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] >= 8 * CACHE


def _gpu() -> Any:
    """The process's first GPU, or None."""
    return next((device for device in jax.devices() if device.platform == "gpu"), None)


def _cudnn_obstacle(q: jax.Array, device: Any) -> str | None:
    width = q.shape[-1]
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN computes it in bfloat16 or float16, not in {q.dtype}"
    capability = str(getattr(device, "compute_capability", ""))
    major = int(capability.split(".")[0]) if capability[:1].isdigit() else 0  # AMD's are called gfx..., and have no cuDNN
    if major < 8 or width % 8 or width > (256 if major >= 9 else 128):
        return f"heads are {width} wide on a GPU of compute capability {capability or 'unknown'}"
    return None


def _product(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, *, pinned: bool = False) -> jax.Array:
    """q [N, T, D], k and v [N, S, D] -> [N, T, D]. `pinned` lays out k, v and values so that the gradient is made of products
    which XLA's CPU backend has fast: as it would lay them out itself, two of four are five times as slow for long rows."""
    T, S, D = q.shape[1], k.shape[1], q.shape[2]
    stored = jnp.bfloat16 if q.dtype == jnp.bfloat16 else jnp.float32
    if pinned:
        logits = jnp.einsum("ntd,nds->nts", q, _pinned_transpose(k), preferred_element_type=stored)
    else:
        logits = jnp.einsum("ntd,nsd->nts", q, k, preferred_element_type=stored)
    logits = logits.astype(jnp.float32) * D**-0.5
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones((T, S), bool)), logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    stored_weights = weights.astype(v.dtype)
    if pinned:
        values = jnp.einsum("nds,nts->ndt", _pinned_transpose(v), stored_weights, preferred_element_type=jnp.float32)
        values = jax.lax.optimization_barrier(values).swapaxes(1, 2)
    else:
        values = jnp.einsum("nts,nsd->ntd", stored_weights, v, preferred_element_type=jnp.float32)
    return (values / weights.sum(-1, keepdims=True)).astype(q.dtype)


def _pinned_transpose(a: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(a.swapaxes(1, 2))


def _heads_first(a: jax.Array) -> jax.Array:
    return a.transpose(0, 2, 1, 3)


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    B, T, heads, D = q.shape
    merged = (_heads_first(a).reshape(B * heads, -1, D) for a in (q, k, v))
    return _heads_first(_product(*merged, causal).reshape(B, heads, T, D))


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _xla_on_cpu(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """A batch item at a time, and as many rows as make CACHE logits. A gradient computes the logits again."""
    return _in_rows(partial(_product, causal=causal), q, k, v, causal)


@_xla_on_cpu.defjvp
def _derivative_on_cpu(causal: bool, primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple:
    again = jax.checkpoint(partial(_product, causal=causal, pinned=True), prevent_cse=False)
    return jax.jvp(lambda q, k, v: _in_rows(again, q, k, v, causal), primals, tangents)


def _in_rows(product: Callable[..., jax.Array], q: jax.Array, k: jax.Array, v: jax.Array, whole: bool) -> jax.Array:
    """`product` of a batch item at a time, and of some of its rows unless `whole`."""
    T, heads, D = q.shape[1:]
    chunks = 1
    while not whole and T % (2 * chunks) == 0 and heads * T * k.shape[1] > chunks * CACHE:
        chunks *= 2

    def item(qkv: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v = qkv
        rows = jnp.moveaxis(q.reshape(heads, chunks, T // chunks, D), 1, 0)
        return jnp.moveaxis(jax.lax.map(lambda q: product(q, k, v), rows), 0, 1).reshape(heads, T, D)

    return _heads_first(jax.lax.map(item, tuple(_heads_first(a) for a in (q, k, v))))


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    T, S = q.shape[1], k.shape[1]
    q, k, v = (jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0))) for a in (q, k, v))
    lengths = jnp.full((q.shape[0],), S, jnp.int32) if S % 2 else None
    out = jax.nn.dot_product_attention(q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn")
    return out[:, :T]


def _flash(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu

    T, S, D = q.shape[1], k.shape[1], q.shape[-1]

    def padded(a: jax.Array) -> jax.Array:
        width = -D % FLASH_BLOCK if D > FLASH_BLOCK else 0
        return jnp.pad(_heads_first(a), ((0, 0), (0, 0), (0, -a.shape[1] % FLASH_BLOCK), (0, width)))

    q, k, v = padded(q), padded(k), padded(v)
    segments = None
    if S % FLASH_BLOCK:  # keys beyond S form a segment of their own, which no query of interest attends to

        def ids(total: int, real: int) -> jax.Array:
            return jnp.broadcast_to((jnp.arange(total) >= real).astype(jnp.int32), (q.shape[0], total))

        segments = tpu.SegmentIds(ids(q.shape[2], T), ids(k.shape[2], S))
    out = tpu.flash_attention(q, k, v, segment_ids=segments, causal=causal, sm_scale=D**-0.5)
    return _heads_first(out[:, :, :T, :D])
