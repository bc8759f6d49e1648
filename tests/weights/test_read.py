"""Checkpoints made here from random parameters: everything is found, nothing wrong goes unnoticed, round trips are exact."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import yaml

from ldm_jax import weights
from ldm_jax.cli.weights import main
from ldm_jax.diffusion.schedules import Cosine
from ldm_jax.primitives.files import existing
from ldm_jax.weights import files, layouts, naming, safetensors_files, schedules, torch_files
from ldm_jax.weights.compvis_files import conditioner_layout
from ldm_jax.weights.descriptions import diffusers_export
from ldm_jax.weights.pipelines import pipeline_of

NETWORK = {
    "kind": "unet",
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
    "num_heads": -1,
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "dropout": 0.0,
}
PLAIN = NETWORK | {"use_spatial_transformer": False, "context_dim": None}
STAGE = {
    "kind": "kl",
    "path": "",
    "in_channels": 3,
    "out_ch": 3,
    "resolution": 32,
    "ch": 32,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (16,),
    "attn_type": "vanilla",
    "z_channels": 4,
    "double_z": True,
    "dropout": 0.0,
    "embed_dim": 4,
    "n_embed": 0,
}
VQ = STAGE | {"kind": "vq", "double_z": False, "n_embed": 20, "attn_resolutions": (), "embed_dim": 3, "attn_type": "none"}
CLIP = {
    "kind": "clip_text",
    "vocab_size": 30,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 8,
    "hidden_act": "quick_gelu",
    "layer": "last",
}
TEXT = {"kind": "text", "n_embed": 16, "n_layer": 2, "vocab_size": 40, "max_seq_len": 9, "tokenizer": "bert-base-uncased"}
SEMANTIC = {
    "kind": "semantic",
    "n_stages": 2,
    "method": "bilinear",
    "multiplier": 0.5,
    "in_channels": 9,
    "out_channels": 3,
    "bias": False,
}
DIFFUSION = {
    "schedule": "scaled_linear",
    "linear_start": 0.0015,
    "linear_end": 0.0195,
    "timesteps": 1000,
    "prediction": "eps",
    "loss": "l1",
}
CONDITIONERS = {
    "none": {"kind": "none"},
    "class": {"kind": "class", "n_classes": 11, "embed_dim": 16, "null_label": 10},
    "text": TEXT,
    "layout": {name: value for name, value in TEXT.items() if name != "tokenizer"} | {"kind": "layout"},
    "semantic": SEMANTIC,
    "clip": CLIP,
    "openclip": CLIP | {"hidden_act": "gelu", "layer": "penultimate", "pad_token_id": 0, "projection_dim": 64},
    "inpaint": {"kind": "inpaint"},
    "superres": {"kind": "superres"},
}


def description(conditioner: str = "class", stage: dict = STAGE) -> dict:
    network = NETWORK if conditioner in ("class", "text", "layout", "clip", "openclip") else PLAIN
    return {
        "network": network | {"in_channels": stage["embed_dim"], "out_channels": stage["embed_dim"]},
        "first_stage": dict(stage),
        "conditioner": dict(CONDITIONERS[conditioner]),
        "diffusion": dict(DIFFUSION),
        "latents": {"scale": 0.18215, "shift": 0.0},
    }


def random_tree(layout: naming.Layout, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    tensors = {w.name: rng.normal(size=w.shape).astype(np.float32) for w in layout}
    tree = naming.nested(layout, {name: naming._stored(array) for name, array in tensors.items()})
    return mapped(np.asarray, tree)


def mapped(function, tree: dict) -> dict:
    return {k: mapped(function, v) if isinstance(v, dict) else function(v) for k, v in tree.items()}


def random_params(of: dict) -> dict:
    return {
        "network": random_tree(layouts.unet(of["network"]), 0),
        "first_stage": random_tree(layouts.autoencoder(of["first_stage"]), 1),
        "conditioner": random_tree(conditioner_layout(of["conditioner"]), 2),
    }


def assert_same(a: dict, b: dict) -> None:
    a, b = ({part: dict(naming.leaves(tree)) for part, tree in both.items()} for both in (a, b))
    assert a.keys() == b.keys()
    for part in a:
        assert a[part].keys() == b[part].keys()
        for name, leaf in a[part].items():
            x, y = np.asarray(leaf), np.asarray(b[part][name])
            assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), (part, name)


@pytest.mark.parametrize("conditioner", CONDITIONERS)
@pytest.mark.parametrize("stage", [STAGE, VQ], ids=["kl", "vq"])
def test_compvis_round_trip(tmp_path, conditioner, stage):
    of = description(conditioner, stage)
    params = random_params(of)
    weights.write_compvis(tmp_path / "a.ckpt", of, params)
    found = weights.read(tmp_path / "a.ckpt")
    assert found.description == of
    assert_same(found.params, params)
    weights.write_compvis(tmp_path / "b.ckpt", found.description, found.params)
    assert_same(weights.read(tmp_path / "b.ckpt").params, params)


IN_DIFFUSERS = {"kl": ("none", "class", "text", "layout", "clip", "openclip"), "vq": ("none",)}


@pytest.mark.parametrize("conditioner", CONDITIONERS)
@pytest.mark.parametrize("stage", [STAGE, VQ], ids=["kl", "vq"])
def test_diffusers_round_trip(tmp_path, conditioner, stage):
    of = description(conditioner, stage)
    params = random_params(of)
    if conditioner not in IN_DIFFUSERS[stage["kind"]]:
        with pytest.raises(ValueError, match="no pipeline of diffusers"):
            weights.write_diffusers(tmp_path / "a", of, params)
        assert not (tmp_path / "a").exists()
        return
    weights.write_diffusers(tmp_path / "a", of, params)
    found = weights.read(tmp_path / "a")
    if conditioner == "openclip":  # diffusers has the penultimate layer as the last of a smaller model
        assert found.description["conditioner"]["num_hidden_layers"] == 1
        del params["conditioner"]["encoder"]["layers_1"]
    else:
        assert found.description["conditioner"]["kind"] == of["conditioner"]["kind"]
    assert {k: v for k, v in found.description["first_stage"].items() if k != "resolution"} == {
        k: v for k, v in of["first_stage"].items() if k != "resolution"
    }
    assert found.description["diffusion"] == {k: v for k, v in DIFFUSION.items() if k != "loss"}
    assert_same(found.params, params)
    weights.write_diffusers(tmp_path / "b", found.description, found.params)
    again = weights.read(tmp_path / "b")
    assert again.description == found.description
    assert_same(again.params, params)


def test_own_trees_round_trip(tmp_path):
    of = description("text")
    params = random_params(of)
    params["network"]["out_2"]["bias"] = params["network"]["out_2"]["bias"].astype(np.float16)
    weights.write_params(tmp_path / "a.safetensors", of, params)
    found = weights.read(tmp_path / "a.safetensors")
    assert found.description == of
    assert_same(found.params, params)


def test_raw_and_averaged_weights(tmp_path):
    of = description()
    params, ema = random_params(of), random_tree(layouts.unet(of["network"]), 3)
    weights.write_compvis(tmp_path / "a.ckpt", of, params, ema)
    raw, averaged = weights.read(tmp_path / "a.ckpt", ema=False), weights.read(tmp_path / "a.ckpt")
    assert_same(raw.params, params)
    assert_same(averaged.params, params | {"network": ema})
    assert "averaged" in averaged.notes[-1] and "raw" in raw.notes[-1]


def test_first_stage_alone(tmp_path):
    params = {"first_stage": random_tree(layouts.autoencoder(VQ), 0)}
    weights.write_compvis(tmp_path / "a.ckpt", {"first_stage": VQ}, params)
    found = weights.read(tmp_path / "a.ckpt")
    assert found.description == {"first_stage": VQ}
    assert_same(found.params, params)
    weights.write_diffusers(tmp_path / "b", {"first_stage": VQ, "latents": {"scale": 1.0}}, params)
    assert_same(weights.read(tmp_path / "b").params, params)


def state(tmp_path, of=None) -> tuple[dict, dict]:
    """The tensors and the YAML of a written checkpoint."""
    of = of or description()
    weights.write_compvis(tmp_path / "a.ckpt", of, random_params(of))
    from ldm_jax.weights import pickles

    content, _ = pickles.read(tmp_path / "a.ckpt")
    return dict(content["state_dict"]), yaml.safe_load((tmp_path / "a.yaml").read_text())


def test_a_safetensors_file_in_compvis_names_and_half_precision(tmp_path):
    tensors, config = state(tmp_path)
    half = {name: np.asarray(tensor).astype(np.float16) for name, tensor in tensors.items()}
    safetensors_files.write(tmp_path / "b.safetensors", half)
    found = weights.read(tmp_path / "b.safetensors", config=config)
    assert all(leaf.dtype == np.float16 for _, leaf in naming.leaves(found.params))


def test_the_scale_comes_from_the_file_where_it_is_a_buffer(tmp_path):
    tensors, config = state(tmp_path)
    config["model"]["params"]["scale_by_std"] = True
    with pytest.raises(ValueError, match="no buffer scale_factor"):
        weights.read(tmp_path / "a.ckpt", config=config)
    torch_files.write(tmp_path / "b.ckpt", {"state_dict": tensors | {"scale_factor": np.float32(0.25)}})
    assert weights.read(tmp_path / "b.ckpt", config=config).description["latents"]["scale"] == 0.25


def test_losses_and_leftovers_of_training_are_noted(tmp_path):
    tensors, config = state(tmp_path)
    extra = {"first_stage_model.loss.logvar": np.float32(0), "lvlb_weights": np.zeros(1000, np.float32)}
    torch_files.write(tmp_path / "b.ckpt", {"state_dict": tensors | extra, "epoch": 1})
    notes = weights.read(tmp_path / "b.ckpt", config=config).notes
    assert any("loss.*" in note for note in notes) and any("epoch" in note for note in notes)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("model.diffusion_model.out.2.bias"), "network: .*1 missing:\n  out.2.bias"),
        (
            lambda t: t.update({"model.diffusion_model.out.3.bias": t["betas"]}),
            "1 left over:\n  out.3.bias .nearest: out.2.bias",
        ),
        (lambda t: t.update({"model.diffusion_model.out.2.bias": t["betas"]}), r"out.2.bias: \[1000\], expected \[4\]"),
        (lambda t: t.update({"model_ema.diffusion_modelout2bias": t["betas"]}), "averaged network .* missing"),
        (lambda t: t.update({"betas": np.linspace(1e-4, 2e-2, 1000)}), "YAML belongs to another model"),
        (lambda t: t.update({"betas": np.ones(500)}), "500 steps, the configuration 1000"),
    ],
    ids=["missing", "left over", "misshapen", "average", "schedule", "timesteps"],
)
def test_nothing_wrong_goes_unnoticed(tmp_path, change, message):
    tensors, config = state(tmp_path)
    change(tensors)
    torch_files.write(tmp_path / "b.ckpt", {"state_dict": tensors})
    with pytest.raises(ValueError, match=f"(?s)b.ckpt.*{message}"):
        weights.read(tmp_path / "b.ckpt", config=config)


def test_a_file_and_another_models_yaml(tmp_path):
    _, config = state(tmp_path)
    stage = {"model": config["model"]["params"]["first_stage_config"]}
    with pytest.raises(ValueError, match="describes a first stage alone"):
        weights.read(tmp_path / "a.ckpt", config=stage)
    weights.write_compvis(
        tmp_path / "ae.ckpt", {"first_stage": STAGE}, {"first_stage": random_params(description())["first_stage"]}
    )
    found = weights.read(tmp_path / "ae.ckpt", config=config)  # a whole model's YAML describes its first stage too
    assert set(found.params) == {"first_stage"} and found.description["latents"]["scale"] == 0.18215
    layout = layouts.unet(NETWORK)
    network = naming.flattened(layout, random_tree(layout, 0), "network")
    torch_files.write(tmp_path / "unet.ckpt", network)
    with pytest.raises(ValueError, match="neither a latent diffusion model .* nor a first stage"):
        weights.read(tmp_path / "unet.ckpt", config=stage)
    (tmp_path / "alone").mkdir()
    (tmp_path / "a.ckpt").rename(tmp_path / "alone" / "a.ckpt")
    with pytest.raises(ValueError, match="no YAML beside it; it holds a latent diffusion model"):
        weights.read(tmp_path / "alone" / "a.ckpt")


def test_a_unet_in_the_folder_of_an_autoencoder(tmp_path):
    params = random_params(description())
    weights.write_diffusers(tmp_path / "unet", {"network": NETWORK}, {"network": params["network"]})
    weights.write_diffusers(tmp_path / "vae", {"first_stage": STAGE}, {"first_stage": params["first_stage"]})
    (tmp_path / "vae" / "config.json").rename(tmp_path / "unet" / "config.json")
    with pytest.raises(ValueError, match="(?s)unet: 0 of .* tensors found.*do not belong together"):
        weights.read(tmp_path / "unet")


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("unet", {"down_block_types": ["DownBlock2D", "KDownBlock2D"]}, "KDownBlock2D"),
        ("unet", {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}, "do not mirror"),
        ("unet", {"center_input_sample": True}, "center_input_sample"),
        ("unet", {"encoder_hid_dim": 4}, "encoder_hid_dim"),
        ("unet", {"_class_name": "UNet1DModel"}, "UNet1DModel"),
        ("vae", {"mid_block_add_attention": False}, "not in the middle"),
        ("vae", {"latents_mean": [0.5]}, "latents_mean"),
    ],
)
def test_what_our_networks_do_not_compute_is_refused(tmp_path, name, change, message):
    of = description()
    weights.write_diffusers(tmp_path, of, random_params(of))
    path = tmp_path / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        weights.read(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"unet_config": {"target": "a.EncoderUNetModel", "params": {}}}, "only UNetModel"),
        ({"first_stage_config": {"target": "ldm.AutoencoderRL", "params": {}}}, "AutoencoderRL"),
        ({"cond_stage_config": {"target": "ldm.T5"}}, "ldm.T5 is not known"),
        ({"beta_schedule": "cubic"}, "'cubic'"),
        ({"given_betas": [0.1, 0.2]}, "given_betas .*: a schedule of its own"),
        ({"beta_schedule": "cosine", "cosine_s": 0.02}, "cosine_s 0.02: a schedule of its own"),
        ({"cond_stage_config": {"target": "a.FrozenCLIPEmbedder", "params": {"layer": "hidden", "layer_idx": 11}}}, "'hidden'"),
        ({"cond_stage_config": {"target": "a.FrozenOpenCLIPEmbedder", "params": {"layer": "pooled"}}}, "'pooled'"),
        ({"parameterization": "score"}, "'score'"),
    ],
)
def test_unknown_parts_of_a_yaml_are_refused(tmp_path, change, message):
    _, config = state(tmp_path)
    config["model"]["params"] |= change
    with pytest.raises(ValueError, match=message):
        weights.read(tmp_path / "a.ckpt", config=config)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_heads": 8, "num_head_channels": -1, "attention_resolutions": (1, 2)}, "heads of different widths"),
        ({"conv_resample": False}, "conv_resample"),
    ],
)
def test_what_diffusers_cannot_express_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        weights.write_diffusers(tmp_path, {"network": PLAIN | fields}, {"network": {}})
    with pytest.raises(ValueError, match="embed_dim 3 other than z_channels 4"):
        weights.write_diffusers(tmp_path, {"first_stage": STAGE | {"embed_dim": 3}}, {"first_stage": {}})
    with pytest.raises(ValueError, match="norm_num_groups"):
        weights.write_compvis(tmp_path / "a.ckpt", description() | {"network": PLAIN | {"norm_num_groups": 8}}, {})


def test_old_names_of_attention_and_of_flax(tmp_path):
    of = description("none")
    params = random_params(of)
    weights.write_diffusers(tmp_path / "new", of, params)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for new, past in old.items():
            name = name.replace(f".{new}.", f".{past}.") if ".attentions." in name else name
        return name

    for part in ("unet", "vqvae"):
        tensors = safetensors_files.read(tmp_path / "new" / part / "diffusion_pytorch_model.safetensors")
        folder = tmp_path / f"old {part}"
        folder.mkdir()
        (folder / "config.json").write_text((tmp_path / "new" / part / "config.json").read_text())
        torch_files.write(folder / "diffusion_pytorch_model.bin", {renamed(name): tensor for name, tensor in tensors.items()})
        assert_same(
            weights.read(folder).params, {k: v for k, v in params.items() if k == next(iter(weights.read(folder).params))}
        )


def test_flax_folders(tmp_path):
    import flax.serialization

    of = description("class")
    params = random_params(of)
    weights.write_diffusers(tmp_path / "torch", of, params)
    for part, key in (("unet", "network"), ("vae", "first_stage")):
        tree: dict = {}
        layout = layouts.unet(of["network"]) if part == "unet" else layouts.autoencoder(of["first_stage"])
        kinds = {name: weight.kind for weight in layout for name in weight.diffusers}
        for name, tensor in safetensors_files.read(tmp_path / "torch" / part / "diffusion_pytorch_model.safetensors").items():
            array = np.asarray(tensor)
            if kinds[name] == "kernel":
                array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            *scopes, leaf = naming.Weight(name, (), kinds[name], ()).path
            node = tree
            for scope in scopes:
                node = node.setdefault(scope, {})
            node[leaf] = np.ascontiguousarray(array)
        folder = tmp_path / f"flax_{part}"
        folder.mkdir()
        (folder / "config.json").write_text((tmp_path / "torch" / part / "config.json").read_text())
        (folder / "diffusion_flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
        assert_same(weights.read(folder).params, {key: params[key]})
        assert_same(weights.read(folder / "diffusion_flax_model.msgpack").params, {key: params[key]})


@pytest.mark.parametrize(
    ("conditioner", "section", "fields", "message"),
    [
        ("text", "conditioner", {"heads": 2, "dim_head": 256}, "heads=2: CompVis's YAML has no word for it, and means 8"),
        ("layout", "conditioner", {"dim_head": 16}, "dim_head=16"),
        ("class", "conditioner", {"null_label": -1}, "null_label=-1: .* means 10"),
        ("class", "conditioner", {"n_classes": 1000, "null_label": 999}, "null_label=999: .* means -1"),
        ("clip", "conditioner", {"layer": "penultimate"}, "layer='penultimate'"),
        ("clip", "conditioner", {"layer_norm_eps": 1e-4}, "layer_norm_eps"),
        ("clip", "conditioner", {"num_attention_heads": 4}, "num_attention_heads=4"),
        ("openclip", "conditioner", {"pad_token_id": 5}, "pad_token_id=5"),
        ("superres", "conditioner", {"scale": 8}, "scale=8: .* means 2"),
        ("superres", "conditioner", {"noise_levels": 10}, "noise_levels=10"),
        ("inpaint", "conditioner", {"convention": "stable_diffusion"}, "convention='stable_diffusion'"),
        ("none", "diffusion", {"time_scale": 1.0}, "time_scale=1.0"),
        ("none", "diffusion", {"learned_variance": True}, "learned_variance=True"),
        ("none", "first_stage", VQ | {"unit_codes": True}, "unit_codes"),
        ("none", "first_stage", VQ | {"fsq_levels": (3, 3)}, "fsq_levels"),
    ],
)
def test_what_a_yaml_can_not_say_is_not_written(tmp_path, conditioner, section, fields, message):
    """It would be read as the usual: with other heads, another empty class, another layer of the text encoder."""
    of = description(conditioner)
    of[section] |= fields
    with pytest.raises(ValueError, match=message):
        weights.write_compvis(tmp_path / "a.ckpt", of, {"network": {}})
    assert not list(tmp_path.iterdir())


def test_what_diffusers_would_tell_otherwise_is_not_written(tmp_path):
    of = description("none")
    of["diffusion"]["time_scale"] = 4.0
    with pytest.raises(ValueError, match="tells its network times up to 4.0 .* all up to 1000"):
        weights.write_diffusers(tmp_path / "a", of, {"network": {}, "first_stage": {}})
    vq = VQ | {"unit_codes": True, "embed_dim": 4, "z_channels": 4}
    with pytest.raises(ValueError, match="no file of diffusers or CompVis holds a codebook of directions"):
        weights.write_diffusers(tmp_path / "a", {"first_stage": vq}, {"first_stage": {}})


def test_attention_in_the_new_order_is_told_apart(tmp_path):
    """All q, all k, all v; diffusers has them apart, and a network that is read has them head by head."""
    fields = PLAIN | {"use_new_attention_order": True, "num_head_channels": 8}
    tree = random_tree(layouts.unet(fields), 0)
    weights.write_diffusers(tmp_path / "a", {"network": fields}, {"network": tree})
    read = weights.read(tmp_path / "a").params["network"]
    for leaf, axes in (("kernel", (64,)), ("bias", ())):
        there = np.asarray(read["middle_block_1"]["qkv"][leaf]).reshape(*axes, 8, 3, 8)
        here = tree["middle_block_1"]["qkv"][leaf].reshape(*axes, 3, 8, 8)
        np.testing.assert_array_equal(np.moveaxis(there, -2, -3), here)


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_a_cosine_becomes_its_table(scale):
    """Of whatever scale: others were written as the plain one, of scale 1."""
    section = {"schedule": "cosine", "prediction": "v", "scale": scale}
    betas = np.asarray(diffusers_export.scheduler(section)["trained_betas"])
    level = Cosine(scale)(np.arange(1, 999) / 1000)
    np.testing.assert_allclose(np.cumprod(1 - betas)[1:999], level.alpha**2, rtol=1e-5, atol=1e-7)


def test_schedule_tables():
    """The buffers as closed forms of alpha_bar, for every schedule that CompVis names."""
    for schedule in ("scaled_linear", "linear", "sqrt", "squared_cosine"):
        made = schedules.buffers(DIFFUSION | {"schedule": schedule})
        bar = np.cumprod(1 - schedules.betas(DIFFUSION | {"schedule": schedule}))
        assert np.allclose(made["sqrt_alphas_cumprod"] ** 2 + made["sqrt_one_minus_alphas_cumprod"] ** 2, 1)
        assert np.allclose(
            made["posterior_mean_coef1"] + made["posterior_mean_coef2"] * np.sqrt(bar),
            np.sqrt(made["alphas_cumprod_prev"]),
            atol=1e-4,
        )
        assert made["posterior_variance"][0] == 0


def test_command_line(tmp_path, capsys):
    of = description("text")
    params = random_params(of)
    weights.write_compvis(tmp_path / "a.ckpt", of, params, random_tree(layouts.unet(of["network"]), 3))
    assert main(["convert", str(tmp_path / "a.ckpt"), str(tmp_path / "b"), "--format", "diffusers", "--raw"]) == 0
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "c.ckpt"), "--format", "compvis"]) == 0
    assert main(["convert", str(tmp_path / "c.ckpt"), str(tmp_path / "d.safetensors"), "--format", "params"]) == 0
    assert_same(weights.read(tmp_path / "d.safetensors").params, params)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "d.safetensors")]) == 0
    assert "network" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "a.ckpt"), str(tmp_path / "b")]) == 1
    assert "exists" in capsys.readouterr().err
    (tmp_path / "e.yaml").write_text("mine")
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "e.ckpt"), "--format", "compvis"]) == 1
    assert "e.yaml exists" in capsys.readouterr().err and (tmp_path / "e.yaml").read_text() == "mine"
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "f"), "--config", str(tmp_path / "none.yaml")]) == 1
    assert "describes its model itself" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nothing")]) == 1


def test_neither_jax_nor_torch_is_imported():
    code = "import sys, ldm_jax.weights, ldm_jax.weights.__main__; assert not {'jax', 'torch', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def drawn_by_diffusers(of: dict) -> bool:
    """Whether it has a pipeline for the model."""
    try:
        pipeline_of(of)
    except ValueError:
        return False
    return True


@pytest.mark.parity
def test_reference_checkpoints_round_trip(fixtures_dir, tmp_path):
    for folder in sorted(fixtures_dir.glob("[DE]*")):
        path = folder / "model.ckpt" if (folder / "model.ckpt").exists() else folder
        checkpoint = weights.read(path)
        if {"network", "first_stage"} <= {*checkpoint.params} and not drawn_by_diffusers(checkpoint.description):
            assert path != folder, f"{folder.name} came from diffusers"
        else:
            weights.write_diffusers(tmp_path / folder.name, checkpoint.description, checkpoint.params)
            assert_same(weights.read(tmp_path / folder.name).params, checkpoint.params)
        if path != folder:
            weights.write_compvis(tmp_path / "again.ckpt", checkpoint.description, checkpoint.params)
            again = weights.read(tmp_path / "again.ckpt")
            assert again.description == checkpoint.description
            assert_same(again.params, checkpoint.params)


STRAYS = {
    "denoiser.sigmas": np.ones(10, np.float32),
    "embedding_manager.embedder.x": np.ones(3, np.float32),
    "loss.logvar": np.float32(0),
    "epoch": np.int64(3),
    "model_ema.decay": np.float32(0.999),
    "model_ema.num_updates": np.int32(7),
    "cond_stage_model.embeddings.position_ids": np.arange(4),
    "alphas_cumprod_next": np.ones(1000, np.float32),
    "optimizer_states.0.exp_avg": np.ones(3, np.float32),
}


def equal(one: dict, other: dict) -> bool:
    ours, theirs = dict(naming.leaves(one)), dict(naming.leaves(other))
    return set(ours) == set(theirs) and all(np.array_equal(np.asarray(ours[k]), np.asarray(theirs[k])) for k in ours)


@pytest.mark.parametrize("name", STRAYS)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_stray_tensors_are_left_out_with_a_note(tmp_path, name, suffix):
    tensors, config = state(tmp_path)
    whole = weights.read(tmp_path / "a.ckpt", config=config)
    if suffix == ".ckpt":
        torch_files.write(tmp_path / "b.ckpt", {"state_dict": {**tensors, name: STRAYS[name]}})
    else:
        safetensors_files.write(tmp_path / "b.safetensors", {**tensors, name: np.asarray(STRAYS[name])})
    for ema in (True, False):
        read = weights.read(tmp_path / f"b{suffix}", config=config, ema=ema)
        assert equal(read.params, whole.params)
        assert any(name.removeprefix("cond_stage_model.") in note for note in read.notes)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"state_dict": naming.prefixed(t, "module.")},
        lambda t: naming.prefixed(t, "_orig_mod."),
        lambda t: {"model": naming.prefixed(t, "module._orig_mod.")},
        lambda t: {"state_dict": {"net": t}, "optimizer": {"state": {0: {"exp_avg": np.ones(3, np.float32)}}}, "epoch": 1},
        lambda t: {"epoch": 3, "ema": t},
        lambda t: {"params_ema": t},
        lambda t: {k.replace("model.diffusion_model.", "model._orig_mod.diffusion_model.module."): v for k, v in t.items()},
    ],
    ids=["ddp", "compiled", "both", "nested", "average alone", "params_ema alone", "inside"],
)
def test_wrappers_of_training_are_stripped_with_a_note(tmp_path, wrap):
    tensors, config = state(tmp_path)
    whole = weights.read(tmp_path / "a.ckpt", config=config)
    torch_files.write(tmp_path / "b.ckpt", wrap(tensors))
    read = weights.read(tmp_path / "b.ckpt", config=config)
    assert equal(read.params, whole.params) and read.description == whole.description
    assert any("names without" in note or "left out" in note for note in read.notes)


def test_params_and_params_ema_are_chosen_by_ema(tmp_path):
    tensors, config = state(tmp_path)
    twice = {name: np.asarray(tensor) * 2 if name.startswith("model.") else tensor for name, tensor in tensors.items()}
    for names in (("params", "params_ema"), ("model", "ema"), ("state_dict", "ema_state_dict")):
        torch_files.write(tmp_path / "b.ckpt", dict(zip(names, (tensors, twice))))
        raw, average = (weights.read(tmp_path / "b.ckpt", config=config, ema=ema).params for ema in (False, True))
        assert equal(raw, weights.read(tmp_path / "a.ckpt", config=config).params)
        for path, leaf in naming.leaves(average["network"]):
            np.testing.assert_array_equal(np.asarray(leaf), 2 * np.asarray(dict(naming.leaves(raw["network"]))[path]))


@pytest.mark.parametrize("prefix", ["first_stage_model.", "autoencoder.", "vae.", "module.first_stage_model.", "net.vae.", ""])
def test_a_first_stage_alone_with_or_without_its_prefix(tmp_path, prefix):
    tensors, config = state(tmp_path)
    stage = naming.within(tensors, "first_stage_model.")
    torch_files.write(tmp_path / "b.ckpt", {"state_dict": naming.prefixed(stage, prefix)})
    read = weights.read(tmp_path / "b.ckpt", config=config)
    assert set(read.params) == {"first_stage"}
    assert equal(read.params["first_stage"], weights.read(tmp_path / "a.ckpt", config=config).params["first_stage"])
    assert not prefix or any("names without" in note for note in read.notes)


def test_what_stands_beside_a_first_stage_is_noted(tmp_path):
    tensors, config = state(tmp_path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.")}
    safetensors_files.write(tmp_path / "b.safetensors", kept)
    read = weights.read(tmp_path / "b.safetensors", config=config)
    assert set(read.params) == {"first_stage"}
    assert any("left out" in note and "betas" in note for note in read.notes)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
def test_averages_of_a_wrapped_network_are_no_first_stage(tmp_path, wrapper):
    """What CompVis's average makes of module.diffusion_model.*; without raw weights beside it."""
    tensors, config = state(tmp_path)
    kept = {}
    for name, tensor in tensors.items():
        of_network = name.startswith("model.diffusion_model.")
        kept[f"model_ema.{wrapper}" + naming.ema_name(name[len("model.") :]) if of_network else name] = tensor
    safetensors_files.write(tmp_path / "b.safetensors", kept)
    with pytest.raises(ValueError, match=f"averaged network(?s:.*): 0 of (?s:.*)nearest: {wrapper}diffusion_model"):
        weights.read(tmp_path / "b.safetensors", config=config)


