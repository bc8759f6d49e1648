"""The main job with sounds, small: train.py and sample.py on a folder of tones, as a user runs them."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import spoken_digits
from ldm_jax.data.folder import folder
from ldm_jax.data.sound import SOUNDS, read_sound, wav_bytes
from tests.runs import assert_same_weights, kill_after
from tests.test_train import ROOT, losses, run

TINY = {
    "data.image_size": "(16,16)", "data.sound.window": 256, "data.sound.hop": 64, "data.sound.rate": 8000,
    "data.sound.shortest": 0.05, "data.sound.iterations": 4,
    "first_stage.ch": 4, "first_stage.ch_mult": "(1,1)", "first_stage.resolution": 16, "first_stage.norm_num_groups": 2,
    "first_stage.z_channels": 4, "first_stage.embed_dim": 4, "network.in_channels": 4, "network.out_channels": 4,
    "network.model_channels": 8, "network.channel_mult": "(1,)", "network.attention_resolutions": "(1,)",
    "network.num_head_channels": 4, "network.norm_num_groups": 4, "network.context_dim": 16, "conditioner.n_embed": 16,
    "first_stage_train.steps": 8, "first_stage_train.warmup_steps": 2, "first_stage_train.optimizer": "adamw",
    "diffusion_train.steps": 8, "diffusion_train.warmup_steps": 2, "diffusion_train.optimizer": "adamw",
    "diffusion_train.batch_size": 8, "latents.scale_batches": 2, "sampling.steps": 2, "evaluation.batch_size": 8,
    "log.every": 1, "log.validation_every": 4, "log.validation_images": 8, "log.images_every": 8, "checkpoint.every": 4,
    "evaluation.num": 16, "evaluation.features": "classifier", "evaluation.probe_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return {**os.environ, "HOME": str(home), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Low and high ones at 11025 samples a second, with captions beside them."""
    place, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for split, count in (("train", 16), ("validation", 8)):
        for i in range(count):
            name = ("low", "high")[i % 2]
            at = np.arange(int(rng.uniform(0.06, 0.2) * 11025)) / 11025
            path = place / split / name / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            samples = 0.5 * np.sin(2 * np.pi * (300 + 1500 * (i % 2) + rng.uniform(0, 200)) * at)
            path.write_bytes(wav_bytes(samples, 11025))
            path.with_suffix(".txt").write_text(f"play a {name} tone")
    return place


def command(tones, workdir, config="spoken_digits", **overrides):
    fields = TINY | {"data.path": tones} | overrides
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    config = ROOT / "configs" / f"{config}.py"
    return [sys.executable, str(ROOT / "train.py"), f"--config={config}", "--workdir", str(workdir), *flags]


