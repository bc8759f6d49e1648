"""The grammar of `sentences`: what it draws it reads, and what breaks one of its rules it doesn't."""

import numpy as np
import pytest

from ldm_jax.data.sentences import KINDS, LONGEST, Sentences, draw, kinds_of, words_of
from ldm_jax.data.source import MissingSplit


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_read_as_that_kind_alone(kind):
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = draw(rng, kind)
        assert kinds_of(text) == (kind,)
        assert len(text[:-1].split()) + 1 <= LONGEST


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("the dog sleeps.", "the dog sleep."),  # number of the verb
        ("two dogs near the tree sleep.", "two dogs near the tree sleeps."),  # the nearest noun has another one
        ("the dogs that sing sleep.", "the dogs that sings sleep."),
        ("every cat waits.", "every cats wait."),  # number of the noun
        ("does the fox run?", "do the fox run?"),
        ("do the foxes run?", "do the foxes run."),  # its mark
        ("please wait!", "wait please!"),
        ("my sister does not sleep.", "my sister does not sleeps."),
        ("the small dog watches a bird.", "the dog small watches a bird."),
        ("the dog watches a bird.", "the dog watches."),  # no object
        ("the child carries a lamp.", "the child carrys a lamp."),
    ],
)
def test_one_rule_broken(right, wrong):
    assert len(kinds_of(right)) == 1 and kinds_of(wrong) == ()


def test_spacing_and_case_do_not_count_and_nothing_is_no_sentence():
    assert kinds_of("The dog  sleeps .") == kinds_of("the dog sleeps.") == ("statement",)
    assert kinds_of("") == kinds_of(".") == kinds_of("dog") == ()


def test_splits_are_reproducible_different_and_apart():
    train, again = (Sentences("train", train=200, validation=80) for _ in range(2))
    held_out = Sentences("validation", train=200, validation=80)
    assert train.texts == again.texts and len(set(train.texts)) == 200
    assert not set(train.texts) & set(held_out.texts) and len(held_out) == 80
    assert kinds_of(train[6]["text"]) == (train.info.class_names[train[6]["label"]],)
    assert {word for text in train.texts for word in text[:-1].split()} <= set(words_of())
    with pytest.raises(MissingSplit, match="no split 'test'"):
        Sentences("test", train=2, validation=2)
