"""Single files of Stable Diffusion 3, by names and shapes; the same models as folders."""

import importlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

import ldm_jax
from ldm_jax.api.specification import Specification
from ldm_jax.weights import layouts, naming, safetensors_files, sd3_files
from tests import tiny
from tests.api.test_sd3 import CLIP, T5, clip_words, t5_words, words_of
from tests.weights.test_recognise import shaped

HEADS_64 = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 80, "projection_dim": 64}
KEY = jax.random.key(0)
TRANSFORMER = {
    "kind": "mmdit", "depth": 2, "hidden_size": 128, "num_heads": 2, "context_dim": 136, "patch_size": 2, "input_size": 128,
    "in_channels": 4, "pooled_dim": 128, "position_table": 64,
}  # fmt: skip


def prefixed(prefix, layout):
    return naming.prefixed(shaped(layout), prefix)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"qk_norm": True, "dual_attention_layers": tuple(range(13)), "position_table": 384},
        {"qk_norm": True, "depth": 38, "hidden_size": 2432, "num_heads": 38},
    ],
    ids=["3 medium", "3.5 medium", "3.5 large"],
)
def test_published_models(tmp_path, more):
    """Their names and shapes, all of them; arrays are not looked at."""
    of = importlib.import_module("configs.stable_diffusion_3").get_config().to_dict()
    network = of["network"] | {"dual_attention_layers": (), "qk_norm": False} | more
    towers, tensors = of["conditioner"]["towers"], prefixed(sd3_files.NETWORK, layouts.mmdit(network))
    tensors |= prefixed(sd3_files.FIRST_STAGE, layouts.autoencoder(of["first_stage"]))
    for tower, name in sd3_files.ENCODERS.items():
        found = shaped(layouts.tower(towers[tower]))
        if name == "clip_l":
            del found["text_projection.weight"]  # as published
        tensors |= naming.prefixed(found, f"text_encoders.{name}.transformer.{'' if name == 't5xxl' else 'text_model.'}")
    description, encoders = sd3_files.describe(tmp_path / "model.safetensors", tensors, notes := [])
    assert {field: network[field] for field in description["network"]} == description["network"]
    assert layouts.mmdit(description["network"]) == layouts.mmdit(network)
    assert layouts.autoencoder(description["first_stage"]) == layouts.autoencoder(of["first_stage"])
    for tower, fields in description["conditioner"]["towers"].items():
        told = {field: towers[tower][field] for field in fields if field in towers[tower]}
        assert {field: fields[field] for field in told} == told
        assert naming.match(layouts.tower(fields), encoders[tower], tower)
    assert {name: description["latents"][name] for name in ("scale", "shift")} == {
        name: of["latents"][name] for name in ("scale", "shift")
    }
    assert description["diffusion"] == {"schedule": "flow", "shift": of["diffusion"]["shift"], "prediction": "flow"}
    assert np.array_equal(encoders["text_encoder"]["text_projection.weight"].view(), np.eye(768))
    assert not any("left out" in note for note in notes)


@pytest.fixture(scope="module", params=[{}, {"qk_norm": True, "dual_attention_layers": (0,)}], ids=["3", "3.5"])
def both(request, tmp_path_factory):
    """A folder as diffusers has it, and the tensors of the same model as one file; tokenizers lie beside them."""
    path = tmp_path_factory.mktemp("sd3_files")
    words = path / "words"
    words.mkdir()
    paths = [clip_words(words / "tokenizer"), clip_words(words / "tokenizer_2"), t5_words(words / "tokenizer_3")]
    towers = {"text_encoder": CLIP | HEADS_64 | {"hidden_act": "quick_gelu"}}
    towers |= {"text_encoder_2": CLIP | HEADS_64 | {"pad_token_id": 0}, "text_encoder_3": T5 | {"d_model": 136}}
    network = TRANSFORMER | request.param
    stage = tiny.CONFIG["first_stage"] | {"ch": 32, "ch_mult": (1, 1, 1, 1), "attn_type": "vanilla", "norm_num_groups": 32}
    stage |= {"resolution": 1024, "use_quant_conv": False, "use_post_quant_conv": False}
    config = tiny.CONFIG | {"network": network, "first_stage": stage, "data": tiny.CONFIG["data"] | {"image_size": 1024}}
    config["conditioner"] = {"kind": "sd3", "towers": towers, "max_sequence_length": 256, "tokenizer": list(map(str, paths))}
    config["diffusion"] = tiny.CONFIG["diffusion"] | {"schedule": "flow", "shift": 3.0, "prediction": "flow"}
    model = tiny.random_model(config, words_of(config))
    params = dict(model.params)
    eye = {"text_projection": {"kernel": np.eye(64, dtype=np.float32)}}  # as published
    params["conditioner"] = params["conditioner"] | {"text_encoder": params["conditioner"]["text_encoder"] | eye}
    specification = Specification(config, model.condition, 1.5305, 0.0609)
    ldm_jax.save(ldm_jax.LatentDiffusion(specification, params), path / "folder")
    tensors = naming.prefixed(naming.flattened(layouts.mmdit(network), params["network"], ""), sd3_files.NETWORK)
    tensors |= naming.prefixed(naming.flattened(layouts.autoencoder(stage), params["first_stage"], ""), sd3_files.FIRST_STAGE)
    for tower, name in sd3_files.ENCODERS.items():
        own = naming.flattened(layouts.tower(towers[tower]), params["conditioner"][tower], "")
        if name == "t5xxl":
            own["encoder.embed_tokens.weight"] = own["shared.weight"]
        else:
            own = {key if key.startswith("text_projection") else f"text_model.{key}": value for key, value in own.items()}
        if name == "clip_l":
            del own["text_projection.weight"]
        tensors |= naming.prefixed(own, f"{sd3_files.PREFIX}{name}.transformer.")
    return path / "folder", {name: np.asarray(tensor) for name, tensor in tensors.items()}, words


