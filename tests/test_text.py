"""Text from files to lines of text, as a user runs the commands. A tiny model: its sentences mean nothing."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import experiment
from ldm_jax.data.sentences import KINDS, Sentences
from ldm_jax.drawing.modes import draw
from tests.runs import assert_same_weights, kill_after

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "data.source": "folder",
    "first_stage.width": 16,
    "first_stage.heads": 2,
    "first_stage.embed_dim": 4,
    "first_stage_train.steps": 20,
    "first_stage_train.batch_size": 8,
    "first_stage_train.warmup_steps": 2,
    "latents.scale_batches": 2,
    "network.depth": 1,
    "network.hidden_size": 16,
    "network.num_heads": 2,
    "network.in_channels": 4,
    "diffusion_train.steps": 20,
    "diffusion_train.batch_size": 8,
    "diffusion_train.warmup_steps": 2,
    "sampling.steps": 3,
    "evaluation.num": 16,
    "evaluation.evaluators.prompts.every": 0,
    "evaluation.batch_size": 8,
    "log.every": 5,
    "log.validation_every": 10,
    "log.images_every": 20,
    "checkpoint.every": 10,
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {**os.environ, "HOME": str(tmp_path_factory.mktemp("home")), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Folders of text as classes, split."""
    root = tmp_path_factory.mktemp("texts")
    for split, count in (("train", 96), ("validation", 32)):
        source = Sentences(split, train=96, validation=32)
        for i, kind in enumerate(KINDS):
            (root / split / kind).mkdir(parents=True)
            (root / split / kind / "all.txt").write_text("\n".join(source[j]["text"] for j in range(i, count, 4)))
    return root


def command(workdir, texts, **overrides):
    fields = {**TINY, "data.path": texts, **overrides}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, str(ROOT / "train.py"), "--config=configs/sentences.py", "--workdir", str(workdir), *flags]


def run(arguments, environment):
    done = subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(environment, texts, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, run(command(workdir, texts), environment)


def losses(workdir, stage):
    lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_training_shows_lines_of_text_and_measures_them(trained):
    workdir, said = trained
    assert "96 texts, 4 classes (command, denial, question, statement) to train on" in said
    shown = (workdir / "first_stage" / "images" / "reconstructions_0000020.txt").read_text().splitlines()
    held_out = Sentences("validation", train=96, validation=32).texts
    known = [line for line in shown[2::3] if "[UNK]" not in line]  # 96 sentences have not all the words
    assert known and set(known) <= set(held_out) and len(shown) > 20
    samples = (workdir / "diffusion" / "images" / "samples_0000020.txt").read_text().splitlines()
    assert len(samples) == 16 and all(line.split(":")[0] in KINDS for line in samples)
    metrics = (workdir / "first_stage" / "metrics.jsonl").read_text()
    assert all(f"validation/{name}" in metrics for name in ("token_accuracy", "exact", "perplexity"))
    results = json.loads((workdir / "evaluation" / "0000" / "results.json").read_text())
    assert results["perplexity"] > 1 and 0 <= results["novel"] <= 1
    assert (workdir / "evaluation" / "0000" / "validation" / "0000.txt").is_file()


def test_sample_writes_text(trained, environment):
    workdir, _ = trained
    folder = workdir / "samples" / "text"
    arguments = [sys.executable, str(ROOT / "sample.py"), "--workdir", str(workdir), "--label", "question", "--num", "3"]
    said = run([*arguments, "--out", str(folder)], environment)
    assert "16 tokens" in said and "3 sentences in" in said
    lines = (folder / "sentences.txt").read_text().splitlines()
    assert len(lines) == 3 and (folder / "0002.txt").read_text().splitlines() == lines[2:]
    run([*arguments[:4], "--like_png", str(folder / "0001.png"), "--out", str(folder) + "2"], environment)
    assert (Path(str(folder) + "2") / "sentences.txt").read_text().splitlines() == lines[1:2]


def test_a_model_is_loaded_and_drawn_from_as_functions(trained):
    ldm = ldm_jax.load(trained[0])
    assert ldm.abilities == ("sample", "variation", "interpolate")
    tokens = ldm.sample(ldm.params, jax.random.key(0), ldm.embed(ldm.params, ["command"] * 2), steps=2)
    assert tokens.shape == (2, 16, 1) and (tokens == np.rint(tokens)).all() and (tokens >= 0).all() and (tokens < 160).all()
    z = ldm.encode(ldm.params, tokens)
    assert z.shape == (2, 16, 4) and ldm.decode(ldm.params, z).shape == (2, 16, 160)
    with pytest.raises(ValueError, match="this is a model of text: keep its folder"):
        ldm_jax.save(ldm, trained[0] / "export")
    with pytest.raises(ValueError, match="this model can't image_to_image"):
        draw(ldm, {"image": ["x.txt"], "label": ["command"]})


def test_kill_and_resume_is_bit_exact_in_both_stages(trained, texts, environment, tmp_path):
    workdir = tmp_path / "killed"
    for stage in ("first_stage", "diffusion"):
        process = subprocess.Popen(
            command(workdir, texts), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        kill_after(process, workdir / stage / "checkpoints" / "10")
        assert not (workdir / stage / "checkpoints" / "20").exists(), "finished before it could be killed"
    assert "diffusion: going on from step" in run(command(workdir, texts), environment)
    assert_same_weights(trained[0], workdir)


def config_of(texts, **overrides):
    config = importlib.import_module("configs.sentences").get_config()
    config.update_from_flattened_dict({**TINY, "data.path": str(texts), **overrides})
    return config.to_dict()


def test_eight_devices_learn_what_one_learns(trained, texts, tmp_path):
    assert jax.device_count() == 8
    experiment.run(config_of(texts), tmp_path / "eight")
    for stage in ("first_stage", "diffusion"):
        np.testing.assert_allclose(losses(tmp_path / "eight", stage), losses(trained[0], stage), rtol=1e-3)


def test_infilling_trains_and_fills(trained, texts, tmp_path):
    config = config_of(texts, **{"first_stage.path": str(trained[0]), "latents.cache": False})
    config["conditioner"] = {
        "kind": "infill", "vocab_size": 160, "n_embed": 8, "n_layer": 1, "heads": 2, "dim_head": 4, "null_probability": 0.1,
    }  # fmt: skip
    config["network"] |= {"num_classes": None, "context_dim": 8}
    experiment.run(config, tmp_path / "infill")
    results = json.loads((tmp_path / "infill" / "evaluation" / "0000" / "results.json").read_text())
    assert 0 <= results["kept"] <= 1 and 0 <= results["kept_all"] <= 1
    given = {"infill": ["the ___ dog does not sleep.", "the ..."], "num": 2, "steps": 2}
    drawn = draw(ldm_jax.load(tmp_path / "infill"), given)
    assert drawn.images.shape == (4, 16, 1) and drawn.words[3] == "the ..."
