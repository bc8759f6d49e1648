"""Exact likelihood by the probability-flow ODE (Song et al. 2021, section 4.3).

With u = x / alpha and s = noise_ratio the ODE is du = eps ds, so log p(u_0) = log p(u_T) + integral of div_u eps ds. The
divergence is Hutchinson's estimate v . (d eps / du) v with Rademacher v, one Jacobian-vector product an evaluation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.grids import check_grid
from ldm_jax.diffusion.level import Denoiser, Level


def log_likelihood(
    denoise: Denoiser, x: jax.Array, grid: Level, key: jax.Array, probes: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Log density in nats, per sample [B], of x at the grid's last level, and x at its first, where the prior is
    N(0, alpha^2 + sigma^2): data of unit variance. Heun's method, 2 NFE per step of the grid, which must stop above clean.
    """
    check_grid(grid)
    if grid.sigma[-1] <= 0 or grid.alpha[0] <= 0:
        ends = grid.noise_ratio[[0, -1]]
        raise ValueError(f"The density needs levels that are neither clean nor pure noise; got noise_ratio {ends}.")
    levels = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[::-1], jnp.float32), grid)
    axes = tuple(range(1, x.ndim))
    vs = jax.random.rademacher(key, (probes, *x.shape), x.dtype)

    def velocity(u: jax.Array, level: Level) -> tuple[jax.Array, jax.Array]:
        def eps(u: jax.Array) -> jax.Array:
            return denoise(u * level.alpha, level).eps

        value, push = jax.linearize(eps, u)
        divergence = jax.vmap(lambda v: jnp.sum(v * push(v), axes))(vs).mean(0)
        return value, divergence

    def step(carry: tuple[jax.Array, jax.Array], pair: tuple[Level, Level]) -> tuple[tuple[jax.Array, jax.Array], None]:
        u, gained = carry
        here, above = pair
        ds = above.noise_ratio - here.noise_ratio
        d1, div1 = velocity(u, here)
        d2, div2 = velocity(u + ds * d1, above)
        return (u + ds * (d1 + d2) / 2, gained + ds * (div1 + div2) / 2), None

    start, top = levels[0], levels[-1]
    (u, gained), _ = jax.lax.scan(step, (x / start.alpha, jnp.zeros(x.shape[0])), (levels[:-1], levels[1:]))
    dims = np.prod(x.shape[1:])
    x_top = u * top.alpha
    var = top.alpha**2 + top.sigma**2
    prior = -0.5 * jnp.sum(x_top**2, axes) / var - 0.5 * dims * jnp.log(2 * jnp.pi * var)
    return prior + gained + dims * (jnp.log(top.alpha) - jnp.log(start.alpha)), x_top


def bits_per_dimension(log_density: jax.Array, dimensions: int, levels: int = 256) -> jax.Array:
    """-log2 p per dimension of data quantized to `levels` values in [-1, 1], from a density over [-1, 1]."""
    return -log_density / (dimensions * np.log(2)) + np.log2(levels / 2)
