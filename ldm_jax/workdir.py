"""The working directory of an experiment: whose it is, what ran in it, and the pictures in it."""

import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from ldm_jax.training.metrics import image_grid, to_uint8

# What may differ between runs in one working directory, because it doesn't change what is learnt.
FREE_SECTIONS = ("log", "checkpoint", "mesh", "evaluation", "sampling")
FREE_FIELDS = ("data.path", "data.workers", "data.in_memory")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def check_workdir(config: Mapping[str, Any], workdir: Path) -> None:
    """ValueError if the directory holds another experiment, with the difference, or something else altogether."""
    path = workdir / "config.json"
    if not path.is_file():
        if workdir.is_dir() and any(workdir.iterdir()):
            raise ValueError(f"{workdir} is not empty and not a working directory of ours; choose another --workdir")
        return
    then, now = flatten(json.loads(path.read_text())), flatten(config)
    free = {name for name in {*then, *now} if name.split(".")[0] in FREE_SECTIONS or name in FREE_FIELDS}
    lines = [
        f"  {name}: {then.get(name, 'absent')!r} there, {now.get(name, 'absent')!r} now"
        for name in sorted({*then, *now} - free)
        if then.get(name) != now.get(name)
    ]
    if lines:
        raise ValueError(
            f"{workdir} holds another experiment; choose another --workdir, or go on with its config:\n" + "\n".join(lines)
        )


def open_workdir(config: Mapping[str, Any], workdir: Path) -> None:
    """Writes config.json once, and appends to versions.json what runs now."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "config.json").is_file():
        (workdir / "config.json").write_text(json.dumps(config, indent=2))
    path = workdir / "versions.json"
    runs = json.loads(path.read_text()) if path.is_file() else []
    path.write_text(json.dumps([*runs, versions()], indent=2))


def versions() -> dict[str, str]:
    """Python, packages, devices, git revision and command line of this process."""
    packages = ("ldm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv),
        "git": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def summary(workdir: Path) -> str:
    """Where everything is."""
    places = {
        "pictures": workdir / "evaluation",
        "curves": f"tensorboard --logdir {workdir}, or {workdir}/*/metrics.jsonl",
        "weights": workdir / "diffusion" / "checkpoints",
        "draw more": f"python sample.py --workdir {workdir}",
    }
    if not places["weights"].is_dir():  # a first stage alone
        places = {
            "pictures": workdir / "first_stage" / "images",
            "curves": places["curves"],
            "weights": workdir / "first_stage" / "checkpoints",
        }
    return "\n".join(["Results:", *(f"  {name:10} {place}" for name, place in places.items())])


def save_pictures(
    folder: Path, name: str, images: np.ndarray, words: list[str], columns: int = 0, singly: bool = False
) -> Path:
    """One grid as PNG, with what was asked for in a .txt beside it; `singly`: every picture as a file of its own besides.

    Raises FileExistsError rather than overwrite a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = folder / f"{name}.png"
    files = {grid: image_grid(images, columns)}
    if singly:
        files |= {folder / f"{i:04d}.png": picture for i, picture in enumerate(to_uint8(images))}
    if taken := [path for path in files if path.exists()]:
        raise FileExistsError(f"{taken[0]} exists; choose another folder")
    for path, picture in files.items():
        Image.fromarray(picture).save(path)
    grid.with_suffix(".txt").write_text("\n".join(words) + "\n")
    return grid


def save_film(folder: Path, images: np.ndarray, milliseconds: int = 120) -> Path:
    """The pictures one after the other, there and back, as folder/film.gif."""
    frames = [Image.fromarray(picture) for picture in to_uint8(images)]
    there_and_back = [*frames, *frames[-2:0:-1]]
    path = folder / "film.gif"
    there_and_back[0].save(path, save_all=True, append_images=there_and_back[1:], duration=milliseconds, loop=0)
    return path


def free_folder(parent: Path) -> Path:
    """parent/0000, or the first number that is free."""
    return next(folder for i in itertools.count() if not (folder := parent / f"{i:04d}").exists())


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk: $JAX_COMPILATION_CACHE_DIR, or ~/.cache/ldm_jax/xla."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "ldm_jax" / "xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
