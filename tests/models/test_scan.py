"""Equal transformer blocks in one loop: parameters and numbers of blocks written out, and a program that doesn't grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import DiT, MMDiT, UNet, initialize


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def dit(depth, **options):
    settings = {"hidden_size": 32, "num_heads": 4, "input_size": 8, "num_classes": 3} | options
    return DiT(depth=depth, **settings)


def mmdit(depth, **options):
    """Of the blocks the last, which is another, stands alone."""
    settings = {"hidden_size": 32, "num_heads": 4, "input_size": 8, "in_channels": 4, "context_dim": 8} | options
    return MMDiT(depth=depth + 1, qk_norm=True, **settings)


def unet(depth, **options):
    settings = {"num_head_channels": 8, "use_spatial_transformer": True, "context_dim": 8, "norm_num_groups": 4} | options
    return UNet(4, 4, 16, 1, (1,), (1, 2), transformer_depth=depth, **settings)


X, T = normal(2, 8, 8, 4), jnp.array([3.0, 700.0])
LABELS, WORDS = {"label": jnp.array([0, 2])}, {"context": normal(2, 5, 8)}
CASES = {
    "dit": (dit, LABELS, {}),
    "own embedders": (dit, LABELS, {"shared_embedder": False}),
    "a context": (dit, WORDS, {"num_classes": None, "context_dim": 8}),
    "recomputed": (dit, LABELS, {"remat": "blocks"}),
    "products kept": (dit, LABELS, {"remat": "dots"}),
    "films": (dit, LABELS, {"dims": 3, "input_size": 4}),
    "mmdit": (mmdit, WORDS, {}),
    "mmdit of other blocks": (mmdit, WORDS, {"dual_attention_layers": (1,), "position_table": 6}),
    "unet": (unet, WORDS, {}),
    "recomputed unet": (unet, WORDS, {"remat": "blocks"}),
}


FAST = ("dit",)  # the others compile as much again


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES])
def test_a_loop_gives_the_numbers_of_blocks_written_out(name):
    make, cond, options = CASES[name]
    x = normal(2, 4, 4, 4, 4) if options.get("dims") == 3 else X
    plain, loop = make(2, **options), make(2, **options, scan_blocks=True)
    params = initialize(plain, jax.random.key(0), x, T, cond)
    same = initialize(loop, jax.random.key(0), x, T, cond)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    params = jax.tree.map(lambda x: x + 0.05 * normal(*x.shape), params)  # no layer is zero

    def gradient(net):
        return jax.jit(jax.value_and_grad(lambda p: jnp.square(net.apply({"params": p}, x, T, cond)).mean()))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), gradient(plain), gradient(loop))


@pytest.mark.parametrize("make, cond", [(dit, LABELS), (unet, WORDS)])
def test_the_program_of_a_loop_does_not_grow_with_the_number_of_blocks(make, cond):
    def products(depth, scan_blocks):
        net = make(depth, scan_blocks=scan_blocks)
        params = jax.eval_shape(lambda: initialize(net, jax.random.key(0), X, T, cond))
        text = jax.jit(lambda p: net.apply({"params": p}, X, T, cond)).lower(params).as_text()
        return text.count("stablehlo.dot_general")

    assert products(6, True) == products(3, True) < products(3, False) < products(6, False)


def test_blocks_that_take_turns_are_no_loop():
    net = dit(2, dims=3, input_size=4, factorised_attention=True, scan_blocks=True)
    with pytest.raises(ValueError, match="scan_blocks=False"):
        initialize(net, jax.random.key(0), normal(2, 4, 4, 4, 4), T, LABELS)
