"""The shared layers against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.convolution import SAME, bilinear, convolution, nearest, upsampled_convolution
from ldm_jax.models.layers import GroupNorm, Upsample, linear_map, sinusoidal_embedding


def group_norm(x, groups, eps):
    x = np.asarray(x, np.float64)
    g = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, var = g.mean((1, 3), keepdims=True), g.var((1, 3), keepdims=True)
    return ((g - mean) / np.sqrt(var + eps)).reshape(x.shape)


def norm(groups, eps, x, dtype=jnp.float32):
    params = {"scale": jnp.ones(x.shape[-1]), "bias": jnp.zeros(x.shape[-1])}
    return GroupNorm(groups, eps, dtype).apply({"params": params}, x)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (100.0, 1e-1), (-3e3, 1.0)])
@pytest.mark.parametrize("shape", [(2, 5, 7, 12), (3, 9, 12)])
def test_group_norm(shape, mean, deviation):
    """Also where the mean dwarfs the deviation: E[x^2] - E[x]^2 has no correct digit at all in the last case."""
    x = mean + deviation * jax.random.normal(jax.random.key(0), shape)
    expected = group_norm(x, 4, 1e-5)
    np.testing.assert_allclose(norm(4, 1e-5, x), expected, atol=3e-6 * max(1, abs(mean) / deviation / 4))


def test_group_norm_gradient():
    x = 5 + jax.random.normal(jax.random.key(0), (2, 4, 4, 8))

    def plain(x):
        g = x.reshape(2, 16, 4, 2)
        mean, var = g.mean((1, 3), keepdims=True), g.var((1, 3), keepdims=True)
        return ((g - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)

    ours, theirs = (jax.grad(lambda x, f=f: jnp.sin(3 * f(x)).sum())(x) for f in (lambda x: norm(4, 1e-5, x), plain))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_group_norm_reduces_in_float32():
    x = (100 + jax.random.normal(jax.random.key(0), (1, 32, 32, 4))).astype(jnp.bfloat16)
    out = norm(2, 1e-5, x, jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), group_norm(x.astype(jnp.float32), 2, 1e-5), atol=0.02)


def test_group_norm_names_the_layer():
    with pytest.raises(ValueError, match="32 groups cannot share 48 channels"):
        norm(32, 1e-5, jnp.zeros((1, 2, 2, 48)))


def test_folded_upsampling():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 6))
    expected = convolution(nearest(x, 10, 8), kernel, 1, SAME)
    np.testing.assert_allclose(upsampled_convolution(x, kernel), expected, atol=2e-5)


def test_upsampling_to_odd_sizes_is_that_of_pytorch():
    """Interpolation to the skip's size comes before the convolution, whose padding then is at the new border."""
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 2))
    kernel, bias = jax.random.normal(jax.random.key(1), (3, 3, 2, 2)), jnp.asarray([1.0, -1.0])
    out = Upsample(2).apply({"params": {"conv": {"kernel": kernel, "bias": bias}}}, x, (5, 8))
    rows = x[:, np.arange(5) // 2][:, :, np.arange(8) // 2]
    np.testing.assert_allclose(out, convolution(rows, kernel, 1, SAME) + bias, atol=1e-5)


def test_bilinear():
    x = jax.random.normal(jax.random.key(0), (1, 8, 6, 2))
    np.testing.assert_allclose(bilinear(x, 4, 3), x.reshape(1, 4, 2, 3, 2, 2).mean((2, 4)), atol=1e-6)
    np.testing.assert_array_equal(bilinear(x, 8, 6), x)
    larger = bilinear(x, 24, 9)
    np.testing.assert_allclose(larger, jax.image.resize(x, larger.shape, "bilinear"), atol=1e-6)


def test_sinusoidal_embedding():
    t = jnp.asarray([0.0, 1.0, 999.0])
    frequencies = 10000.0 ** (-np.arange(8) / 8)
    angles = np.asarray(t, np.float64)[:, None] * frequencies
    ours = sinusoidal_embedding(t, 16)
    np.testing.assert_allclose(ours, np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=1e-4)
    flipped = sinusoidal_embedding(t, 16, flip_sin_to_cos=False)
    np.testing.assert_array_equal(flipped, jnp.roll(ours, 8, axis=1))
    shifted = sinusoidal_embedding(jnp.ones(1), 16, freq_shift=1)
    np.testing.assert_allclose(shifted[0, 7], np.cos(1e-4), atol=1e-6)  # the last frequency is 1 / max_period
    assert sinusoidal_embedding(t, 17).shape == (3, 17) and not np.any(sinusoidal_embedding(t, 17)[:, -1])


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 6), (2, 3, 4, 6), (2, 1, 3, 4, 6), (0, 4, 6)])
def test_linear_maps_and_their_gradients(shape):
    x, ct = jax.random.normal(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), (*shape[:-1], 7))
    kernel = jax.random.normal(jax.random.key(2), (6, 7))
    y, back = jax.vjp(linear_map, x, kernel)
    dx, dkernel = back(ct)
    np.testing.assert_allclose(y, np.einsum("...i,io->...o", x, kernel), atol=1e-5)
    np.testing.assert_allclose(dx, np.einsum("...o,io->...i", ct, kernel), atol=1e-5)
    np.testing.assert_allclose(dkernel, np.einsum("ni,no->io", x.reshape(-1, 6), ct.reshape(-1, 7)), atol=1e-5)


def test_a_kernels_gradient_is_a_product_that_cpus_have_fast():
    """Both factors row by row: XLA's CPU backend takes three to four times as long where the second one is read by columns."""
    x, kernel = jnp.ones((4, 32, 16)), jnp.ones((16, 24))
    function = jax.jit(jax.grad(lambda kernel, x: jnp.sin(linear_map(x, kernel)).sum()))
    products = [line for line in function.lower(kernel, x).compile().as_text().splitlines() if " dot(" in line]
    assert any("lhs_contracting_dims={0}, rhs_contracting_dims={0}" in line for line in products), products
    assert not any("rhs_contracting_dims={1}" in line for line in products), products
