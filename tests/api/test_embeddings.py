"""Words of textual inversion: in prompts, and in the text encoder's table."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import LatentDiffusion, build, save, weights
from ldm_jax.api import Specification
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.weights import safetensors_files, torch_files
from tests import tiny

TOWER = {
    "vocab_size": 29, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 9, "hidden_act": "gelu",
}  # fmt: skip
ROWS = np.float32(np.random.default_rng(0).standard_normal((2, 8)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    pieces = list("abcdehilorstu")[:13]
    words = ["!", *pieces, *(f"{piece}</w>" for piece in pieces), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return checkpoint_tokenizers.load(folder)


@pytest.fixture(scope="module")
def ldm(tokenizer):
    config = tiny.CONFIG | {"conditioner": {"kind": "clip_text", **TOWER, "layer": "last"}}
    condition = build.make_condition(config, None, tokenizer)
    params = {"conditioner": condition.init(jax.random.key(0))}
    return LatentDiffusion(Specification(config, condition), params)


def test_a_word_is_its_vectors(ldm, tmp_path):
    """What the encoder makes of a prompt with the word is what it makes of its vectors at that place."""
    safetensors_files.write(tmp_path / "a.safetensors", {"<cat>": ROWS})
    told = ldm.with_embedding(tmp_path / "a.safetensors")
    tokens = told.condition.parse(["a <cat> cb"])
    assert tokens[0, :7].tolist() == [27, 14, 29, 30, 3, 15, 28]  # begin, a, the word's two, c, b, end
    table = np.asarray(told.params["conditioner"]["embeddings"]["token_embedding"]["embedding"])
    np.testing.assert_array_equal(table[29:], ROWS)
    old = ldm.params["conditioner"]["embeddings"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(table[:29], old)
    plain = ldm.embed(ldm.params, ["a bc"])["context"]  # other prompts stay what they were
    np.testing.assert_allclose(told.embed(told.params, ["a bc"])["context"], plain, atol=1e-6)
    assert np.abs(told.embed(told.params, ["a <cat>"])["context"] - plain).max() > 1e-3
    features = told.condition.module.apply({"params": told.params["conditioner"]}, jnp.asarray(tokens))
    np.testing.assert_allclose(features.pooled, features.last[:, 6], atol=1e-6)  # the end is still the end
    copied = pickle.loads(pickle.dumps(told.condition.setting.tokenizer))
    np.testing.assert_array_equal(copied.encode_one("a <cat> cb", 9), tokens[0])
    assert ldm.condition.setting.tokenizer.vocab_size == 29
    with pytest.raises(ValueError, match="learnt words"):
        save(told, tmp_path / "out")


def test_a_model_that_is_told_a_picture_too_reads_the_word(ldm, tokenizer, tmp_path):
    parts = {"prompt": ldm.config["conditioner"], "picture": {"kind": "inpaint", "convention": "stable_diffusion"}}
    config = ldm.config | {"conditioner": {"kind": "combined", "parts": parts}}
    condition = build.make_condition(config, None, tokenizer)
    filling = LatentDiffusion(Specification(config, condition), {"conditioner": {"prompt": ldm.params["conditioner"]}})
    safetensors_files.write(tmp_path / "a.safetensors", {"<cat>": ROWS})
    both = [model.with_embedding(tmp_path / "a.safetensors") for model in (ldm, filling)]
    jax.tree.map(np.testing.assert_array_equal, both[0].params["conditioner"], both[1].params["conditioner"]["prompt"])
    parsed = both[1].condition.parts["prompt"].parse(["a <cat> cb"])
    np.testing.assert_array_equal(parsed, both[0].condition.parse(["a <cat> cb"]))
    assert both[1].config["conditioner"]["parts"]["prompt"]["vocab_size"] == 31
    assert filling.config["conditioner"]["parts"]["prompt"]["vocab_size"] == 29
    more = both[1].with_embedding(tmp_path / "a.safetensors", token="<ink>")
    assert more.condition.parts["prompt"].parse(["<ink> <cat>"])[0, :6].tolist() == [27, 31, 32, 29, 30, 28]
    with pytest.raises(ValueError, match="learnt words"):
        save(more, tmp_path / "out")


def test_files_without_a_name_have_the_files(ldm, tmp_path):
    torch_files.write(tmp_path / "sketch.pt", {"string_to_param": {"*": ROWS[:1]}, "name": "x", "step": 3})
    safetensors_files.write(tmp_path / "ink.safetensors", {"emb_params": ROWS})
    both = ldm.with_embedding(tmp_path / "sketch.pt").with_embedding(tmp_path / "ink.safetensors", token="<ink>")
    assert both.condition.parse(["sketch <ink>"])[0, :6].tolist() == [27, 29, 30, 31, 28, 28]


def test_the_folder_of_a_concept(ldm, tmp_path):
    """As diffusers writes one, beside example pictures."""
    with pytest.raises(ValueError, match="learned_embeds.bin is expected in the folder of a word; there is nothing"):
        ldm.with_embedding(tmp_path)
    (tmp_path / "token_identifier.txt").write_text("<cat>")
    torch_files.write(tmp_path / "learned_embeds.bin", {"<cat>": ROWS[0]})
    word, vectors = weights.read_embedding(tmp_path)
    assert word == "<cat>"
    np.testing.assert_array_equal(vectors[""], ROWS[:1])


def test_a_file_of_two_towers_keeps_its_word(tmp_path):
    """Its tensors are called by the towers, as other programs want it."""
    rows = {"text_encoder": ROWS, "text_encoder_2": 2 * ROWS}
    weights.write_embedding(tmp_path / "learned_embeds.safetensors", "<ink>", rows)
    assert set(safetensors_files.read(tmp_path / "learned_embeds.safetensors")) == {"clip_l", "clip_g"}
    word, found = weights.read_embedding(tmp_path / "learned_embeds.safetensors")
    assert word == "<ink>"
    jax.tree.map(np.testing.assert_array_equal, found, rows)
    safetensors_files.write(tmp_path / "sketch.safetensors", {"clip_l": ROWS, "clip_g": ROWS})  # of another program
    assert weights.read_embedding(tmp_path / "sketch.safetensors")[0] == "sketch"


def test_a_word_in_any_case(ldm):
    """CLIP's text is of small letters: so are words of files, as in diffusers with transformers 5."""
    told = ldm.condition.setting.tokenizer.with_word("<Cat>", 2).with_word("sha", 2).with_word("<sha>")
    ids = told.encode(["a <Cat> b", "a <cat> b", "A <CAT> B"], 9)
    assert ids[0].tolist() == [27, 14, 29, 30, 15, 28, 28, 28, 28]
    np.testing.assert_array_equal(ids[1:], ids[[0, 0]])
    # a word within another one, whose tokens are two
    assert told.encode_one("<sha> SHA", 9)[:5].tolist() == [27, 33, 31, 32, 28]
    both = told.with_word("<cat>")  # two that differ by case alone are two
    assert both.encode_one("<cat> <Cat>", 9)[:5].tolist() == [27, 34, 29, 30, 28]


def test_what_does_not_fit_is_refused(ldm, tmp_path):
    safetensors_files.write(tmp_path / "wide.safetensors", {"<cat>": np.ones((1, 12), np.float32)})
    with pytest.raises(ValueError, match="vectors of 12 numbers for a table of 8"):
        ldm.with_embedding(tmp_path / "wide.safetensors")
    safetensors_files.write(tmp_path / "xl.safetensors", {"clip_l": ROWS, "clip_g": ROWS})
    with pytest.raises(ValueError, match="vectors for text_encoder, text_encoder_2"):
        ldm.with_embedding(tmp_path / "xl.safetensors")
    safetensors_files.write(tmp_path / "b.safetensors", {"!": ROWS})
    with pytest.raises(ValueError, match="is a token already"):
        ldm.with_embedding(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="models that read prompts by text, clip_text, sdxl, .* this one is 'none'"):
        tiny.model("none").with_embedding(tmp_path / "b.safetensors")
