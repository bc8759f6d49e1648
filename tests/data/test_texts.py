"""Text files as a source, and text from words again."""

import json
import unicodedata

import numpy as np
import pytest

from ldm_jax.data.detokenize import join
from ldm_jax.data.source import MissingColumn, MissingSplit
from ldm_jax.data.texts import texts
from ldm_jax.data.tokenizer import END, train_tokenizer


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_sentence_a_line(tmp_path):
    write(tmp_path / "train.txt", "one\n\n  two words \r\nthree\n")
    write(tmp_path / "val.txt", "four\n")
    write(tmp_path / "notes.pdf", "-")
    found = texts(tmp_path)
    assert [found[i]["text"] for i in range(len(found))] == ["one", "two words", "three"]
    assert found[1]["name"].endswith("train.txt, line 3") and found.info.columns == ("text",)
    assert texts(tmp_path, "validation")[0]["text"] == "four"
    assert len(texts(tmp_path / "train.txt")) == 3  # a file alone


def test_objects_and_folders_as_classes(tmp_path):
    write(
        tmp_path / "a" / "train.jsonl",
        lines({"said": "x  y", "label": "b", "caption": "c"}, {"said": "z", "label": "a", "caption": "d"}),
    )
    found = texts(tmp_path / "a", names={"text": "said"})
    assert found.info.class_names == ("a", "b") and found[0]["label"] == 1 and found[0]["text"] == "x y"
    assert found.info.captions == 2 and found[1]["caption"] == "d"
    write(tmp_path / "b" / "train" / "poems" / "1.txt", "x\ny\n")
    write(tmp_path / "b" / "train" / "letters" / "1.txt", "z\n")
    found = texts(tmp_path / "b")
    assert found.info.class_names == ("letters", "poems") and [row["label"] for row in map(found.__getitem__, range(3))] == [
        0,
        1,
        1,
    ]


def test_parts_are_by_hash_and_complete(tmp_path):
    write(tmp_path / "all.txt", "".join(f"sentence {i}\n" for i in range(50)))
    parts = [texts(tmp_path, split) for split in ("train[:80%]", "train[80%:]")]
    found = [{part[i]["text"] for i in range(len(part))} for part in parts]
    assert [len(each) for each in found] == [40, 10] and not found[0] & found[1]


def test_equal_sentences_stay_in_one_part(tmp_path):
    write(tmp_path / "all.txt", "".join(f"sentence {i % 7}\n" for i in range(70)))
    for share in range(1, 80, 7):
        first, second = ([row["text"] for row in texts(tmp_path, f"train[{part}]")] for part in (f":{share}%", f"{share}%:"))
        assert len(first) + len(second) == 70 and not set(first) & set(second)


