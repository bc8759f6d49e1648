"""Networks around the denoiser, beyond parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import (
    LPIPS,
    Autoencoder,
    ClassEmbedder,
    CLIPText,
    CLIPVision,
    Discriminator,
    DiT,
    MMDiT,
    SpatialRescaler,
    TransformerEmbedder,
    calibrate,
    clip_normalize,
    initialize,
    shapes,
)
from ldm_jax.models.conditioners.t5 import buckets
from ldm_jax.models.discriminator import moments
from ldm_jax.models.dit import position_embedding


def test_actnorm_is_calibrated_from_data():
    net = Discriminator(ndf=4, n_layers=2, use_actnorm=True)
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    params = initialize(net, jax.random.key(1), x)
    params = calibrate(net, params, x)
    _, seen = net.apply({"params": params}, x, capture_intermediates=True, mutable="intermediates")
    for name in ("main_3", "main_6"):
        found = moments(seen["intermediates"][name]["__call__"][0])
        np.testing.assert_allclose(found["mean"], 0, atol=1e-4)
        np.testing.assert_allclose(found["var"], 1, rtol=1e-3)
    with pytest.raises(ValueError, match="use_actnorm"):
        calibrate(Discriminator(), params, x)
    with pytest.raises(ValueError, match="too small for a discriminator of 3 layers"):
        shapes(Discriminator(), jnp.zeros((1, 8, 8, 3)))


def test_batch_statistics_are_global_under_sharding():
    net = Discriminator(ndf=4, n_layers=1)
    x = jax.random.normal(jax.random.key(0), (8, 16, 16, 3)) * jnp.arange(8.0).reshape(8, 1, 1, 1)
    params = initialize(net, jax.random.key(1), x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    run = jax.jit(lambda x: net.apply({"params": params}, x))
    np.testing.assert_allclose(run(split), run(x), atol=1e-4)


def test_lpips_of_equal_and_of_constant_images():
    """Zero for equal images; no NaN where features vanish, whose norm has an infinite derivative."""
    net = LPIPS((4, 4, 4, 4, 4))
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    params = initialize(net, jax.random.key(1), x, x)
    slope = jax.jit(jax.value_and_grad(lambda y, params: net.apply({"params": params}, x, y).sum()))
    assert float(slope(x, params)[0]) < 1e-12
    value, gradient = slope(0 * x, params | {"net": jax.tree.map(jnp.zeros_like, params["net"])})
    assert float(value) == 0 and bool(jnp.isfinite(gradient).all())
    with pytest.raises(ValueError, match="at least 16 x 16"):
        shapes(net, x[:, :8], x[:, :8])


def test_the_end_of_a_text():
    """The first end token, or, as the released configurations need, the first largest id."""
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = jnp.asarray([[18, 3, 19, 19, 19], [18, 4, 5, 6, 19]])
    net = CLIPText(**sizes, max_position_embeddings=5)
    params = initialize(net, jax.random.key(0), ids)
    for eos in (None, 2, 19):
        features = net.clone(eos_token_id=eos).apply({"params": params}, ids)
        np.testing.assert_array_equal(features.pooled, features.last[jnp.arange(2), jnp.asarray([2, 4])])
    assert features.embeds is None
    with pytest.raises(ValueError, match="6 tokens are more than 5"):
        shapes(net, jnp.zeros((1, 6), int))
    with pytest.raises(ValueError, match="hidden_act 'relu' is unknown"):
        shapes(net.clone(hidden_act="relu"), ids)


def test_clip_vision_takes_one_size():
    with pytest.raises(ValueError, match="resize them"):
        shapes(CLIPVision(num_hidden_layers=1), jnp.zeros((1, 64, 64, 3)))
    white = clip_normalize(jnp.ones((1, 1, 1, 3)))
    np.testing.assert_allclose(white.ravel(), [1.93, 2.07, 2.15], atol=0.01)


def test_positions_of_a_dit():
    """Columns come first, and a larger grid spans the positions of training."""
    table = position_embedding(8, (3, 5), (3, 3)).reshape(3, 5, 8)
    np.testing.assert_allclose(table[0, :, 0], np.sin(np.arange(5) * 3 / 5), atol=1e-6)
    np.testing.assert_allclose(table[:, 0, 4], np.sin(np.arange(3)), atol=1e-6)
    assert np.ptp(table[:, 0, :4]) > 0 and not np.any(np.ptp(table[..., :4], axis=0))


def test_mmdit_options_and_refusals():
    x, t = jnp.zeros((1, 8, 12, 3)), jnp.zeros(1)
    cond = {"context": jnp.zeros((1, 5, 6)), "vector": jnp.zeros((1, 4))}
    words = {"context": cond["context"]}
    net = MMDiT(2, 16, 2, 6, input_size=8, in_channels=3)
    params = initialize(net, jax.random.key(0), x, t, words)
    assert net.apply({"params": params}, x, t, words).shape == x.shape
    assert not {"y_embedder", "pos_embed"} & params.keys()
    assert "mlp" not in params["joint_blocks_1"]["context_block"] and "mlp" in params["joint_blocks_0"]["context_block"]
    for options, given, image, message in (
        ({}, cond, x, r"cond has \['context', 'vector'\]"),
        ({"pooled_dim": 4}, words, x, r"cond has \['context'\]"),
        ({}, words, x[:, :7], "sizes divisible by 2"),
        ({"num_heads": 3}, words, x, "must be divisible by num_heads 3"),
        ({"dual_attention_layers": (0, 2)}, words, x, "has 2, and there are 2 blocks, from 0"),
        ({"position_table": 5}, words, x, r"has 5 a side, enough for \[10, 10\] latents"),
    ):
        with pytest.raises(ValueError, match=message):
            shapes(net.clone(**options), image, t, given)


def test_a_table_of_positions_is_read_in_its_middle_and_not_learnt():
    x, t, words = jnp.ones((1, 4, 8, 3)), jnp.zeros(1), {"context": jnp.zeros((1, 2, 6))}
    net = MMDiT(2, 16, 2, 6, in_channels=3, position_table=6)
    params = initialize(net, jax.random.key(0), x, t, words)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)

    @jax.jit
    def loss(params):
        return jnp.square(net.apply({"params": params}, x, t, words)).sum()

    def moved(row, column):
        table = params["pos_embed"].reshape(6, 6, 16).at[row, column, 0].add(1.0).reshape(1, 36, 16)
        return float(loss(params | {"pos_embed": table})) != float(loss(params))

    assert [moved(row, 1) for row in range(6)] == [False, False, True, True, False, False]  # two rows of six, four columns
    assert [moved(2, column) for column in range(6)] == [False, True, True, True, True, False]
    assert not np.any(jax.grad(loss)(params)["pos_embed"])


def test_t5_tells_distances_in_buckets():
    """Of 8: four for keys up to a query, four for those after it; first one for a distance each, then for ever more."""
    found = buckets(12, 8, 8)
    assert found[0].tolist() == [0, 5, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7] and found[:4, 0].tolist() == [0, 1, 2, 2]


def test_dit_options_and_refusals():
    x, t, label = jnp.zeros((1, 8, 12, 3)), jnp.zeros(1), {"label": jnp.zeros(1, int)}
    net = DiT(depth=1, hidden_size=16, num_heads=2, in_channels=3, num_classes=None, learn_sigma=False)
    params = initialize(net, jax.random.key(0), x, t)
    assert net.apply({"params": params}, x, t).shape == x.shape and "y_embedder" not in params
    for options, cond, image, message in (
        ({}, label, x, r"cond has \['label'\]"),
        ({"num_classes": 4}, None, x, r"cond has \[\]"),
        ({}, None, x[:, :7], "sizes divisible by 2"),
        ({"num_heads": 3}, None, x, "must be divisible by num_heads 3"),
    ):
        with pytest.raises(ValueError, match=message):
            shapes(net.clone(**options), image, t, cond)


def test_conditioners_refuse():
    with pytest.raises(ValueError, match="looks up integers, but was given float32"):
        shapes(ClassEmbedder(4, 3), jnp.zeros(2))
    with pytest.raises(ValueError, match="78 tokens are more than max_seq_len 77"):
        shapes(TransformerEmbedder(8, 1), jnp.zeros((1, 78), int))
    with pytest.raises(ValueError, match="method 'area' is unknown"):
        shapes(SpatialRescaler(method="area"), jnp.zeros((1, 4, 4, 3)))
    labels = jnp.asarray([0, 7])
    out = ClassEmbedder(4, 3).apply({"params": {"embedding": {"embedding": jnp.ones((3, 4))}}}, labels)
    assert not jnp.isnan(out[0]).any() and jnp.isnan(out[1]).all()  # a label out of range does not pass for another


@pytest.mark.parametrize("options", [{"double_z": True}, {"double_z": False, "n_embed": 6}])
def test_autoencoder_in_half_precision_and_odd_sizes(options):
    net = Autoencoder(ch=8, ch_mult=(1, 1.5), num_res_blocks=1, attn_resolutions=(4,), resolution=8, z_channels=2,
                      embed_dim=2, norm_num_groups=4, **options)  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (1, 11, 6, 3))
    params = initialize(net, jax.random.key(1), x)
    run = jax.jit(lambda net, params, x: net.apply({"params": params}, x), static_argnums=0)
    exact, half = run(net, params, x), run(net.clone(dtype=jnp.bfloat16, remat=True), params, x)
    assert exact.shape == (1, 10, 6, 3) and exact.dtype == half.dtype == jnp.float32
    if not net.n_embed:  # a code may flip
        assert 0 < float(jnp.abs(half - exact).max()) < 0.1 * float(jnp.abs(exact).max())
