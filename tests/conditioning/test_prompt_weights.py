"""Weights in prompts."""

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.conditioning import prompt_weights as prompts
from tests.tiny import model


def test_parts():
    assert prompts.parts("a red circle") == [("a red circle", 1.0)]
    assert prompts.parts("a (red:1.4), (blue star : .5)x") == [("a", 1), ("red", 1.4), (",", 1), ("blue star", 0.5), ("x", 1)]
    assert prompts.parts("(red:2)") == [("red", 2.0)]
    assert prompts.parts("(style: oil, at 10:30:1.3) (a:b:2") == [("style: oil, at 10:30", 1.3), ("(a:b:2", 1.0)]
    assert prompts.parts("") == []
    assert prompts.parts("a (round) one: 3") == [("a (round) one: 3", 1.0)]
    with pytest.raises(ValueError, match="one weight inside another"):
        prompts.parts("((a:1.2) b:1.3)")


@pytest.mark.parametrize(
    "prompt", ["(ratio 16:9) photo", "( :3 )", "kick-off 10:30)", "(a:-1)", "(a:1.2.3)", "(a:0)", "(a:7)", "smile :)"]
)
def test_what_is_no_weight_is_text(prompt):
    assert prompts.parts(prompt) == [(prompt, 1.0)]


def test_a_backslash_makes_a_parenthesis_plain():
    assert prompts.parts(r"a \(red:1.4\) star") == [("a (red:1.4) star", 1.0)]
    assert prompts.parts(r"a (blue \) :1.5) star") == [("a", 1), ("blue )", 1.5), ("star", 1)]


def test_weights_are_of_tokens():
    tokenize = model("text").condition.tokenize
    plain, weights = prompts.weighted(["a (red:1.5) circle", "(a blue:0.5) star", "a star"], tokenize)
    assert plain == ["a red circle", "a blue star", "a star"]
    one = 1.0  # begin, three words, end, pad
    np.testing.assert_array_equal(
        weights, np.float32([[one, one, 1.5, one, one, one], [one, 0.5, 0.5, one, one, one], [one] * 6])
    )
    assert prompts.weighted(["a star", "(red:1.0) star"], tokenize)[1] is None


def test_weighing_keeps_the_magnitude():
    context = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    weights = jnp.asarray([[1, 2, 1, 1, 1], [1, 1, 1, 1, 1]], jnp.float32)
    out = prompts.weigh(context, weights)
    np.testing.assert_allclose(jnp.abs(out).mean((1, 2)), jnp.abs(context).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(out[1], context[1], rtol=1e-6)
    ratio = out[0] / context[0]
    np.testing.assert_allclose(ratio[1] / ratio[0], 2.0, rtol=1e-4)


def test_embed_weighs():
    ldm = model("text")
    same, more = (ldm.embed(ldm.params, [prompt])["context"] for prompt in ("a red circle", "a (red:2) circle"))
    ratio = np.asarray(more / same)[0]
    np.testing.assert_allclose(ratio[2], 2 * ratio[1], rtol=1e-3)
    with pytest.raises(ValueError, match="3 tokens|tokens, "):
        ldm.embed(ldm.params, ["a (red:2) circle a red circle"])
