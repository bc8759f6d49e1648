"""Fine-tuning of a model that stays as it is: what is trained, that it learns, and what becomes of it. Tiny random models, so
pictures mean nothing here."""

import contextlib
import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax import build, experiment, models, weights
from ldm_jax.api.load import adapted
from ldm_jax.data import control_pictures
from ldm_jax.data.folder import folder
from ldm_jax.data.tokenizer import load_tokenizer
from ldm_jax.data.transform import Transform
from ldm_jax.experiment import starting
from ldm_jax.second_stage import with_prior
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
    with pytest.raises(ValueError, match="no caption of the training set has it, .*give all pictures some"):
        starting.word(config, condition, base.params["conditioner"], ["a red circle"])
    for text, has in (("a <INK> circle", True), ("a red circle a <ink>", False)):  # small letters count; cut at 4 tokens
        with contextlib.nullcontext() if has else pytest.raises(ValueError, match="none as long as is read .6 tokens with"):
            starting.word(config, condition, base.params["conditioner"], [text])
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
    on["diffusion_train__textual_inversion"] = WORD | {"vectors": 25}
    refused("vectors=25: a prompt has room for 24 tokens", **on)
    on["diffusion_train__textual_inversion"] = WORD
    refused("train one after the other", **on | {"diffusion_train__lora__rank": 2})
    refused("reads no prompts", **on | {"conditioner": {"kind": "class", "n_classes": 3, "embed_dim": 64}})
    refused("captions=.*: must be texts", data__captions=["a", 3])


def experiment_config(path, base, **fields):
    """An experiment on pictures of shapes with a tiny model."""
    config = config_of()
    config |= {name: copy.deepcopy(base.config[name]) for name in ("first_stage", "network", "conditioner", "sampling")}
    config["first_stage"]["path"] = str(path)
    config["conditioner"]["null_probability"] = 0.0
    config["diffusion"]["scale"] = 1.0  # as the tiny model has it
    config["data"] |= {"path": str(path.parent / "shapes"), "examples": [24, 8]}
    config["latents"] |= {"scale_batches": 1, "standardise": False}
    config["log"] |= {"every": 2, "images_every": 4, "validation_every": 4, "validation_images": 8}
    config["evaluation"] |= {"batch_size": 4}
    config["diffusion_train"] |= TRAIN | {"start_from": str(path), "steps": 8}
    for name, value in fields.items():
        section, field = name.split("__")
        config[section][field] = value
    return config | {"stages": ["latents", "diffusion"], "mesh": {"data": -1, "fsdp": 2, "tensor": 1}}


def saved(base, folder):
    """`base` as a file of ours."""
    parts = ("network", "first_stage", "conditioner", "diffusion")
    description = {name: dict(base.config[name]) for name in (*parts, "sampling")} | {"latents": {"scale": 0.5, "shift": 0.25}}
    path = folder / "base.safetensors"
    weights.write_params(path, description, {name: base.params[name] for name in parts if name in base.params})
    return path


def test_prompts_that_the_model_does_not_know_are_refused_before_latents_are_encoded(base, tmp_path):
    path = saved(base, tmp_path)
    prior = {"prior_weight": 1.0, "class_prompt": "a zebra", "class_pictures": 6}
    for field, value in (("dreambooth", prior), ("textual_inversion", WORD | {"initial": "zebra"})):
        config = experiment_config(path, base, **{f"diffusion_train__{field}": value, "data__captions": ["a <ink> circle"]})
        with pytest.raises(ValueError, match=f"config.diffusion_train.{field}.* that no training caption had: 'zebra'"):
            experiment.run(config | {"stages": ["diffusion"]}, tmp_path / field)  # which would ask for latents first


@pytest.mark.slow
def test_a_word_from_train_to_file(base, tmp_path):
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
    others = other.sample(other.params, KEY, other.embed(other.params, prompts), size=(32, 32))
    np.testing.assert_allclose(images, others, atol=1e-5)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["diffusion_train"]["textual_inversion"] == WORD
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text(json.dumps({"diffusion_train": {}}))
    with pytest.raises(ValueError, match="taught no word"):
        ldm_jax.save_embedding(tmp_path / "none", tmp_path / "other.safetensors")


# ControlNets


def steering(base, **fields):
    config = tuning(base, control={"picture": "edges", "hint_channels": [], **fields}, learning_rate=0.01)
    return config, build.make_condition(config, tokenizer=base.condition.setting.tokenizer)


