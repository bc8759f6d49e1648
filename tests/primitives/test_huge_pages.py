"""A training starts itself once more to have huge pages, where that helps and only there."""

import subprocess
import sys

import pytest

from ldm_jax.primitives import huge_pages
from ldm_jax.primitives.huge_pages import asking, is_program


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Files of a machine whose kernel gives huge pages to those who ask, with a new C library and no accelerator."""
    monkeypatch.setattr(huge_pages, "_glibc", lambda: (2, 36))
    pages, devices = tmp_path / "enabled", tmp_path / "dev"
    pages.write_text("always [madvise] never\n")
    devices.mkdir()
    return pages, devices


@pytest.mark.parametrize(
    "given, tunables",
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ({"JAX_PLATFORMS": "cpu"}, "glibc.malloc.hugetlb=1"),
        ({"JAX_PLATFORMS": "cuda,cpu"}, None),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, None),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, None),
    ],
)
def test_an_environment_that_asks(machine, given, tunables):
    found = asking({"HOME": "/home/a"} | given, *machine)
    assert found == ({"HOME": "/home/a"} | given | {"GLIBC_TUNABLES": tunables} if tunables else {})


def test_machines_that_gain_nothing(machine, monkeypatch, tmp_path):
    pages, devices = machine
    (devices / "nvidiactl").touch()
    assert asking({}, pages, devices) == {} and asking({"JAX_PLATFORMS": "cpu"}, pages, devices)
    assert asking({}, tmp_path / "none", tmp_path) == {}
    for text in ("[always] madvise never", "always madvise [never]"):
        pages.write_text(text)
        assert asking({}, pages, tmp_path) == {}
    pages.write_text("always [madvise] never")
    assert asking({}, pages, tmp_path)
    for version in ((2, 34), ()):
        monkeypatch.setattr(huge_pages, "_glibc", lambda version=version: version)
        assert asking({}, pages, tmp_path) == {}


@pytest.mark.parametrize(
    "started, arguments, program",
    [
        (["python", "train.py", "--config=shapes"], ["train.py", "--config=shapes"], True),
        (["python", "-Xdev", "-u", "/bin/ldm-train"], ["/bin/ldm-train"], True),
        (["python", "-m", "pdb", "train.py"], ["train.py"], False),
        (["python", "/debugger", "--connect", "1", "train.py", "--a"], ["train.py", "--a"], False),
        (["train.py"], ["ldm", "train.py"], False),
        (["python", "-m", "ipykernel_launcher", "-f", "a.json"], ["train.py"], False),  # %run train.py
        (["ipython"], ["train.py", "--config=shapes"], False),
        (["python", "-c", "from ldm_jax.cli.train import main; main()"], ["-c"], False),
    ],
)
def test_only_a_program_is_started_again(started, arguments, program):
    assert is_program(started, arguments) is program


def test_the_same_program_starts_once_more(tmp_path):
    (tmp_path / "enabled").write_text("[madvise]")
    (tmp_path / "program.py").write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from ldm_jax.primitives import huge_pages\n"
        "huge_pages._glibc = lambda: (2, 36)\n"
        "huge_pages.asking.__defaults__ = (Path(sys.argv[1]), Path(sys.argv[1]).parent)\n"
        "print(os.getpid(), sys.argv[1:], os.environ.get('GLIBC_TUNABLES'), sys.flags.dev_mode)\n"
        "huge_pages.ask()\n"
    )
    command = [sys.executable, "-Xdev", "program.py", "enabled", "--two words"]
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=True)
    first, second = done.stdout.splitlines()
    pid, rest = first.split(" ", 1)
    assert rest == "['enabled', '--two words'] None True"
    assert second == f"{pid} ['enabled', '--two words'] glibc.malloc.hugetlb=1 True"
