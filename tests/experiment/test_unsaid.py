"""What shapes don't say of a model that a training takes over: heads, groups of norms, activations. Nothing is compiled."""

import copy

import jax
import numpy as np
import pytest

from ldm_jax import api, experiment, weights
from ldm_jax.experiment import starting, unsaid
from ldm_jax.primitives.files import write_json
from tests import tiny
from tests.test_finetuning import experiment_config, saved

UNET = {"kind": "unet", "model_channels": 32, "channel_mult": [1, 2], "attention_resolutions": [1, 2]}
LORA = {"rank": 2, "alpha": 0.0, "targets": ["to_q"]}


@pytest.fixture(scope="module")
def base():
    return tiny.model("text")


def test_heads_are_compared_by_how_many_there_are():
    def found(ours, theirs, **fields):
        return unsaid.differences({"network": UNET | ours | fields}, {"network": UNET | theirs | fields}, "network")

    four, wide = {"num_heads": 4, "num_head_channels": -1}, {"num_heads": -1, "num_head_channels": 8}
    assert not found(four, {"num_heads": [4, 4]}) and not found(four, four | {"norm_num_groups": 32, "freq_shift": 0})
    assert not found({"num_heads": [4, 8]}, wide) and not found({"num_heads": 8}, wide, attention_resolutions=[2])
    assert found(four, wide) == [("num_heads", 4, -1), ("num_head_channels", -1, 8)]
    assert found(four, four | {"norm_num_groups": 8}) == [("norm_num_groups", 32, 8)]
    assert not unsaid.differences({"network": UNET}, {"network": {"kind": "dit", "num_heads": 3}}, "network")


def test_text_encoders_are_compared_one_by_one():
    towers = {"text_encoder": {"hidden_act": "quick_gelu"}, "text_encoder_2": {"hidden_act": "gelu"}}
    ours = {"kind": "sdxl", "time_ids": ("crop",), "towers": copy.deepcopy(towers)}
    theirs = ours | {"time_ids": ["crop"], "zero_empty": True}
    parts = [{"conditioner": {"kind": "combined", "parts": {"prompt": of}}} for of in (ours, theirs)]
    assert unsaid.differences(*parts, "conditioner") == []
    del ours["towers"]["text_encoder_2"]["hidden_act"]  # CLIP's own default
    theirs["towers"] = towers
    at = "parts.prompt.towers.text_encoder_2.hidden_act"
    assert unsaid.differences(*parts, "conditioner") == [(at, "quick_gelu", "gelu")]


def test_what_stays_as_it_is_is_taken_as_it_is(base, tmp_path):
    """A LoRA would be learnt of another function than the model's, and drawn with as if of the model."""
    path = saved(base, tmp_path)
    good = experiment_config(path, base, diffusion_train__lora=LORA)

    def checked(**changes):
        config = copy.deepcopy(good)
        for name, value in changes.items():
            section, field = name.split("__")
            config[section][field] = value
        experiment.check(config, tmp_path / "run")

    checked()
    there = f"the model in {path}, which stays as it is, has"
    for name, value, was in (
        ("network__num_head_channels", 8, 4), ("network__norm_num_groups", 2, 4), ("first_stage__norm_num_groups", 4, 2),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"config.{name.replace('__', '.')}={value}: {there} {was}; set it to that"):
            checked(**{name: value})
    (tmp_path / "run" / "diffusion" / "checkpoints").mkdir(parents=True)  # one that has begun goes on
    checked(network__num_head_channels=8)


def test_a_training_that_goes_on_says_what_is_otherwise(base, monkeypatch):
    config = copy.deepcopy(dict(base.config)) | {"diffusion_train": {"start_from": "elsewhere"}}
    config["network"]["num_head_channels"] = 8
    monkeypatch.setattr(api, "load_whole", lambda path: base)
    lines = []
    tokenizer = base.condition.setting.tokenizer
    params = {"network": base.params["network"]}
    found = starting.pretrained(config, params, tokenizer, say=lines.append)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    was = "was trained with num_head_channels=4; this training has num_head_channels=8"
    assert lines == [f"diffusion: the model to start from, elsewhere, {was}"]


def test_files_without_the_part_are_refused_before_latents_are_made(base, tmp_path):
    """A first stage alone as the model to start from."""
    path = saved(base, tmp_path)
    config = experiment_config(path, base)
    experiment.check(config, tmp_path / "run")
    alone = tmp_path / "alone.safetensors"
    weights.write_params(
        alone, {"first_stage": dict(base.config["first_stage"])}, {"first_stage": base.params["first_stage"]}
    )
    config["diffusion_train"]["start_from"] = str(alone)
    with pytest.raises(ValueError, match="alone.safetensors' holds first_stage, no diffusion model to start from"):
        experiment.check(config, tmp_path / "run")


def test_a_first_stage_is_found_by_way_of_a_model_that_uses_it(base, tmp_path):
    """A working directory that holds a diffusion model alone says where its first stage is."""
    path = saved(base, tmp_path)
    config = {name: copy.deepcopy(base.config[name]) for name in ("data", "first_stage")}
    used = tmp_path / "used"
    (used / "diffusion").mkdir(parents=True)
    write_json(used / "config.json", config | {"first_stage": config["first_stage"] | {"path": str(path)}})
    config["first_stage"]["path"] = str(used)
    found = api.load_first_stage(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, found, base.params["first_stage"])
    write_json(used / "config.json", config)
    with pytest.raises(ValueError, match="leads back to .*used, which has none of its own"):
        api.load_first_stage(config, used)
    config["first_stage"]["path"] = str(tmp_path / "other")
    (tmp_path / "other" / "diffusion").mkdir(parents=True)
    write_json(tmp_path / "other" / "config.json", config | {"first_stage": config["first_stage"] | {"path": str(used)}})
    write_json(used / "config.json", config)
    with pytest.raises(ValueError, match="leads back to .*other, which has none of its own"):
        api.load_first_stage(config, tmp_path / "run")