@pytest.fixture(scope="module")
def steered(base):
    """A program, what is frozen, and a ControlNet's parameters at first."""
    program = build.make_diffusion_program(*steering(base), cached=False)
    fresh = program.init(KEY)["control"]
    return program, constants_of(base), {"control": models.begun(fresh, base.params["network"])}


def shown(condition):
    """Pictures and what is asked for, fixed."""
    images = jnp.tanh(jax.random.normal(jax.random.key(4), (8, 8, 8, 3)))
    hints = np.stack([control_pictures.edges(np.asarray(image)) for image in images])
    tokens = np.repeat(condition.tokenize("a red circle")[None], 8, 0)
    return {"image": images, "inputs": condition.from_batch({"tokens": tokens, "conditioning": hints})}


def test_a_control_net_begins_as_nothing(base, steered):
    """At first the U-Net gives what it gives alone, exactly, whatever the picture; its way down is the U-Net's own."""
    config, condition = steering(base)
    _, constants, params = steered
    cond = condition.apply(base.params["conditioner"], shown(condition)["inputs"])
    assert cond.keys() == {"context", "hint", "hint_scale"} and float(cond["hint"].min()) >= 0
    network, x, t = build.make_network(config), jax.random.normal(KEY, (8, 4, 4, 4)), jnp.linspace(0.1, 0.9, 8)
    both = models.Steered(network, build.make_control(config))
    # operation by operation: compiled as a whole, two programs round otherwise
    got = both.apply({"params": {"network": base.params["network"], **params}}, x, t, cond)
    alone = network.apply({"params": base.params["network"]}, x, t, {"context": cond["context"]})
    np.testing.assert_array_equal(got, alone)
    for name in ("input_blocks_1_0", "middle_block_1", "time_embed_0"):
        jax.tree.map(np.testing.assert_array_equal, params["control"][name], base.params["network"][name])


def test_a_control_net_goes_on_from_one_that_is_there(base, steered, monkeypatch):
    """Of a model that is steered already; another one was begun beside it, and what it had learnt left aside."""
    program, _, params = steered
    learnt = jax.tree.map(lambda x: x + 1.0, params["control"])
    config, said = {"diffusion_train": {"start_from": "elsewhere"}}, []
    for there, wanted in (({}, params["control"]), ({"control": learnt}, learnt)):
        ldm = dataclasses.replace(base, params=base.params | there)
        monkeypatch.setattr(starting.api, "load_whole", lambda path, ldm=ldm: ldm)
        found = starting.control(config, program.init(KEY)["control"], said.append)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert said == ["diffusion: going on from the ControlNet of elsewhere"]


def test_only_the_control_net_is_trained_and_its_folder_steers_alike(base, steered, tmp_path):
    program, constants, params = steered
    assert shapes(program.constants) == shapes(constants)
    assert shapes(program.shapes.params) == shapes(params)
    assert program.shapes.params.keys() == program.shapes.ema.keys() == {"control"}
    config, condition = steering(base)
    state, losses = trained(program, params, constants, shown(condition), 20)
    assert losses[-1] < 0.95 * losses[0]
    fields = build.control_fields(config, 4, 2)
    weights.write_control(tmp_path / "control", fields, config["conditioner"], jax.device_get(state.params["control"]))
    loaded = base.with_control(tmp_path / "control")
    jax.tree.map(np.testing.assert_array_equal, loaded.params["control"], state.params["control"])
    assert loaded.specification.control == build.make_control(config)
    with pytest.raises(ValueError, match="has a ControlNet already, and one steers at a time"):  # not one for the other
        loaded.with_control(tmp_path / "control")
    with pytest.raises(ValueError, match="exists already"):
        weights.write_control(tmp_path / "control", fields, config["conditioner"], state.params["control"])


def test_a_prompt_that_is_dropped_leaves_the_picture(base):
    _, condition = steering(base)
    inputs = shown(condition)["inputs"]
    null = condition.dropped(inputs, condition.null)
    assert null["hint"] is inputs["hint"] and np.array_equal(null["told"], condition.null)
    told = condition.parse(["a red circle"])  # what a user gives is the prompt; the picture joins its cond
    assert condition.apply(base.params["conditioner"], told).keys() == {"context"}


