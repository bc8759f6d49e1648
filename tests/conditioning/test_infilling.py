"""Sentences with holes: what a user writes, what training hides, what is kept."""

import numpy as np
import pytest

from ldm_jax.conditioning import Setting, make_condition
from ldm_jax.conditioning.infilling import with_holes
from ldm_jax.data.tokenizer import TEXT_TOKENIZER, train_tokenizer

TOKENIZER = train_tokenizer(["the small dog sleeps near a cat ."])
SECTION = {"kind": "infill", "vocab_size": 20, "n_embed": 8, "n_layer": 1, "heads": 2, "dim_head": 4}
HOLE = 20


@pytest.fixture
def condition():
    return make_condition(SECTION, Setting((8,), 4, 4, tokenizer=TOKENIZER))


def ids(text):
    return [int(i) for i in TOKENIZER.encode_one(text, 12) if i > 3]


def test_what_a_user_writes(condition):
    found = condition.parse(["the ___ dog sleeps.", "the small ...", "___", "..."])
    the, dog, sleeps, stop, small = (ids(word)[0] for word in ("the", "dog", "sleeps", ".", "small"))
    np.testing.assert_array_equal(
        found,
        [
            [2, the, HOLE, dog, sleeps, stop, 3, 0],
            [2, the, small, HOLE, HOLE, HOLE, HOLE, HOLE],
            [2, HOLE, 3, 0, 0, 0, 0, 0],
            [2, *[HOLE] * 7],
        ],
    )
    assert [condition.say(row) for row in found] == ["the ___ dog sleeps .", "the small ...", "___", "..."]
    np.testing.assert_array_equal(condition.parse([condition.say(row) for row in found]), found)
    assert (condition.null == HOLE).all() and condition.null.shape == (1, 8)


@pytest.mark.parametrize(
    "text, said",
    [
        ("the dog sleeps.", "has no hole"),
        ("the ___ wolf.", "words that no training caption had: 'wolf'"),
        ("the ___ dog near the small cat sleeps.", "has 9 words and holes, 3 more than fit"),
        ("the small dog near the small cat sleeps ___", "3 more than fit"),
        (3, "a sentence is a str, this is int"),
    ],
)
def test_what_can_not_be_filled_is_said(condition, text, said):
    with pytest.raises(ValueError, match=said):
        condition.parse([text])


def test_tokens_as_arrays(condition):
    condition.check_inputs(condition.parse(["the ___ dog sleeps."]))
    for tokens, said in (
        (np.full((1, 8), HOLE + 1), "from 21 to 21: they are numbered 0 to 20"),
        (np.zeros((1, 7), int), r"int32 \[B, 8\], these are int64 \[1, 7\]"),
        (np.zeros((1, 8)), "these are float64"),
    ):
        with pytest.raises(ValueError, match=said):
            condition.check_inputs(tokens)


def test_without_a_vocabulary_it_is_said():
    bare = make_condition(SECTION, Setting((8,), 4, 4))
    with pytest.raises(ValueError, match="has no text_tokenizer.json"):
        bare.parse(["a ___"])
    small = make_condition(SECTION | {"vocab_size": 5}, Setting((8,), 4, 4, tokenizer=TOKENIZER))
    with pytest.raises(ValueError, match="config.conditioner.vocab_size=5: the vocabulary has"):
        small.parse(["a ___"])


def test_a_hole_that_would_be_a_word_is_refused_before_training(condition, tmp_path):
    TOKENIZER.save(tmp_path / TEXT_TOKENIZER)
    condition.learn(None, tmp_path)
    small = make_condition(SECTION | {"vocab_size": 5}, Setting((8,), 4, 4))
    with pytest.raises(ValueError, match="config.conditioner.vocab_size=5: the vocabulary has 12 tokens"):
        small.learn(None, tmp_path)


def test_training_hides_words_and_tails_and_changes_nothing_else():
    tokens = TOKENIZER.encode_one("the small dog sleeps near a cat.", 12)[:, None].astype(np.float32)
    rng, shares, tails = np.random.default_rng(0), [], 0
    for _ in range(400):
        known = with_holes({"image": tokens}, rng, HOLE)["known"]
        hidden = known == HOLE
        assert known.dtype == np.int32 and (known[~hidden] == tokens[~hidden, 0]).all() and known[0] == 2
        tails += hidden[-1]
        if not hidden[-1]:
            assert not hidden[9:].any()  # where it ends is known
            shares.append(hidden[1:9].mean())
    assert 0.18 < tails / 400 < 0.32
    assert 0.42 < np.mean(shares) < 0.58 and np.std(shares) > 0.25  # few holes and many, of uniform probability


def test_kept_words_by_hand(condition):
    known = condition.parse(["the ___ dog sleeps.", "the ...", "..."])  # of the third nothing is known, and nothing kept
    drawn = np.stack([TOKENIZER.encode_one(text, 8) for text in ("the small cat sleeps.", "the dog.", "the dog.")])[..., None]
    assert condition.kept_words(known, drawn) == {"kept": 4 / 5, "kept_all": 1 / 2}
    assert condition.kept_words(known[2:], drawn[2:]) == {"kept": 0, "kept_all": 0}
