"""Where something is to be written, and flags with nothing behind them: said before a model is loaded or anything is made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_jax import experiment
from ldm_jax.cli import evaluation, plan, probes, retrieval, sample_command
from ldm_jax.cli.train import main as train_command
from ldm_jax.cli.weights import main as weights_command
from ldm_jax.primitives.files import folder_place, place
from ldm_jax.workdir import check_samples_folder
from tests.test_disk import can_mount
from tests.test_habits import config_of

READ_ONLY = """
import sys
from ldm_jax.primitives.files import place
try:
    place(sys.argv[1], "--out")
except PermissionError as error:
    print(error)
"""


def test_a_place_is_checked_and_nothing_is_made(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert place(tmp_path / "a" / "b", "--out") == tmp_path / "a" / "b"
    assert folder_place(tmp_path, "--out") == tmp_path
    assert place(tmp_path / "notes.txt", "save") == tmp_path / "notes.txt"  # whether it may be written over, its writer says
    with pytest.raises(NotADirectoryError, match=r"--out: .*notes.txt/x/y can't be made: .*notes.txt is a file; name another"):
        place(tmp_path / "notes.txt" / "x" / "y", "--out")
    with pytest.raises(NotADirectoryError, match="is a file, and a folder is meant"):
        folder_place(tmp_path / "notes.txt", "--out")
    with pytest.raises(FileNotFoundError, match="is a link to what isn't there"):
        place(tmp_path / "gone" / "x", "--out")
    with pytest.raises(OSError, match="can't be made: File name too long; name another place"):
        place(tmp_path / ("x" * 300), "--out")
    assert sorted(os.listdir(tmp_path)) == ["gone", "notes.txt"]


def test_a_read_only_disk_is_named(tmp_path):
    if not can_mount():
        pytest.skip("no file system can be mounted here")
    script = 'mount -t tmpfs -o ro tmpfs "$1" && "$2" -c "$3" "$1/a/b"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, READ_ONLY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).resolve().parents[1])
    assert done.stdout.startswith(f"--out: nothing can be written in {tmp_path} (the disk is read-only, or"), done.stderr


@pytest.mark.parametrize(
    "command, arguments",
    [
        (evaluation.main, ["--workdir=MODEL", "--out=FILE/x"]),
        (evaluation.main, ["--samples=MODEL", "--reference=MODEL", "--out=FILE/x"]),
        (evaluation.main, ["--workdir=MODEL", "--out=FILE"]),
        (probes.main, ["train", "--kind=classifier", "--data=MODEL", "--out=FILE/x"]),
        (retrieval.main, ["build", "--data=MODEL", "--embedder=MODEL", "--out=FILE/x"]),
        (weights_command, ["convert", "MODEL", "FILE/x"]),
        (weights_command, ["convert", "MODEL", "FILE/x.ckpt", "--format=compvis"]),
        (lambda arguments: sample_command.main(["sample.py", *arguments]), ["--workdir=MODEL", "--out=FILE/x"]),
        (lambda arguments: sample_command.main(["sample.py", *arguments]), ["--workdir=MODEL", "--out=FILE"]),
        (lambda arguments: train_command(["train.py", *arguments]), ["--workdir=FILE/x"]),
        (lambda arguments: train_command(["train.py", *arguments]), ["--data=MODEL", "--workdir=FILE/x"]),
    ],
)
def test_commands_say_at_once_that_nothing_can_be_written(command, arguments, tmp_path, capsys):
    """MODEL is an empty folder: whoever looked into it first would say so."""
    (tmp_path / "model").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    names = {"MODEL": str(tmp_path / "model"), "FILE": str(tmp_path / "notes.txt")}
    given = [argument.replace("MODEL", names["MODEL"]).replace("FILE", names["FILE"]) for argument in arguments]
    try:
        status = command(given)
        said = capsys.readouterr().err
    except NotADirectoryError as error:
        status, said = 1, str(error)
    except SystemExit as ended:
        status, said = 1, str(ended.code)
    assert status == 1 and "notes.txt is a file" in said and "Errno" not in said, said
    assert sorted(os.listdir(tmp_path)) == ["model", "notes.txt"] and not os.listdir(tmp_path / "model")


def test_samples_of_a_sealed_model_go_here_and_where_nothing_can_be_written_it_is_said(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "samples").write_text("a file")
    monkeypatch.chdir(tmp_path)
    check_samples_folder(tmp_path / "model", None)
    (tmp_path / "samples").write_text("a file")
    with pytest.raises(NotADirectoryError, match="samples is a file"):
        check_samples_folder(tmp_path / "model", None)
    check_samples_folder(tmp_path / "model", str(tmp_path / "new"))
    assert sorted(os.listdir(tmp_path)) == ["model", "samples"]


@pytest.mark.parametrize(
    "command, arguments, name",
    [
        (evaluation.main, ["--workdir="], "--workdir"),
        (evaluation.main, ["--workdir", ""], "--workdir"),
        (evaluation.main, ["--workdir=.", "--data="], "--data"),
        (evaluation.main, ["--workdir=.", "--out= "], "--out"),
        (plan.main, ["--config="], "--config"),
        (plan.main, ["--config=shapes", "--mesh="], "--mesh"),
        (probes.main, ["train", "--kind=classifier", "--data=", "--out=x"], "--data"),
        (probes.main, ["train", "--kind=classifier", "--data=x", "--out="], "--out"),
        (retrieval.main, ["find", "--database="], "--database"),
        (retrieval.main, ["find", "--database=x", "--text="], "--text"),
        (weights_command, ["inspect", ""], "an argument"),
        (weights_command, ["convert", "x", ""], "an argument"),
        (weights_command, ["inspect", "x", "--config="], "--config"),
    ],
)
def test_a_flag_with_nothing_behind_it_is_refused_by_name(command, arguments, name, capsys):
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    assert ended.value.code == 2 and f"{name} is empty: give a value" in capsys.readouterr().err


@pytest.mark.parametrize(
    "tokenizer, said",
    [
        ("/nowhere/tokenizer.json", "there is no such file; name another one, or words or wordpiece"),
        ("wodrs", "give words or wordpiece.*Did you mean 'words'"),
        ("broken.json", "broken.json is not a tokenizer"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_named_before_anything_is_written(tokenizer, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{}")
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        experiment.run(config_of(conditioner__tokenizer=tokenizer), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command, arguments, said",
    [
        (probes.main, ["train", "--kind=classifier", "--data=x", "--out=y", "--steps=0"], "--steps=0: must be a number"),
        (probes.main, ["train", "--kind=classifier", "--data=x", "--out=y", "--batch-size=-1"], "--batch-size=-1: must be"),
        (probes.main, ["train", "--kind=classifier", "--data=x", "--out=y", "--learning-rate=nan"], "--learning-rate=nan"),
        (probes.main, ["train", "--kind=classifier", "--data=nowhere", "--out=y", "--size=32"], "nowhere does not exist"),
        (retrieval.main, ["build", "--data=x", "--embedder=y", "--out=z", "-k", "0"], "-k=0: must be a number above 0"),
        (retrieval.main, ["build", "--data=x", "--embedder=y", "--out=full"], "full is not empty; name a new folder"),
        (retrieval.main, ["find", "--database=x", "-k", "0"], "-k=0: must be"),
        (retrieval.main, ["find", "--database=x", "--seed=-1"], "--seed=-1: must be 0 or above"),
        (retrieval.main, ["find", "--database=full/a.txt"], "full/a.txt holds no data base of neighbours"),
        (plan.main, ["--config=shapes", "--batch-size=0"], "--batch-size=0: must be"),
        (plan.main, ["--config=shapes", "--price=nan"], "--price=nan: what a chip costs"),
        (plan.main, ["--config=shapes", "--topology=v5e:0x2"], "write a chip and a shape"),
        (plan.main, ["--config=shapes", "--topology=v5f:2x2"], "Did you mean 'v5p' or 'v5e'"),
        (plan.main, ["--config=shaeps"], "shapes"),
        (plan.main, ["--config=shapes", "--set=diffusion_train.btach_size=4"], "Did you mean 'batch_size'"),
        (plan.main, ["--config=shapes", "--mesh=date=4"], "--mesh date=4: write data=-1,fsdp=4,tensor=1"),
        (weights_command, ["inspect", "nowhere"], "nowhere does not exist"),
        (weights_command, ["inspect", "full/a.txt"], "neither a zip archive nor a pickle"),
        (weights_command, ["convert", "full/a.txt", "full"], "full exists"),
    ],
)
def test_what_is_mistyped_ends_in_a_sentence(command, arguments, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert command(arguments) == 1
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1, error
    assert os.listdir(tmp_path) == ["full"]
