"""Exact likelihood by the probability-flow ODE (Song et al. 2021, section 4.3).

In the coordinates of rectified flow, w = x / (alpha + sigma) and tau = sigma / (alpha + sigma), the ODE of every process is
dw = (eps - x0) dtau, regular from clean (tau = 0) to pure noise (tau = 1), so that

    log p(w_0) = log p(w_T) + integral of div_w (eps - x0) dtau.

The divergence is Hutchinson's estimate v . (d / dw) v with Rademacher v, one Jacobian-vector product an evaluation.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.denoiser import check_denoiser
from ldm_jax.diffusion.grids import check_grid
from ldm_jax.diffusion.level import Denoiser, Level
from ldm_jax.primitives.arrays import threefry, typed_key


def log_likelihood(
    denoise: Denoiser, x: jax.Array, grid: Level, key: jax.Array, probes: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Log density in nats, per sample [B], of x [B, ..., C] at the grid's last level, and x at its first, where the prior is
    N(0, alpha^2 + sigma^2): data of unit variance. Heun's method, 2 NFE per step of the grid, any that `sample` takes.

    `key`: one for all, or one a picture, [B]: then a picture's estimate depends on its own alone, not on its neighbours.

    At exactly clean, where a grid made by name ends, eps is 0 (it is -sigma times a finite score) and the network isn't called.

    Raises:
      ValueError: a grid whose noise doesn't fall, or a network that predicts eps at a first level of pure noise.
    """
    check_grid(grid)
    check_denoiser(denoise, x, grid[0])
    levels = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[::-1], jnp.float32), grid)
    axes, dims = tuple(range(1, x.ndim)), math.prod(x.shape[1:])
    key = typed_key(key)
    if key.ndim:
        vs = jax.vmap(lambda key: jax.random.rademacher(key, (probes, *x.shape[1:]), x.dtype), out_axes=1)(threefry(key))
    else:
        vs = jax.random.rademacher(key, (probes, *x.shape), x.dtype)

    def velocity(w: jax.Array, level: Level) -> tuple[jax.Array, jax.Array]:
        def flow(w: jax.Array) -> jax.Array:
            x0, eps = denoise(w * (level.alpha + level.sigma), level)
            return eps - x0

        def noisy() -> tuple[jax.Array, jax.Array]:
            value, push = jax.linearize(flow, w)
            return value, jax.vmap(lambda v: jnp.sum(v * push(v), axes))(vs).mean(0)

        return jax.lax.cond(level.sigma == 0, lambda: (-w, jnp.full(len(w), -dims, w.dtype)), noisy)

    def step(carry: tuple[jax.Array, jax.Array], pair: tuple[Level, Level]) -> tuple[tuple[jax.Array, jax.Array], None]:
        w, gained = carry
        here, above = pair
        dtau = tau(above) - tau(here)
        d1, div1 = velocity(w, here)
        d2, div2 = velocity(w + dtau * d1, above)
        return (w + dtau * (d1 + d2) / 2, gained + dtau * (div1 + div2) / 2), None

    def tau(level: Level) -> jax.Array:
        return level.sigma / (level.alpha + level.sigma)

    clean, top = levels[0], levels[-1]
    begin = (x / (clean.alpha + clean.sigma), jnp.zeros(x.shape[0]))
    (w, gained), _ = jax.lax.scan(step, begin, (levels[:-1], levels[1:]))
    x_top = w * (top.alpha + top.sigma)
    var = top.alpha**2 + top.sigma**2
    prior = -0.5 * jnp.sum(x_top**2, axes) / var - 0.5 * dims * jnp.log(2 * jnp.pi * var)
    return prior + gained + dims * (jnp.log(top.alpha + top.sigma) - jnp.log(clean.alpha + clean.sigma)), x_top


def bits_per_dimension(log_density: jax.Array, dimensions: int, levels: int = 256) -> jax.Array:
    """-log2 p per dimension of data quantized to `levels` values in [-1, 1], from a density over [-1, 1]."""
    return -log_density / (dimensions * math.log(2)) + math.log2(levels / 2)
