"""Initialisation: the rules, determinism, and that the fast path is the same thing everywhere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ldm_jax.models import Autoencoder, Discriminator, DiT, TransformerEmbedder, UNet, count, initialize, shapes

UNET = UNet(
    in_channels=4,
    out_channels=4,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(1,),
    channel_mult=(1, 2),
    num_heads=2,
    use_spatial_transformer=True,
    context_dim=16,
)
INPUTS = jnp.zeros((2, 8, 8, 4)), jnp.zeros(2), {"context": jnp.zeros((2, 3, 16))}


@pytest.fixture(scope="module")
def params():
    return initialize(UNET, jax.random.key(0), *INPUTS)


def test_deterministic_and_the_same_under_jit(params):
    def again(key):
        return initialize(UNET, key, *INPUTS)

    jitted = jax.jit(again)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, again(jax.random.key(0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, jitted)
    other = again(jax.random.key(1))
    assert not np.array_equal(other["out_0"]["scale"], other["time_embed_0"]["bias"])
    assert not np.array_equal(other["time_embed_0"]["kernel"], params["time_embed_0"]["kernel"])


def test_shapes_agree_with_flax_and_eval_shape(params):
    flax = jax.eval_shape(UNET.init, jax.random.key(0), *INPUTS)["params"]
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), flax)
    for tree in (params, shapes(UNET, *INPUTS), jax.eval_shape(lambda key: initialize(UNET, key, *INPUTS), jax.random.key(0))):
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) == expected
    assert count(params) == count(flax) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_pytorch_defaults(params):
    """Uniform within 1/sqrt(fan_in), weights and biases alike; every kernel its own numbers."""
    kernel, bias = params["time_embed_2"]["kernel"], params["time_embed_2"]["bias"]
    for leaf in (kernel, bias):
        assert float(jnp.abs(leaf).max()) <= 128**-0.5
    np.testing.assert_allclose(kernel.std(), 128**-0.5 / 3**0.5, rtol=0.02)
    assert float(jnp.abs(kernel.mean())) < 1e-3
    conv = params["input_blocks_1_0"]["in_layers_2"]["kernel"]
    np.testing.assert_allclose(conv.std(), (9 * 32) ** -0.5 / 3**0.5, rtol=0.03)
    leaves = [np.ravel(leaf)[:4] for leaf in jax.tree.leaves(params) if leaf.size >= 4 and leaf.std() > 0]
    assert len(np.unique(np.stack(leaves), axis=0)) == len(leaves)


def test_a_new_unet_predicts_zero(params):
    """Zero-initialized: last convolutions of residual blocks, outputs of attention, the last convolution."""
    block = params["middle_block_0"]
    for layer in (block["out_layers_3"], params["middle_block_1"]["proj_out"], params["out_2"]):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(layer))
    assert np.any(block["in_layers_2"]["kernel"]) and np.all(block["in_layers_0"]["scale"] == 1)
    x = jax.random.normal(jax.random.key(2), INPUTS[0].shape)
    assert not np.any(jax.jit(UNET.apply)({"params": params}, x, *INPUTS[1:]))


def test_other_networks_start_as_their_references():
    vq = Autoencoder(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), resolution=8, z_channels=3, embed_dim=3,
                     n_embed=50, double_z=False)  # fmt: skip
    codebook = initialize(vq, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["quantize"]["embedding"]["embedding"]
    assert 0.9 / 50 < float(jnp.abs(codebook).max()) <= 1 / 50

    disc = initialize(Discriminator(ndf=16), jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    np.testing.assert_allclose(disc["main_5"]["kernel"].std(), 0.02, rtol=0.03)
    np.testing.assert_allclose(disc["main_6"]["scale"].mean(), 1.0, atol=0.02)
    np.testing.assert_allclose(disc["main_6"]["scale"].std(), 0.02, rtol=0.3)

    net = DiT(depth=2, hidden_size=64, num_heads=2, num_classes=10)
    dit = initialize(net, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), {"label": jnp.zeros(1, int)})
    assert all(not np.any(leaf) for leaf in jax.tree.leaves([dit["final_layer"], dit["blocks_0"]["adaLN_modulation_1"]]))
    assert float(jnp.abs(dit["blocks_0"]["attn"]["qkv"]["kernel"]).max()) <= (6 / (64 + 192)) ** 0.5
    np.testing.assert_allclose(dit["t_embedder"]["mlp_0"]["kernel"].std(), 0.02, rtol=0.03)


@pytest.mark.parametrize(
    "options, std, places", [({}, 0.02, 0.02), ({"token_std": 0.3}, 0.3, 0.02), ({"position_std": 0.1}, 0.02, 0.1)]
)
def test_words_and_positions_begin_as_long_as_they_are_asked_to(options, std, places):
    net = TransformerEmbedder(n_embed=64, n_layer=1, vocab_size=500, max_seq_len=40, heads=2, dim_head=8, **options)
    params = initialize(net, jax.random.key(0), jnp.zeros((1, 4), int))["transformer"]
    np.testing.assert_allclose(params["token_emb"]["embedding"].std(), std, rtol=0.03)
    np.testing.assert_allclose(params["pos_emb"]["emb"]["embedding"].std(), places, rtol=0.1)


@pytest.mark.parametrize("kernel, reach", [(0, 0), (1, 0), (3, 1), (7, 3)])
def test_a_convolution_over_words_reaches_half_its_window_to_both_sides(kernel, reach):
    net = TransformerEmbedder(n_embed=16, n_layer=0, vocab_size=50, max_seq_len=12, conv_kernel=kernel)
    tokens = jnp.arange(12)[None]
    params = initialize(net, jax.random.key(0), tokens)
    assert ("conv" in params["transformer"]) == bool(kernel)
    words, other = (net.apply({"params": params}, t) for t in (tokens, tokens.at[0, 5].set(40)))
    assert np.flatnonzero(np.any(words != other, -1)[0]).tolist() == list(range(5 - reach, 6 + reach))


@pytest.mark.parametrize(
    "options, least, most",
    [({}, 0, 0.1), ({"position_std": 0.3}, 0.2, 1), ({"conv_kernel": 3}, 0.2, 1), ({"conv_kernel": 7}, 0.2, 1)],
)
def test_captions_of_the_same_words_are_told_apart(options, least, most):
    """As sets of vectors, which is how a network attends to them; beside a caption of other words."""
    sentences = ("a red circle above a blue square", "a blue circle above a red square", "one pink star under two green rings")
    words = sorted({word for sentence in sentences for word in sentence.split()})
    tokens = jnp.array([[1 + words.index(word) for word in sentence.split()] + [0] * 5 for sentence in sentences])
    net = TransformerEmbedder(64, 1, vocab_size=64, max_seq_len=12, heads=4, dim_head=32, token_std=0.3, **options)

    def apart(one, other):
        distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
        return distances.min(0).mean() + distances.min(1).mean()

    ratios = []
    for seed in range(3):
        right, exchanged, another = net.apply({"params": initialize(net, jax.random.key(seed), tokens)}, tokens)
        ratios.append(apart(right, exchanged) / apart(right, another))
    assert all(least < ratio < most for ratio in ratios), ratios


def test_sharded_initialisation(params):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ("data",)))
    shardings = jax.tree.map(lambda leaf: split if leaf.shape[0] % 8 == 0 else whole, params)
    sharded = jax.jit(lambda key: initialize(UNET, key, *INPUTS), out_shardings=shardings)(jax.random.key(0))
    assert sharded["time_embed_0"]["kernel"].sharding == split
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, sharded)


def test_plain_flax_init_follows_the_rules():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Autoencoder(ch=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), resolution=8, z_channels=2,
                               embed_dim=2, norm_num_groups=4)(x)  # fmt: skip

    params = Net().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]["Autoencoder_0"]
    kernel = params["encoder"]["conv_in"]["kernel"]
    assert 0 < float(jnp.abs(kernel).max()) <= 27**-0.5
