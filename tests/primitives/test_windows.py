"""Windows: exact for local maps, smooth and covering in general; decoding and encoding in tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import TinyDecoder, initialize, nearest
from ldm_jax.primitives.windows import blended, decode_tiled, encode_tiled


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
    with pytest.raises(ValueError, match="overlap or touch"):
        blended(lambda x: x, x, (4, 4), (5, 1))
    with pytest.raises(ValueError, match="smaller than the window"):
        blended(lambda x: x, x, (64, 4), (4, 4))
    with pytest.raises(ValueError, match="other axes"):
        blended(lambda x: x, x, (4, 4, 4), (4, 4, 4))


CASES = [((11,), (4,), (3,)), ((7, 13), (4, 5), (3, 2)), ((5, 6, 9), (3, 4, 4), (2, 4, 3))]


@pytest.mark.parametrize(("sides", "window", "stride"), CASES)
@pytest.mark.parametrize("wrap", [None, 0, -1])
def test_local_maps_of_any_rank_are_exact(sides, window, stride, wrap):
    """Twice as many pixels in, three times as many out, and a second array that lies on the first."""
    x = jax.random.normal(jax.random.key(0), (2, *(2 * side for side in sides), 1))
    y = jax.random.normal(jax.random.key(1), x.shape)

    def local(pair):
        total = jnp.sin(pair[0]) * pair[1]
        for axis in range(1, total.ndim - 1):
            total = total.take(jnp.arange(0, total.shape[axis], 2), axis) + total.take(
                jnp.arange(1, total.shape[axis], 2), axis
            )
            total = jnp.repeat(total, 3, axis)
        return {"one": total, "two": jnp.concatenate([total, -total], -1)}

    tiled = jax.jit(lambda pair: blended(local, pair, window, stride, into=2, out=3, wrap=wrap))((x, y))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tiled, local((x, y)))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_ring_has_no_beginning(axis):
    """A function that sees where in its window it is gives, wrapped, an answer that turns with the canvas; and every pixel is
    the mean of the windows over it, by hand."""
    sides, window, stride = (8, 8), (4, 4), (2, 2)
    position = np.arange(1.0, 5)
    x = jax.random.normal(jax.random.key(0), (1, *sides, 1))

    def seeing(x):
        return x * (position[:, None, None] if axis == 0 else position[:, None])

    def go(x):
        return blended(seeing, x, window, stride, wrap=axis)

    np.testing.assert_allclose(go(jnp.roll(x, 2, axis + 1)), jnp.roll(go(x), 2, axis + 1), atol=1e-5)
    # ramp of overlap 2: 1/3, 2/3, 2/3, 1/3. Pixel 0 has position 0 in one window and 2 in another, pixel 1 has 1 and 3
    wanted = np.tile([(1 / 3 * 1 + 2 / 3 * 3), (2 / 3 * 2 + 1 / 3 * 4)], 4)
    along = np.moveaxis(np.asarray(go(jnp.ones_like(x)))[0, ..., 0], axis, 0)[:, 0]
    np.testing.assert_allclose(along, wanted, rtol=1e-5)


def test_a_ring_narrower_than_a_tile_is_closed_too():
    z = jax.random.normal(jax.random.key(0), (1, 6, 10, 2))
    decode = lambda z: jnp.sin(nearest(z, 2 * z.shape[1], 2 * z.shape[2]))  # noqa: E731
    np.testing.assert_allclose(decode_tiled(decode, z, factor=2, tile=64, wrap=-1), decode(z), atol=1e-6)
    calls = []
    jax.eval_shape(lambda z: decode_tiled(lambda z: calls.append(z.shape) or z, z, factor=1, tile=64, wrap=-1), z)
    assert set(calls) == {(1, 6, 10, 2)}


def test_tiles_of_each_device_under_shard_map():
    """Sums that begin as plain zeros don't differ over the axis that the canvas is split over, and were refused."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    z, each = jax.random.normal(jax.random.key(0), (2, 12, 12, 3)), jax.P("data")

    def tiled(z):
        return decode_tiled(lambda x: 2 * x + x.mean((1, 2), keepdims=True), z, factor=1, tile=8, overlap=4)

    apart = jax.jit(jax.shard_map(tiled, mesh=mesh, in_specs=each, out_specs=each))(z)
    np.testing.assert_allclose(apart, tiled(z), atol=1e-6)
