"""Working directories whose config.json another version wrote: read where nothing is lacking, else named."""

import json

import pytest

import ldm_jax
from ldm_jax import build
from ldm_jax.data.tokenizer import train_tokenizer
from tests import tiny


def workdir_of(tmp_path, config):
    """A working directory without weights: all of this is said before they are read."""
    (tmp_path / "diffusion" / "checkpoints").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    train_tokenizer(["a red circle"]).save(tmp_path / "tokenizer.json")
    return tmp_path


@pytest.mark.parametrize(
    "section, field",
    [
        ("network", "kind"), ("first_stage", "kind"), ("conditioner", "kind"), ("data", "image_size"),
        ("diffusion", "schedule"), ("diffusion", "prediction"), ("sampling", "grid"), ("sampling", "sampler"),
        ("", "sampling"), ("", "network"), ("network", "model_channels"), ("first_stage", "ch_mult"),
    ],
)  # fmt: skip
def test_a_field_that_is_lacking_is_named(section, field, tmp_path):
    config = json.loads(json.dumps(tiny.CONFIG))
    del (config[section] if section else config)[field]
    with pytest.raises(ValueError, match=rf"config.json.* lacks '?{field}'?: restore the file, load it with the version"):
        ldm_jax.load(workdir_of(tmp_path, config))


@pytest.mark.parametrize("section", ["network", "first_stage"])
def test_a_field_that_no_network_has_is_named(section, tmp_path):
    config = json.loads(json.dumps(tiny.CONFIG))
    config[section]["of_the_future"] = 3
    with pytest.raises(ValueError, match=rf"config.json: config.{section}.of_the_future: \w+ has no such field: restore"):
        ldm_jax.load(workdir_of(tmp_path, config))


def test_further_fields_elsewhere_change_nothing(tmp_path):
    """It gets as far as the weights, which aren't there."""
    config = json.loads(json.dumps(tiny.CONFIG))
    for section in ("data", "conditioner", "diffusion", "sampling"):
        config[section]["of_the_future"] = 3
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        ldm_jax.load(workdir_of(tmp_path, config))


def test_a_sampler_that_is_refused_now_is_not_in_the_way(tmp_path):
    """Another one may be named when it is drawn with, so it gets as far as the weights too."""
    config = json.loads(json.dumps(tiny.CONFIG))
    config["diffusion"] |= {"schedule": "cosine", "prediction": "v"}
    config["sampling"] |= {"sampler": "heun", "grid": "trailing"}
    with pytest.raises(ValueError, match="takes a mean over a step"):
        build.make_recipe(config)
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        ldm_jax.load(workdir_of(tmp_path, config))
