"""LoRA as a transform of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import apply_lora, init_lora, scale_lora

KEY = jax.random.key(0)
SHAPES = {
    "a": {"to_q": {"kernel": jnp.ones((6, 4))}, "conv": {"kernel": jnp.ones((3, 3, 6, 5)), "bias": jnp.ones(5)}},
    "to_q": {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)},
}


def filled(tree):
    """`up` drawn as well."""
    return jax.tree.map(lambda x: x + jax.random.normal(KEY, x.shape), tree)


def test_a_scale_is_one_number():
    """One a picture was taken as one a column where a kernel has as many."""
    factors = filled(init_lora(KEY, SHAPES, 2, ("to_q",)))
    scales = jnp.linspace(0.0, 1.0, 4)
    with pytest.raises(ValueError, match="scale of shape .4,.: .* jax.vmap gives one a picture"):
        apply_lora(SHAPES, factors, scales)
    each = jax.vmap(lambda scale: apply_lora(SHAPES, factors, scale))(scales)["to_q"]["kernel"]
    product = factors["to_q"]["kernel"]["down"] @ factors["to_q"]["kernel"]["up"]
    np.testing.assert_allclose(each, 1 + scales[:, None, None] * product, atol=1e-5)


def test_a_new_one_changes_nothing_and_has_rank_parameters():
    factors = init_lora(KEY, SHAPES, 2, ("to_q", "conv"))
    assert jax.tree.map(jnp.shape, factors) == {
        "a": {
            "to_q": {"kernel": {"down": (6, 2), "up": (2, 4)}},
            "conv": {"kernel": {"down": (3, 3, 6, 2), "up": (2, 5)}},
        },
        "to_q": {"kernel": {"down": (4, 2), "up": (2, 4)}},
    }
    jax.tree.map(np.testing.assert_array_equal, apply_lora(SHAPES, factors), SHAPES)
    assert float(jnp.abs(factors["to_q"]["kernel"]["down"]).max()) <= 0.5
    with pytest.raises(ValueError, match="no layer is called nothing; this network's layers are conv, to_q"):
        init_lora(KEY, SHAPES, 2, ("nothing",))
    with pytest.raises(ValueError, match="no layer is called to_out.0; this"):  # as diffusers calls to_out_0
        init_lora(KEY, SHAPES, 2, ("to_q", "to_out.0"))
    with pytest.raises(ValueError, match="a LoRA changes layers; name some of conv, to_q"):
        init_lora(KEY, SHAPES, 2, ())


def test_the_change_is_the_product_and_a_convolution_through_fewer_channels():
    factors = filled(init_lora(KEY, SHAPES, 2, ("to_q", "conv")))
    changed = jax.jit(apply_lora)(SHAPES, factors, 0.5)
    pair = factors["a"]["conv"]["kernel"]
    x = jax.random.normal(KEY, (2, 7, 7, 6))

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    through = conv(x, SHAPES["a"]["conv"]["kernel"]) + 0.5 * conv(x, pair["down"]) @ pair["up"]
    np.testing.assert_allclose(conv(x, changed["a"]["conv"]["kernel"]), through, atol=1e-4)
    assert changed["to_q"]["bias"] is not None and changed["a"]["conv"]["bias"].shape == (5,)
    one = apply_lora(SHAPES, scale_lora(factors, 0.5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, changed)
    twice = apply_lora(apply_lora(SHAPES, factors, 0.2), factors, 0.3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), twice, changed)


def test_kernels_keep_their_type_and_strangers_are_refused():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), SHAPES)
    factors = filled(init_lora(KEY, SHAPES, 2, ("to_q",)))
    changed = apply_lora(half, factors)
    assert {x.dtype for x in jax.tree.leaves(changed)} == {jnp.dtype(jnp.bfloat16)}
    with pytest.raises(ValueError, match="has no b: this LoRA belongs to another model"):
        apply_lora(SHAPES, {"b": factors["a"]})
    with pytest.raises(ValueError, match="for a kernel of shape"):
        apply_lora(SHAPES, {"to_q": factors["a"]["to_q"]})