def test_statements_in_a_file_are_honoured_or_contradicted(tmp_path):
    tensors, config = state(tmp_path)
    empty = np.zeros(0, np.float32)
    torch_files.write(tmp_path / "b.ckpt", {"state_dict": {**tensors, "v_pred": empty, "ztsnr": empty}})
    with pytest.raises(ValueError, match="v_pred.*parameterization: eps"):
        weights.read(tmp_path / "b.ckpt", config=config)
    del config["model"]["params"]["parameterization"]
    read = weights.read(tmp_path / "b.ckpt", config=config)
    assert read.description["diffusion"]["prediction"] == "v" and read.description["diffusion"]["zero_terminal_snr"]
    assert read.description["scheduler"]["rescale_betas_zero_snr"]
    assert read.description["scheduler"]["prediction_type"] == "v_prediction"
    assert sum("v_pred" in note or "ztsnr" in note for note in read.notes) == 2


def test_a_table_that_ends_at_pure_noise_is_kept(tmp_path):
    """In files of CompVis by a tensor, and in the buffers that its code reads."""
    of = description("clip")
    of["diffusion"] |= {"prediction": "v", "zero_terminal_snr": True}
    weights.write_compvis(tmp_path / "a.ckpt", of, random_params(of))
    read = weights.read(tmp_path / "a.ckpt")
    assert read.description["diffusion"]["zero_terminal_snr"] and read.description["diffusion"]["prediction"] == "v"
    assert read.description["scheduler"]["rescale_betas_zero_snr"]
    kept = files.tensors(tmp_path / "a.ckpt", [])
    bar = np.cumprod(1 - np.asarray(kept["betas"], np.float64))
    np.testing.assert_allclose(bar[:-1], np.asarray(kept["alphas_cumprod"])[:-1], rtol=1e-3, atol=1e-7)
    assert bar[-1] < 1e-6 and all(np.isfinite(np.asarray(kept[name])).all() for name in schedules.BUFFERS)


