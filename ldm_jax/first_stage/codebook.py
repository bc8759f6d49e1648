"""How a codebook learns, and how to see whether it does.

    zq = z + sg(e_k - z)                                                        straight-through (van den Oord et al. 2017)
    L  = |sg(e_k) - z|^2 beta + |e_k - sg(z)|^2                                 commitment, codebook
    n_k <- d n_k + (1 - d) #k,   m_k <- d m_k + (1 - d) sum_{z -> k} z,   e_k = m_k / n_k        moving averages instead

The reference's VQ models put beta on the codebook's term instead of the commitment (`legacy`, a bug it kept on purpose).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def straight_through(z: jax.Array, codes: jax.Array) -> jax.Array:
    """The codes, with the gradient of z."""
    return z + jax.lax.stop_gradient(codes - z)


def codebook_loss(z: jax.Array, codes: jax.Array, beta: float, legacy: bool) -> jax.Array:
    """Mean over all numbers of z and its codes [..., C]."""
    commitment = jnp.square(jax.lax.stop_gradient(codes) - z).mean()
    codebook = jnp.square(codes - jax.lax.stop_gradient(z)).mean()
    return commitment + beta * codebook if legacy else beta * commitment + codebook


def counts(indices: jax.Array, codes: int) -> jax.Array:
    """How often each of `codes` codes occurs in integer indices, float32 [codes]."""
    return jnp.zeros(codes, jnp.float32).at[indices.reshape(-1)].add(1.0)


USAGE = ("codes_used", "perplexity")


def usage(count: jax.Array) -> dict[str, jax.Array]:
    """Of counts [n]: the share of codes that occur at all, and the perplexity exp(entropy), from 1 (one code) to n."""
    p = count / jnp.maximum(count.sum(), 1.0)
    entropy = -jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0).sum()
    return dict(zip(USAGE, (jnp.mean(count > 0), jnp.exp(entropy))))


def averages(codebook: jax.Array) -> dict[str, jax.Array]:
    """The start of the moving averages for codes [n, C]: as if each had just been met once."""
    return {"count": jnp.ones(codebook.shape[0], jnp.float32), "sum": jnp.array(codebook, jnp.float32)}


def move(
    average: Mapping[str, jax.Array], z: jax.Array, indices: jax.Array, decay: float, weight: float = 1.0
) -> dict[str, jax.Array]:
    """The moving averages after a batch of latents z [..., C] with codes `indices` [...], each of which counts `weight` times.
    Over all devices under `jit`."""
    n, width = average["sum"].shape
    total = jnp.zeros((n, width), jnp.float32).at[indices.reshape(-1)].add(z.reshape(-1, width))
    now = {"count": counts(indices, n), "sum": total}
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * weight * new, dict(average), now)


def centres(average: Mapping[str, jax.Array]) -> jax.Array:
    """The codes that moving averages stand for, [n, C]; counts are smoothed, so that codes without latents stay finite."""
    count = average["count"]
    smoothed = (count + 1e-5) / (count.sum() + len(count) * 1e-5) * count.sum()
    return average["sum"] / smoothed[:, None]


def revive(
    codebook: jax.Array, average: Mapping[str, jax.Array], z: jax.Array, below: float, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """Codes met fewer than `below` times a step on average become latents of this batch, drawn at random with a trace of noise
    (there may be fewer latents than dead codes). Returns codebook, averages, and how many were dead."""
    n, width = codebook.shape
    latents = z.reshape(-1, width)
    draw_key, noise_key = jax.random.split(key)
    fresh = latents[jax.random.randint(draw_key, (n,), 0, len(latents))]
    fresh = fresh + 1e-2 * latents.std(0) * jax.random.normal(noise_key, fresh.shape)
    dead = average["count"] < below
    start = averages(fresh)
    average = {
        "count": jnp.where(dead, start["count"], average["count"]),
        "sum": jnp.where(dead[:, None], start["sum"], average["sum"]),
    }
    return jnp.where(dead[:, None], fresh, codebook), average, dead.sum()


def k_means(z: jax.Array, codes: int, key: jax.Array, iterations: int = 10) -> jax.Array:
    """`codes` cluster centres [codes, C] of latents z [N, C] by Lloyd's algorithm, from latents drawn without replacement; a
    centre that loses all its latents starts again at one. ValueError if there are fewer latents than codes."""
    if len(z) < codes:
        raise ValueError(f"k-means needs at least as many latents as codes: {len(z)} for {codes}; give more batches")
    z = jnp.asarray(z, jnp.float32)
    start_key, again_key = jax.random.split(key)

    def assign(centre: jax.Array) -> jax.Array:
        return jax.lax.map(
            lambda rows: jnp.argmin(jnp.square(centre).sum(-1) - 2 * rows @ centre.T), z, batch_size=min(4096, len(z))
        )

    def iterate(i: jax.Array, centre: jax.Array) -> jax.Array:
        nearest = assign(centre)
        count = counts(nearest, codes)[:, None]
        total = jnp.zeros_like(centre).at[nearest].add(z)
        again = z[jax.random.randint(jax.random.fold_in(again_key, i), (codes,), 0, len(z))]
        return jnp.where(count > 0, total / jnp.maximum(count, 1.0), again)

    @jax.jit
    def run(z):
        return jax.lax.fori_loop(0, iterations, iterate, jax.random.choice(start_key, z, (codes,), replace=False))

    return run(z)
