"""Stable Diffusion 3 without torch: what it is told, what it refuses, and a folder written and read."""

import importlib
import json

import jax
import numpy as np
import pytest
import tokenizers
from PIL import Image

import ldm_jax
from ldm_jax import build, experiment
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.data.tokenizer import Tokenizers
from tests import tiny

PIECES = ("a", "b", "d", "e", "l", "r", "t", "u")
CLIP = {
    "vocab_size": 19, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 8, "projection_dim": 4, "eos_token_id": 18, "hidden_act": "gelu",
}  # fmt: skip
T5 = {
    "vocab_size": 20, "d_model": 20, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "relu",
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
}  # fmt: skip
KEY = jax.random.key(0)


def clip_words(folder):
    folder.mkdir()
    words = ["!", *PIECES, *(f"{piece}</w>" for piece in PIECES), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def t5_words(folder):
    folder.mkdir()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in ("\u2581", *PIECES, "\u2581red"))]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.decoder = tokenizers.decoders.Metaspace()
    inner.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    paths = [clip_words(folder / "tokenizer"), clip_words(folder / "tokenizer_2"), t5_words(folder / "tokenizer_3")]
    network = {"kind": "mmdit", "depth": 2, "hidden_size": 16, "num_heads": 2, "context_dim": 20, "patch_size": 2}
    network |= {"input_size": 8, "in_channels": 4, "pooled_dim": 8, "position_table": 6, "qk_norm": True}
    towers = {"text_encoder": CLIP, "text_encoder_2": CLIP | {"pad_token_id": 0}, "text_encoder_3": T5}
    conditioner = {"kind": "sd3", "towers": towers, "max_sequence_length": 10, "tokenizer": [str(path) for path in paths]}
    flow = {"schedule": "flow", "shift": 3.0, "prediction": "flow"}
    flow |= {"loss": "l2", "weighting": "simple", "time_sampling": "logit_normal"}
    sampling = {"sampler": "euler", "steps": 3, "grid": "linspace", "guidance_scale": 4.0}
    return tiny.CONFIG | {"network": network, "conditioner": conditioner, "diffusion": flow, "sampling": sampling}


def words_of(config):
    towers = config["conditioner"]["towers"].values()
    pairs = zip(config["conditioner"]["tokenizer"], towers)
    return Tokenizers(tuple(checkpoint_tokenizers.load(path, fields.get("pad_token_id")) for path, fields in pairs))


@pytest.fixture(scope="module")
def ldm(config):
    return tiny.random_model(config, words_of(config))


def test_every_tower_reads_its_own_tokens(ldm):
    tokens = ldm.condition.parse(["red", {"prompt": "red", "prompt_2": "bad", "prompt_3": "a red"}])
    assert tokens.shape == (2, 3, 10) and ldm.condition.lengths == [8, 8, 10]
    assert tokens[0, 0].tolist()[:8] == [17, 6, 4, 11, 18, 18, 18, 18]  # <start> r e d</w> <end>, filled up with ends
    assert tokens[0, 1].tolist()[:8] == [17, 6, 4, 11, 18, 0, 0, 0]  # or with "!"
    assert tokens[0, 2].tolist() == [12, 1, 0, 0, 0, 0, 0, 0, 0, 0]  # no begin
    assert tokens[1, 0].tolist() == tokens[0, 0].tolist() and tokens[1, 1, 1:5].tolist() == [2, 1, 11, 18]
    assert tokens[1, 2].tolist()[:4] == [3, 4, 12, 1]


def test_the_context_is_clip_widened_and_t5_behind_it(ldm):
    cond = ldm.embed(ldm.params, ["red"])
    assert cond["context"].shape == (1, 8 + 10, 20) and cond["vector"].shape == (1, 8)
    assert not np.any(cond["context"][:, :8, 16:]) and np.all(np.any(cond["context"][:, 8:], axis=(0, 2)))


