"""Single files without a YAML are known by their tensors. Names and shapes are those of the published models, arrays are not
looked at; what is found is what the configs of these models say."""

import importlib

import numpy as np
import pytest

from ldm_jax import weights
from ldm_jax.weights import layouts, naming, recognise, safetensors_files, structure, torch_files
from ldm_jax.weights.compvis_files import conditioner_layout
from ldm_jax.weights.layouts import text
from ldm_jax.weights.stored import Stored

PAPER = (
    "celebahq", "lsun_churches", "imagenet_f8", "imagenet_f4", "conceptual_captions", "text_to_image", "super_resolution",
    "inpainting", "layout", "semantic_256", "retrieval_768", "stable_diffusion_1",
)  # fmt: skip
SD1 = {
    "kind": "unet", "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 2,
    "attention_resolutions": (1, 2, 4), "channel_mult": (1, 2, 4, 4), "num_heads": 8, "num_head_channels": -1,
    "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 768, "use_scale_shift_norm": False,
    "resblock_updown": False, "dropout": 0.0,
}  # fmt: skip
SD2 = SD1 | {"num_heads": -1, "num_head_channels": 64, "context_dim": 1024}
XL = SD2 | {
    "channel_mult": (1, 2, 4), "attention_resolutions": (2, 4), "transformer_depth": (10, 2, 10), "context_dim": 2048,
    "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip
REFINER = XL | {
    "model_channels": 384, "channel_mult": (1, 2, 4, 4), "transformer_depth": 4, "context_dim": 1280, "adm_in_channels": 2560,
}  # fmt: skip
KL = {
    "kind": "kl", "path": "", "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2,
    "resolution": 256, "attn_resolutions": (), "attn_type": "vanilla", "z_channels": 4, "double_z": True, "dropout": 0.0,
    "embed_dim": 4, "n_embed": 0,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_L |= {"vocab_size": 49408, "max_position_embeddings": 77}
CLIP_H = CLIP_L | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "projection_dim": 1024}
CLIP_G = CLIP_L | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1280}


def shaped(layout: naming.Layout) -> dict[str, Stored]:
    return {w.name: Stored(w.shape, np.dtype(np.float16), lambda w=w: np.zeros(w.shape, np.float16)) for w in layout}


def file_of(network: dict, stage: dict | None = None, **parts: dict) -> dict[str, Stored]:
    tensors = naming.prefixed(shaped(layouts.unet(network)), "model.diffusion_model.")
    if stage is not None:
        tensors |= naming.prefixed(shaped(layouts.autoencoder(stage)), "first_stage_model.")
    for prefix, part in parts.items():
        tensors |= naming.prefixed(part, prefix)
    return tensors


def clip(fields: dict) -> dict[str, Stored]:
    return naming.prefixed(shaped(layouts.clip_text(fields)), "transformer.text_model.")


def openclip(fields: dict) -> dict[str, Stored]:
    named = text.to_openclip(shaped(layouts.clip_text(fields)))
    return naming.prefixed(named, "model.") | {"model.logit_scale": named["positional_embedding"].map(lambda a: a[0, 0], ())}


FILES = {
    "1": lambda: file_of(SD1, KL, **{"cond_stage_model.": clip(CLIP_L)}),
    "2": lambda: file_of(SD2, KL, **{"cond_stage_model.": openclip(CLIP_H)}),
    "xl": lambda: file_of(XL, KL, **{"conditioner.embedders.0.": clip(CLIP_L), "conditioner.embedders.1.": openclip(CLIP_G)}),
    "refiner": lambda: file_of(REFINER, KL, **{"conditioner.embedders.0.": openclip(CLIP_G)}),
}


@pytest.mark.parametrize("name", PAPER)
def test_models_of_the_paper(name):
    of = importlib.import_module(f"configs.{name}").get_config().to_dict()
    layout = conditioner_layout(of["conditioner"])
    prefix = "transformer.text_model." if of["conditioner"]["kind"] == "clip_text" else ""
    tensors = file_of(of["network"], of["first_stage"], **{f"cond_stage_model.{prefix}": shaped(layout)})
    found = recognise.describe(tensors, None, {}, [])
    for part in ("network", "first_stage", "conditioner", "diffusion"):
        for field, value in found[part].items():
            told = of[part].get(field, value)  # fields that a config leaves at their default
            if field == "attention_resolutions":  # factors of levels that are not there say nothing
                told = tuple(sorted(factor for factor in told if factor < 2 ** len(of["network"]["channel_mult"])))
            unused = field == "num_heads" and of[part]["num_head_channels"] > 0
            if unused or field in ("path", "tokenizer", "loss", "resolution", "attn_resolutions"):
                continue
            assert (tuple(told) if isinstance(told, list) else told) == value, (part, field)
    assert found["latents"]["scale"] in (of["latents"]["scale"], {"imagenet_f4": 1.0}.get(name))
    assert layouts.unet(found["network"]) == layouts.unet(of["network"])
    assert layouts.autoencoder(found["first_stage"]) == layouts.autoencoder(of["first_stage"])


