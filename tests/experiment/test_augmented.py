"""A model of few pictures, trained on turned and stretched ones, gone on with, loaded, and started from."""

import importlib
import shutil

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import build, experiment, models
from ldm_jax.primitives.files import read_json, write_json
from ldm_jax.training.checkpoint import load_averaged
from tests.test_train import tiny_config

STAGES = ("first_stage", "latents", "diffusion")


def options(folder):
    return {
        "data.path": str(folder / "data"), "data.augment": 0.5, "latents.cache": False, "first_stage.shortcuts": False,
        "stages": STAGES, "log.images_every": 0, "first_stage_train.steps": 2, "diffusion_train.steps": 3,
        "diffusion_train.post_hoc": (), "diffusion_train.best": "validation/loss", "evaluation.evaluators.prompts.every": 0,
        "diffusion_train.learning_rate": 0.1, "diffusion_train.decay": "constant", "checkpoint.snapshots": 0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(one_device, tmp_path_factory):
    """A model, where it is, and the folder of its data."""
    folder = tmp_path_factory.mktemp("augmented")
    experiment.run(tiny_config(**options(folder)), folder / "run")
    return ldm_jax.load(folder / "run"), folder / "run", folder


@pytest.mark.slow
def test_what_it_was_told_in_training_is_gone_where_pictures_are_drawn(trained):
    ldm, run, _ = trained
    assert load_averaged(run / "diffusion" / "checkpoints")["network"][models.AUGMENT_EMBEDDING]["kernel"].any()
    assert models.AUGMENT_EMBEDDING not in ldm.params["network"]
    cond = ldm.embed(ldm.params, ["a red circle"])
    images = ldm.sample(ldm.params, jax.random.key(0), cond, steps=2)
    assert np.isfinite(images).all()


@pytest.mark.slow
def test_another_training_that_tells_starts_from_it(trained, tmp_path):
    ldm, whole, folder = trained
    run = shutil.copytree(whole, tmp_path / "run")
    told = {"diffusion_train.start_from": str(run), "first_stage.path": str(run), "stages": ("latents", "diffusion")}
    known = read_json(run / "latents.json")
    known["scale"] = np.multiply(known["scale"], 1.5).tolist()  # as of other pictures
    write_json(run / "latents.json", known)
    experiment.run(tiny_config(**options(folder) | told | {"diffusion_train.learning_rate": 1e-9}), tmp_path / "tuned")
    assert read_json(tmp_path / "tuned" / "latents.json")["scale"] == known["scale"]
    there, here = ldm.params["network"], ldm_jax.load(tmp_path / "tuned").params["network"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), there, here)


@pytest.mark.slow
def test_it_is_told_when_it_goes_on(trained, tmp_path):
    _, whole, folder = trained
    run = shutil.copytree(whole, tmp_path / "run")
    for steps in (3, 4):
        experiment.run(tiny_config(**options(folder) | {"diffusion_train.steps": steps}), run)
        assert load_averaged(run / "diffusion" / "checkpoints")["network"][models.AUGMENT_EMBEDDING]["kernel"].any()


@pytest.mark.parametrize("overrides, message", [
    ({"latents.cache": True}, "config.data.augment=0.5: config.latents.cache=True would hold one view"),
    ({"diffusion_train.lora.rank": 2, "diffusion_train.start_from": "."}, "leaves the network as it is"),
    ({"diffusion_train.start_from": ".", "diffusion_train.control.picture": "conditioning"}, "config.data.augment=0.5: "),
    ({"diffusion_train.start_from": ".", "diffusion.objective": "reflow"}, "learns from a model that isn't told"),
    ({"data.augment": 1.5}, "config.data.augment"),
])  # fmt: skip
def test_what_cannot_be_augmented_is_refused(overrides, message, tmp_path):
    config = tiny_config(**{"data.augment": 0.5, "latents.cache": False, "data.path": str(tmp_path / "data")} | overrides)
    with pytest.raises(ValueError, match="config") as error:
        experiment.run(config, tmp_path / "new")
    assert message in str(error.value)
    assert not (tmp_path / "new").exists()


def test_films_are_not_augmented():
    config = importlib.import_module("configs.moving_shapes").get_config()
    config.data.augment = 0.5
    with pytest.raises(ValueError, match="config.data.augment=0.5: .* medium='film'; set it to 0"):
        build.check(config.to_dict())
