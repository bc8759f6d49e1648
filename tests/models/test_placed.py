"""What words say of places and times at once: `context_waves` of the U-Net."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dct

from ldm_jax.models import UNet, initialize
from ldm_jax.models.transformer import PlacedContext, cosines

FIELDS = {
    "in_channels": 2, "out_channels": 2, "model_channels": 8, "num_res_blocks": 1, "attention_resolutions": (1,),
    "channel_mult": (1,), "num_head_channels": 4, "use_spatial_transformer": True, "context_dim": 5, "norm_num_groups": 4,
}  # fmt: skip


def noise(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("side", [3, 8])
def test_waves_are_those_of_the_discrete_cosine_transform(side):
    ours = np.asarray(cosines(side, 3))
    np.testing.assert_allclose(ours.T, dct(np.eye(side), norm="ortho", axis=0)[:3] * np.sqrt(side), atol=1e-6)
    np.testing.assert_allclose(ours.T @ ours / side, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("space", [(6,), (4, 6), (3, 4, 6)])
def test_a_field_is_the_sum_of_products_of_waves(space):
    module, x, context = PlacedContext(2), noise(0, 2, *space, 3), noise(1, 2, 4, 5)
    count = 2 ** len(space)
    kernel = np.asarray(noise(2, 5, count * 3))
    got = module.apply({"params": {"proj": {"kernel": kernel}}}, x, context) - x
    features = (np.asarray(context).mean(1) @ kernel).reshape(2, *[2] * len(space), 3)
    wanted = np.zeros(x.shape)
    for place in np.ndindex(*space):
        for waves in np.ndindex(*[2] * len(space)):
            factor = 1.0
            for at, side, wave in zip(place, space, waves):
                factor *= np.cos(np.pi * (at + 0.5) * wave / side) * (np.sqrt(2) if wave else 1)
            wanted[(slice(None), *place)] += factor * features[(slice(None), *waves)]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_unet_begins_as_without(dims):
    more = {"dims": 3, "strides": (1, 2, 2), "kernel_size": (1, 3, 3), "factorised_attention": True} if dims == 3 else {}
    plain, placed = UNet(**FIELDS, **more), UNet(**FIELDS, **more, context_waves=3)
    x, t, cond = noise(0, 1, *(3, 4, 4)[-dims:], 2), jnp.float32([3]), {"context": noise(1, 1, 4, 5)}
    params = initialize(plain, jax.random.key(0), x, t, cond)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * noise(leaf.size, *leaf.shape), params)
    fresh = initialize(placed, jax.random.key(0), x, t, cond)
    new = {name for name in fresh if name not in params}
    assert new and all(name.endswith("_placed") for name in new)
    both = {name: params.get(name, part) for name, part in fresh.items()}
    outs = [jax.jit(net.apply)({"params": held}, x, t, cond) for net, held in ((placed, both), (plain, params))]
    np.testing.assert_array_equal(*outs)

    def moved(kernels):
        with_them = both | {name: {"proj": {"kernel": kernels[name]}} for name in new}
        return jnp.sum(placed.apply({"params": with_them}, x, t, cond) ** 2)

    grads = jax.jit(jax.grad(moved))({name: both[name]["proj"]["kernel"] for name in new})
    assert all(float(jnp.abs(grad).max()) > 0 for grad in grads.values())


def test_without_words_there_are_none():
    fields = FIELDS | {"use_spatial_transformer": False, "context_dim": None}
    inputs = noise(0, 1, 4, 4, 2), jnp.zeros(1), None

    def parameters(waves):
        return jax.eval_shape(lambda: initialize(UNet(**fields, context_waves=waves), jax.random.key(0), *inputs))

    assert parameters(3) == parameters(0)
