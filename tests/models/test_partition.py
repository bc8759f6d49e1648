"""Networks over several devices: the numbers of one device, under the ambient mesh alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax.models import Autoencoder, DiT, UNet, initialize
from ldm_jax.models.partition import current

NETWORKS = {
    "unet": (
        UNet(4, 4, 16, 1, (1,), (1, 2), num_head_channels=8, use_spatial_transformer=True, context_dim=8, norm_num_groups=4),
        lambda B: (normal(B, 8, 8, 4), jnp.linspace(0, 9, B), {"context": normal(B, 5, 8)}),
        {},
    ),
    "dit": (
        DiT(depth=2, hidden_size=32, num_heads=4, input_size=8, num_classes=3),
        lambda B: (normal(B, 8, 8, 4), jnp.linspace(0, 9, B), {"label": jnp.arange(B) % 3}),
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


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
@pytest.mark.parametrize("name", NETWORKS)
def test_several_devices_give_the_numbers_of_one(name, axes):
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
        spread = jax.jit(jax.value_and_grad(watched))(jax.device_put(params, NamedSharding(mesh, P())), *split)
    assert seen[0].batch(8) == ("data", "fsdp") and seen[0].heads(4) == "tensor"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), whole, jax.device_get(spread))
