"""Networks over several devices: the numbers of one device, under the ambient mesh alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax.models import Autoencoder, DiT, MMDiT, TransformerEmbedder, UNet, initialize
from ldm_jax.models.layers import Conv, Dense
from ldm_jax.models.partition import current, in_parts
from ldm_jax.primitives import placement

NETWORKS = {
    "unet": (
        UNet(4, 4, 16, 1, (2,), (1, 2), num_head_channels=8, use_spatial_transformer=True, context_dim=8, norm_num_groups=4),
        lambda B: (normal(B, 8, 8, 4), jnp.linspace(0, 9, B), {"context": normal(B, 5, 8)}),
        {},
    ),
    "dit": (
        DiT(depth=2, hidden_size=32, num_heads=4, input_size=8, num_classes=3),
        lambda B: (normal(B, 8, 8, 4), jnp.linspace(0, 9, B), {"label": jnp.arange(B) % 3}),
        {},
    ),
    "blocks in a loop": (
        DiT(depth=2, hidden_size=32, num_heads=4, input_size=8, num_classes=3, scan_blocks=True),
        lambda B: (normal(B, 8, 8, 4), jnp.linspace(0, 9, B), {"label": jnp.arange(B) % 3}),
        {},
    ),
    "text beside": (
        MMDiT(2, 32, 4, 8, input_size=8, in_channels=4, pooled_dim=6, qk_norm=True, dual_attention_layers=(0,)),
        lambda B: (normal(B, 8, 8, 4), jnp.linspace(0, 9, B), {"context": normal(B, 5, 8), "vector": normal(B, 6)}),
        {},
    ),
    "autoencoder": (
        Autoencoder(
            in_channels=3, out_ch=3, resolution=16, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), z_channels=4,
            embed_dim=4, norm_num_groups=4,
        ),  # fmt: skip
        lambda B: (normal(B, 16, 16, 3),),
        {"method": "encode"},
    ),
}


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def held(mesh, params):
    """Parameters where the rules put them."""

    def one(path, x):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.device_put(x, NamedSharding(mesh, placement.spec(mesh, path, x.shape)))

    return jax.tree_util.tree_map_with_path(one, params)


@pytest.mark.parametrize(
    "name, axes",
    [(name, (2, 2, 2)) for name in NETWORKS if name not in ("dit", "text beside")]
    + [
        pytest.param(name, axes, marks=pytest.mark.slow)
        for name in NETWORKS if "loop" not in name for axes in ((8, 1, 1), (2, 4, 1))
    ]
    + [pytest.param(name, (2, 2, 2), marks=pytest.mark.slow) for name in ("dit", "text beside")],
)
def test_several_devices_give_the_numbers_of_one(name, axes, monkeypatch):
    monkeypatch.setattr(placement, "MIN_SIZE", 64)  # so that small kernels are split, and gathered, as large ones are
    network, inputs, options = NETWORKS[name]
    arguments = inputs(8)
    params = initialize(network, jax.random.key(0), *arguments)
    params = jax.tree.map(lambda x: x + 0.05 * normal(*x.shape), params)  # no layer is zero

    def loss(params, *arguments):
        return jnp.square(network.apply({"params": params}, *arguments, **options)).mean()

    whole = jax.jit(jax.value_and_grad(loss))(params, *arguments)
    mesh = jax.make_mesh(axes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    split = jax.tree.map(lambda x: jax.device_put(x, rows), arguments)
    seen = []

    def watched(params, *arguments):
        seen.append(current())
        return loss(params, *arguments)

    with jax.set_mesh(mesh):
        spread = jax.jit(jax.value_and_grad(watched))(held(mesh, params), *split)
    assert seen[0].batch(8) == ("data", "fsdp") and seen[0].heads(4) == "tensor"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), whole, jax.device_get(spread))


@pytest.mark.parametrize("layer", [Dense(256, dtype=jnp.bfloat16), Conv(32, dtype=jnp.bfloat16)])
def test_a_kernel_is_gathered_in_the_type_that_is_computed_in(layer):
    mesh = jax.make_mesh((2, 4, 1), placement.AXES, axis_types=(AxisType.Auto,) * 3)
    x = normal(8, 8, 8, 256)
    params = initialize(layer, jax.random.key(0), x)
    rows = NamedSharding(mesh, placement.ROWS)

    def loss(params, x):
        return jnp.square(layer.apply({"params": params}, x)).mean()

    with jax.set_mesh(mesh):
        placed = held(mesh, params)
        assert "fsdp" in placed["kernel"].sharding.spec
        placement_of = jax.tree.map(lambda x: x.sharding, placed)
        step = jax.jit(jax.grad(loss), in_shardings=(placement_of, rows), out_shardings=placement_of)
        lowered = step.lower(placed, x).as_text()
        _, tangent = jax.jit(lambda p, x: jax.jvp(loss, (p, x), (p, x)))(placed, jax.device_put(x, rows))
    # the program asks for the whole kernel as bfloat16, and never as float32
    size = "x".join(map(str, params["kernel"].shape))
    asked = [line for line in lowered.splitlines() if "sharding_constraint" in line and f"tensor<{size}x" in line]
    assert asked and all(f"{size}xbf16" in line for line in asked)
    np.testing.assert_allclose(tangent, jax.jvp(loss, (params, x), (params, x))[1], rtol=2e-2)


def test_a_table_that_is_split_does_not_split_the_layers_after_it():
    """What is looked up goes back to the batch's rows before the first layer, and so after every layer."""
    mesh = jax.make_mesh((1, 8, 1), placement.AXES, axis_types=(AxisType.Auto,) * 3)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 4096, (16, 7)), jnp.int32)
    net = TransformerEmbedder(n_embed=64, n_layer=3, vocab_size=4096, max_seq_len=7, heads=2, dim_head=8)
    params = initialize(net, jax.random.key(0), tokens)
    with jax.set_mesh(mesh):
        placed = held(mesh, params)
        assert "fsdp" in placed["transformer"]["token_emb"]["embedding"].sharding.spec
        where = jax.tree.map(lambda x: x.sharding, placed)
        rows = NamedSharding(mesh, placement.ROWS)
        lowered = jax.jit(lambda p, x: net.apply({"params": p}, x), in_shardings=(where, rows)).lower(placed, tokens).as_text()
    asked = [line for line in lowered.splitlines() if "sharding_constraint" in line and "tensor<16x7x64xf32>" in line]
    assert len(asked) == 1 + 3 and all('[{"data", "fsdp"}, {}, {}]' in line for line in asked), asked


@pytest.mark.parametrize("axes", [None, (8, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_parts_give_the_numbers_of_the_whole(axes, rows):
    x, weight = normal(24, 4, 4, 3), normal(3, 5)
    seen = []

    def function(weight, x):
        seen.append(len(x))
        return jnp.tanh(x @ weight).sum(1)

    def parts(weight, x):
        return in_parts(function, weight, x, rows)

    whole = function(weight, x)
    if axes is None:
        part, here = jax.jit(parts)(weight, x), 24
    else:
        mesh = jax.make_mesh(axes, placement.AXES, axis_types=(AxisType.Auto,) * 3)
        with jax.set_mesh(mesh):
            part = jax.jit(parts)(weight, jax.device_put(x, NamedSharding(mesh, placement.ROWS)))
        here = 24 // (axes[0] * axes[1])
    whole_batch = 24 if axes is None or rows >= here else here  # where nothing is cut, the compiler splits the whole
    assert set(seen[1:]) == {rows if rows < here else whole_batch}
    np.testing.assert_allclose(part, whole, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda weight: in_parts(function, weight, x, rows).sum())(weight)
    np.testing.assert_allclose(gradient, jax.grad(lambda weight: function(weight, x).sum())(weight), rtol=1e-4, atol=1e-5)
