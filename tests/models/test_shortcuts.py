"""Shortcuts past changes of resolution, and first stages of high compression that are made of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.convolution import folded, unfolded

STAGE = {"ch": 8, "ch_mult": (1, 2, 4), "num_res_blocks": 1, "attn_resolutions": (), "resolution": 16, "z_channels": 4,
         "embed_dim": 4, "attn_type": "none", "norm_num_groups": 4, "shortcuts": True}  # fmt: skip


def numbers(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


def test_folded_by_hand():
    """Channels first, then rows and columns of the block, as `torch.nn.functional.pixel_unshuffle` has them."""
    x = jnp.asarray([[[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]]])  # [1, 2, 2, 2]
    np.testing.assert_array_equal(folded(x, 2, 8)[0, 0, 0], [1, 2, 3, 4, 10, 20, 30, 40])
    np.testing.assert_array_equal(folded(x, 2, 4)[0, 0, 0], [1.5, 3.5, 15, 35])
    np.testing.assert_array_equal(folded(x, (1, 2), 2)[0, :, 0], [[1.5, 15], [3.5, 35]])
    np.testing.assert_array_equal(folded(x, 1, 1)[0, ..., 0], [[5.5, 11], [16.5, 22]])


def test_unfolded_by_hand():
    """`torch.repeat_interleave` over channels, then `torch.nn.functional.pixel_shuffle`."""
    x = jnp.asarray([[[[1.0, 2.0]]]])
    np.testing.assert_array_equal(unfolded(x, 2, 1)[0, ..., 0], [[1, 1], [2, 2]])
    np.testing.assert_array_equal(unfolded(x, (1, 2), 2)[0, 0], [[1, 2], [1, 2]])
    np.testing.assert_array_equal(unfolded(x, 1, 4)[0, 0, 0], [1, 1, 2, 2])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unfolded_undoes_folded_where_nothing_is_averaged(dims):
    for factors in itertools.product((1, 2), repeat=dims):
        x = numbers(2, *(4, 6, 2)[:dims], 3)
        assert (unfolded(folded(x, factors, 3 * int(np.prod(factors))), factors, 3) == x).all()


def test_folded_drops_what_is_left_over():
    x = numbers(1, 5, 7, 2)
    np.testing.assert_array_equal(folded(x, 2, 8), folded(x[:, :4, :6], 2, 8))


def test_channels_that_do_not_fit_one_another():
    """Means as torch.nn.AdaptiveAvgPool1d has them, and repeats as evenly as can be."""
    x = jnp.asarray([[[1.0, 2.0, 4.0, 8.0, 16.0]]])
    np.testing.assert_allclose(folded(x, 1, 3)[0, 0], [1.5, 14 / 3, 12])
    np.testing.assert_array_equal(unfolded(x[..., :3], 1, 5)[0, 0], [1, 1, 2, 2, 4])
    np.testing.assert_array_equal(folded(x[..., :2], 1, 4)[0, 0], [1, 1, 2, 2])


def test_blocks_must_be_as_many_as_levels():
    with pytest.raises(ValueError, match="one for each of 3 levels"):
        jax.eval_shape(Autoencoder(**STAGE | {"num_res_blocks": (1, 1)}).init, jax.random.key(0), numbers(1, 16, 16, 3))


def test_without_convolutions_latents_are_means_and_come_back():
    """With every kernel of the changes of resolution and of the latents' ends at zero, what the first convolution made is only
    folded, and unfolded again."""
    net = Autoencoder(**STAGE | {"num_res_blocks": (0, 0, 0), "ch_mult": (1, 2, 8), "use_quant_conv": False,
                                 "use_post_quant_conv": False})  # fmt: skip
    x = numbers(2, 16, 16, 3)
    params = net.init(jax.random.key(1), x)["params"]
    kernel = params["encoder"]["conv_in"]["kernel"]
    params = jax.tree.map(jnp.zeros_like, params)
    params["encoder"]["conv_in"]["kernel"] = kernel
    first = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = folded(folded(folded(first, 2, 16), 2, 64), 1, 8)
    np.testing.assert_allclose(net.apply({"params": params}, x, method="encode"), expected, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2])
def test_a_first_stage_that_shrinks_by_thirty_two(dims):
    fields = STAGE | {"ch_mult": (1, 2, 4, 4, 8, 8), "num_res_blocks": (0, 1, 1, 1, 1, 1), "dims": dims, "strides": (2,) * dims,
                      "z_channels": 16, "embed_dim": 16}  # fmt: skip
    net = Autoencoder(**fields)
    assert net.factors == (32,) * dims
    image = jax.ShapeDtypeStruct((2, *(64,) * dims, 3), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), image)
    moments = jax.eval_shape(lambda v, x: net.apply(v, x, method="encode"), variables, image)
    assert moments.shape == (2, *(2,) * dims, 32)
    latents = jax.ShapeDtypeStruct((2, *(2,) * dims, 16), jnp.float32)
    assert jax.eval_shape(lambda v, z: net.apply(v, z, method="decode"), variables, latents).shape == image.shape
    assert "block_0" not in variables["params"]["encoder"]["down_0"] and "block_1" not in variables["params"]["decoder"]["up_1"]
