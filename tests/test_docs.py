"""What README and docs show: every Python block runs, on tiny models; every command has flags, fields, configs that exist."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import diffusion
from ldm_jax.cli import configs, sample_command, train
from ldm_jax.cli.overrides import overridden
from ldm_jax.conditioning import Condition
from ldm_jax.diffusion.samplers import protocol
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))
ELSEWHERE = ("from_diffusers.md",)  # tests/test_documents.py runs it, on a model of diffusers
COMMAND = re.compile(r"^\s*(?:.*&& )?(?:python (train|sample)\.py|ldm-(train|sample))\b(.*)$", re.M)


def blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in PAGES if blocks(path) and path.name not in ELSEWHERE], ids=lambda path: path.name
)
def test_every_python_block_runs(path, monkeypatch):
    """A page's blocks one after the other, with the names that its text introduces."""
    monkeypatch.setattr(tiny, "CLASSES", ("daisy", "roses", "tulips"))
    models = {"shapes": "text", "flowers64": "class", "superres64": "superres"}
    monkeypatch.setattr(ldm_jax, "load", lambda path: tiny.model.__wrapped__(models[Path(path).name]), raising=False)
    names = {name: getattr(protocol, name) for name in ("Sampler", "gaussian", "memoryless")}
    names |= {"diffuse": diffusion.diffuse, "Condition": Condition, "np": np}
    names |= {"image": np.zeros((1, 8, 8, 3), np.float32), "mask": np.ones((1, 8, 8), np.float32)}
    names |= {"low": np.zeros((1, 4, 4, 3), np.float32), "images": np.zeros((1, 8, 8, 3), np.float32)}
    for block in blocks(path):
        exec(compile(block, path.name, "exec"), names)
    if "mine" in names:
        ldm, cond = names["ldm"], names["cond"]
        again = ldm.sample(ldm.params, jax.random.key(0), cond, sampler="dpmpp_2m", steps=20)
        np.testing.assert_allclose(names["images"], again, atol=1e-3)
    if "euler_noisy" in names:
        drawn = diffusion.sample(
            lambda x, level: diffusion.Prediction(x * 0, x), names["euler_noisy"](), np.ones((2, 3), np.float32),
            diffusion.make_grid("trailing", "cosine", 4), jax.random.key(0),
        )  # fmt: skip
        assert np.isfinite(drawn).all()


def commands():
    for path in PAGES:
        for found in COMMAND.finditer(re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))):
            yield pytest.param(found[1] or found[2], found[3], id=f"{path.name}: {found[0].strip()[:60]}")


@pytest.mark.parametrize("which, arguments", list(commands()))
def test_every_command_is_one(which, arguments):
    arguments = ["it", *shlex.split(re.sub(r"\[.*?\]|\.\.\.$", "", arguments), comments=True)]
    if which == "sample":
        sample_command.parse(arguments)
        return
    if train.asked_for_help(arguments):
        train.helped_with(train.asked_for_help(arguments), arguments)
        return
    flag, overrides = train.parse(arguments)
    if flag.data or not flag.config.isidentifier() and not Path(flag.config).parts[0] == "configs":
        return  # a config that the command before has written
    name = Path(flag.config).stem
    if name.isupper():
        return
    overridden(configs.load(configs.named()[name]), [each for each in overrides if "..." not in each])
