"""What is fetched of a repository."""

import pytest

from ldm_jax.weights.hub import beside, wanted

ENDS = ["bin", "fp16.bin", "fp16.safetensors", "non_ema.safetensors", "safetensors"]
PART = ["config.json", *(f"diffusion_pytorch_model.{end}" for end in ENDS), "diffusion_flax_model.msgpack"]
VERSION_1 = [
    "model_index.json", "README.md", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "v1-inference.yaml", ".gitattributes",
    *(f"unet/{name}" for name in PART), *(f"vae/{name}" for name in PART),
    "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin", "text_encoder/flax_model.msgpack", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json", "scheduler/scheduler_config.json", "safety_checker/config.json",
    "safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json", "unet/onnx/model.onnx",
]  # fmt: skip


def weights(names):
    return sorted(name for name in names if name.endswith((".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx")))


def test_one_set_of_weights_for_each_part():
    found = wanted(VERSION_1)
    files = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
    assert weights(found) == [f"{file}.safetensors" for file in files]
    assert weights(wanted(VERSION_1, half=True)) == [f"{file}.fp16.safetensors" for file in files]
    for name in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "unet/config.json"):
        assert name in found
    assert not any(name.startswith(("safety_checker", "feature_extractor")) for name in found)


def test_what_there_is_where_the_usual_is_missing():
    bins = [name for name in VERSION_1 if not name.endswith(".safetensors")]
    assert weights(wanted(bins))[1:] == ["unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin"]
    half = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert wanted(half) == half
    flax = ["model_index.json", "unet/config.json", "unet/diffusion_flax_model.msgpack"]
    assert wanted(flax) == flax


def test_shards_come_with_their_index():
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    names = ["model_index.json", "unet/config.json", *shards, index, "unet/diffusion_pytorch_model.bin"]
    assert sorted(wanted(names)) == sorted({*names} - {"unet/diffusion_pytorch_model.bin"})


def test_shards_of_half_precision_come_with_the_index_that_names_them():
    """As Stable Diffusion 3 has its T5: with the other index too, the shards that it names would be missed."""
    ends = ("model", "model.fp16")
    shards = {end: [f"text_encoder_3/{end}-0000{i}-of-00002.safetensors" for i in (1, 2)] for end in ends}
    index = "text_encoder_3/model.safetensors.index"
    rest = ["model_index.json", "text_encoder_3/config.json"]
    names = [*rest, *shards["model"], *shards["model.fp16"], f"{index}.json", f"{index}.fp16.json"]
    assert sorted(wanted(names)) == sorted([*rest, *shards["model"], f"{index}.json"])
    assert sorted(wanted(names, half=True)) == sorted([*rest, *shards["model.fp16"], f"{index}.fp16.json"])


def test_a_part_alone_and_a_single_file():
    assert weights(wanted(PART)) == ["diffusion_pytorch_model.safetensors"]
    assert wanted(["model.ckpt", "config.yaml", "README.md"]) == ["config.yaml", "model.ckpt"]


@pytest.mark.parametrize("names, message", [(["a.safetensors", "b.safetensors"], "hf:owner/name/a.safetensors"),
                                            (["README.md"], "no weights"), ([], "no files")])  # fmt: skip
def test_where_there_is_nothing_to_choose(names, message):
    with pytest.raises(ValueError, match=message):
        wanted(names)


SINGLE = [
    "a.safetensors", "a.yaml", "b.safetensors",
    "b.yaml", "text_encoders/clip_g.safetensors", "text_encoders/clip_l.safetensors",
    "text_encoders/t5xxl_fp16.safetensors", "tokenizer/merges.txt", "tokenizer/vocab.json",
    "tokenizer_2/vocab.json", "tokenizer_3/spiece.model", "tokenizer/model.bin",
    "vae/config.json", "old/a.safetensors", "old/tokenizer/vocab.json",
]  # fmt: skip


def test_what_is_fetched_with_a_single_file():
    beside_it = {name for name in SINGLE if name.startswith(("tokenizer", "text_encoders/clip"))} - {"tokenizer/model.bin"}
    assert set(beside(SINGLE, "a.safetensors")) == {"a.safetensors", "a.yaml"} | beside_it
    assert beside(SINGLE, "old/a.safetensors") == ["old/a.safetensors", "old/tokenizer/vocab.json"]
    for names, message in ((SINGLE, "no such file; there are a.safetensors, b.safetensors"), (["README.md"], "README.md")):
        with pytest.raises(ValueError, match=message):
            beside(names, "c.safetensors")