def test_edges_are_lines_around_what_is_there():
    image = np.full((16, 16, 3), -1, np.float32)
    np.testing.assert_array_equal(control_pictures.edges(image), image)
    image[4:12, 4:12] = 1.0
    lines = control_pictures.edges(image)[..., 0] > 0
    inside = np.zeros((16, 16), bool)
    inside[5:11, 5:11] = True
    near = np.zeros((16, 16), bool)
    near[2:14, 2:14] = True
    assert 24 <= lines.sum() <= 40 and not lines[inside].any() and not lines[~near].any()
    np.testing.assert_array_equal(control_pictures.grey(image), image)
    faint = 0.02 * image
    assert not (control_pictures.edges(faint) > 0).any()


@pytest.mark.parametrize("background", [0.08, 0.9])
def test_edges_are_seen_where_only_the_colour_changes(background):
    """Of every thing of `shapes`, on dark and on light: as many lines as of a white one on black."""
    from ldm_jax.data.shapes.render import PALETTE

    alone = np.zeros((16, 16, 1), np.float32)
    alone[4:12, 4:12] = 1
    wanted = (control_pictures.edges(np.repeat(2 * alone - 1, 3, -1)) > 0).sum()
    for colour in PALETTE:
        image = 2 * (alone * colour + (1 - alone) * background) - 1
        assert abs((control_pictures.edges(image.astype(np.float32)) > 0).sum() - wanted) <= 12, colour


def test_pictures_beside_pictures(tmp_path):
    """conditioning/1.png belongs to 1.jpg, is cut and mirrored with it, and is no picture of its own."""
    ramp = np.tile(np.arange(8, dtype=np.uint8)[None, :, None] * 30, (8, 1, 3))
    (tmp_path / "conditioning").mkdir()
    for i in range(3):
        Image.fromarray(np.roll(ramp, i, 0)).save(tmp_path / f"{i}.png")
        Image.fromarray(255 - ramp).save(tmp_path / "conditioning" / f"{i}.bmp")
    source = folder(tmp_path, "train", ("image", "conditioning"))
    assert len(source) == 3 and not source.info.left_out
    transform = Transform(4, "random", flip=True)
    for seed in range(4):
        example = transform(source[0], np.random.default_rng(seed))
        np.testing.assert_allclose(example["conditioning"], -example["image"], atol=1e-6)
    (tmp_path / "conditioning" / "1.bmp").unlink()
    with pytest.raises(ValueError, match="2 of 3 rows have a conditioning_file_name; the first without is 1.png"):
        folder(tmp_path, "train", ("image", "conditioning"))


def test_control_nets_that_can_not_be_are_refused_before_anything_is_read():
    def refused(message, control, **sections):
        config = config_of()
        config["diffusion_train"] |= {"start_from": "elsewhere", "control": {"picture": "edges", "hint_channels": []} | control}
        for name, fields in sections.items():
            config[name] |= fields
        with pytest.raises(ValueError, match=message):
            build.check(config)

    off = {"latents": {"cache": False}}
    refused("shows pictures, which a cache lacks", {})
    refused("control.picture='depth'", {"picture": "depth"}, **off)
    refused("hint_channels=.8, 16.: .* give 3 widths", {"hint_channels": [8, 16]}, **off)
    refused("steer U-Nets with use_spatial_transformer", {}, **off, network={"kind": "dit"})


@pytest.mark.slow
def test_a_control_net_from_train_to_folder(base, tmp_path):
    path = saved(base, tmp_path)
    fields = {"diffusion_train__control": {"picture": "edges", "hint_channels": [8, 16]}, "latents__cache": False}
    for steps in (4, 8):
        experiment.run(experiment_config(path, base, **fields, diffusion_train__steps=steps), tmp_path / "run")
    assert load_part(tmp_path / "run" / "diffusion" / "checkpoints", "params").keys() == {"control"}
    ldm = ldm_jax.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, ldm.params["network"], base.params["network"])
    ldm_jax.save_control(tmp_path / "run", tmp_path / "control")
    other = ldm_jax.load(path).with_control(tmp_path / "control")
    pictures = np.float32(np.tanh(np.random.default_rng(0).standard_normal((2, 32, 32, 3))))

    def draw(model, scale):
        cond = model.embed(model.params, ["a red circle"] * 2) | model.control(pictures, scale)
        return model.sample(model.params, KEY, cond, size=(32, 32))

    np.testing.assert_allclose(draw(ldm, 1.0), draw(other, 1.0), atol=1e-5)
    assert np.abs(draw(ldm, 1.0) - draw(ldm, 0.0)).max() > 1e-3


# DreamBooth


