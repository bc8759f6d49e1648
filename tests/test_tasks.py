"""Every conditional image task trains from a config: tiny models on `shapes`, a few steps, one first stage for all."""

import contextlib
import dataclasses
import importlib
import io
import json
import shlex

import jax
import numpy as np
import pytest
from PIL import Image

import ldm_jax
from configs import shapes
from ldm_jax import build, experiment, weights
from ldm_jax.cli import sample_command
from ldm_jax.data import degradation
from ldm_jax.training.checkpoint import load_averaged

TINY = {
    "data.examples": (64, 16),
    "data.counts": (0.5, 0.5, 0.0),
    "first_stage.ch": 8,
    "first_stage.ch_mult": (1, 1, 1),
    "first_stage_train.steps": 2,
    "first_stage_train.warmup_steps": 0,
    "first_stage_train.optimizer": "adamw",  # which compiles sooner than Muon
    "latents.scale_batches": 2,
    "network.model_channels": 16,
    "network.channel_mult": (1,),
    "network.attention_resolutions": (),
    "network.num_head_channels": 8,
    "network.norm_num_groups": 4,
    "diffusion_train.batch_size": 8,
    "diffusion_train.steps": 4,
    "diffusion_train.warmup_steps": 0,
    "diffusion_train.ema_decay": 0.0,
    "diffusion_train.optimizer": "adamw",
    "sampling.steps": 2,
    "evaluation.batch_size": 8,
    "evaluation.prompts": 1,
    "log.every": 2,
    "log.validation_every": 4,
    "log.validation_images": 8,
    "log.images_every": 4,
}
pytestmark = pytest.mark.usefixtures("one_device")
SMALL = {"n_embed": 16, "n_layer": 1, "heads": 2, "dim_head": 8}
# task -> its config, what of it is made smaller, and what the network is told
TASKS = {
    "superres": ("superres64", {}, {"concat", "label"}),
    "inpaint": ("inpaint64", {}, {"concat"}),
    "semantic": ("semantic64", {"conditioner.in_channels": 7}, {"concat"}),
    "layout": (
        "layout_shapes",
        {f"conditioner.{name}": value for name, value in SMALL.items()} | {"network.context_dim": 16},
        {"context"},
    ),
}


def config_of(name, data, **overrides):
    config = importlib.import_module(f"configs.{name}").get_config()
    if config.first_stage.shortcuts:  # one first stage for all, of those that take runs/shapes' and of the others
        shapes.plain_first_stage(config)
    config.update_from_flattened_dict(TINY | overrides)
    config.data.update({"source": "shapes", "path": str(data), "flip": False, "image_size": 32})
    config.first_stage.resolution = 32
    return config


@pytest.fixture(scope="module")
def shared(one_device, tmp_path_factory):
    """The data, and a first stage."""
    root = tmp_path_factory.mktemp("tasks")
    config = config_of("shapes", root / "data", stages=("first_stage",))
    experiment.run(config.to_dict(), root / "first_stage")
    return root


def trained_config(shared, kind, **overrides):
    name, smaller, _ = TASKS[kind]
    path = str(shared / "first_stage")
    return config_of(name, shared / "data", **{**smaller, "first_stage.path": path, **overrides}).to_dict()


@pytest.fixture(
    scope="module",
    params=[kind if kind == "superres" else pytest.param(kind, marks=pytest.mark.slow) for kind in TASKS],
)
def run(request, shared):
    config = trained_config(shared, request.param)
    config["stages"] = ("latents", "diffusion", "evaluation")
    workdir = shared / request.param
    with contextlib.redirect_stdout(io.StringIO()) as said:
        experiment.run(config, workdir)
    return request.param, config, workdir, said.getvalue().splitlines()[-1]