def the_same(found, expected, prompts=("red", "bad")):
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    for part in ("network", "diffusion"):
        assert found.config[part] == expected.config[part]
    assert (found.specification.scale, found.specification.shift) == (1.5305, 0.0609)
    assert found.specification.image_size == (1024, 1024)
    drawn = [
        ldm.sample(ldm.params, KEY, ldm.embed(ldm.params, prompts), steps=2, guidance_scale=2.0, size=(64, 64))
        for ldm in (found, expected)
    ]
    np.testing.assert_array_equal(*drawn)


def test_a_file_is_the_folder(both, tmp_path):
    folder, tensors, words = both
    safetensors_files.write(tmp_path / "model.safetensors", tensors | {"scaled": np.zeros(2, np.float32)})
    expected = ldm_jax.load(folder)
    found = ldm_jax.load(tmp_path / "model.safetensors", tokenizer=words)
    the_same(found, expected)
    shutil.copytree(words, tmp_path, dirs_exist_ok=True)
    beside = ldm_jax.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(beside.condition.parse(["red"]), expected.condition.parse(["red"]))


def test_text_encoders_in_files_of_their_own(both, tmp_path):
    folder, tensors, words = both
    kept = {name: value for name, value in tensors.items() if not name.startswith(sd3_files.PREFIX)}
    path = tmp_path / "model.safetensors"
    safetensors_files.write(path, kept)
    with pytest.raises(ValueError, match="lacks its text encoders clip_l and clip_g; put clip_l.safetensors, "):
        ldm_jax.load(path)
    (tmp_path / "text_encoders").mkdir()
    for name in ("clip_l", "clip_g"):
        own = naming.within(tensors, f"{sd3_files.PREFIX}{name}.transformer.")
        safetensors_files.write(tmp_path / "text_encoders" / f"{name}.safetensors", own)
    assert list(ldm_jax.load(path, tokenizer=words).config["conditioner"]["towers"]) == ["text_encoder", "text_encoder_2"]
    own = naming.within(tensors, f"{sd3_files.PREFIX}t5xxl.transformer.")
    safetensors_files.write(tmp_path / "text_encoders" / "t5xxl_fp16.safetensors", own)
    for other in ("t5xxl_fp8_e4m3fn", "clip_large", "clip_ga"):
        (tmp_path / "text_encoders" / f"{other}.safetensors").write_bytes(b"not looked at")
    the_same(ldm_jax.load(path, tokenizer=words), ldm_jax.load(folder))


def test_a_text_encoder_of_eight_bits(both, tmp_path):
    """As sd3_medium_incl_clips_t5xxlfp8 has T5: numbers of fewer bits, and nothing else."""
    folder, tensors, words = both
    t5 = {name: value.astype(ml_dtypes.float8_e4m3fn) for name, value in tensors.items() if ".t5xxl." in name}
    safetensors_files.write(tmp_path / "model.safetensors", tensors | t5)
    found, whole = ldm_jax.load(tmp_path / "model.safetensors", tokenizer=words), ldm_jax.load(folder)
    own, full = (ldm.params["conditioner"]["text_encoder_3"]["shared"]["embedding"] for ldm in (found, whole))
    assert own.dtype == np.float32 and 0 < np.abs(own - full).max() <= np.abs(full).max() / 16
    assert np.isfinite(found.embed(found.params, ["red"])["context"]).all()


def test_what_is_refused(both, tmp_path):
    _, tensors, _ = both
    path, network = tmp_path / "model.safetensors", sd3_files.NETWORK

    def without(part):
        return {name: value for name, value in tensors.items() if part not in name}

    for changed, message in (
        (without(sd3_files.FIRST_STAGE), "without a first stage"),
        (without("joint_blocks.1.x_block.mlp.fc1"), "2 missing"),
        (without("clip_g.transformer.text_projection"), "have no text_projection"),
        (naming.within(tensors, network), "the transformer of Stable Diffusion 3 alone"),
        (tensors | {f"{network}joint_blocks.0.x_block.attn.qkv.scale_weight": np.ones((), np.float32)}, "1 left over"),
        (tensors | {f"{network}pos_embed": np.zeros((1, 35, 128), np.float32)}, "table has 35 places"),
        (tensors | {f"{network}x_embedder.proj.weight": np.zeros((130, 4, 2, 2), np.float32)}, "130 wide, no multiple of"),
        (tensors | {f"{network}context_embedder.weight": np.zeros((128, 99), np.float32)}, "takes 128 and 99"),
    ):
        safetensors_files.write(path, changed)
        with pytest.raises(ValueError, match=message):
            ldm_jax.load(path)
    safetensors_files.write(path, tensors)
    with pytest.raises(ValueError, match="predicts the flow; leave it out"):
        ldm_jax.load(path, prediction="eps")
