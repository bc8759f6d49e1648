"""Words to numbers and what is said about words that have none."""

import pickle

import numpy as np
import pytest

from ldm_jax.data.tokenizer import caption_texts, load_tokenizer, train_tokenizer

CAPTIONS = ["a red circle", "a blue square, small", "two Red circles and a ring"]


@pytest.fixture(params=["words", "wordpiece"])
def tokenizer(request):
    return train_tokenizer(CAPTIONS, request.param)


def test_layout(tokenizer):
    ids = tokenizer.encode(["a red circle", ""], 8)
    assert ids.shape == (2, 8) and ids.dtype == np.int32
    begin, end, pad = ids[1, 0], ids[1, 1], tokenizer.pad
    assert ids[1].tolist() == [begin, end] + [pad] * 6 and pad == 0
    assert ids[0, 0] == begin and ids[0, 4] == end and (ids[0, 5:] == pad).all()
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids[0]) == "a red circle" and tokenizer.decode(ids[1]) == ""


def test_case_and_punctuation(tokenizer):
    same = tokenizer.encode(["A RED circle", "a red  circle"], 8)
    assert np.array_equal(same[0], same[1])
    assert tokenizer.decode(tokenizer.encode(["a blue square,small"], 10)[0]) == "a blue square , small"


def test_deterministic_and_stored(tokenizer, tmp_path):
    kind = "wordpiece" if "wordpiece" in str(tokenizer._inner.model).lower() else "words"
    again = train_tokenizer(CAPTIONS, kind)
    tokenizer.save(tmp_path / "deep" / "tokenizer.json")
    for other in (again, load_tokenizer(tmp_path / "deep" / "tokenizer.json"), pickle.loads(pickle.dumps(tokenizer))):
        assert np.array_equal(other.encode(CAPTIONS, 12), tokenizer.encode(CAPTIONS, 12))


def test_unknown_words():
    words = train_tokenizer(CAPTIONS)
    with pytest.raises(ValueError, match=r"'rde' \(near: red\), 'elephant'; it knows ,, a, and, blue"):
        words.encode(["a rde elephant"], 8, strict=True)
    assert (words.encode(["a rde elephant"], 8) == words.unknown).sum() == 2
    assert words.decode(words.encode(["a elephant"], 8)[0]) == "a [UNK]"
    pieces = train_tokenizer(CAPTIONS, "wordpiece")
    with pytest.raises(ValueError, match="'zebra'"):
        pieces.encode(["a zebra"], 8, strict=True)
    assert (pieces.encode(["a bluered"], 12, strict=True) != pieces.unknown).all()  # made of known pieces


def test_too_long(tokenizer):
    with pytest.raises(ValueError, match="has 5 tokens, 2 more than the 3 that fit"):
        tokenizer.encode(["a red a red a"], 5, strict=True)
    before = tokenizer.truncated
    cut = tokenizer.encode(["a red a red a", "a red"], 5)
    assert tokenizer.truncated == before + 1
    assert tokenizer.decode(cut[0]) == "a red a" and cut[0, 4] == cut[1, 3]
    with pytest.raises(ValueError, match="length=1"):
        tokenizer.encode(["a"], 1)


def test_vocabulary_limit():
    small = train_tokenizer(["a a a b b c"], vocab_size=6)
    assert small.vocab_size == 6
    assert (small.encode(["a b c"], 5) == small.unknown).sum() == 1


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="kind='bpe'"):
        train_tokenizer(CAPTIONS, "bpe")
    with pytest.raises(ValueError, match="vocab_size=4"):
        train_tokenizer(CAPTIONS, vocab_size=4)
    with pytest.raises(ValueError, match="without words"):
        train_tokenizer(["", " "])
    with pytest.raises(ValueError, match="expected a list"):
        train_tokenizer(CAPTIONS).encode("a red circle", 8)
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="bad.json is not a tokenizer"):
        load_tokenizer(tmp_path / "bad.json")


def test_caption_texts():
    assert list(caption_texts([{"caption": "a"}, {"caption": ("b", "c")}])) == ["a", "b", "c"]
