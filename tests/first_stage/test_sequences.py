"""What the first stage of text learns: closed forms, and that it learns it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax import models
from ldm_jax.first_stage import FirstStage, latents, sequences
from ldm_jax.training.state import Step, from_loss

END = 3
TOKENS = jnp.array([[2, 5, 6, 3, 0, 0], [2, 4, 3, 3, 5, 3]])


def scores_of(tokens, vocabulary=8, sure=30.0):
    return sure * jax.nn.one_hot(tokens, vocabulary)


def test_a_sentence_ends_with_its_first_end():
    np.testing.assert_array_equal(sequences.live(TOKENS, END), [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    assert sequences.live(jnp.array([[2, 4, 5]]), END).all()  # without an end all of it counts


def test_what_stands_behind_the_end_counts_for_nothing():
    said = TOKENS.at[0, 4].set(7).at[1, 3].set(1)
    found = sequences.measures(scores_of(said), TOKENS, END)
    np.testing.assert_allclose(found["token_accuracy"], 1)
    np.testing.assert_allclose(found["exact"], 1)
    np.testing.assert_allclose(found["nll"], 0, atol=1e-5)
    wrong = sequences.measures(scores_of(TOKENS.at[1, 1].set(7)), TOKENS, END)
    np.testing.assert_allclose(wrong["token_accuracy"], [1, 2 / 3])
    np.testing.assert_allclose(wrong["exact"], [1, 0])
    np.testing.assert_allclose(wrong["nll"], [0, 10], atol=1e-5)  # 30 of 3 places


def test_who_knows_nothing_has_the_perplexity_of_the_vocabulary():
    found = sequences.measures(jnp.zeros((2, 6, 8)), TOKENS, END)
    np.testing.assert_allclose(np.exp(found["nll"]), 8, rtol=1e-6)


class Fixed:
    """Moments and scores that are given: what the loss makes of them can be said by hand."""

    def __init__(self, moments, scores):
        self.known = {"encode": moments, "decode": scores}

    def apply(self, variables, x, *, train, method, rngs):
        return self.known[method] + 0 * variables["params"]


def test_the_loss_by_hand():
    moments = jnp.concatenate([jnp.full((2, 2, 3), 2.0), jnp.zeros((2, 2, 3))], -1)  # six numbers of N(2, 1): KL 2 each
    loss_fn = sequences.make_loss(Fixed(moments, jnp.zeros((2, 6, 8))), kl_weight=0.5, end=END)
    step = Step(jnp.int32(0), {}, jnp.arange(2), 2)
    batch = {"image": TOKENS[..., None].astype(jnp.float32)}
    loss, metrics = loss_fn({"autoencoder": jnp.zeros(())}, batch, jax.random.key(0), step)
    assert float(metrics["nll"]) == pytest.approx((4 + 3) / 2 * np.log(8), rel=1e-6)
    assert float(metrics["kl"]) == pytest.approx(12)
    assert float(loss) == pytest.approx(3.5 * np.log(8) + 6, rel=1e-6)


def test_sentences_have_one_length():
    module = models.TextAutoencoder(vocab_size=8, length=6, latents=2, embed_dim=4, width=16, depth=1, heads=2)
    stage = FirstStage(module, (3,), 4, (6,))
    assert stage.latent_shape(6) == (2, 4)
    with pytest.raises(ValueError, match="size 9: all sentences of this model have 6 tokens"):
        stage.latent_shape(9)


def test_it_learns_a_few_sentences_by_heart():
    module = models.TextAutoencoder(vocab_size=8, length=6, latents=2, embed_dim=4, width=16, depth=1, heads=2)
    tokens = jnp.array([[2, 4, 5, 6, 3, 0], [2, 6, 4, 3, 0, 0], [2, 7, 3, 0, 0, 0], [2, 5, 5, 5, 5, 3]])
    batch, optimizer = {"image": tokens[..., None].astype(jnp.float32)}, optax.adam(optax.cosine_decay_schedule(5e-3, 600))
    params = {"autoencoder": models.initialize(module, jax.random.key(0), batch["image"])}
    gradient = from_loss(sequences.make_loss(module, 1e-3, END))

    @jax.jit
    def learn(params, key):
        def update(carry, key):
            params, state = carry
            found = gradient(params, batch, key, Step(jnp.int32(0), {}, jnp.arange(4), 4))
            updates, state = optimizer.update(found.grads, state)
            return (optax.apply_updates(params, updates), state), found.loss

        (params, _), losses = jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(key, 600))
        moments = module.apply({"params": params["autoencoder"]}, batch["image"], method="encode")
        scores = module.apply({"params": params["autoencoder"]}, latents.mode(moments), method="decode")
        return losses, sequences.measures(scores, tokens, END)

    losses, found = learn(params, jax.random.key(1))
    assert losses[-1] < 0.2 * losses[0]
    np.testing.assert_array_equal(found["exact"], 1)
