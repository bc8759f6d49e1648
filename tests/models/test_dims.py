"""Networks of one and three spatial axes, by closed forms: what they must share with those of two."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import Autoencoder, Discriminator, DiT, UNet, inflated, initialize, shapes
from ldm_jax.models.convolution import (
    average_pool,
    by_phases,
    by_zeros,
    convolution,
    factors_of,
    in_two_steps,
    nearest,
    shrinkage,
)  # fmt: skip
from ldm_jax.models.dit import position_embedding
from ldm_jax.models.layers import Downsample

UNET = {"in_channels": 2, "out_channels": 3, "model_channels": 8, "num_res_blocks": 1, "attention_resolutions": (2,),
        "channel_mult": (1, 2), "num_head_channels": 8, "norm_num_groups": 4}  # fmt: skip
STAGE = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "resolution": 8, "z_channels": 3,
         "embed_dim": 3, "norm_num_groups": 4}  # fmt: skip
SLOW = ({"resblock_updown": True}, {"conv_resample": False})
BY_FRAME = {"dims": 3, "kernel_size": (1, 3, 3)}


def drawn(net, *inputs, seed=0):
    """Parameters without zeros."""
    rng = np.random.default_rng(seed)
    params = initialize(net, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), params)


def run(net, params, *inputs, **options):
    """What the network says, from one compiled program: its operations one by one take longer."""
    return jax.jit(functools.partial(net.apply, **options))({"params": params}, *inputs)


def noise(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def lifted(params, like):
    """Parameters with the shapes of `like`: kernels [*window, in, out] get an axis of one pixel in front."""

    def one(leaf, wanted):
        return leaf if leaf.shape == wanted.shape else leaf.reshape(wanted.shape)

    return jax.tree.map(one, params, like)


def films(pictures, frames):
    """Pictures [B, H, W, C] that stand still."""
    return jnp.repeat(pictures[:, None], frames, axis=1)


def close(a, b, atol=2e-5):
    np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize(
    ("space", "window", "factors"),
    [((5,), (3,), (2,)), ((4,), (5,), (3,)), ((3, 4), (3, 3), (2, 2)), ((3, 4), (3, 1), (1, 2)),
     ((3, 2, 4), (3, 3, 3), (1, 2, 2)), ((2, 3, 2), (1, 3, 3), (2, 2, 2))],
)  # fmt: skip
def test_three_forms_of_upsampling(space, window, factors):
    x, kernel = noise(2, *space, 3), noise(*window, 3, 5, seed=2)
    expected = in_two_steps(x, kernel, factors)
    assert expected.shape == (2, *(side * f for side, f in zip(space, factors)), 5)
    for form in (by_zeros, by_phases):
        close(form(x, kernel, factors), expected)


def test_layers_along_one_axis_only():
    """What is done along the last axis alone is done row by row."""
    x, kernel = noise(2, 3, 8, 4), noise(3, 4, 5, seed=2)
    rows = x.reshape(6, 8, 4)
    for strides in (1, 2):
        wide = convolution(x, kernel[None], (1, strides), ((0, 0), (1, 1)))
        close(wide, convolution(rows, kernel, strides, (1, 1)).reshape(wide.shape))
    np.testing.assert_array_equal(average_pool(x, (1, 2)), average_pool(rows).reshape(2, 3, 4, 4))
    np.testing.assert_array_equal(nearest(x, 3, 12), nearest(rows, 12).reshape(2, 3, 12, 4))


def test_downsampling_keeps_the_axes_of_factor_one():
    """With either padding, and sees as much on both sides there."""
    x = noise(1, 3, 8, 6, 2)
    for padding in (0, 1):
        layer = Downsample("op", padding, 4, factors=(1, 2, 2))
        params = drawn(layer, x)
        out = run(layer, params, x)
        assert out.shape == (1, 3, 4, 3, 4)
        turned = jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim == 5 else leaf, params)
        close(run(layer, turned, x[:, ::-1])[:, ::-1], out)


def test_default_factors_are_the_references():
    assert factors_of((), 1) == (2,) and factors_of((), 2) == (2, 2) and factors_of((), 3) == (1, 2, 2)
    assert factors_of(((2, 2, 2), (1, 2, 2)), 3, 1) == (1, 2, 2)
    assert shrinkage(((2, 2, 2), (1, 2, 2)), 3, 3) == (2, 4, 4) and shrinkage((), 2, 1) == (1, 1)
    for wrong in ((2, 2), (1, 2, 3), ((1, 2, 2),)):
        with pytest.raises(ValueError, match="strides"):
            shrinkage(wrong, 3, 3)


@pytest.mark.parametrize("options", [{}, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_unet_of_one_axis_is_one_of_rows(options):
    line, row = UNet(**UNET, **options, dims=1), UNet(**UNET, **options, kernel_size=(1, 3), strides=(1, 2))
    x, t = noise(2, 7, 2), jnp.float32([3, 700])  # an odd length too
    params = drawn(line, x, t)
    wide = lifted(params, shapes(row, x[:, None], t))
    close(run(row, wide, x[:, None], t)[:, 0], run(line, params, x, t))


@pytest.mark.parametrize(("factorised", "words"), [(False, False), (True, True)])
@pytest.mark.slow
def test_a_unet_of_films_that_stand_still_is_one_of_pictures(factorised, words):
    """With windows of one frame; also with attention to all of space and time, where every pixel is there as often."""
    fields = UNET | ({"use_spatial_transformer": True, "context_dim": 5} if words else {})
    cond = {"context": noise(2, 4, 5)} if words else None
    flat, deep = UNet(**fields), UNet(**fields, **BY_FRAME, factorised_attention=factorised)
    x, t = noise(2, 8, 4, 2), jnp.float32([3, 700])
    params, film = drawn(flat, x, t, cond), films(x, 3)
    wanted = initialize(deep, jax.random.key(0), film, t, cond)
    new = {name: part for name, part in wanted.items() if name not in params}
    assert all(name.endswith("_time") for name in new) and bool(new) == factorised
    deep_params = new | lifted(params, {name: wanted[name] for name in params})
    close(run(deep, deep_params, film, t, cond), films(run(flat, params, x, t, cond), 3))


@pytest.mark.slow
def test_factorised_attention_joins_the_frames():
    """Frames of themselves know nothing of each other where windows are of one frame; only attention over time tells them."""
    deep = UNet(**UNET | {"norm_num_groups": 4}, **BY_FRAME, factorised_attention=True)
    x, t = noise(1, 3, 4, 4, 2), jnp.float32([3])
    params = drawn(deep, x, t)
    other = x.at[:, 2].set(0)
    moved = run(deep, params, other, t) - run(deep, params, x, t)
    assert float(jnp.abs(moved[:, 0]).max()) > 1e-4
    swapped = run(deep, params, x[:, ::-1], t)[:, ::-1]
    assert float(jnp.abs(swapped - run(deep, params, x, t)).max()) > 1e-4  # and it knows which frame is which


@pytest.mark.parametrize("vq", [pytest.param(False, marks=pytest.mark.slow), True])
def test_autoencoders_of_one_axis_are_those_of_rows(vq):
    fields = STAGE | ({"n_embed": 7, "double_z": False} if vq else {})
    line, row = Autoencoder(**fields, dims=1), Autoencoder(**fields, kernel_size=(1, 3), strides=(1, 2))
    x = noise(2, 8, 3)
    params = drawn(line, x)
    wide = lifted(params, shapes(row, x[:, None]))
    assert line.factors == (2,) and row.factors == (1, 2)
    for method in ("encode", "__call__"):
        close(run(row, wide, x[:, None], method=method)[:, 0], run(line, params, x, method=method))


@pytest.mark.slow
@pytest.mark.parametrize("factorised", [False, True])
def test_an_autoencoder_of_films_that_stand_still_is_one_of_pictures(factorised):
    flat, deep = Autoencoder(**STAGE), Autoencoder(**STAGE, **BY_FRAME, factorised_attention=factorised)
    x = noise(1, 8, 4, 3)
    params, film = drawn(flat, x), films(x, 3)
    wanted = initialize(deep, jax.random.key(0), film)

    def joined(known, like):
        """The known parameters where there are such, the blocks over time as they begin."""
        if not isinstance(like, dict):
            return known.reshape(like.shape)
        return {name: joined(known[name], part) if name in known else part for name, part in like.items()}

    deep_params = joined(params, wanted)
    moments = run(deep, deep_params, film, method="encode")
    assert deep.factors == (1, 2, 2) and moments.shape == (1, 3, 4, 2, 6)
    close(moments, films(run(flat, params, x, method="encode"), 3))
    close(run(deep, deep_params, film), films(run(flat, params, x), 3))


def test_an_autoencoder_of_pictures_is_one_of_films_that_stand_still():
    """Its kernels in the middle of windows of three frames."""
    flat, deep = (Autoencoder(**STAGE | {"attn_type": "none"}, dims=dims) for dims in (2, 3))
    x = noise(1, 8, 4, 3)
    params, film = drawn(flat, x), films(x, 3)
    wanted = shapes(deep, film)
    deep_params = inflated(params, wanted)
    assert jax.tree.map(jnp.shape, deep_params) == jax.tree.map(jnp.shape, wanted)
    close(run(deep, deep_params, film), films(run(flat, params, x), 3))
    jax.tree.map(np.testing.assert_array_equal, inflated(params, params), params)  # nothing to do


def test_an_autoencoder_shrinks_each_axis_by_its_own_strides():
    net = Autoencoder(**STAGE | {"ch_mult": (1, 1, 1), "attn_type": "none"}, dims=3, strides=((2, 2, 2), (1, 2, 2)))
    x = noise(1, 4, 8, 12, 3)
    params = initialize(net, jax.random.key(0), x)
    z = jax.eval_shape(lambda x: net.apply({"params": params}, x, method="encode"), x)
    assert z.shape == (1, 2, 2, 3, 6) and net.factors == (2, 4, 4)
    assert jax.eval_shape(lambda x: net.apply({"params": params}, x), x).shape == x.shape


@pytest.mark.parametrize("actnorm", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_discriminator_of_one_frame_is_one_of_pictures(actnorm):
    """Along frames windows are three wide: of one frame only their middle counts."""
    flat, deep = (Discriminator(8, 2, actnorm, dims=dims) for dims in (2, 3))
    x = noise(2, 16, 16, 3)
    params = drawn(deep, x[:, None])
    cut = jax.tree.map(lambda leaf: leaf[1] if leaf.ndim == 5 else leaf, params)
    assert jax.tree.map(jnp.shape, cut) == jax.tree.map(jnp.shape, shapes(flat, x))
    close(run(deep, params, x[:, None])[:, 0], run(flat, cut, x))
    assert run(deep, params, films(x, 5)).shape[:2] == (2, 5)


@pytest.mark.parametrize(("dims", "space", "patch"), [(1, (12,), 3), (2, (4, 6), 2), (3, (3, 4, 4), (1, 2, 2))])
def test_dits_of_any_rank(dims, space, patch):
    """Patches go out to where they came in: without attention and positions, one patch's output depends on it alone."""
    net = DiT(2, 24, 2, patch, space, in_channels=2, num_classes=None, learn_sigma=False, dims=dims)
    x, t = noise(1, *space, 2), jnp.float32([3])
    params = drawn(net, x, t)
    quiet = dict(params)
    for i in range(2):
        quiet[f"blocks_{i}"] = params[f"blocks_{i}"] | {"attn": jax.tree.map(jnp.zeros_like, params[f"blocks_{i}"]["attn"])}
    corner = tuple(slice(0, p) for p in ((patch,) * dims if isinstance(patch, int) else patch))
    other = x.at[(slice(None), *corner)].add(1.0)

    def move(params):
        return jnp.abs(run(net, params, other, t) - run(net, params, x, t)).max(-1)[0]

    moved = move(quiet)
    assert moved.shape == space and float(moved[corner].min()) > 0
    assert int((moved > 0).sum()) == moved[corner].size
    assert int((move(params) > 0).sum()) > moved[corner].size


