"""The U-Net beyond parity: its options, any size, precision, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import Autoencoder, UNet, initialize, shapes, text_time_vector
from ldm_jax.models.transformer import AttentionBlock

SMALL = {
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 8,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2, 2),
    "num_head_channels": 8,
    "norm_num_groups": 4,
}
TINY = SMALL | {"channel_mult": (1,), "attention_resolutions": (1,)}


def randomized(net, *inputs):
    """Parameters without the zeros that hide most of a new network."""
    params = initialize(net, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), params)


def images(*shape):
    return jax.random.normal(jax.random.key(2), shape), jnp.linspace(0.0, 999.0, shape[0])


@pytest.mark.parametrize("options", [{}, {"resblock_updown": True}, {"downsample_padding": 0}, {"conv_resample": False}])
def test_odd_and_oblong_sizes(options):
    net, (x, t) = UNet(**SMALL, **options), images(2, 13, 7, 3)
    params = randomized(net, x, t)
    out = jax.jit(net.apply)({"params": params}, x, t)
    assert out.shape == x.shape and bool(jnp.isfinite(out).all())


def test_embeddings_of_labels_and_vectors():
    (x, t), label, vector = images(2, 8, 8, 3), jnp.asarray([3, 0]), jnp.ones((2, 6))
    cases = (
        ({"num_classes": 5}, {"label": label}, {"label": 1 - label.clip(0, 1)}),
        ({"num_classes": "sequential", "adm_in_channels": 6}, {"vector": vector}, {"vector": 2 * vector}),
        ({"num_classes": "continuous"}, {"vector": vector[:, :1]}, {"vector": 3 * vector[:, :1]}),
    )
    for options, cond, other in cases:
        net = UNet(**TINY, **options)
        params = randomized(net, x, t, cond)
        run = jax.jit(net.apply)
        assert float(jnp.abs(run({"params": params}, x, t, cond) - run({"params": params}, x, t, other)).max()) > 1e-3


def test_per_level_values():
    """Lists of equal values are the value; lists of different ones give every level its own."""
    (x, t), cond = images(1, 8, 8, 3), {"context": jnp.ones((1, 2, 5))}
    fields = SMALL | {"use_spatial_transformer": True, "context_dim": 5, "attention_resolutions": (1, 2, 4)}
    one, equal = UNet(**fields), {"num_res_blocks": (1, 1, 1), "transformer_depth": (1, 1, 1)}
    several = one.clone(**equal, disable_self_attentions=(False, False, False))
    assert shapes(one, x, t, cond) == shapes(several, x, t, cond)

    varied = UNet(**fields | {"num_head_channels": -1}, num_heads=(1, 2, 4), transformer_depth=(1, 2, 3),
                  transformer_depth_middle=2, disable_self_attentions=(True, False, False))  # fmt: skip
    tree = shapes(varied, x, t, cond)
    blocks = {name: sum(key.startswith("transformer_blocks") for key in tree[name]) for name in tree if name.endswith("_1")}
    assert blocks["input_blocks_1_1"] == 1 and blocks["input_blocks_3_1"] == 2 and blocks["input_blocks_5_1"] == 3
    assert blocks["middle_block_1"] == 2 and blocks["output_blocks_0_1"] == 3
    assert tree["input_blocks_1_1"]["transformer_blocks_0"]["attn1"]["to_k"]["kernel"].shape == (5, 8)
    assert tree["input_blocks_3_1"]["transformer_blocks_0"]["attn1"]["to_k"]["kernel"].shape == (16, 16)


def test_orders_of_qkv():
    """The two orders are one function of permuted parameters."""
    x, heads, width = jax.random.normal(jax.random.key(0), (2, 3, 5, 12)), 3, 4
    legacy, new = (AttentionBlock(heads, order, num_groups=4) for order in (False, True))
    params = randomized(legacy, x)

    def reorder(leaf):
        return leaf.reshape(*leaf.shape[:-1], heads, 3, width).swapaxes(-3, -2).reshape(leaf.shape)

    moved = params | {"qkv": jax.tree.map(reorder, params["qkv"])}
    ours = legacy.apply({"params": params}, x)
    np.testing.assert_allclose(new.apply({"params": moved}, x), ours, atol=1e-5)
    assert float(jnp.abs(new.apply({"params": params}, x) - ours).max()) > 1e-3


def test_remat_and_half_precision_and_dropout():
    x, t = images(2, 8, 8, 3)
    net = UNet(**TINY, dropout=0.5)
    params = randomized(net, x, t)

    def loss(params, net, key=None):
        rngs = None if key is None else {"dropout": key}
        return jnp.square(net.apply({"params": params}, x, t, train=key is not None, rngs=rngs)).mean()

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain, recomputed = gradient(params, net), gradient(params, net.clone(remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, recomputed)
    jaxpr = str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, net.clone(remat=True)))
    assert "checkpoint" in jaxpr or "remat" in jaxpr

    half = net.clone(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(initialize(half, jax.random.key(0), x, t))} == {jnp.dtype("float32")}
    out, exact = (jax.jit(n.apply)({"params": params}, x, t) for n in (half, net))
    assert out.dtype == jnp.float32  # as x
    assert 1e-4 < float(jnp.abs(out - exact).max() / jnp.abs(exact).max()) < 0.05

    dropped = jax.jit(loss, static_argnums=1)
    first, again, other = (float(dropped(params, net, jax.random.key(seed))) for seed in (0, 0, 1))
    assert first == again and len({first, other, float(plain[0])}) == 3


def test_refusals():
    x, t = images(1, 8, 8, 3)

    def call(cond=None, x=x, **options):
        jax.eval_shape(UNet(**SMALL | options).init, jax.random.key(0), x, t, cond)

    with pytest.raises(ValueError, match=r"lacks \['context'\]"):
        call(use_spatial_transformer=True, context_dim=4)
    with pytest.raises(ValueError, match=r"should not have \['text'\]"):
        call({"text": x})
    with pytest.raises(ValueError, match="'context'] is 5 wide, but the U-Net takes 4"):
        call({"context": jnp.zeros((1, 2, 5))}, use_spatial_transformer=True, context_dim=4)
    with pytest.raises(ValueError, match="have 4 channels, but in_channels is 3"):
        call({"concat": x[..., :1]})
    with pytest.raises(ValueError, match="num_head_channels 5 does not divide 16"):
        call(num_head_channels=5)
    with pytest.raises(ValueError, match="needs one value per level, 3"):
        call(num_res_blocks=(1, 2))
    with pytest.raises(ValueError, match="needs num_heads or num_head_channels"):
        call(num_head_channels=-1)
    vae = {
        "ch": 8,
        "ch_mult": (1,),
        "num_res_blocks": 1,
        "attn_resolutions": (),
        "resolution": 8,
        "z_channels": 2,
        "embed_dim": 2,
    }
    with pytest.raises(ValueError, match="double_z=True with n_embed=4"):
        jax.eval_shape(Autoencoder(**vae, n_embed=4).init, jax.random.key(0), x)
    with pytest.raises(ValueError, match="attn_type 'linear' is unknown"):
        jax.eval_shape(Autoencoder(**vae, attn_type="linear").init, jax.random.key(0), x)


def test_text_time_vector():
    vector = text_time_vector(jnp.ones((2, 10)), jnp.asarray([[512.0, 512, 0, 0, 512, 512]] * 2))
    assert vector.shape == (2, 10 + 6 * 256)
    np.testing.assert_array_equal(vector[:, 10 + 2 * 256 : 10 + 2 * 256 + 128], 1)  # cosines of zero
