"""Words to numbers and what is said about words that have none."""

import pickle
import unicodedata

import numpy as np
import pytest
import tokenizers

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
    for text, said in (("a red " * 5000, "10000 tokens"), ("".join(f"ab{i} " for i in range(2000)), "'ab8'.*, ...;")):
        with pytest.raises(ValueError, match=said) as error:  # a book is not said again
            tokenizer.encode([text], 5, strict=True)
        assert len(str(error.value)) < 1000
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
    with pytest.raises(FileNotFoundError, match="tokenizer is missing. Copy it"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="bad.json is not a tokenizer"):
        load_tokenizer(tmp_path / "bad.json")


def test_caption_texts():
    assert list(caption_texts([{"caption": "a"}, {"caption": ("b", "c")}])) == ["a", "b", "c"]


MARKS = ["un café résumé", "हिन्दी में किताब", "Łódź naïve", "ภาษาไทยนี้", "می‌خواهم", "👩‍🚀 flies"]


@pytest.mark.parametrize("kind", ["words", "wordpiece"])
def test_marks_are_kept(kind):
    tokenizer = train_tokenizer([*MARKS, "un cafe resume"], kind)
    rows = tokenizer.encode(MARKS, 40, strict=True)
    assert [tokenizer.decode(row) for row in rows] == [unicodedata.normalize("NFC", text.lower()) for text in MARKS]
    plain = tokenizer.encode(["un cafe resume"], 40)
    assert not np.array_equal(plain[0], rows[0])


@pytest.mark.parametrize("kind", ["words", "wordpiece"])
def test_decomposed_text_is_the_same_text(kind):
    tokenizer = train_tokenizer(MARKS, kind)
    apart = [unicodedata.normalize("NFD", text) for text in MARKS]
    assert np.array_equal(tokenizer.encode(apart, 40), tokenizer.encode(MARKS, 40))
    again = train_tokenizer(apart, kind)
    assert np.array_equal(again.encode(MARKS, 40), tokenizer.encode(MARKS, 40))


def test_numbers_of_no_token_are_unknown_words(tokenizer):
    row = tokenizer.encode(["a red circle"], 8)[0]
    row[2] = tokenizer.vocab_size
    assert tokenizer.decode(row) == tokenizer.text(row) == "a [UNK] circle"


def test_control_characters_and_white_space(tokenizer):
    assert tokenizer.decode(tokenizer.encode(["\ufeffa\u00a0red\r\n\tcir\x07cle\0"], 8)[0]) == "a red circle"


def test_a_tokenizer_of_the_old_version_reads_as_before(tmp_path):
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[BOS]", "[EOS]", "cafe"])}, unk_token="[UNK]"
        )
    )
    inner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").encode(["Café"], 3).tolist() == [[2, 4, 3]]


def test_what_is_lost_is_counted():
    words = train_tokenizer(CAPTIONS)
    texts = ["a red circle", "a green circle", "a green and blue ring and a red circle", "Zebra"]
    lost = words.losses(texts, 8)
    assert (lost.texts, lost.cut, lost.words, lost.unknown) == (4, 1, 16, 3)
    assert (
        str(lost)
        == "1 of 4 captions are longer than 8 tokens and are cut, 3 of 16 words became [UNK] (such as 'green', 'Zebra')"
    )
    assert not str(words.losses(texts[:1], 8)) and words.truncated == 0
    rows = words.encode(texts, 8)
    assert (rows == words.unknown).sum() == 3 and words.truncated == 1


def test_broken_files_are_named(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2], bytes(64) + whole[64:], b"\xff" + whole, b"[" * 200_000, b"{}", b"[]"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{path} is not a tokenizer: .*delete it"):
            load_tokenizer(path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]  # written by renaming: nothing else is left
