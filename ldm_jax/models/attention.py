"""Scaled dot-product attention, and the choice of its implementation.

    attention(q, k, v) = softmax(q k^T / sqrt(D)) v

`implementation` is one of

    "xla"    logits materialised; batch and heads merged in front, softmax in float32 and normalised after the value
             product. On a CPU, many logits are made one batch item and some rows at a time, to stay within its caches.
    "cudnn"  flash attention of cuDNN: an NVIDIA GPU, bfloat16 or float16, head width a multiple of 8 up to 128 (256
             from Hopper on). Odd lengths (CLIP's 77 tokens) are padded to even ones: cuDNN has no gradient for them.
    "flash"  flash attention for TPUs (Pallas): any float type; lengths, and heads wider than 128, are padded to
             multiples of 128.
    "auto"   cudnn on a GPU wherever its limits allow it; flash on a TPU where q and k both have 1,024 tokens or more;
             xla otherwise.

A named implementation that cannot serve raises ValueError; only "auto" chooses. float32 always is "xla" on a GPU, as
cuDNN has no such kernel.
"""

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "flash")
FLASH_BLOCK = 128
LONG = 1024  # tokens, from where on a TPU's flash attention saves memory
CACHE = 2**20  # logits that a CPU keeps in its caches


def attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "auto", *, causal: bool = False) -> jax.Array:
    """q [B, T, heads, D], k and v [B, S, heads, D] -> [B, T, heads, D], in q's dtype.

    With `causal`, token i sees no token after it; T and S must be equal.
    """
    chosen = choose(q, k, implementation)
    return {"xla": _xla, "cudnn": _cudnn, "flash": _flash}[chosen](q, k, v, causal)


def choose(q: jax.Array, k: jax.Array, implementation: str = "auto") -> str:
    """The implementation that `attention` uses for these arrays on the default backend."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention {implementation!r} is unknown: use one of {', '.join(IMPLEMENTATIONS)}")
    backend = jax.default_backend()
    if implementation == "auto":
        if backend == "gpu" and not _cudnn_obstacle(q):
            return "cudnn"
        long = min(q.shape[1], k.shape[1]) >= LONG
        return "flash" if backend == "tpu" and long else "xla"
    obstacle = None
    if implementation == "cudnn":
        obstacle = "the backend is " + backend if backend != "gpu" else _cudnn_obstacle(q)
    if implementation == "flash" and backend != "tpu":
        obstacle = "the backend is " + backend
    if obstacle:
        raise ValueError(f'attention "{implementation}" is not possible: {obstacle}; use "auto" or "xla"')
    return implementation


def _cudnn_obstacle(q: jax.Array) -> str | None:
    width = q.shape[-1]
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN computes it in bfloat16 or float16, not in {q.dtype}"
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    major = int(capability.split(".")[0]) if capability[:1].isdigit() else 0  # AMD's are called gfx..., and have no cuDNN
    if major < 8 or width % 8 or width > (256 if major >= 9 else 128):
        return f"heads are {width} wide on a GPU of compute capability {capability or 'unknown'}"
    return None


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    B, T, heads, D = q.shape
    S = k.shape[1]

    def product(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        logits = jnp.einsum("ntd,nsd->nts", q, k, preferred_element_type=jnp.float32) * D**-0.5
        if causal:
            logits = jnp.where(jnp.tril(jnp.ones((T, S), bool)), logits, -jnp.inf)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        values = jnp.einsum("nts,nsd->ntd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (values / weights.sum(-1, keepdims=True)).astype(q.dtype)

    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    if jax.default_backend() != "cpu" or B * heads * T * S < 8 * CACHE:
        out = product(*(a.reshape(B * heads, -1, D) for a in (q, k, v))).reshape(B, heads, T, D)
    else:
        chunks = 1
        while not causal and T % (2 * chunks) == 0 and heads * T * S > chunks * CACHE:
            chunks *= 2

        def item(qkv: tuple[jax.Array, ...]) -> jax.Array:
            q, k, v = qkv
            rows = jnp.moveaxis(q.reshape(heads, chunks, T // chunks, D), 1, 0)
            return jnp.moveaxis(jax.lax.map(lambda q: product(q, k, v), rows), 0, 1).reshape(heads, T, D)

        out = jax.lax.map(item, (q, k, v))
    return out.transpose(0, 2, 1, 3)


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
        return jnp.pad(a.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, -a.shape[1] % FLASH_BLOCK), (0, width)))

    q, k, v = padded(q), padded(k), padded(v)
    segments = None
    if S % FLASH_BLOCK:  # keys beyond S form a segment of their own, which no query of interest attends to

        def ids(total: int, real: int) -> jax.Array:
            return jnp.broadcast_to((jnp.arange(total) >= real).astype(jnp.int32), (q.shape[0], total))

        segments = tpu.SegmentIds(ids(q.shape[2], T), ids(k.shape[2], S))
    out = tpu.flash_attention(q, k, v, segment_ids=segments, causal=causal, sm_scale=D**-0.5)
    return out[:, :, :T, :D].transpose(0, 2, 1, 3)