@pytest.mark.parametrize("channels", [4, 8, 9])
def test_stable_diffusion_1(channels):
    tensors = file_of(SD1 | {"in_channels": channels}, KL, **{"cond_stage_model.": clip(CLIP_L)})
    found = recognise.describe(tensors, None, {}, [])
    assert found["network"] == SD1 | {"in_channels": channels}
    assert found["first_stage"] == KL | {"resolution": 512}
    assert found["latents"]["scale"] == 0.18215 and found["diffusion"]["prediction"] == "eps"
    assert (found["diffusion"]["linear_start"], found["diffusion"]["linear_end"]) == (0.00085, 0.012)


@pytest.mark.parametrize(
    "name, what",
    [
        ("joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3 alone"),
        ("double_blocks.0.img_attn.qkv.weight", "FLUX, of which single files are not read"),
        ("y_embedder.y_proj.fc1.weight", "PixArt or Sana"),
    ],
)
def test_single_files_of_transformers_are_called_by_their_name(tmp_path, name, what):
    safetensors_files.write(tmp_path / "model.safetensors", {name: np.zeros((6, 2), np.float32)})
    with pytest.raises(ValueError, match=f"it holds the transformer of {what}"):
        weights.read(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"], "an adapter .*with_lora"),
        (["unet.x.lora_A.weight", "unet.x.lora_B.weight"], "an adapter .*with_lora"),
        (["x.processor.to_q_lora.down.weight", "x.processor.to_q_lora.up.weight"], "an adapter .*with_lora"),
        (["control_model.input_hint_block.0.weight", "control_model.zero_convs.0.0.weight"], "a ControlNet: .*with_control"),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x.weight"], "a ControlNet: .*with_control"),
        (["emb_params"], "the vectors of a word: .*with_embedding"),
        (["encoder.down_blocks.0.x.weight", "decoder.up_blocks.0.x.weight"], "a first stage under diffusers' names"),
        (["conv_in.weight", "down_blocks.0.x.weight", "up_blocks.0.x.weight"], "a network under diffusers' names"),
    ],
)
def test_files_that_are_no_model_are_called_what_they_are(tmp_path, names, what):
    """A first stage under diffusers' names was said to lack a field, the others to have nothing that they are known by."""
    safetensors_files.write(tmp_path / "a.safetensors", {name: np.ones((4, 4), np.float32) for name in names})
    with pytest.raises(ValueError, match=f"it holds {what}"):
        weights.read(tmp_path / "a.safetensors")


def test_stable_diffusion_2_needs_to_be_told_what_it_predicts():
    tensors = FILES["2"]()
    with pytest.raises(ValueError, match='prediction="eps" or prediction="v"'):
        recognise.describe(tensors, None, {}, [])
    for given, size in (("eps", 512), ("v", 768)):
        found = recognise.describe(tensors, given, {}, [])
        assert found["network"] == SD2 and found["diffusion"]["prediction"] == given
        assert found["first_stage"]["resolution"] == size and found["conditioner"]["layer"] == "penultimate"
    said = {"modelspec.architecture": "stable-diffusion-v2-768-v"}, {"modelspec.prediction_type": "v"}
    for metadata in said:
        assert recognise.describe(tensors, None, metadata, [])["diffusion"]["prediction"] == "v"
        with pytest.raises(ValueError, match="the file says that its network predicts v"):
            recognise.describe(tensors, "eps", metadata, [])
    assert recognise.describe(tensors, None, {"modelspec.architecture": "stable-diffusion-v2-512"}, [])