def test_the_loss_is_that_of_both_weighted():
    def loss_fn(params, batch, key, step):
        loss = params["w"] * batch["x"].mean()
        return loss, {"loss_simple": batch["x"].mean(), "loss": loss}

    both = with_prior(loss_fn, 0.25)
    batch = {"x": jnp.full(4, 3.0), "prior": {"x": jnp.full(4, 8.0)}}
    loss, metrics = both({"w": 2.0}, batch, KEY, None)
    assert float(loss) == float(metrics["loss"]) == 2 * 3 + 0.25 * 2 * 8
    assert float(metrics["loss_prior"]) == 16 and float(metrics["loss_simple"]) == 3
    assert float(both({"w": 2.0}, {"x": batch["x"]}, KEY, None)[0]) == 6  # of held-out pictures there are none of the class


def test_a_lora_learns_with_a_prior(base):
    lora = {"rank": 2, "alpha": 0.0, "targets": ["to_q", "to_k", "to_v", "to_out_0"]}
    dreambooth = {"prior_weight": 0.5, "class_prompt": "a circle", "class_pictures": 4}
    config = tuning(base, lora=lora, dreambooth=dreambooth)
    condition = build.make_condition(config, tokenizer=base.condition.setting.tokenizer)
    program = build.make_diffusion_program(config, condition, cached=True)
    assert shapes(program.batch["prior"]) == {name: x for name, x in shapes(program.batch).items() if name != "prior"}

    def rows(text, data):
        return {"moments": data, "inputs": np.repeat(condition.tokenize(text)[None], 8, 0)}

    batch = rows("a red circle", moments()) | {"prior": rows("a circle", moments()[::-1])}
    state, losses = trained(program, program.init(KEY), constants_of(base), batch, 20)
    assert state.params.keys() == {"lora"} and losses[-1] < 0.95 * losses[0]


def test_new_words_are_behind_the_tokenizers_own(base, tmp_path):
    section = base.config["conditioner"] | {"new_words": ["zog"]}
    condition = build.make_condition(base.config | {"conditioner": section})
    condition.learn(None, tmp_path)
    known, there = load_tokenizer(tmp_path / "tokenizer.json"), base.condition.setting.tokenizer
    assert known.vocab_size == there.vocab_size + 1
    assert known.encode_one("a zog circle", 5, strict=True)[2] == there.vocab_size
    np.testing.assert_array_equal(known.encode_one("a red star", 6), there.encode_one("a red star", 6))


def test_priors_that_can_not_be_are_refused_before_anything_is_read():
    def refused(message, weight=1.0, prompt="a circle", **train):
        config = config_of()
        prior = {"prior_weight": weight, "class_prompt": prompt, "class_pictures": 4}
        config["diffusion_train"] |= {"start_from": "elsewhere", "dreambooth": prior} | train
        with pytest.raises(ValueError, match=message):
            build.check(config)

    refused("class_prompt='a circle' has no effect without config.diffusion_train.dreambooth.prior_weight", 0.0)
    refused("give a model that reads prompts one for the class", prompt="")
    refused("the model that draws the class is to be named", start_from="")
    refused("not with config.diffusion_train.textual_inversion.word", textual_inversion=WORD)
    refused("dreambooth.prior_weight=-1.0: must be at least 0", -1.0)


@pytest.mark.slow
def test_pictures_of_the_class_are_drawn_once(base, tmp_path):
    path = saved(base, tmp_path)
    prior = {"prior_weight": 1.0, "class_prompt": "a circle", "class_pictures": 6}
    fields = {"diffusion_train__dreambooth": prior, "data__captions": ["a red circle"]}
    for steps in (2, 4):
        experiment.run(experiment_config(path, base, **fields, diffusion_train__steps=steps), tmp_path / "run")
        drawn = sorted((tmp_path / "run" / "prior").glob("*.png"))
        assert [picture.name for picture in drawn] == [f"{i:05d}.png" for i in range(6)]
        pixels = [np.asarray(Image.open(picture)) for picture in drawn]
        if steps == 2:
            before, times = pixels, [picture.stat().st_mtime_ns for picture in drawn]
            drawn[4].unlink()  # as if it had been stopped there
    np.testing.assert_array_equal(pixels, before)
    assert sum(a != b.stat().st_mtime_ns for a, b in zip(times, drawn)) == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "diffusion" / "metrics.jsonl").read_text().splitlines()]
    assert any("loss_prior" in str(line) for line in lines)
    assert ldm_jax.load(tmp_path / "run").params.keys() == base.params.keys()