@pytest.fixture(scope="module")
def trained(tones, environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = run(command(tones, workdir), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done.stdout


@pytest.mark.slow
def test_from_a_folder_of_sounds_to_sounds(trained, environment, tmp_path):
    workdir, said = trained
    assert "data: 16 sounds, 16 captions to train on" in said
    for path in ("first_stage/images/reconstructions_0000008.png", "diffusion/images/samples_0000008.png",
                 "evaluation/0000/validation.png", "evaluation/0000/validation/0007.wav", "latents/meta.json",
                 "evaluation/classifier/probe.json", "evaluation/step_8/results.md"):  # fmt: skip
        assert (workdir / path).is_file(), path
    arguments = ["--workdir", str(workdir), "--prompt", "play a high tone", "--num", "2", "--out", str(tmp_path / "out")]
    done = run([sys.executable, str(ROOT / "sample.py"), *arguments], environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"2 sounds in {tmp_path / 'out'}" in done.stdout
    samples, rate = read_sound(tmp_path / "out" / "0001.wav")
    assert samples.shape == (16 * 64, 1) and rate == 8000
    again = [*arguments[:2], "--like_png", str(tmp_path / "out" / "0001.png"), "--out", str(tmp_path / "again")]
    done = run([sys.executable, str(ROOT / "sample.py"), *again], environment)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(read_sound(tmp_path / "again" / "0000.wav")[0], samples, atol=0.02)


@pytest.mark.slow
def test_killed_in_either_stage_it_goes_on_bit_for_bit(trained, tones, environment, tmp_path):
    workdir = tmp_path / "killed"
    for stage in ("first_stage", "diffusion"):
        process = subprocess.Popen(
            command(tones, workdir), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        kill_after(process, workdir / stage / "checkpoints" / "4")
        assert not (workdir / stage / "checkpoints" / "8").exists(), "finished before it could be killed"
    done = run(command(tones, workdir), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "diffusion: going on from step" in done.stdout
    assert_same_weights(trained[0], workdir)


@pytest.mark.slow
def test_eight_devices_learn_the_same(trained, tones, environment, tmp_path):
    done = run(command(tones, tmp_path / "eight", **{"mesh.fsdp": 2}), {**environment, "JAX_NUM_CPU_DEVICES": "8"})
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("first_stage", "diffusion"):
        one, eight = losses(trained[0], stage), losses(tmp_path / "eight", stage)
        assert len(one) == 8
        np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-3)


@pytest.mark.slow
def test_waveforms_are_learnt_and_drawn_too(tones, environment, tmp_path):
    """With a discriminator that hears patches of them; the distance of spectra falls."""
    fields = {
        "data.image_size": "(1024,)", "first_stage.ch": 8, "first_stage.ch_mult": "(1,1,2,2)", "first_stage.kernel_size": 5,
        "first_stage_loss.stft_windows": "(64,256)", "first_stage_loss.disc_weight": 0.1, "first_stage_loss.disc_ndf": 4,
        "first_stage_loss.disc_layers": 2, "first_stage_loss.disc_start": 10, "first_stage_train.steps": 40,
        "first_stage_train.learning_rate": 4e-3, "evaluation.num": 0,
    }  # fmt: skip
    done = run(command(tones, tmp_path / "run", "spoken_waveforms", **fields), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "first_stage" / "metrics.jsonl").read_text().splitlines()]
    stft = [line["train/stft"] for line in lines if "train/stft" in line]
    assert len(stft) == 40 and np.mean(stft[-5:]) < 0.7 * np.mean(stft[:5])
    assert any(line.get("train/disc_factor") == 1 for line in lines)
    arguments = ["--workdir", str(tmp_path / "run"), "--prompt", "play a low tone", "--num=2", "--out", str(tmp_path / "out")]
    done = run([sys.executable, str(ROOT / "sample.py"), *arguments], environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_sound(tmp_path / "out" / "0001.wav")[0].shape == (1024, 1)
    assert (tmp_path / "out" / "0001.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage, message",
    [
        ("stereo", "2 channels, the model 1: set config.data.sound.mix=True"),
        ("slow", "4000 samples a second, the model 8000"),
        ("short", "lasts 0.010 s: shorter than config.data.sound.shortest=0.05 s"),
        ("silent", "is silent"),
        ("cut", "cannot be read as a sound"),
    ],
)
def test_one_bad_file_is_named_before_anything_compiles(tones, environment, tmp_path, damage, message):
    place = tmp_path / "tones"
    shutil.copytree(tones, place)
    bad = place / "train" / "low" / "2.wav"
    samples, rate = read_sound(bad)
    bad.write_bytes(
        {
            "stereo": lambda: wav_bytes(np.repeat(samples, 2, 1), rate),
            "slow": lambda: wav_bytes(samples, 4000),
            "short": lambda: wav_bytes(samples[:110], rate),
            "silent": lambda: wav_bytes(0 * samples, rate),
            "cut": lambda: bad.read_bytes()[:200],
        }[damage]()
    )
    done = run(command(place, tmp_path / "run"), environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{bad}" in done.stderr and message in done.stderr, done.stderr
    assert "compiling" not in done.stdout
    done = run(command(place, tmp_path / "run", **{"data.on_error": "skip", "stages": "()"}), environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "left out: 1 sounds that can't be read" in done.stdout


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng, which makes the recordings")
def test_digits_are_spoken_into_folders(tmp_path):
    spoken_digits.write(tmp_path / "train", ("m1", "f2"), 2, np.random.default_rng(0))
    source = folder(tmp_path, "train", ("sound", "label", "caption"), kind=SOUNDS)
    assert len(source) == 20 and source.info.class_names == tuple(sorted(spoken_digits.DIGITS))
    row = source[0]
    digit = source.info.class_names[row["label"]]
    assert row["caption"] == (f"say {digit}", f"a man says {digit}")
    lengths = [len(samples) / rate for samples, rate in (read_sound(source[i]["sound"]) for i in range(20))]
    assert 0.15 < min(lengths) and max(lengths) < 0.77  # they fit into what the config looks at