@pytest.mark.parametrize("name", ["xl", "refiner"])
def test_stable_diffusion_xl(name, tmp_path):
    """All the way through the reader: every tensor has its place."""
    found = recognise.describe(FILES[name](), None, {}, [])
    assert found["network"] == (XL if name == "xl" else REFINER)
    assert found["first_stage"] == KL | {"resolution": 1024, "force_upcast": True}
    assert found["latents"]["scale"] == 0.13025 and found["conditioner"]["kind"] == "sdxl"
    # widths are those of the published models; no test writes their bytes
    from ldm_jax.weights import compvis_files

    description, params = compvis_files._whole(tmp_path, found, FILES[name](), True, notes := [], False)
    towers = description["conditioner"]["towers"]
    kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    two = {"text_encoder": (768, 12, 12, "quick_gelu"), "text_encoder_2": (1280, 32, 20, "gelu")}
    expected = two if name == "xl" else {"text_encoder_2": two["text_encoder_2"]}
    assert {n: tuple(fields[k] for k in kept) for n, fields in towers.items()} == expected
    assert description["conditioner"]["time_embed_dim"] == 256 and towers["text_encoder_2"]["pad_token_id"] == 0
    assert len(description["conditioner"]["time_ids"]) == 3 and set(params["conditioner"]) == set(expected)
    assert not any("left out" in note for note in notes)


@pytest.mark.parametrize("name", [*FILES, *PAPER])
def test_averaged_weights_alone_get_their_dots_back(name):
    if name in FILES:
        layout = layouts.unet({"1": SD1, "2": SD2, "xl": XL, "refiner": REFINER}[name])
    else:
        layout = layouts.unet(importlib.import_module(f"configs.{name}").get_config().to_dict()["network"])
    names = [weight.name for weight in layout]
    dotless = {naming.ema_name(n): w for n, w in zip(names, layout)}
    assert list(structure.of_average(dotless)) == names


def small(tmp_path, suffix: str, **changes):
    """A Stable Diffusion 1 of 64 channels, as a file."""
    network = SD1 | {"model_channels": 64, "channel_mult": (1, 2), "attention_resolutions": (1, 2), "context_dim": 64}
    tower = CLIP_L | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 50}
    layout = file_of(network, KL | {"ch": 32, "ch_mult": (1, 2)}, **{"cond_stage_model.": clip(tower)})
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(tensor.shape, np.float32).astype(np.float16) for name, tensor in layout.items()}
    tensors |= changes
    path = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch_files.write(path, {"state_dict": tensors, "global_step": 3})
    else:
        safetensors_files.write(path, tensors)
    return path, tensors


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("sets", ["raw", "averaged", "both"])
def test_a_file_of_half_precision_raw_averaged_or_both(tmp_path, suffix, sets):
    path, tensors = small(tmp_path, suffix)
    raw = naming.within(tensors, "model.diffusion_model.")
    averaged = {f"model_ema.diffusion_model{naming.ema_name(name)}": value * 2 for name, value in raw.items()}
    path, tensors = small(tmp_path, suffix, **(averaged if sets != "raw" else {}))
    if sets == "averaged":
        tensors = {name: value for name, value in tensors.items() if not name.startswith("model.")}
        if suffix == ".ckpt":
            torch_files.write(path, {"state_dict": tensors})
        else:
            safetensors_files.write(path, tensors)
    for ema in (True, False):
        read = weights.read(path, ema=ema)
        leaf = read.params["network"]["input_blocks_0_0"]["bias"]
        factor = 2 if sets == "averaged" or (sets == "both" and ema) else 1
        np.testing.assert_array_equal(np.asarray(leaf), factor * raw["input_blocks.0.0.bias"])
        assert leaf.dtype == np.float16 and any("Stable Diffusion 1" in note for note in read.notes)
        assert set(read.params) == {"network", "first_stage", "conditioner"}


def test_a_first_stage_alone(tmp_path):
    _, tensors = small(tmp_path, ".ckpt")
    stage = naming.within(tensors, "first_stage_model.")
    for found in (stage, naming.prefixed(stage, "first_stage_model.")):
        safetensors_files.write(tmp_path / "vae.safetensors", found)
        read = weights.read(tmp_path / "vae.safetensors")
        assert set(read.params) == set(read.description) == {"first_stage"}
        assert read.description["first_stage"] == KL | {"ch": 32, "ch_mult": (1, 2), "resolution": 256}


def test_what_is_not_known_is_refused_with_a_way_out(tmp_path):
    path, _ = small(tmp_path, ".safetensors", edm_mean=np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="Playground 2.5.*Put the model's .yaml"):
        weights.read(path)
    path, tensors = small(tmp_path, ".safetensors")
    safetensors_files.write(path, {n: t for n, t in tensors.items() if not n.startswith("cond_stage_model.")})
    with pytest.raises(ValueError, match="none of the models known by their sizes"):
        weights.read(path)
    with pytest.raises(ValueError, match='prediction=\'x0\': "eps" or "v"'):
        weights.read(path, prediction="x0")
