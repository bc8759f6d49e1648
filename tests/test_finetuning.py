"""Fine-tuning of a model that stays as it is: what is trained, that it learns, and what becomes of it. Tiny random models, so
pictures mean nothing here."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax import build, experiment, weights
from ldm_jax.api.load import adapted
from ldm_jax.experiment import starting
from ldm_jax.training.checkpoint import load_averaged, load_part
from tests import tiny
from tests.test_habits import config_of

KEY = jax.random.key(0)
WORD = {"word": "<ink>", "initial": "red", "vectors": 1}
TRAIN = {"start_from": "elsewhere", "batch_size": 8, "learning_rate": 0.02, "warmup_steps": 0, "decay": "constant",
         "optimizer": "adamw", "steps": 40}  # fmt: skip


def tuning(base, **train):
    """The config of a training that starts from `base`."""
    config = copy.deepcopy(dict(base.config)) | {"latents": {"cache": False}, "dtype": "float32"}
    config["conditioner"]["null_probability"] = 0.0
    return config | {"diffusion_train": config_of()["diffusion_train"] | TRAIN | train}


def constants_of(base):
    channel = jnp.ones(4)
    scaled = {"scale": 0.5 * channel, "shift": 0.25 * channel}
    return {name: base.params[name] for name in ("first_stage", "network", "conditioner")} | {"latents": scaled}


def trained(program, params, constants, batch, steps):
    """The state after some steps on one batch, always with the same noise, and the losses on the way."""
    step, state, losses = jax.jit(program.step), program.state_of(params), []
    for _ in range(steps):
        state, metrics = step(dataclasses.replace(state, step=jnp.zeros_like(state.step)), batch, KEY, constants)
        losses.append(float(metrics["loss"]))
    return state, losses


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def moments(count=8):
    noise = jax.random.normal(jax.random.key(3), (count, 4, 4, 4))
    return jnp.concatenate([2 * noise, jnp.full_like(noise, -20.0)], -1)  # latents that are always the same


# Textual inversion


@pytest.fixture(scope="module")
def base():
    return tiny.model("text")


def told(base, **fields):
    config = tuning(base, textual_inversion=WORD | fields)
    return config, build.make_condition(config, tokenizer=base.condition.setting.tokenizer)


def test_a_new_word_begins_as_another_one(base):
    config, condition = told(base)
    vectors = starting.word(config, condition, base.params["conditioner"], ["a <ink> circle"])
    params = adapted(config, base.params | {"word": vectors}, condition)
    assert params.keys() == base.params.keys()
    new, old = (jax.tree.leaves(condition.apply(params["conditioner"], condition.parse([text])))[0]
                for text in ("a <ink> circle", "a red circle"))  # fmt: skip
    np.testing.assert_array_equal(new, old)
    with pytest.raises(ValueError, match="no caption of the training set has it; give all pictures some"):
        starting.word(config, condition, base.params["conditioner"], ["a red circle"])
    with pytest.raises(ValueError, match="initial='red circle' is 2 tokens: .* set textual_inversion.vectors to 2"):
        starting.word(*told(base, initial="red circle"), base.params["conditioner"], ["<ink>"])
    with pytest.raises(ValueError, match="words that no training caption had: 'pink'"):
        starting.word(*told(base, initial="pink"), base.params["conditioner"], ["<ink>"])


def test_only_the_word_is_trained_and_its_file_draws_alike(base, tmp_path):
    config, condition = told(base, initial="blue star", vectors=3)
    program = build.make_diffusion_program(config, condition, cached=True)
    constants = constants_of(base)
    assert shapes(program.constants) == shapes(constants)
    params = {"word": starting.word(config, condition, constants["conditioner"], ["a <ink> circle"])}
    assert shapes(program.shapes.params) == shapes(params) == {"word": {"text_encoder": (3, 8)}}
    kept = jax.tree.leaves(program.shapes.opt_state)
    assert sum(x.size for x in kept) <= 2 * 24 + len(kept)  # two moments of 24 numbers, and counts
    tokens = np.repeat(condition.tokenize("<ink>")[None], 8, 0)
    batch = {"moments": moments(), "inputs": tokens}
    state, losses = trained(program, params, constants, batch, 30)
    assert losses[-1] < 0.99 * losses[0]
    weights.write_embedding(tmp_path / "learned_embeds.safetensors", "<ink>", jax.device_get(state.params["word"]))
    loaded = base.with_embedding(tmp_path / "learned_embeds.safetensors")
    changed = adapted(config, base.params | state.params, condition)
    jax.tree.map(np.testing.assert_array_equal, loaded.params["conditioner"], changed["conditioner"])
    np.testing.assert_array_equal(loaded.condition.parse(["<ink> circle"]), condition.parse(["<ink> circle"]))
    with pytest.raises(ValueError, match="exists already"):
        weights.write_embedding(tmp_path / "learned_embeds.safetensors", "<ink>", state.params["word"])


def test_words_that_can_not_be_taught_are_refused_before_anything_is_read(base):
    def refused(message, **fields):
        config = config_of()
        for name, value in fields.items():
            *section, field = name.split("__")
            place = config
            for part in section:
                place = place[part]
            place[field] = value
        with pytest.raises(ValueError, match=message):
            build.check(config)

    on = {"diffusion_train__textual_inversion": WORD}
    refused("textual_inversion.word adapts a model: name it in config.diffusion_train.start_from", **on)
    on["diffusion_train__start_from"] = "elsewhere"
    refused("initial='': name a word", **on | {"diffusion_train__textual_inversion": WORD | {"initial": ""}})
    refused("one word without blanks", **on | {"diffusion_train__textual_inversion": WORD | {"word": "a b"}})
    refused("train one after the other", **on | {"diffusion_train__lora__rank": 2})
    refused("reads no prompts", **on | {"conditioner": {"kind": "class", "n_classes": 3, "embed_dim": 64}})
    refused("captions=.*: must be texts", data__captions=["a", 3])


def experiment_config(path, base, **fields):
    """An experiment on pictures of shapes with a tiny model."""
    config = config_of()
    config |= {name: copy.deepcopy(base.config[name]) for name in ("first_stage", "network", "conditioner", "sampling")}
    config["first_stage"]["path"] = str(path)
    config["conditioner"]["null_probability"] = 0.0
    config["data"] |= {"path": str(path.parent / "shapes"), "examples": [24, 8]}
    config["latents"] |= {"scale_batches": 1, "standardise": False}
    config["log"] |= {"every": 2, "images_every": 4, "validation_every": 4, "validation_images": 8}
    config["evaluation"] |= {"batch_size": 4}
    config["diffusion_train"] |= TRAIN | {"start_from": str(path), "steps": 8}
    for name, value in fields.items():
        section, field = name.split("__")
        config[section][field] = value
    return config | {"stages": ["latents", "diffusion"], "mesh": {"data": 1, "fsdp": 1, "tensor": 1}}


def saved(base, folder):
    """`base` as a file of ours."""
    parts = ("network", "first_stage", "conditioner", "diffusion")
    description = {name: dict(base.config[name]) for name in parts} | {"latents": {"scale": 0.5, "shift": 0.25}}
    path = folder / "base.safetensors"
    weights.write_params(path, description, {name: base.params[name] for name in parts if name in base.params})
    return path


@pytest.fixture
def one_device(monkeypatch):
    from ldm_jax.training import sharding

    whole = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda *axes, devices=None: whole(*axes, devices=jax.devices()[:1]))


@pytest.mark.slow
def test_a_word_from_train_to_file(base, tmp_path, one_device):
    """Trained, resumed bit by bit, loaded, saved."""
    path = saved(base, tmp_path)
    fields = {"diffusion_train__textual_inversion": WORD, "data__captions": ["a <ink> star", "<ink>"]}
    experiment.run(experiment_config(path, base, **fields), tmp_path / "whole")
    for steps in (4, 8):
        experiment.run(experiment_config(path, base, **fields, diffusion_train__steps=steps), tmp_path / "parts")
    learnt = [load_averaged(tmp_path / name / "diffusion" / "checkpoints")["word"] for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *learnt)
    assert load_part(tmp_path / "whole" / "diffusion" / "checkpoints", "params").keys() == {"word"}
    ldm = ldm_jax.load(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, ldm.params["network"], base.params["network"])
    ldm_jax.save_embedding(tmp_path / "whole", tmp_path / "learned_embeds.safetensors")
    other = ldm_jax.load(path).with_embedding(tmp_path / "learned_embeds.safetensors")
    prompts = ["a <ink> circle", "a red circle"]
    np.testing.assert_array_equal(*(each.embed(each.params, prompts)["context"] for each in (ldm, other)))
    images = ldm.sample(ldm.params, KEY, ldm.embed(ldm.params, prompts))
    np.testing.assert_allclose(images, other.sample(other.params, KEY, other.embed(other.params, prompts)), atol=1e-5)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["diffusion_train"]["textual_inversion"] == WORD
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text(json.dumps({"diffusion_train": {}}))
    with pytest.raises(ValueError, match="taught no word"):
        ldm_jax.save_embedding(tmp_path / "none", tmp_path / "other.safetensors")
