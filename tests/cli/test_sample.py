"""The command line, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax.cli import sample_command
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


def drawn(folder, *flags):
    """The command in this process."""
    sample_command.main(["sample.py", "--workdir", str(folder), *map(str, flags)])


def test_a_grid_by_name(folder, tmp_path):
    flags = ["--prompt", "a red circle", "--num", 1, "--steps", 2, "--sampler", "plms", "--grid", "karras"]
    drawn(folder, *flags, "--out", tmp_path / "out")
    drawn(folder, "--like_png", tmp_path / "out" / "0000.png", "--out", tmp_path / "again")
    first, again = (np.asarray(Image.open(tmp_path / name / "0000.png")) for name in ("out", "again"))
    assert np.array_equal(first, again)
    (tmp_path / "prompts.txt").write_text("a blue star\na star\n")
    flags = ["--like_png", tmp_path / "out" / "0000.png", "--prompts", tmp_path / "prompts.txt"]
    drawn(folder, *flags, "--out", tmp_path / "others")
    assert (tmp_path / "others" / "grid.txt").read_text() == "a blue star\n"  # of the file's, that of the same number


def test_what_is_refused_leaves_no_folder(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    for out in (["--out", tmp_path / "new" / "deep"], ["--out", tmp_path / "mine"], []):
        with pytest.raises(ValueError, match="Did you mean .karras"):
            drawn(folder, "--prompt", "a red circle", "--grid", "karas", *out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and not (folder / "samples").exists()


@pytest.mark.parametrize(
    "name", ["workdir", "out", "prompts", "like_png", "which", "image", "mask", "outpaint", "size", "label", "lora"]
)
def test_an_empty_flag_is_a_variable_that_was_not_set(folder, name):
    with pytest.raises(ValueError, match=f"--{name}= is empty"):
        drawn(folder, "--prompt", "a red circle", f"--{name}=")


def test_more_than_one_film_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="--num=3 has no meaning for --interpolate"):
        drawn(folder, "--prompt", "a red circle", "--interpolate", 4, "--num", 3, "--out", tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_place_that_looks_like_a_file(folder, tmp_path):
    with pytest.raises(ValueError, match="a folder of pictures goes"):
        drawn(folder, "--prompt", "a red circle", "--out", tmp_path / "circle.png")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["", None, 3])
def test_what_is_no_path_is_not_looked_for(path):
    with pytest.raises(ValueError, match="give the path of a working directory or a checkpoint"):
        ldm_jax.load(path)


@pytest.mark.slow
def test_other_locales_draw_and_write_what_was_typed(fixtures_dir, tmp_path):
    """A prompt with letters that the locale lacks, as on Windows with an old code page."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(ROOT / "sample.py"), "--workdir", str(fixtures_dir / "E5_stable_diffusion")]
    command += ["--prompt", "caf\u00e9 \u2615", "--num", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run([os.fsencode(part) for part in command], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "grid.txt").read_bytes().decode("utf-8") == "caf\u00e9 \u2615\n"