def test_a_task_trains_shows_and_draws(run):
    kind, config, workdir, _ = run
    lines = [json.loads(line) for line in (workdir / "diffusion" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["train/loss"]) for line in lines if "train/loss" in line)
    assert any("validation/loss" in line for line in lines)

    # condition, drawn and real picture side by side, four such triples a row
    shown = np.asarray(Image.open(workdir / "evaluation" / "0000" / "validation.png"))
    assert shown.shape == (4 * 34 + 2, 12 * 34 + 2, 3)
    first, drawn, real = (shown[2:34, 2 + 34 * i : 34 + 34 * i].astype(float) for i in range(3))
    assert first.std() > 1 and np.abs(first - real).mean() > 1
    if kind in ("superres", "inpaint"):
        assert np.abs(first - real).mean() < np.abs(first - drawn).mean()  # the condition is a picture of the same thing

    # every part got gradients
    trained = load_averaged(workdir / "diffusion" / "checkpoints")
    init = build.make_diffusion_init(config, build.make_condition(config, ("",) * 6))
    start = jax.jit(init)(jax.random.key(config["seed"]))
    for part in ("network", "conditioner"):
        moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), start[part], trained[part])
        still = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(moved) if not leaf]
        assert not [name for name in still if "to_logits" not in name], still  # which nothing uses


def test_the_last_line_draws_as_it_stands(run, tmp_path):
    kind, _, workdir, last = run
    name, _, flags = last.partition("--workdir")
    assert name.split()[:2] == ["draw", "more"] and str(workdir / "diffusion") in flags
    sample_command.main(["sample.py", "--workdir", *shlex.split(flags), "--num", "1", "--out", str(tmp_path / "out")])
    assert Image.open(tmp_path / "out" / "0000.png").size == (32, 32)


def given(kind, batch, index):
    """What a user would give for example `index` of a batch."""
    match kind:
        case "superres":
            return degradation.degrade(batch["image"][index], 4), int(batch["level"][index])
        case "inpaint":
            return batch["image"][index], batch["hole"][index]
        case "semantic":
            return batch["label_map"][index]
    boxes = zip(batch["boxes"][index].tolist(), batch["box_labels"][index].tolist())
    return [{"label": label, "box": box} for box, label in boxes if label >= 0]


def test_a_users_condition_is_that_of_training(run):
    """`embed` of what a user gives is what the network was told for such an example in training."""
    kind, config, workdir, _ = run
    ldm = ldm_jax.load(workdir)
    source = build.make_source(config, "validation", ldm.condition.columns)
    transform = dataclasses.replace(build.make_transform(config, ldm.condition), tokenize=None)
    transform = dataclasses.replace(transform, max_boxes=2)
    examples = [transform(source[i]) for i in range(2)]
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    inputs = ldm.condition.encoded(ldm.condition.from_batch(batch), lambda x: ldm.encode(ldm.params, x))
    expected = ldm.condition.apply(ldm.params["conditioner"], inputs)
    cond = ldm.embed(ldm.params, [given(kind, batch, i) for i in range(2)])
    assert cond.keys() == expected.keys() == TASKS[kind][2]
    for name in cond:
        found, wanted = np.asarray(cond[name]), np.asarray(expected[name])
        if kind == "superres" and name == "concat":  # noised twice: in the data, and as a user's picture at that level
            assert np.abs(found - wanted).mean() < 0.5
        elif kind == "layout":  # in another order
            assert found.shape == wanted.shape
        else:
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not np.allclose(found[0], found[1])

    images = ldm.sample(ldm.params, jax.random.key(0), cond)
    other = ldm.sample(ldm.params, jax.random.key(0), jax.tree.map(lambda x: x[::-1], cond))
    assert images.shape == (2, 32, 32, 3)
    assert not np.array_equal(images, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["class", "label"])
def test_classes_as_a_token_and_as_an_embedding_added_to_time(kind, shared):
    """The paper's way, and that of Dhariwal & Nichol's ADM."""
    network = {"label": {"use_spatial_transformer": False, "context_dim": None, "num_classes": 7}}.get(
        kind, {"context_dim": 16}
    )
    config = config_of(
        "shapes", shared / "data", stages=("latents", "diffusion"), **{"first_stage.path": str(shared / "first_stage")}
    ).to_dict()
    config["network"] |= network
    fields = {"class": {"n_classes": 7, "embed_dim": 16}, "label": {"n_classes": 6}}[kind]
    config["conditioner"] = {"kind": kind, "null_probability": 0.5, **fields}
    experiment.run(config, shared / kind)
    ldm = ldm_jax.load(shared / kind)
    cond = ldm.embed(ldm.params, ["circle", 5])
    assert cond.keys() == {{"class": "context", "label": "label"}[kind]}
    assert ldm.sample(ldm.params, jax.random.key(0), cond, guidance_scale=2.0).shape == (2, 32, 32, 3)
    table = load_averaged(shared / kind / "diffusion" / "checkpoints")
    table = table["network"]["label_emb"] if kind == "label" else table["conditioner"]
    assert len(jax.tree.leaves(table)[0]) == 7


