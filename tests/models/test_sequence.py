"""The autoencoder of sequences, and the diffusion transformer with a context."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import models

FIELDS = {"vocab_size": 9, "length": 6, "latents": 3, "embed_dim": 4, "width": 16, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def text():
    module = models.TextAutoencoder(**FIELDS)
    return module, models.initialize(module, jax.random.key(0), jnp.zeros((1, 6, 1)))


def test_shapes_and_what_depends_on_what(text):
    module, params = text
    tokens = jnp.array([[2, 4, 5, 3, 0, 0]] * 7).at[jnp.arange(1, 7), jnp.arange(6)].set(8)[..., None]  # one place changed each

    @jax.jit
    def run(params, tokens):
        moments = module.apply({"params": params}, tokens, method="encode")
        return moments, module.apply({"params": params}, moments[..., :4], method="decode")

    moments, scores = run(params, tokens.astype(jnp.float32))
    assert moments.shape == (7, 3, 8) and scores.shape == (7, 6, 9) and moments.dtype == scores.dtype == jnp.float32
    changed = np.abs(moments[1:] - moments[:1]).max(-1)
    assert (changed > 1e-6).all()  # every latent sees every place
    drawn = models.TextAutoencoder.drawn(scores)
    assert drawn.shape == (7, 6, 1) and drawn.dtype == jnp.float32
    np.testing.assert_array_equal(drawn[..., 0], np.asarray(scores).argmax(-1))


@pytest.mark.parametrize(
    "change, said",
    [({"latents": 4}, "length 6 must be a multiple of latents 4"), ({"heads": 3}, "width 16 must be divisible by heads 3")],
)
def test_what_does_not_fit_is_said(change, said):
    with pytest.raises(ValueError, match=said):
        models.shapes(models.TextAutoencoder(**FIELDS | change), jnp.zeros((1, 6, 1)))


def test_other_lengths_are_refused(text):
    module, params = text
    for method, x, said in (
        ("encode", jnp.zeros((1, 5, 1)), r"not \[B, 6, 1\]"),
        ("decode", jnp.zeros((1, 3, 5)), r"\[B, 3, 4\]"),
    ):
        with pytest.raises(ValueError, match=said):
            module.apply({"params": params}, x, method=method)


def dit(**fields):
    known = {"depth": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 1, "input_size": 3, "in_channels": 4, "dims": 1}
    return models.DiT(**{**known, "learn_sigma": False, "num_classes": None, **fields})


def test_a_transformer_sees_its_context():
    network = dit(context_dim=5)
    x, t = jnp.ones((2, 3, 4)), jnp.full(2, 0.5)
    cond = {"context": jnp.stack([jnp.ones((7, 5)), -jnp.ones((7, 5))])}
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.05 * rng.standard_normal(leaf.shape), jnp.float32), models.shapes(network, x, t, cond)
    )
    out = network.apply({"params": params}, x, t, cond)
    assert out.shape == x.shape and network.out_channels == 4 and np.abs(out[0] - out[1]).max() > 1e-6
    plain = set(models.shapes(dit(), x, t))
    assert set(params) == plain | {"context_embedder"}  # nothing else has another name


@pytest.mark.parametrize(
    "fields, cond, said",
    [
        ({"context_dim": 5}, {}, r"cond has \[\]"),
        ({}, {"context": jnp.zeros((1, 2, 5))}, '"context" if it has context_dim'),
        ({"context_dim": 5, "num_classes": 3}, {"context": jnp.zeros((1, 2, 5))}, r"cond has \['context'\]"),
        ({"context_dim": 5, "dims": 3, "factorised_attention": True}, {"context": jnp.zeros((1, 2, 5))}, "context_dim=0"),
    ],
)
def test_a_wrong_condition_is_refused(fields, cond, said):
    x = jnp.zeros((1, *[3] * fields.get("dims", 1), 4))
    with pytest.raises(ValueError, match=said):
        models.shapes(dit(**fields), x, jnp.zeros(1), cond)