@pytest.mark.parametrize(
    "files, error, said",
    [
        ({}, ValueError, "holds no text"),
        ({"1.png": "x"}, ValueError, "1 files that are no text"),
        ({"train.jsonl": "{]\n"}, ValueError, "train.jsonl, line 1: no JSON"),
        ({"train.jsonl": '"x"\n'}, ValueError, "line 1: a line is an object"),
        ({"train.jsonl": '{"txt": "x"}\n'}, ValueError, "line 1: it has no 'text' but 'txt'"),
        ({"train.jsonl": '{"text": 3}\n'}, ValueError, "line 1: text is text, not 3"),
        ({"train.jsonl": lines({"text": "a\ud800b"})}, ValueError, "line 1: .* has half of a character"),
        ({"train.jsonl": lines({"text": "a", "caption": "\udc00"})}, ValueError, "line 1: .* has half of a character"),
        ({"train.jsonl": lines({"text": "a", "label": "x"}, {"text": "b"})}, ValueError, "line 2 has no label"),
        ({"train.jsonl": lines({"text": "a", "label": "x"}, {"text": "b", "label": 1})}, ValueError, "line 1 and 1 of"),
        ({"train.jsonl": lines({"text": "a", "label": 1.5})}, ValueError, "whole number, not 1.5"),
        ({"train.jsonl": lines({"text": "a", "label": -1})}, ValueError, "numbered from 0"),
        ({"a/1.txt": "x", "2.txt": "y"}, ValueError, "beside them, such as 2.txt"),
        ({"train.txt": "x", "more.txt": "y"}, ValueError, "'train.txt' names a split, and 'more.txt'"),
        ({"val.txt": "x"}, MissingSplit, "no split 'train' but 'validation'"),
        ({"train.txt": "\n\n"}, ValueError, "split 'train' is empty"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, files, error, said):
    for name, text in files.items():
        write(tmp_path / name, text)
    if error is None:
        assert len(texts(tmp_path)) == 1
        return
    with pytest.raises(error, match=said):
        texts(tmp_path, columns=("text", "label") if "label" in said else None)


def test_missing_places_and_columns(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder and no file"):
        texts(tmp_path / "nothing")
    write(tmp_path / "a.csv", "x")
    with pytest.raises(ValueError, match="read from files .txt and .jsonl"):
        texts(tmp_path / "a.csv")
    write(tmp_path / "train.txt", "x")
    with pytest.raises(MissingColumn, match="no column 'label'"):
        texts(tmp_path / "train.txt", columns=("text", "label"))


TEXTS = (
    "don't stop, please (now)!",
    "the well-known dog's tail: 3.14 of 1,000 at 12:30.",
    'she said "yes" and left; "no", he said.',
    "in 2020, 30 people came... and/or none",
    "l'été est là",
    "我是人。",
    "日本語のテスト、私は人々です。",
    "prices: $5 and 10% off",
    "wait... what?!",
)


@pytest.mark.parametrize("kind", ["words", "wordpiece"])
def test_text_comes_back(kind):
    tokenizer = train_tokenizer(TEXTS, kind, 300)
    assert tokenizer.end == END
    for text in TEXTS:
        assert tokenizer.text(tokenizer.encode_one(text, 48)) == text


def test_any_words_come_back_as_words():
    """Whatever a model draws: the text of tokens has these tokens again."""
    marks = list("abc.,;:!?()[]{}'\"-/$%&#@*_~<>=+") + ["don", "t", "3", "100", "我", "人", "’", "“"]
    tokenizer = train_tokenizer([" ".join(marks)], "words")
    rng = np.random.default_rng(0)
    for _ in range(300):
        words = [marks[i] for i in rng.integers(len(marks), size=12)]
        ids = tokenizer.encode_one(" ".join(words), 14)
        assert (tokenizer.encode_one(tokenizer.text(ids), 14) == ids).all(), join(words)


def test_classes_are_found_by_way_of_links_and_have_one_spelling(tmp_path):
    root, elsewhere = tmp_path / "texts", tmp_path / "elsewhere"
    whole, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for file in (root / "train" / "letters" / "1.txt", elsewhere / "1.txt", root / "train" / apart / "1.txt",
                 root / "val" / whole / "1.txt"):  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"in {file.parent.name}")
    (root / "train" / "a-link").symlink_to(root / "train" / "letters", target_is_directory=True)
    (root / "train" / "poems").symlink_to(elsewhere, target_is_directory=True)
    for name, target in (("up", root), ("top", root.anchor)):
        (root / "train" / name).symlink_to(target, target_is_directory=True)
    source, held_out = texts(root), texts(root, "validation")
    assert source.info.class_names == held_out.info.class_names == (whole, "letters", "poems")
    assert [source[i]["label"] for i in range(len(source))] == [0, 1, 2] and held_out[0]["label"] == 0
    assert source.info.left_out == (("links to folders that are read already, or hold this one", 3),)


def test_labels_of_objects_have_one_spelling(tmp_path):
    lines = [{"text": f"text {i}", "label": label} for i, label in enumerate((" dog", "dog", "cat\n"))]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = texts(tmp_path)
    assert source.info.class_names == ("cat", "dog") and [source[i]["label"] for i in range(3)] == [1, 1, 0]
