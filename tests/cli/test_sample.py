"""The command line, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ldm_jax
from tests.tiny import model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    ldm_jax.save(model("text"), path)
    return path


def run(folder, *flags):
    command = [sys.executable, str(ROOT / "sample.py"), "--workdir", str(folder), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False)


def test_a_picture_painted_anew(folder, tmp_path):
    photo, mask = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    flags = ["--prompt", "a red circle", "--image", tmp_path / "photo.png", "--mask", tmp_path / "mask.png", "--num", 1]
    done = run(folder, *flags, "--steps", 2, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "can sample, panorama" in done.stdout
    written = np.asarray(Image.open(tmp_path / "out" / "0000.png"))
    assert np.array_equal(written[:, :4], photo[:, :4]) and not np.array_equal(written, photo)


def test_without_anything_it_says_what_the_model_can_do(folder):
    done = run(folder)
    assert done.returncode == 1
    assert "inpaint" in done.stdout and "--image PHOTO.png --mask MASK.png" in done.stdout
    assert done.stderr.strip().endswith("takes a prompt of at most 4 words or word pieces: give --prompt")


def test_other_locales_draw_and_write_what_was_typed(fixtures_dir, tmp_path):
    """A prompt with letters that the locale lacks, as on Windows with an old code page."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(ROOT / "sample.py"), "--workdir", str(fixtures_dir / "E5_stable_diffusion")]
    command += ["--prompt", "caf\u00e9 \u2615", "--num", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run([os.fsencode(part) for part in command], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "grid.txt").read_bytes().decode("utf-8") == "caf\u00e9 \u2615\n"
