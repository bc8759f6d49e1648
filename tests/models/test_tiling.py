"""Tiled encoding and decoding: exact for local maps, smooth and covering in general."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import TinyDecoder, decode_tiled, encode_tiled, initialize, nearest


@pytest.mark.parametrize("shape", [(2, 16, 16, 3), (1, 37, 20, 2), (1, 9, 50, 1), (1, 5, 7, 1)])
@pytest.mark.parametrize("overlap", [0, 4])
def test_local_maps_are_exact(shape, overlap):
    z = jax.random.normal(jax.random.key(0), shape)

    def decode(z):
        return jnp.sin(nearest(z, 2 * z.shape[1], 2 * z.shape[2]))

    def encode(x):
        return x[:, ::2, ::2] + x[:, 1::2, 1::2]

    x = decode(z)
    np.testing.assert_allclose(decode_tiled(decode, z, factor=2, tile=12, overlap=overlap), x, atol=1e-6)
    np.testing.assert_allclose(encode_tiled(encode, x, factor=2, tile=12, overlap=overlap), encode(x), atol=1e-6)


def test_seams_are_blended():
    """Tiles that disagree by constants meet in a slope, not in a step."""
    z = jnp.zeros((1, 8, 40, 1)).at[:, :, 30:].set(1.0)

    def decode(z):  # every tile becomes its mean
        return jnp.broadcast_to(z.mean((1, 2, 3), keepdims=True), z.shape)

    image = decode_tiled(decode, z, factor=1, tile=24, overlap=8)
    steps = jnp.abs(jnp.diff(image[0, 0, :, 0]))
    assert float(image.max() - image.min()) > 0.3
    assert float(steps.max()) <= float(image.max() - image.min()) / 8


def test_tiles_of_a_network_come_close():
    net = TinyDecoder(channels=8, num_blocks=(1, 1))
    z = jax.random.normal(jax.random.key(0), (1, 40, 40, 4))
    params = initialize(net, jax.random.key(1), z)

    @jax.jit
    def decode(z):
        return net.apply({"params": params}, z)

    whole = decode(z)
    assert whole.shape == (1, 80, 80, 3)
    tiled = decode_tiled(decode, z, factor=2, tile=24, overlap=12)
    inner = np.s_[:, 16:-16, 16:-16]  # the borders of tiles see padding where the whole image sees its neighbours
    assert float(jnp.abs(tiled - whole).max()) < 0.1 * float(jnp.abs(whole).max())
    assert float(jnp.abs(tiled - whole)[inner].mean()) < 0.02 * float(jnp.abs(whole).max())


def test_refusals():
    x = jnp.zeros((1, 30, 32, 3))
    with pytest.raises(ValueError, match="crop to multiples of 4"):
        encode_tiled(lambda x: x, x, factor=4)
    with pytest.raises(ValueError, match="overlap 16 must be"):
        decode_tiled(lambda z: z, x, factor=4, tile=16, overlap=16)