def test_what_it_refuses(ldm, config, tmp_path):
    with pytest.raises(ValueError, match="keeps how many tokens T5 reads .max_sequence_length=10"):
        ldm_jax.save(ldm, tmp_path / "model")
    for given, message in (
        ([{"prompt_2": "red"}], "takes a prompt of at most 6 word pieces, or a dict of prompt, prompt_2, prompt_3"),
        ([3], "a prompt is a str"),
        (["a b a b a b a"], "1 more than the 6 that fit"),
    ):
        with pytest.raises(ValueError, match=message):
            ldm.embed(ldm.params, given)
    tokens, takes = ldm.condition.parse(["red"]), r"int32 \[B, 3, 10\], these are "
    for given, message in ((tokens[:, :2], takes + r"int32 \[1, 2, 10\]"), ({"tokens": tokens}, takes + "a dict")):
        with pytest.raises(ValueError, match=message):
            ldm.embed(ldm.params, given)
    with pytest.raises(ValueError, match=r"int32 \[B, 3, 10\], because no tokenizers were found"):
        tiny.random_model(config, None).condition.parse(["red"])


@pytest.mark.parametrize("third", [True, False], ids=["with T5", "without"])
def test_a_folder_that_is_written_draws_the_same(config, tmp_path, third):
    section = config["conditioner"] | {"max_sequence_length": 256}  # no file says it
    if not third:
        towers = {name: fields for name, fields in section["towers"].items() if name != "text_encoder_3"}
        section |= {"towers": towers, "tokenizer": section["tokenizer"][:2]}
    config = config | {"conditioner": section}
    ldm = tiny.random_model(config, words_of(config))
    ldm_jax.save(ldm, tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline" and (index["text_encoder_3"][1] is not None) == third
    again = ldm_jax.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, again.params, ldm.params)
    assert again.config["diffusion"] == {"schedule": "flow", "shift": 3.0, "prediction": "flow"}
    noise, cond = ldm.noise(KEY, 2), ldm.embed(ldm.params, ["red", "bad"])
    np.testing.assert_array_equal(again.embed(again.params, ["red", "bad"])["context"], cond["context"])
    drawn = again.sample(again.params, KEY, cond, noise=noise, steps=3, sampler="euler", grid="linspace", guidance_scale=1.0)
    expected = ldm.sample(ldm.params, KEY, cond, noise=noise, steps=3, guidance_scale=1.0)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)


@pytest.mark.slow
def test_a_lora_is_trained_from_a_folder_by_its_config(config, tmp_path):
    """configs/stable_diffusion_3.py with small sizes: first stage, text encoders, tokenizers and model are the folder's."""
    section = config["conditioner"] | {"max_sequence_length": 256}
    ldm_jax.save(tiny.random_model(config | {"conditioner": section}, words_of(config)), tmp_path / "model")
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "data" / f"{i}.png")
        (tmp_path / "data" / f"{i}.txt").write_text(("red", "bad")[i % 2])
    small = importlib.import_module("configs.stable_diffusion_3").get_config()
    small.dtype, small.name = "float32", "small"
    small.data.update(source="folder", path=str(tmp_path / "data"), image_size=8, validation_split="train")
    small.first_stage.update(config["first_stage"] | {"path": str(tmp_path / "model" / "vae")})
    small.first_stage.update(use_quant_conv=True, use_post_quant_conv=True)
    small.latents.update(scale=0.5, shift=0.25)
    small.network.update(config["network"])
    small.conditioner.towers = {name: dict(fields) for name, fields in config["conditioner"]["towers"].items()}
    small.conditioner.update(path=str(tmp_path / "model"), max_sequence_length=10)
    small.conditioner.tokenizer = tuple(str(tmp_path / "model" / f"tokenizer{end}") for end in ("", "_2", "_3"))
    small.diffusion_train.update(start_from=str(tmp_path / "model"), steps=3, batch_size=8, warmup_steps=1, learning_rate=0.1)
    small.diffusion_train.lora.rank = 2
    small.stages = ("latents", "diffusion")
    small.sampling.steps = 2
    experiment.run(build.with_lists(small.to_dict()), tmp_path / "run")
    factors = ldm_jax.load_lora(tmp_path / "run")
    assert {*factors["network"]["joint_blocks_0"]["x_block"]["attn"]} == {"qkv", "proj"}
    trained, before = ldm_jax.load(tmp_path / "run"), ldm_jax.load(tmp_path / "model")
    assert np.any(trained.params["network"]["joint_blocks_0"]["x_block"]["attn"]["qkv"]["kernel"]
                  != before.params["network"]["joint_blocks_0"]["x_block"]["attn"]["qkv"]["kernel"])  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, trained.params["conditioner"], before.params["conditioner"])
