"""The other configs on real images, a few steps each: the same program, other data and conditions."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax import api, experiment, weights
from ldm_jax.primitives.files import write_json

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "first_stage.ch": 8,
    "first_stage_train.steps": 2,
    "first_stage_train.warmup_steps": 1,
    "first_stage_train.optimizer": "adamw",
    "network.model_channels": 16,
    "network.channel_mult": (1,),
    "network.attention_resolutions": (1,),
    "network.num_head_channels": 8,
    "diffusion_train.steps": 2,
    "diffusion_train.batch_size": 8,
    "diffusion_train.warmup_steps": 1,
    "diffusion_train.optimizer": "adamw",
    "latents.scale_batches": 1,
    "sampling.steps": 2,
    "log.validation_images": 8,
    "evaluation.batch_size": 8,
    "evaluation.num": 0,
}


def config_of(name, **overrides):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict({**SMALL, **overrides})
    return config.to_dict()


@pytest.fixture
def few(tmp_path, data_dir):
    """Sixteen flowers to train and eight to validate on, in class folders."""
    folder = tmp_path / "flowers"
    for split, count in (("train", 16), ("val", 8)):
        files = sorted((data_dir / "flowers5_128" / split).glob("*/*.jpg"))
        for path in files[:: len(files) // count][:count]:
            (folder / split / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / split / path.parent.name)
    return folder


@pytest.mark.slow
def test_flowers_by_class(few, tmp_path, capsys):
    workdir = tmp_path / "run"
    experiment.run(config_of("flowers64", **{"data.path": str(few), "evaluation.num": 8, "evaluation.probe_steps": 2}), workdir)
    assert "Results:" in capsys.readouterr().out
    measured = json.loads((workdir / "evaluation" / "0000" / "results.json").read_text())
    assert 0 < measured["classifier/frechet_distance"] < math.inf
    assert (workdir / "evaluation" / "step_2" / "report.html").is_file()
    ldm = ldm_jax.load(workdir)
    cond = ldm.embed(ldm.params, ["tulips", 0])
    images = ldm.sample(ldm.params, jax.random.key(0), cond)
    assert images.shape == (2, 64, 64, 3) and np.isfinite(images).all()
    with pytest.raises(ValueError, match="Did you mean .tulips"):
        ldm.embed(ldm.params, ["tulip"])
    with pytest.raises(ValueError, match="numbered 0 to 4"):
        ldm.embed(ldm.params, [5])


def test_what_is_to_look_at_pictures_is_there_before_training(few, tmp_path):
    wrong = {"inception:nowhere.pth": "fetch https", "clasifier": "Did you mean .classifier", "clip": "a file is needed"}
    for features, said in wrong.items():
        config = config_of("flowers64", **{"data.path": str(few), "evaluation.num": 8, "evaluation.features": features})
        with pytest.raises((ValueError, FileNotFoundError), match=f"config.evaluation.*{said}"):
            experiment.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_cache_and_memory_the_batches_are_encoded_on_the_way(few, tmp_path):
    workdir = tmp_path / "run"
    overrides = {"data.path": str(few), "data.in_memory": False, "latents.cache": False, "data.crop": "random"}
    experiment.run(config_of("flowers64", **overrides), workdir)
    assert not (workdir / "latents").exists()
    assert (workdir / "diffusion" / "images" / "samples_0000002.png").is_file()


def test_a_corrupt_photo_is_named_or_skipped(few, tmp_path):
    broken = next((few / "train").glob("*/*.jpg"))
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(ValueError, match=broken.name):
        experiment.run(config_of("flowers64", **{"data.path": str(few)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    parts = experiment.Experiment(config_of("flowers64", **{"data.path": str(few), "data.on_error": "skip"}), tmp_path / "run")
    assert len(parts.sources["train"]) == 15 and parts.sources["train"].skipped == 1


def test_emoji_by_caption_with_word_pieces(data_dir, tmp_path):
    folder = data_dir / "emoji_64"
    config = config_of("emoji64", **{"data.path": str(folder), "conditioner.n_embed": 16, "network.context_dim": 16})
    parts = experiment.Experiment(config, tmp_path / "run")
    tokens = parts.condition.parse(["a red heart, glossy 3d emoji"])
    assert tokens.shape == (1, config["conditioner"]["max_seq_len"])
    assert parts.condition.tokenize("x" * 500).shape == tokens.shape[1:]


@pytest.mark.slow
def test_a_first_stage_trained_elsewhere_is_used_if_it_fits(few, tmp_path):
    first = config_of("flowers64", **{"data.path": str(few), "stages": ("first_stage",)})
    experiment.run(first, tmp_path / "first")
    trained = api.load_first_stage(first, tmp_path / "first")
    second = config_of("flowers64", **{"data.path": str(few), "first_stage.path": str(tmp_path / "first")})
    used = api.load_first_stage(second, tmp_path / "second")
    jax.tree.map(np.testing.assert_array_equal, trained, used)
    alone = ldm_jax.load(tmp_path / "first")
    assert isinstance(alone, ldm_jax.Autoencoder) and "first stage" in alone.describe()
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    jax.tree.map(np.testing.assert_array_equal, alone.params, {"first_stage": trained})
    with pytest.raises(ValueError, match="first stage alone, without a diffusion model"):
        api.load_whole(tmp_path / "first")
    write_json(tmp_path / "first" / "latents.json", {"scale": [0.5, 2.0, 1.0, 0.25], "shift": [0.1, -1.0, 0.0, 2.0]})
    standard = ldm_jax.load(tmp_path / "first")
    z = standard.encode(standard.params, pictures)
    raw = alone.encode(alone.params, pictures)
    np.testing.assert_allclose(z, (raw - jnp.asarray([0.1, -1.0, 0.0, 2.0])) * jnp.asarray([0.5, 2.0, 1.0, 0.25]), atol=1e-5)
    ldm_jax.save(standard, tmp_path / "exported")
    again = ldm_jax.load(tmp_path / "exported")
    np.testing.assert_allclose(again.encode(again.params, pictures), z, atol=1e-4)
    np.testing.assert_allclose(again.decode(again.params, z), standard.decode(standard.params, z), atol=1e-4)
    (tmp_path / "first" / "latents.json").unlink()
    weights.write_diffusers(tmp_path / "vae", {"first_stage": first["first_stage"]}, {"first_stage": trained})
    second["first_stage"]["path"] = str(tmp_path / "vae")
    jax.tree.map(np.testing.assert_array_equal, trained, api.load_first_stage(second, tmp_path / "second"))
    second["first_stage"]["ch"] = 16
    with pytest.raises(ValueError, match="is not the one that config.first_stage describes"):
        api.load_first_stage(second, tmp_path / "second")


def test_more_classes_than_the_config_has_room_for(few, tmp_path):
    with pytest.raises(ValueError, match="n_classes=5: the data have 5 classes, and there is room for 4"):
        experiment.Experiment(config_of("flowers64", **{"data.path": str(few), "conditioner.n_classes": 5}), tmp_path / "run")


def test_fashion_mnist_through_its_own_builder(data_dir, tmp_path):
    pytest.importorskip("tensorflow", reason="TFDS's own builders are prepared by TensorFlow")
    from ldm_jax.data.tfds_source import prepare

    prepare("fashion_mnist", tmp_path / "data", data_dir / "fashion_mnist")
    parts = experiment.Experiment(config_of("fashion_mnist", **{"data.path": str(tmp_path / "data")}), tmp_path / "run")
    assert len(parts.sources["train"]) == 60_000
    assert parts.condition.parse(["Sandal"]).tolist() == [5]