def test_a_dits_blocks_attend_within_frames_and_over_time_in_turn():
    x, t, found = noise(1, 3, 4, 4, 2), jnp.float32([3]), []
    other = x.at[:, 2, 3, 3].add(1.0)
    for depth in (1, 2):
        options = {"in_channels": 2, "num_classes": None, "learn_sigma": False, "dims": 3, "factorised_attention": True}
        net = DiT(depth, 24, 2, (1, 2, 2), (3, 4, 4), **options)
        params = drawn(net, x, t)
        moved = jnp.abs(run(net, params, other, t) - run(net, params, x, t)).max((2, 3, 4))[0]
        found.append((moved > 0).tolist())
    assert found == [[False, False, True], [True, True, True]]


def test_positions_of_a_grid():
    """Two axes as the reference has them: columns in the first half. Each axis' part is that of a line."""
    line = position_embedding(8, (5,), (5,))
    plane = position_embedding(16, (3, 5), (3, 5)).reshape(3, 5, 16)
    np.testing.assert_array_equal(plane[1, :, :8], line)
    np.testing.assert_array_equal(plane[:, 2, 8:], position_embedding(8, (3,), (3,)))
    space = position_embedding(16, (2, 3, 4), (2, 3, 4))
    assert space.shape == (24, 16) and not np.any(space[:, 12:]) and len(np.unique(space, axis=0)) == 24


