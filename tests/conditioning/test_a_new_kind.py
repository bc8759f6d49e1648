"""A condition that this library doesn't have, by the one class of docs/architecture.md: trained, drawn from, and combined."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax import build
from ldm_jax.api import Specification
from ldm_jax.conditioning import KINDS, Condition
from ldm_jax.drawing import modes as sample
from tests.tiny import CONFIG

ROOT = Path(__file__).resolve().parents[2]
COLOURS = "1,0,0,0,0,1"


@pytest.fixture
def palette(monkeypatch):
    text = (ROOT / "docs" / "architecture.md").read_text()
    [code] = re.findall(r"```python\n(class \w+\(Condition\):.*?)```", text, re.DOTALL)
    names = {"Condition": Condition, "np": np}
    exec(code, names)
    made = names["Palette"]
    monkeypatch.setitem(KINDS, made.kind, made)
    return made


def config_of(conditioner):
    network = CONFIG["network"] | {"attention_resolutions": [], "context_dim": 3}
    train = {
        "batch_size": 4, "optimizer": "adamw", "learning_rate": 1e-3, "steps": 2, "warmup_steps": 0, "decay": "constant",
        "b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "clip_norm": 1.0, "ema_decay": 0.9,
    }  # fmt: skip
    return CONFIG | {
        "network": network, "conditioner": conditioner, "diffusion_train": train, "latents": {"cache": True},
    }  # fmt: skip


def filled(shape):
    rng = np.random.default_rng(0)
    whole = jnp.issubdtype(shape.dtype, jnp.integer)
    return jnp.ones(shape.shape, shape.dtype) if whole else jnp.asarray(rng.standard_normal(shape.shape), shape.dtype)


@pytest.mark.parametrize("kind", [pytest.param("palette", marks=pytest.mark.slow), "combined"])
def test_it_trains_and_draws(palette, kind):
    conditioner = {"kind": "palette", "null_probability": 0.5}
    if kind == "combined":
        parts = {"colours": {"kind": "palette"}, "class": {"kind": "class", "n_classes": 4, "embed_dim": 3}}
        conditioner = {"kind": "combined", "parts": parts, "null_probability": 0.5}
    config = config_of(conditioner)
    program = build.make_program(config, "diffusion")
    batch, constants = jax.tree.map(filled, (program.batch, program.constants))
    start = program.init(jax.random.key(0))
    start["network"] = jax.tree.map(lambda x: 0.3 * filled(x), start["network"])  # many a layer is zero otherwise
    state, metrics = jax.jit(program.step)(program.state_of(start), batch, jax.random.key(1), constants)
    assert np.isfinite(metrics["loss"]) and int(state.step) == 1
    if kind == "combined":  # the table of the part that has one is trained
        table, trained = (jax.tree.leaves(params["conditioner"]["class"]) for params in (start, state.params))
        assert all(bool((a != b).any()) for a, b in zip(table, trained, strict=True))

    condition = build.make_condition(config, ("circle", "square", "star"))
    params = {"first_stage": constants["first_stage"], "conditioner": {}, **state.averaged}
    ldm = ldm_jax.LatentDiffusion(Specification(config, condition, 0.5, 0.25), params)
    one, other = [float(v) for v in COLOURS.split(",")], [0.0] * 6
    told = [one, other] if kind == "palette" else [{"colours": one, "class": "star"}, {"colours": other, "class": 0}]
    cond = ldm.embed(params, told)
    assert cond["context"].shape == ((2, 2, 3) if kind == "palette" else (2, 3, 3))  # two colours, and a class after them
    images = ldm.sample(params, jax.random.key(0), cond, steps=2)
    assert images.shape == (2, 8, 8, 3) and np.isfinite(images).all()
    again = ldm.sample(params, jax.random.key(0), ldm.embed(params, [told[0], told[0]]), steps=2)
    assert np.abs(again[1] - images[1]).max() > 1e-6  # it looks at what it is told
    if kind == "palette":
        assert "palette_of" in sample.all_flags()
        drawn = sample.draw(ldm, {"palette_of": [COLOURS], "num": 1, "steps": 2})
        assert drawn.images.shape == (1, 8, 8, 3) and drawn.words == [COLOURS]
    else:
        with pytest.raises(ValueError, match="takes a dict of colours, class"):
            ldm.embed(params, ["star"])
