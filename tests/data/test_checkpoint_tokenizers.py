"""Tokenizers from files as published models have them, made here: small vocabularies of the same make."""

import json
import pickle

import pytest

from ldm_jax.data import checkpoint_tokenizers

BERT = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cafe", "##s", "red", ","]


@pytest.fixture
def bert(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(BERT) + "\n")
    return tmp_path


@pytest.fixture
def clip(tmp_path):
    pieces = ["!", "a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return tmp_path


def test_bert(bert):
    tokenizer = checkpoint_tokenizers.load(bert)
    assert tokenizer.encode_one("A red, CAFÉS", 9, strict=True).tolist() == [3, 6, 9, 10, 7, 8, 4, 0, 0]
    assert tokenizer.vocab_size == len(BERT) and not tokenizer.is_clip
    assert tokenizer.encode_one("blue", 4).tolist() == [3, 2, 4, 0]
    with pytest.raises(ValueError, match="'blue'"):
        tokenizer.encode_one("blue", 4, strict=True)


def test_cased_bert(bert):
    (bert / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert checkpoint_tokenizers.load(bert).encode_one("A red", 4).tolist() == [3, 2, 9, 4]


def test_clip_pads_as_its_files_say(clip):
    assert checkpoint_tokenizers.load(clip).encode_one("AB a", 6).tolist() == [6, 5, 3, 7, 7, 7]
    (clip / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!", "lstrip": False}}))
    tokenizer = checkpoint_tokenizers.load(clip)
    assert tokenizer.encode_one("AB a", 6).tolist() == [6, 5, 3, 7, 0, 0]
    assert pickle.loads(pickle.dumps(tokenizer)).encode_one("ab", 5).tolist() == [6, 5, 7, 0, 0]
    assert tokenizer.decode(tokenizer.encode_one("ab A", 6)) == "ab a"
    (clip / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(ValueError, match="lacks the pad_token '<pad>'"):
        checkpoint_tokenizers.load(clip)


def test_a_text_that_spells_a_special_token_holds_it(clip):
    """As transformers has it: "!" is a word of its own ("!</w>") only where it is not what rows are filled up with."""
    (clip / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!", "eos_token": "<|endoftext|>"}))
    padded = checkpoint_tokenizers.load(clip)
    assert padded.encode_one("ab!b", 8).tolist() == [6, 5, 0, 4, 7, 0, 0, 0]
    assert padded.encode_one("a<|endoftext|>b", 6).tolist() == [6, 3, 7, 4, 7, 0]


def test_copies_say_the_pad_token(clip, tmp_path):
    (clip / "weights.bin").write_bytes(b"not a tokenizer's")
    copied = checkpoint_tokenizers.copy(clip, tmp_path / "copy", pad=0)
    assert checkpoint_tokenizers.load(copied).pad == 0 and not (copied / "weights.bin").exists()


def test_no_tokenizer(tmp_path):
    assert not checkpoint_tokenizers.found_in(tmp_path)
    with pytest.raises(FileNotFoundError, match="vocab.json with merges.txt"):
        checkpoint_tokenizers.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        checkpoint_tokenizers.load(tmp_path)
    with pytest.raises(ValueError, match="not at"):
        checkpoint_tokenizers.copy(tmp_path / "x", tmp_path / "y")
