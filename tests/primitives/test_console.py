"""How a command ends."""

import subprocess
import sys

import pytest

from ldm_jax.cli import sample_command, train
from ldm_jax.primitives.console import Parser, with_home

PROGRAM = """
import gc, os, signal, sys, time
from ldm_jax.primitives.console import ends_in_one_line
number = getattr(signal, sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
def collect(phase, info):
    if phase == "start":
        os.kill(os.getpid(), number)
        for _ in range(1000): pass  # the handler runs here, where nothing can be raised
with ends_in_one_line():
    if sys.argv[2] == "error": raise ValueError("what was wrong")
    if sys.argv[2] == "collecting":
        gc.callbacks.append(collect); gc.collect(); gc.callbacks.clear()
    else:
        os.kill(os.getpid(), number)
    time.sleep(20)
    print("went on")
"""


@pytest.mark.parametrize(
    "signal, where, status, said",
    [
        ("SIGTERM", "plainly", 130, "stopped\n"),
        ("SIGINT", "plainly", 130, "stopped\n"),
        ("SIGTERM", "collecting", 130, "stopped\n"),
        ("SIGINT", "collecting", 130, "stopped\n"),
        ("SIGINT", "error", 1, "ValueError: what was wrong\n"),
    ],
)
def test_a_command_ends_in_one_line(signal, where, status, said):
    done = subprocess.run([sys.executable, "-c", PROGRAM, signal, where], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def test_a_mistyped_flag_of_argparse_is_one_line(capsys):
    parser = Parser(prog="it")
    parser.add_argument("--workdir", required=True)
    made = parser.add_subparsers(dest="command").add_parser("train")
    made.add_argument("--steps", type=int)
    for typed, said in (
        (["--workdir=w", "--wrokdir=x"], "it: unrecognized arguments: --wrokdir=x. Did you mean '--workdir'?"),
        ([], "it: the following arguments are required: --workdir."),
        (["--workdir=w", "train", "--steps=x"], "it train: argument --steps: invalid int value: 'x'."),
    ):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(typed)
        assert ended.value.code == 2 and capsys.readouterr().err == f"{said} --help shows all flags\n"


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("--workdir=~/runs/a", "--workdir=HOME/runs/a"),
        ("--config.data.path=~/my pictures", "--config.data.path=HOME/my pictures"),
        ("-o=~", "-o=HOME"),
        ("--prompt=~5 cats", "--prompt=~5 cats"),
        ("--prompt=a=~/b", "--prompt=a=~/b"),
        ("--workdir=~nobody_of_this_name/a", "--workdir=~nobody_of_this_name/a"),
        ("~/runs", "~/runs"),  # a shell's own work
    ],
)
def test_the_home_directory_in_a_flag(typed, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert with_home(["train.py", typed]) == ["train.py", meant.replace("HOME", "/home/somebody")]


def test_commands_know_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    parser = Parser()
    parser.add_argument("--out")
    assert parser.parse_args(["--out=~/a"]).out == str(tmp_path / "a")
    assert sample_command.parse(["sample.py", "--workdir=~/a"]).workdir == str(tmp_path / "a")
    with pytest.raises(SystemExit, match=f"{tmp_path}/pictures: there is no such folder"):
        train.main(["train.py", "--data=~/pictures"])
    (tmp_path / "~").mkdir()  # which somebody has, and means
    assert with_home(["--out=~"]) == ["--out=~"]
