"""What drawn sentences are worth: numbers that can be said beforehand."""

import types

import numpy as np
import pytest

from ldm_jax import build
from ldm_jax.data.sentences import KINDS, Sentences, kinds_of
from ldm_jax.data.tokenizer import train_tokenizer
from ldm_jax.evaluation.language import NGrams
from ldm_jax.scoring import language
from ldm_jax.scoring.drawing import Conditions
from ldm_jax.scoring.language import Scorer, baselines, measure
from ldm_jax.scoring.request import Request
from ldm_jax.training import sharding
from tests.test_habits import config_of

TRAIN = Sentences("train", train=400, validation=200)
HELD_OUT = Sentences("validation", train=400, validation=200)


def words(source):
    return [[*text[:-1].split(), text[-1]] for text in source.texts]


@pytest.fixture(scope="module")
def scorer():
    return NGrams(words(HELD_OUT)[::2], 3)


def test_real_sentences_are_valid_new_and_of_their_kind(scorer):
    real = words(HELD_OUT)[1::2]
    kinds = [KINDS[HELD_OUT[i]["label"]] for i in range(1, 200, 2)]
    found = measure(real, scorer, words(TRAIN), kinds, grammar=True)
    assert found["valid"] == found["right_kind"] == found["novel"] == found["different"] == 1
    assert 0 < found["distinct_1"] < found["distinct_2"] < found["distinct_3"] <= 1
    turned = [KINDS[(KINDS.index(kind) + 1) % 4] for kind in kinds]
    assert measure(real, scorer, words(TRAIN), turned, grammar=True)["right_kind"] == 0


def test_copies_are_not_new_and_one_sentence_is_not_many(scorer):
    copied = measure(words(TRAIN)[:50], scorer, words(TRAIN), grammar=True)
    assert copied["novel"] == 0 and copied["different"] == copied["valid"] == 1
    same = measure(words(HELD_OUT)[:1] * 50, scorer, words(TRAIN))
    assert same["different"] == 1 / 50 and same["novel"] == 1 and same["distinct_1"] <= 0.02
    assert "valid" not in same and "right_kind" not in same


def test_what_stands_beside_is_worse_in_what_it_should_be(scorer):
    beside = baselines(words(HELD_OUT)[1::2], words(TRAIN), 100, seed=0)
    found = {name: measure(some, scorer, words(TRAIN), grammar=True) for name, some in beside.items()}
    assert list(found) == ["held-out text", "shuffled text", "3-gram model"]
    assert found["held-out text"]["valid"] == 1 and found["shuffled text"]["valid"] < 0.1
    assert 0.2 < found["3-gram model"]["valid"] < 0.9  # it knows neighbours, and forgets the subject
    perplexity = [each["perplexity"] for each in found.values()]
    assert perplexity[1] > 2 * max(perplexity[0], perplexity[2])
    again = baselines(words(HELD_OUT)[1::2], words(TRAIN), 100, seed=0)
    assert again == beside and np.all([len(some) == 100 for some in beside.values()])


def test_settings_of_an_earlier_call_stay(monkeypatch, tmp_path):
    scored = types.SimpleNamespace(
        rows={"validation": TRAIN}, held_out=words(HELD_OUT), training=words(TRAIN), known=[],
        medium=types.SimpleNamespace(length=8), measure=lambda some: {"valid": 1.0},
        of=lambda drawn, conditions: ({"valid": 0.5}, ["a line"]),
    )  # fmt: skip
    monkeypatch.setattr(language, "Scorer", lambda *_: scored)
    monkeypatch.setattr(language, "Conditions", lambda *_: types.SimpleNamespace(source=TRAIN))
    monkeypatch.setattr(language, "Drawer", lambda *_: None)
    monkeypatch.setattr(language, "draw", lambda *_: None)
    config = {"name": "lines", "sampling": {"sampler": "ddim", "steps": 2, "guidance_scale": 1.0, "grid": "trailing"}}
    ldm = types.SimpleNamespace(config=config, condition=None, params={"w": np.ones(1)}, specification=None)

    def settings(scales, num=4, seed=0):
        request = Request(num=num, guidance_scales=scales, seed=seed)
        options = {"model": {"model": "lines"}, "mesh": sharding.make_mesh(), "say": lambda text: None}
        found = language.evaluate_texts(ldm, request, tmp_path, **options)["results"]
        assert [result["setting"] for result in found[-3:]] == ["held-out text", "shuffled text", "3-gram model"]
        return [result["setting"] for result in found[:-3]]

    assert settings((1.0, 2.0)) == ["ddim-2-g1", "ddim-2-g2"]
    assert settings((3.0, 1.0)) == ["ddim-2-g1", "ddim-2-g2", "ddim-2-g3"]
    assert settings((2.0,), seed=1) == ["ddim-2-g2"]  # other sentences
    assert settings((1.0,), num=3, seed=1) == ["ddim-2-g1"]


def test_both_halves_of_the_validation_set_are_alike(tmp_path):
    """Kinds come in turn: what takes every second sentence has two of the four."""
    train_tokenizer(TRAIN.texts).save(tmp_path / "words.json")
    config = config_of("sentences", data__examples=(400, 200), data__tokenizer=str(tmp_path / "words.json"))
    scorer = Scorer(config, build.make_condition(config))
    for half in (scorer.known, scorer.held_out):
        assert len(half) == 100 and {kinds_of(" ".join(words))[0] for words in half} == set(KINDS)
    found = scorer.measure(scorer.held_out)
    assert found["valid"] == found["novel"] == 1


@pytest.mark.parametrize("num", [1000, 250, 4100])
def test_conditions_are_of_all_kinds_in_their_shares(num):
    """Kinds take turns in the data: every fourth row is of the same one."""
    config = config_of("flowers64")  # of classes
    source = Sentences("validation", train=4, validation=4000)
    condition = build.make_condition(config, class_names=(*KINDS, "a fifth"))
    labels = Conditions(config, condition, source, num).labels()
    assert abs(np.bincount(labels, minlength=4) / num - 0.25).max() < 4 * (0.25 * 0.75 / num) ** 0.5
