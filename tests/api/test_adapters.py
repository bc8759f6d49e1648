"""LoRA on a model: merged, several, and from the working directory that learnt one."""

import copy
import dataclasses
import functools
import json
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax import weights
from ldm_jax.api import trained_on
from ldm_jax.api.load import load_scale
from ldm_jax.models import init_lora
from ldm_jax.primitives.files import write_json
from ldm_jax.training.checkpoint import Checkpoints
from ldm_jax.training.state import TrainState
from tests import tiny

KEY = jax.random.key(0)
TARGETS = ("qkv", "proj_out")


@pytest.fixture(scope="module")
def ldm():
    return tiny.model("none")


@pytest.fixture(scope="module")
def lora(ldm):
    return jax.tree.map(lambda x: x + 0.3, init_lora(KEY, ldm.params["network"], 2, TARGETS))


def same(one, other, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def test_several_with_a_traced_scale(ldm, lora):
    factors = {"network": lora}
    merged = ldm.with_lora([factors, factors], [0.5, 0.25])
    assert merged.specification is ldm.specification  # what is compiled serves both
    same(merged.params, jax.jit(lambda scale: ldm_jax.apply_lora(ldm.params, factors, scale))(0.75), 1e-5)
    same(ldm.with_lora(factors, 0.0).params, ldm.params)
    with pytest.raises(ValueError, match="3 scales for 2 LoRAs"):
        ldm.with_lora([factors, factors], [1.0, 2.0, 3.0])

    def total(scale):
        return jnp.sum(ldm_jax.apply_lora(ldm.params, factors, scale)["network"]["middle_block_1"]["qkv"]["kernel"])

    pair = lora["middle_block_1"]["qkv"]["kernel"]
    np.testing.assert_allclose(jax.grad(total)(1.0), jnp.sum(pair["down"] @ pair["up"]), rtol=1e-4)


@pytest.mark.parametrize("scale", ["x", None, float("nan"), np.ones(2), [True, "x"]])
def test_scales_that_are_none(ldm, lora, scale):
    several = [{"network": lora}] * 2 if isinstance(scale, list) else {"network": lora}
    with pytest.raises(ValueError, match="of a LoRA: it must be a finite number"):
        ldm.with_lora(several, scale)


def test_what_is_no_lora_is_named(ldm):
    for other in (None, 3, [None]):
        with pytest.raises(ValueError, match="a LoRA is a path, or factors from read_lora; this is a"):
            ldm.with_lora(other)


def test_a_control_net_is_not_left_out_of_what_is_saved(ldm, tmp_path):
    steered = copy.copy(ldm.specification)
    steered.control = ldm.specification.network
    with pytest.raises(ValueError, match="a model with a ControlNet can't be written as one"):
        ldm_jax.save(dataclasses.replace(ldm, specification=steered), tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("take", ["load_lora", "save_control", "save_embedding"])
def test_what_no_training_made_has_learnt_nothing(tmp_path, take):
    """A file, or a folder of something else."""
    (tmp_path / "lora.safetensors").write_bytes(b"")
    for path in (tmp_path, tmp_path / "lora.safetensors"):
        with pytest.raises(ValueError, match=f"{path} is no working directory of a training"):
            getattr(ldm_jax, take)(path, *[tmp_path / "out.safetensors"] * (take != "load_lora"))


@pytest.mark.parametrize("what", ["read_lora", "with_lora", "with_control", "with_embedding"])
def test_where_files_are_looked_for(ldm, tmp_path, monkeypatch, what):
    """As `load` looks: from the home directory; addresses and names of the hub, and what a training left, have another way."""
    monkeypatch.setenv("HOME", str(tmp_path))
    told = tiny.model("text") if what == "with_embedding" else ldm
    (tmp_path / "a.safetensors").write_bytes(b"none")
    for path, message in (
        ("~/a.safetensors", "4 bytes cannot hold a header"), ("~/b.safetensors", f"{tmp_path}/b.safetensors does not exist"),
        ("gs://bucket/a.safetensors", "gs://bucket/a.safetensors is an address"), ("hf:owner/name", "download it"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            getattr(told, what)(path)
    (tmp_path / "run" / "diffusion").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    found = {"with_control": "save_control", "with_embedding": "save_embedding"}.get(what, "load_lora")
    with pytest.raises(ValueError, match=f"run is a working directory, .*ldm_jax.{found}.'{tmp_path}/run'"):
        getattr(told, what)(tmp_path / "run")


def test_a_working_directory_holds_the_change_alone(ldm, lora, tmp_path):
    base = tmp_path / "base.safetensors"
    parts = ("network", "first_stage", "conditioner", "diffusion")
    description = {name: dict(ldm.config[name]) for name in parts} | {"latents": {"scale": 0.5, "shift": 0.25}}
    weights.write_params(base, description, {name: ldm.params[name] for name in parts if name in ldm.params})
    config = json.loads(json.dumps(ldm.config))
    config["first_stage"]["path"] = str(base)
    config["diffusion_train"] = {"start_from": str(base), "lora": {"rank": 2, "alpha": 6.0, "targets": TARGETS}}
    workdir = tmp_path / "run"
    (workdir / "diffusion").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "versions.json").write_text("{}")
    (workdir / "latents.json").write_text(json.dumps({"scale": 0.5, "shift": 0.25}))
    zero = jnp.zeros((), jnp.int32)
    with Checkpoints(workdir / "diffusion" / "checkpoints", 1) as checkpoints:
        checkpoints.save(3, TrainState(zero + 3, {"lora": jax.tree.map(jnp.zeros_like, lora)}, {"lora": lora}, {}, zero))
    loaded = ldm_jax.load(workdir)  # the average, times alpha / rank
    same(loaded.params, ldm.with_lora({"network": lora}, 3.0).params, 1e-5)
    draw = functools.partial(loaded.sample, loaded.params, KEY, num=1)
    assert np.isfinite(draw()).all()
    learnt = ldm_jax.load_lora(workdir)
    same(ldm.with_lora(learnt).params, loaded.params, 1e-5)
    ldm.save_lora(learnt, tmp_path / "file.safetensors")
    same(ldm.with_lora(tmp_path / "file.safetensors").params, loaded.params, 1e-5)
    # trained on the model that it was, in whatever type
    trained_on.remember(workdir, {name: ldm.params[name] for name in ("network", "conditioner")})
    same(ldm_jax.load(workdir).params, loaded.params)
    assert jax.tree.leaves(ldm_jax.load(workdir, dtype=jnp.bfloat16).params["network"])[0].dtype == jnp.bfloat16
    moved = ldm.params | {"network": jax.tree.map(lambda x: x + 0.05, ldm.params["network"])}
    weights.write_params(base, description, {name: moved[name] for name in parts if name in moved})
    with pytest.raises(ValueError, match="has other weights now .*ldm_jax.load.*with_lora.ldm_jax.load_lora") as refused:
        ldm_jax.load(workdir)
    way_out = eval(str(refused.value).rpartition(": ")[2])  # the words of the error, as they stand
    same(way_out.params, dataclasses.replace(ldm, params=moved).with_lora(learnt).params, 1e-5)
    base.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="start_from=.*does not exist, neither from here nor from .*/run$"):
        ldm_jax.load(workdir)
    (tmp_path / "other").mkdir()
    workdir = Path(shutil.move(workdir, tmp_path / "other" / "run"))
    base = Path(shutil.move(tmp_path / "away", tmp_path / "other" / base.name))
    write_json(workdir / "config.json", config)  # sealed, as a training writes it
    with pytest.raises(FileNotFoundError, match=f'if {base} is it, write that into .*take the entry "sha256" out'):
        ldm_jax.load(workdir)
    changed = json.loads((workdir / "config.json").read_text().replace(config["first_stage"]["path"], str(base)))
    (workdir / "config.json").write_text(json.dumps({name: part for name, part in changed.items() if name != "sha256"}))
    weights.write_params(base, description, {name: ldm.params[name] for name in parts if name in ldm.params})
    same(ldm_jax.load(workdir).params, loaded.params)


def test_a_first_stage_that_changed_is_said(ldm, tmp_path):
    """In float32 and, of a training in bfloat16, as it was rounded there."""
    config, first = {"dtype": "bfloat16", "first_stage": {"path": "elsewhere"}}, ldm.params["first_stage"]
    trained_on.look_at_first_stage(config, tmp_path, first)  # nothing is known of it
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), first)
    write_json(tmp_path / "latents.json", {"scale": 1.0, "shift": 0.0, "first_stage": trained_on.hash_of(rounded)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained_on.look_at_first_stage(config, tmp_path, first)
    with pytest.warns(UserWarning, match="the first stage in elsewhere has changed since"):
        trained_on.look_at_first_stage(config, tmp_path, jax.tree.map(lambda x: x * 1.02, first))


@pytest.mark.parametrize(
    "said", [{"scale": 1.0}, {"scale": "x", "shift": 0.0}, {"scale": [1.0, None], "shift": 0.0}, {"scale": [], "shift": 0}]
)
def test_a_scale_of_latents_that_is_none(tmp_path, said):
    (tmp_path / "latents.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"latents.json: (scale|shift) must be a finite number.*Delete it"):
        load_scale(tmp_path)
