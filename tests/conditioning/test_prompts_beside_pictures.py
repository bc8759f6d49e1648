"""CLIP's prompts beside pictures, as models that fill holes are told both: what is trained of them, and from where it comes."""

import os

import jax
import numpy as np
import pytest

from ldm_jax import api, build, save
from ldm_jax.primitives.files import write_json
from ldm_jax.workdir import absolute, check_workdir
from tests import tiny
from tests.api.test_embeddings import TOWER
from tests.test_habits import config_of

PICTURE = {"kind": "inpaint", "convention": "stable_diffusion", "masks": ["thin"], "mask_area": [0.1, 0.5]}


def config_with(path):
    prompt = {"kind": "clip_text", **TOWER, "layer": "last", "path": str(path), "tokenizer": "words"}
    return tiny.CONFIG | {
        "network": tiny.CONFIG["network"] | {"in_channels": 9, "use_scale_shift_norm": False},
        "conditioner": {"kind": "combined", "parts": {"prompt": prompt, "picture": PICTURE}},
        "diffusion": tiny.CONFIG["diffusion"] | {"schedule": "scaled_linear", "linear_start": 1e-3, "linear_end": 1e-2},
    }


def test_the_text_encoder_is_read_from_where_its_part_says(tmp_path):
    config = config_with("")
    del config["conditioner"]["parts"]["prompt"]["tokenizer"]
    ldm = tiny.random_model(config)
    save(ldm, tmp_path / "saved")
    for place in (tmp_path / "saved" / "text_encoder", tmp_path / "saved"):
        found = api.load_conditioner(config_with(place))
        jax.tree.map(np.testing.assert_array_equal, found, ldm.params["conditioner"])
    with pytest.raises(FileNotFoundError, match="elsewhere' does not exist: name a checkpoint that holds the encoder"):
        api.load_conditioner(config_with("elsewhere"))


def test_its_paths_are_kept_absolute_and_may_move(tmp_path, monkeypatch):
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    config = config_of() | {"conditioner": config_with("encoder")["conditioner"]}
    stored = absolute(config)
    assert stored["conditioner"]["parts"]["prompt"]["path"] == str(tmp_path / "encoder")
    assert stored["conditioner"]["parts"]["picture"] == PICTURE
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", stored)
    check_workdir(config, tmp_path / "run")
    os.rename(tmp_path / "encoder", tmp_path / "moved")
    check_workdir(config | {"conditioner": config_with("moved")["conditioner"]}, tmp_path / "run")


def test_what_stays_beside_what_is_learnt_is_refused():
    config = config_with("")
    config["conditioner"]["parts"]["room"] = {"kind": "class", "n_classes": 3, "embed_dim": 8}
    with pytest.raises(ValueError, match="'prompt' stays as it is and 'room' is learnt with the network"):
        build.make_condition(config).check()