@pytest.mark.slow
@pytest.mark.parity
def test_a_text_encoder_that_is_not_trained(shared, fixtures_dir):
    """CLIP's, from its folder: the network trains, the encoder stays as it is, and drawing loads it from where it was."""
    folders = [path.parent for path in sorted(fixtures_dir.glob("E*/tokenizer")) if (path.parent / "text_encoder").is_dir()]
    if not folders:
        pytest.skip("no pipeline with a text encoder")
    encoder = weights.read(folders[0] / "text_encoder")
    overrides = {"first_stage.path": str(shared / "first_stage"), "data.flip": False}
    config = config_of("shapes", shared / "data", stages=("latents", "diffusion"), **overrides).to_dict()
    config["conditioner"] = encoder.description["conditioner"] | {
        "path": str(folders[0] / "text_encoder"),
        "tokenizer": str(folders[0] / "tokenizer"),
        "null_probability": 0.1,
    }
    config["network"]["context_dim"] = config["conditioner"]["hidden_size"]
    experiment.run(config, shared / "clip_text")
    assert load_averaged(shared / "clip_text" / "diffusion" / "checkpoints").keys() == {"network"}
    ldm = ldm_jax.load(shared / "clip_text")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), ldm.params["conditioner"], encoder.params["conditioner"])
    cond = ldm.embed(ldm.params, ["a red circle", "a blue star"])
    assert ldm.sample(ldm.params, jax.random.key(0), cond).shape == (2, 32, 32, 3)
    config["conditioner"]["hidden_size"] *= 2
    config["network"]["context_dim"] *= 2
    with pytest.raises(ValueError, match="conditioner in .* is not the one"):
        experiment.run(config, shared / "another")


@pytest.mark.parametrize(
    "kind, overrides, message",
    [
        ("superres", {"latents.cache": True}, "makes its condition of the pictures"),
        ("superres", {"conditioner.degradation": "blur"}, "'bicubic'"),
        ("superres", {"conditioner.scale": 3}, "scale=3 does not divide config.data.image_size=32"),
        ("superres", {"network.num_classes": None}, "must be 100, the noise levels"),
        ("superres", {"network.in_channels": 8}, "must be 7, 4 of the latents and 3 of the condition"),
        ("inpaint", {"conditioner.masks": ("round",)}, "choose from thin"),
        ("inpaint", {"conditioner.mask_area": (0.5, 0.1)}, "0 < least < most"),
        ("inpaint", {"network.in_channels": 8}, "must be 9"),
        ("semantic", {"conditioner.n_stages": 1}, "its map is 16 x 16, the latents of the first stage are 8 x 8"),
        ("layout", {"conditioner.vocab_size": 256}, "take 257"),
        ("layout", {"conditioner.max_seq_len": 10}, "10 tokens"),
        ("layout", {"network.num_classes": 3}, "must be None"),
    ],
)
def test_what_does_not_fit_is_refused_first(kind, overrides, message, shared, tmp_path):
    config = trained_config(shared, kind, **overrides)
    with pytest.raises(ValueError) as error:
        experiment.run(config, tmp_path / "new")
    assert message in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_config_that_lacks_a_field_says_which(shared, tmp_path):
    config = trained_config(shared, "superres")
    del config["conditioner"]["noise_levels"]
    with pytest.raises(ValueError, match="lacks noise_levels"):
        experiment.run(config, tmp_path / "new")


def test_classes_out_of_range_are_named_with_their_picture(shared, tmp_path):
    config = trained_config(shared, "semantic", **{"conditioner.in_channels": 3})
    config["stages"] = ("latents", "diffusion")
    with pytest.raises(ValueError, match=r"label map of shapes.*classes are numbered 0 to 2"):
        experiment.run(config, tmp_path / "new")