def test_arrays_of_another_rank_are_refused():
    t = jnp.float32([3])
    for net, inputs in (
        (UNet(**UNET, dims=3), (noise(1, 4, 4, 2), t)),
        (UNet(**UNET), (noise(1, 4, 4, 4, 2), t)),
        (Autoencoder(**STAGE, dims=1), (noise(1, 8, 8, 3),)),
        (Discriminator(8, 1, dims=3), (noise(1, 16, 16, 3),)),
        (DiT(1, 24, 2, 2, 4, in_channels=2, num_classes=None), (noise(1, 4, 4, 4, 2), t)),
    ):
        with pytest.raises(ValueError, match="spatial axes, but this network is of dims"):
            shapes(net, *inputs)
    for fields, message in (
        ({"dims": 4}, "dims=4: must be 1, 2 or 3"),
        ({"kernel_size": 2}, "must be odd"),
        ({"factorised_attention": True}, "three axes"),
        ({"dims": 3, "strides": (2, 2)}, "3 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            shapes(UNet(**UNET, **fields), noise(1, *[4] * fields.get("dims", 2), 2), t)


@pytest.mark.parametrize("padding", (0, 1))
@pytest.mark.parametrize("kernel_size", (1, 3, 5, 7))
def test_windows_of_every_size_halve(kernel_size, padding):
    net = Downsample("op", padding, 2, factors=2, kernel_size=kernel_size)
    assert jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((1, 12, 3)))[0].shape == (1, 6, 2)
    middle = jnp.zeros((1, 12, 1)).at[0, 6].set(1.0)  # seen by the window in whose middle half it lies
    one = Downsample("op", padding, 1, factors=2, kernel_size=kernel_size)
    params = jax.tree.map(jnp.ones_like, one.init(jax.random.key(0), middle))
    seen = np.flatnonzero(np.asarray(one.apply(params, middle))[0, :, 0] - 1)
    assert 3 in seen and np.abs(seen - 3).max() <= kernel_size // 4 + 1