def pipeline(folder: Path, **changes) -> Path:
    of = description("superres", VQ)
    of["network"]["in_channels"], of["latents"]["scale"] = 6, 1.0
    weights.write_diffusers(folder, of, random_params(of))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **changes}))
    return folder


@pytest.mark.parametrize("present", [True, False])
def test_parts_that_sampling_does_not_need_are_passed_by_with_a_note(tmp_path, present):
    extra = {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"], "watermarker": ["mine", "Watermarker"]}
    folder = pipeline(tmp_path / "a", **extra, feature_extractor=["transformers", "CLIPImageProcessor"])
    if present:
        (folder / "image_encoder").mkdir()
        (folder / "image_encoder" / "config.json").write_text('{"architectures": ["CLIPVisionModelWithProjection"]}')
    read = weights.read(folder)
    assert set(read.params) == {"network", "first_stage", "conditioner"}
    assert any("image_encoder" in note and "watermarker" in note for note in read.notes)


def test_pipelines_of_two_towers_are_refused_for_what_they_are(tmp_path):
    folder = pipeline(tmp_path / "a", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(ValueError, match="needs its text_encoder_2, which is not read"):
        weights.read(folder)


def test_pipelines_of_latents_need_their_first_stage(tmp_path):
    """Without one they would be read as drawing pictures of as many channels as their latents have."""
    folder = pipeline(tmp_path / "a", vqvae=[None, None], vae=[None, None])
    with pytest.raises(ValueError, match="LDMSuperResolutionPipeline without its first stage"):
        weights.read(folder)


def test_networks_that_read_need_what_they_read(tmp_path):
    """A pipeline that was saved without its text encoder."""
    of = description("clip")
    weights.write_diffusers(tmp_path / "a", of, random_params(of))
    index = json.loads((tmp_path / "a" / "model_index.json").read_text())
    (tmp_path / "a" / "model_index.json").write_text(json.dumps(index | {"text_encoder": [None, None]}))
    with pytest.raises(ValueError, match="StableDiffusionPipeline is told 16 numbers a word, .* without its text_encoder"):
        weights.read(tmp_path / "a")


def test_files_that_say_what_a_model_is(tmp_path):
    folder = pipeline(tmp_path / "a")
    with pytest.raises(ValueError, match=f"give its folder, {folder}$"):
        weights.read(folder / "model_index.json")
    (tmp_path / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    with pytest.raises(ValueError, match="it is a ControlNet: ldm.with_control"):
        weights.read(tmp_path)


def test_a_yaml_is_looked_for_as_a_model_is(tmp_path, monkeypatch):
    _, config = state(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "yamls").mkdir()
    (tmp_path / "a.yaml").rename(tmp_path / "yamls" / "b.yaml")
    assert weights.read(tmp_path / "a.ckpt", config="~/yamls/b.yaml").description["network"]["kind"] == "unet"
    with pytest.raises(ValueError, match=f"config='{tmp_path}/c.yaml': there is no such file; name the model's YAML"):
        weights.read(tmp_path / "a.ckpt", config="~/c.yaml")


def test_links_to_what_is_not_there(tmp_path):
    """As copies of the hub's cache hold them, whose files are links to blobs."""
    folder = pipeline(tmp_path / "a")
    path = next((folder / "unet").glob("*.safetensors"))
    path.unlink()
    path.symlink_to("../../blobs/abc")
    with pytest.raises(ValueError, match=f"{path} is a link to ../../blobs/abc, which isn't there; copy the files themselves"):
        weights.read(folder)
    with pytest.raises(FileNotFoundError, match="is a link to ../../blobs/abc, which isn't there$"):
        existing(path)


def test_super_resolution_has_no_scale_of_latents(tmp_path):
    """Its pipeline ignores the autoencoder's scaling_factor, which a re-saved VQModel has at 0.18215."""
    folder = pipeline(tmp_path / "a")
    path = next(folder.glob("v*ae/config.json"))
    config = json.loads(path.read_text()) | {"scaling_factor": 0.18215, "latents_mean": 0, "latents_std": [1] * 3}
    path.write_text(json.dumps(config))
    assert weights.read(folder).description["latents"] == {"scale": 1.0, "shift": 0.0, "size": (16, 16)}


def test_quantised_weights_are_refused(tmp_path):
    """Whole numbers, and float8 with factors beside them: read as they stand they would be another model."""
    tensors, _ = state(tmp_path)
    name = "model.diffusion_model.out.2.weight"
    path, values = tmp_path / "a.safetensors", {n: np.asarray(t) for n, t in tensors.items()}
    safetensors_files.write(path, values | {name: values[name].astype(np.int8)})
    with pytest.raises(ValueError, match=r"(?s)1 tensors hold whole numbers.*float16.*out.2.weight: int8"):
        weights.read(path)
    for factor in ("model.diffusion_model.out.2.scale_weight", "model.diffusion_model.out.2.weight_scale"):
        small = {name: values[name].astype(ml_dtypes.float8_e4m3fn), factor: np.ones(1, np.float32)}
        safetensors_files.write(path, values | small)
        with pytest.raises(ValueError, match=r"(?s)1 left over:.*(scale_weight|weight_scale)"):
            weights.read(path)
    safetensors_files.write(path, values | {name: values[name].astype(ml_dtypes.float8_e4m3fn)})
    weights.read(path)  # float8 alone are numbers as others


@pytest.mark.parametrize(
    "suffix, data, message",
    [
        (".safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (".ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (".ckpt", b"<!DOCTYPE html><html>", "download the file again"),
        (".safetensors", b"PK\x03\x04" + bytes(30), "name it .ckpt"),
        (".ckpt", (2).to_bytes(8, "little") + b"{}", "name it .safetensors"),
        (".safetensors", bytes(4), "truncated, or not safetensors"),
    ],
)
def test_files_under_another_suffix(tmp_path, suffix, data, message):
    (tmp_path / f"model{suffix}").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        weights.read(tmp_path / f"model{suffix}")


def test_a_folder_above_or_below_a_model_names_it(tmp_path):
    run, pipeline = tmp_path / "runs" / "one", tmp_path / "cache" / "snapshots" / "abc"
    for folder in (run / "diffusion" / "checkpoints", pipeline / "unet"):
        folder.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (pipeline / "model_index.json").write_text("{}")
    for given, message in (
        (run / "diffusion", f"It is part of {run}: give that"),
        (run / "diffusion" / "checkpoints", f"It is part of {run}: give that"),
        (pipeline / "unet", f"It is part of {pipeline}: give that"),
        (run.parent, f"Models are in {run}: give one of them"),
        (tmp_path / "cache", f"Models are in {pipeline}: give one of them"),
        (tmp_path, r"found none\)$"),
    ):
        with pytest.raises(ValueError, match=message):
            weights.read(given)
