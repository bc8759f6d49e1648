"""Eight devices make the updates that one makes, and a stopped training goes on bit for bit, for the media that have no file of
their own (spectrograms, text and films have)."""

import functools
import importlib

import numpy as np
import pytest

from ldm_jax import build, experiment
from ldm_jax.data.sound import wav_bytes
from ldm_jax.training.checkpoint import Checkpoints
from tests.runs import STAGES, assert_eight_devices_learn_what_one_does, assert_same_weights

pytestmark = pytest.mark.slow
COMMON = {
    "first_stage_train.batch_size": 8,
    "first_stage_train.steps": 24,
    "first_stage_train.warmup_steps": 2,
    "latents.scale_batches": 2,
    "diffusion_train.batch_size": 8,
    "diffusion_train.steps": 24,
    "diffusion_train.warmup_steps": 2,
}
AUTOENCODER = {"first_stage.ch": 4, "first_stage.norm_num_groups": 2}
UNET = {
    "network.model_channels": 8, "network.channel_mult": (1,), "network.attention_resolutions": (1,),
    "network.num_head_channels": 4, "network.norm_num_groups": 4,
}  # fmt: skip
DIT = {
    "first_stage.width": 16, "first_stage.heads": 2, "first_stage.embed_dim": 4, "network.in_channels": 4, "network.depth": 1,
    "network.hidden_size": 16, "network.num_heads": 2, "network.context_dim": 16, "conditioner.n_embed": 16,
    "conditioner.n_layer": 1, "data.examples": (64, 16),
}  # fmt: skip
MEDIA = {
    "spoken_waveforms": AUTOENCODER | UNET | {
        "data.image_size": (1024,), "data.sound.window": 256, "data.sound.hop": 64, "first_stage.ch_mult": (1, 1, 2),
        "first_stage.kernel_size": 5, "first_stage_loss.stft_windows": (64, 256), "network.context_dim": 16,
        "conditioner.n_embed": 16,
    },
    "vessels": AUTOENCODER | UNET | {"data.image_size": (16, 16, 16), "data.examples": (32, 8), "first_stage.ch_mult": (1, 1)},
    "captions": DIT | {"first_stage.latents": 8, "network.input_size": 8},
}  # fmt: skip


def config_of(name):
    """A config of the folder, tiny, as the program reads it."""
    config = importlib.import_module(f"configs.{name}").get_config()
    for field, value in {**COMMON, **MEDIA[name], "first_stage.path": ""}.items():
        *section, field = field.split(".")
        with config.ignore_type():
            functools.reduce(lambda place, part: place[part], section, config)[field] = value
    return build.with_lists(config.to_dict())


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("spoken_waveforms", "first_stage"),
        ("spoken_waveforms", "diffusion"),
        ("vessels", "first_stage"),
        ("captions", "first_stage"),
        ("captions", "diffusion"),
    ],
)
def test_eight_devices_learn_what_one_does(name, stage):
    """On a mesh of 4 x 2. By gradient descent, as Adam and Muon make a whole step of a gradient that is rounding alone."""
    config = config_of(name)
    config[f"{stage}_train"] |= {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 1.0}
    tokens = config["data"]["medium"] == "text"
    assert_eight_devices_learn_what_one_does(build.make_program(config, stage), tokens, most=3)


class Stopped(Exception):
    """In place of a power cut."""


def tones(folder):
    """Sixteen to train on and eight to validate, with captions beside them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("validation", 8)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            samples = 0.5 * np.sin(np.arange(2048) * (0.1 + 0.4 * (i % 2) + rng.uniform(0, 0.05)))
            (folder / split / f"{i}.wav").write_bytes(wav_bytes(samples, 8000))
            (folder / split / f"{i}.txt").write_text(f"a {('low', 'high')[i % 2]} tone")
    return folder


@pytest.mark.parametrize("name", MEDIA)
def test_a_stopped_training_goes_on_bit_for_bit(name, tmp_path, monkeypatch, capsys):
    """Stopped in each stage after the checkpoint of its fourth step; what was learnt beyond is lost, and learnt again."""
    config = config_of(name)
    config["stages"] = ["first_stage", "latents", "diffusion"]
    data = str(tones(tmp_path / "tones") if name == "spoken_waveforms" else tmp_path / "data")
    config["data"] |= {"path": data, "examples": [32, 8]}
    config["log"] |= {"every": 1, "validation_every": 8, "validation_images": 8, "images_every": 0}
    config["checkpoint"]["every"] = 4
    for stage in STAGES:
        config[f"{stage}_train"] |= {"steps": 8, "optimizer": "adamw"}
    experiment.run(config, tmp_path / "whole")

    save = Checkpoints.save
    for stage in STAGES:

        def saved(self, step, *arguments, **options):
            if step > 4:
                raise Stopped
            return save(self, step, *arguments, **options)

        monkeypatch.setattr(Checkpoints, "save", saved)
        with pytest.raises(Stopped):
            experiment.run(config, tmp_path / "stopped")
        monkeypatch.setattr(Checkpoints, "save", save)
        if stage == "first_stage":
            assert not (tmp_path / "stopped" / "latents.json").exists()
            capsys.readouterr()
            experiment.run(config | {"stages": ["first_stage", "latents"]}, tmp_path / "stopped")
            told = [capsys.readouterr().out]
    experiment.run(config, tmp_path / "stopped")
    assert all(f"{stage}: going on from step 4" in said for stage, said in zip(STAGES, told + [capsys.readouterr().out]))
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
