"""The step's length as an input of the networks, and derivatives of them in forward mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import models

UNET = dict(
    in_channels=4, out_channels=4, model_channels=8, num_res_blocks=1, attention_resolutions=(1,), channel_mult=(1,),
    num_head_channels=4, use_spatial_transformer=True, context_dim=6, use_scale_shift_norm=True, norm_num_groups=4,
)  # fmt: skip
DIT = dict(depth=2, hidden_size=16, num_heads=2, input_size=4, num_classes=3, learn_sigma=False)
MMDIT = dict(depth=2, hidden_size=16, num_heads=2, input_size=4, in_channels=4, context_dim=6, pooled_dim=5)
NETWORKS = {
    "unet": (models.UNet, UNET, {"context": jnp.ones((2, 3, 6))}),
    "dit": (models.DiT, DIT, {"label": jnp.array([0, 3])}),
    "mmdit": (models.MMDiT, MMDIT, {"context": jnp.ones((2, 3, 6)), "vector": jnp.ones((2, 5))}),
    "dit_diffusers": (models.DiT, DIT | {"shared_embedder": False, "freq_shift": 1.0}, {"label": jnp.array([0, 3])}),
}
X = jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
T = jnp.array([100.0, 700.0])


def filled(shapes, seed=0):
    """Parameters none of which is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape) / max(x.shape[0], 4) ** 0.5, x.dtype), shapes)


@functools.cache
def made(name):
    make, fields, cond = NETWORKS[name]
    without, with_ = make(**fields), make(**fields, second_time=True)
    return without, with_, filled(models.shapes(with_, X, T, cond)), cond


def is_new(path):
    return any(key.key in models.STEP_EMBEDDINGS for key in path)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_not_told_is_what_it_was(name):
    without, with_, params, cond = made(name)
    leaves = jax.tree_util.tree_leaves_with_path
    old = {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves(models.shapes(without, X, T, cond))}
    new = {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves(params) if not is_new(path)}
    assert old == new and len(leaves(params)) > len(old)
    fresh = models.initialize(with_, jax.random.key(1), X, T, cond)
    added = [leaf for path, leaf in leaves(fresh) if is_new(path)]
    assert len(added) in (4, 4 * DIT["depth"]) and sum(bool(jnp.all(leaf == 0)) for leaf in added) >= len(added) / 2
    with pytest.raises(ValueError, match="takes no step's length"):
        jax.eval_shape(lambda: without.apply({"params": params}, X, T, cond, s=T))


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_start_from_nothing_and_count_later(name):
    """A fresh embedding of the step adds nothing, so the weights of a network without one can be gone on from."""
    without, with_, params, cond = made(name)
    zeroed = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if is_new(path) and any("2" in key.key for key in path[-2:]) else x, params
    )
    run = jax.jit(lambda params, s: with_.apply({"params": params}, X, T, cond, s=s))
    plain = jax.jit(lambda params: without.apply({"params": params}, X, T, cond))(params)
    zero, far = jnp.zeros(2), jnp.array([50.0, 700.0])
    np.testing.assert_allclose(run(zeroed, far), plain, rtol=1e-4, atol=1e-5)
    told = run(params, far)
    assert jnp.abs(told - run(params, zero)).max() > 1e-3
    not_told = jax.jit(lambda params: with_.apply({"params": params}, X, T, cond))(params)
    np.testing.assert_allclose(not_told, run(params, zero), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_forward_mode_is_the_difference(name):
    """Through norms, attention, embeddings: the derivative along (x, t, s) against central differences."""
    _, with_, params, cond = made(name)
    along = jax.random.normal(jax.random.key(5), X.shape), jnp.array([3.0, -2.0]), jnp.array([2.0, 5.0])
    at = X, T / 100, T / 200

    @jax.jit
    def both(h):
        f = lambda x, t, s: with_.apply({"params": params}, x, t, cond, s=s)  # noqa: E731
        near = [f(*(a + sign * h * d for a, d in zip(at, along))) for sign in (1, -1)]
        return jax.jvp(f, at, along)[1], (near[0] - near[1]) / (2 * h)

    slope, difference = both(3e-3)
    scale = jnp.abs(slope).max()
    np.testing.assert_allclose(slope / scale, difference / scale, atol=1e-2)
