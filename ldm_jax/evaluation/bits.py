"""How likely 8-bit pictures are under a distribution around a reconstruction."""

import jax
import jax.numpy as jnp

HALF = 1 / 255  # half the distance of neighbouring values of 8 bits in [-1, 1]


def discretized_laplace(x: jax.Array, mean: jax.Array, scale: float | jax.Array) -> jax.Array:
    """log P(x), elementwise: the mass that Laplace(mean, scale) has nearer to x than to any other of the 256 values.

    Args:
      x: values of 8 bits as numbers in [-1, 1]; the first and the last take all that is beyond them.
      mean: any numbers.
      scale: the mean distance from `mean`, above 0.
    """
    d = x - mean
    a = jnp.abs(d)
    # both edges of the interval on one side of the mean, or one on either
    apart = -(a - HALF) / scale + jnp.log(-jnp.expm1(-2 * HALF / scale)) - jnp.log(2.0)
    inner = jnp.minimum(a, HALF)
    around = jnp.log(-jnp.expm1(-HALF / scale + _log_cosh(inner / scale)))
    inside = jnp.where(a >= HALF, apart, around)
    first, last = x <= -1 + HALF, x >= 1 - HALF
    return jnp.where(first, _log_below((d + HALF) / scale), jnp.where(last, _log_below((HALF - d) / scale), inside))


def _log_cosh(t: jax.Array) -> jax.Array:
    t = jnp.abs(t)
    return t + jnp.log1p(jnp.exp(-2 * t)) - jnp.log(2.0)


def _log_below(t: jax.Array) -> jax.Array:
    """log of Laplace(0, 1)'s distribution function."""
    below, above = jnp.minimum(t, 0.0), jnp.maximum(t, 0.0)
    return jnp.where(t < 0, below - jnp.log(2.0), jnp.log1p(-0.5 * jnp.exp(-above)))
