"""What the first stage of text learns: to say which token stands at every place of a sentence.

    loss = - sum over the sentence's places of log p(token | z) + kl_weight KL(q(z | tokens) || N(0, I)),    z ~ q(z | tokens)

A mean over sentences, in nats. A sentence goes up to its first end; what fills the row up behind that counts for nothing, as
nothing is read there.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.first_stage import latents
from ldm_jax.training.state import LossFn, Step

PyTree = Any
MEASURES = ("token_accuracy", "exact", "perplexity")


def live(tokens: jax.Array, end: int) -> jax.Array:
    """bool [B, N]: the places of int tokens [B, N] up to the first `end`, that one too."""
    ends = tokens == end
    return jnp.cumsum(ends, axis=-1) - ends == 0


def token_nll(scores: jax.Array, tokens: jax.Array) -> jax.Array:
    """-log p(token) in nats, [B, N], of scores [B, N, V] and int tokens [B, N]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(scores.astype(jnp.float32)), tokens[..., None], axis=-1)[..., 0]


def measures(scores: jax.Array, tokens: jax.Array, end: int) -> dict[str, jax.Array]:
    """Of scores [B, N, V] and tokens [B, N], a number a sentence, [B]: the share of its places whose likeliest token is the
    right one; whether all are; the mean of -log p over them, whose exponential is the perplexity."""
    counts = live(tokens, end)
    right = (scores.argmax(-1) == tokens) & counts
    share = right.sum(-1) / counts.sum(-1)
    nll = jnp.where(counts, token_nll(scores, tokens), 0.0).sum(-1) / counts.sum(-1)
    return {"token_accuracy": share, "exact": (right.sum(-1) == counts.sum(-1)).astype(jnp.float32), "nll": nll}


def make_loss(module: Any, kl_weight: float, end: int) -> LossFn:
    """`loss_fn(params, batch, key, step) -> (loss, metrics)`; params has the part "autoencoder", batch "image", tokens
    [B, N, 1]."""

    def loss_fn(params: PyTree, batch: PyTree, key: jax.Array, step: Step) -> tuple[jax.Array, dict[str, jax.Array]]:
        z_key, dropout_key = jax.random.split(key)
        rngs = {"dropout": jax.random.fold_in(dropout_key, step.rows[0])}

        def apply(method: str, x: jax.Array) -> jax.Array:
            return module.apply({"params": params["autoencoder"]}, x, train=True, method=method, rngs=rngs)

        moments = apply("encode", batch["image"])
        scores = apply("decode", latents.sample_posterior(moments, z_key, step.rows))
        tokens = batch["image"][..., 0].astype(jnp.int32)
        counts = live(tokens, end)
        nll = jnp.where(counts, token_nll(scores, tokens), 0.0).sum(-1).mean()
        kl = latents.kl_divergence(moments).mean()
        accuracy = ((scores.argmax(-1) == tokens) & counts).sum() / counts.sum()
        return nll + kl_weight * kl, {"nll": nll, "kl": kl, "token_accuracy": accuracy}

    return loss_fn
