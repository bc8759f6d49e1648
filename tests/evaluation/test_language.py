"""Measures of sentences: closed forms."""

import math

import numpy as np
import pytest

from ldm_jax.evaluation import language
from ldm_jax.evaluation.language import NGrams


def words(*texts):
    return [text.split() for text in texts]


def test_distinct():
    assert language.distinct(words("a b a b"), 1) == 0.5
    assert language.distinct(words("a b a b"), 2) == 2 / 3
    assert language.distinct(words("a b", "c d"), 2) == 1
    assert math.isnan(language.distinct(words("a"), 2))


def test_novelty_and_difference():
    drawn = words("a b", "a b", "c", "d")
    assert language.novelty(drawn, words("a b", "d e")) == 0.5
    assert language.different(drawn) == 0.75
    for measure in (language.different, lambda none: language.novelty(none, [])):
        with pytest.raises(ValueError, match="no sentences"):
            measure([])


def test_unigrams_by_hand():
    """Two different words after the empty history, each once, and one more of the vocabulary: V = 2 + 1."""
    model = NGrams(words("a"), order=1)
    assert model.probability("a", []) == pytest.approx((1 + 2 / 3) / 4)
    assert model.probability("never seen", []) == pytest.approx((2 / 3) / 4)


def test_bigrams_by_hand():
    model = NGrams(words("a b", "a"), order=2)  # counts: a 2, b 1, end 2
    base = {"a": (2 + 3 / 4) / 8, "b": (1 + 3 / 4) / 8}
    assert model.probability("b", ["a"]) == pytest.approx((1 + 2 * base["b"]) / 4)  # after a: b, end
    assert model.probability("a", ["a"]) == pytest.approx(2 * base["a"] / 4)
    assert model.probability("b", ["never seen"]) == pytest.approx(base["b"])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one(order):
    model = NGrams(words("a b c", "a c b a", "b"), order)
    for history in ([], ["a"], ["a", "b"], ["c", "x", "b"], ["x"] * 5):
        padded = [language.BEGIN] * (order - 1) + history
        total = sum(model.probability(word, padded) for word in [*model.words, "x"])
        assert total == pytest.approx(1, abs=1e-12)


def test_perplexity_of_what_was_always_said_goes_to_one_and_of_equal_choices_to_their_number():
    assert NGrams(words("a b") * 5000, 3).perplexity(words("a b")) == pytest.approx(1, abs=1e-2)
    options = words(*"abcdefgh")
    found = NGrams(options * 500, 2).nll(["c"])
    assert np.exp(found[0]) == pytest.approx(8, rel=0.02) and np.exp(found[1]) == pytest.approx(1, rel=0.02)


def test_order_is_what_a_model_of_words_alone_can_not_see():
    real = words("a b c", "b c a") * 50
    mixed = language.shuffled(real, np.random.default_rng(0))
    assert sorted(map(sorted, mixed)) == sorted(map(sorted, real)) and mixed != real
    assert NGrams(real, 1).perplexity(mixed) == pytest.approx(NGrams(real, 1).perplexity(real))
    assert NGrams(real, 3).perplexity(mixed) > 2 * NGrams(real, 3).perplexity(real)


def test_what_an_n_gram_model_draws_has_its_n_grams():
    training = words("a b c", "a c", "b a c")
    model, rng = NGrams(training, 3), np.random.default_rng(0)
    known = {gram for sentence in training for gram in language.ngrams(sentence, 3)}
    drawn = [model.draw(rng, 10) for _ in range(50)]
    assert {gram for sentence in drawn for gram in language.ngrams(sentence, 3)} <= known
    assert language.novelty(drawn, training) == 0  # so few words: each sentence is one of these
    assert all(len(model.draw(rng, 1)) <= 1 for _ in range(5))


def test_what_can_not_be_learnt_from():
    with pytest.raises(ValueError, match="needs sentences"):
        NGrams([], 3)
    with pytest.raises(ValueError, match="order=0"):
        NGrams(words("a"), 0)
