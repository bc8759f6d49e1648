"""Pictures in words: captions with their pictures as data, the condition, its measures, and a tiny model."""

import importlib
import json

import jax
import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax import build, experiment
from ldm_jax.conditioning import KINDS, Setting
from ldm_jax.data import shapes
from ldm_jax.data.described import Described
from ldm_jax.data.source import Info, MissingColumn
from ldm_jax.data.texts import all_texts
from ldm_jax.drawing.modes import choose_mode, draw
from ldm_jax.scoring.language import described

SECTION = {"kind": "picture", "image_size": 8, "patch_size": 4, "n_embed": 16, "n_layer": 1, "heads": 2, "dim_head": 8}
TINY = {
    "data.examples": (64, 16),
    "first_stage.width": 16,
    "first_stage.heads": 2,
    "first_stage.embed_dim": 4,
    "first_stage.latents": 8,
    "first_stage_train.steps": 4,
    "first_stage_train.batch_size": 8,
    "first_stage_train.warmup_steps": 1,
    "latents.scale_batches": 2,
    "network.depth": 1,
    "network.hidden_size": 16,
    "network.num_heads": 2,
    "network.in_channels": 4,
    "network.input_size": 8,
    "network.context_dim": 16,
    "conditioner.n_embed": 16,
    "conditioner.n_layer": 1,
    "conditioner.patch_size": 8,
    "diffusion_train.steps": 4,
    "diffusion_train.batch_size": 8,
    "diffusion_train.warmup_steps": 1,
    "sampling.steps": 2,
    "evaluation.num": 16,
    "evaluation.batch_size": 8,
    "log.every": 2,
    "log.validation_every": 4,
    "log.images_every": 4,
}


def config_of(**overrides):
    config = importlib.import_module("configs.captions").get_config()
    config.update_from_flattened_dict(TINY | overrides)
    return config.to_dict()


@pytest.fixture
def photos(tmp_path):
    """Pictures of odd sizes with captions: left half black, right half white."""
    root = tmp_path / "photos"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        lines = []
        for i, (width, height) in enumerate(((40, 20), (16, 48), (24, 24))):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[:, width // 2 :] = 255
            Image.fromarray(pixels).save(root / split / f"{i}.png")
            lines.append(json.dumps({"file_name": f"{i}.png", "caption": f"  number {i}  of {split} "}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    return root


def condition(section=SECTION, size=(12,)):
    return KINDS["picture"](section, Setting(size, 1, 4))


def test_captions_of_a_folder_with_their_pictures(photos):
    config = config_of(**{"data.source": "pictures", "data.path": str(photos), "conditioner.image_size": 8})
    source = build.make_source(config, "validation", ("conditioning",))
    assert source.info.columns == ("text", "conditioning") and len(source) == 3
    assert [source[i]["text"] for i in range(3)] == all_texts(source) == [f"number {i} of val" for i in range(3)]
    for i in range(3):
        seen = source[i]["conditioning"]
        assert seen.shape == (8, 8, 3) and seen.dtype == np.uint8
        assert (seen[:, :3] < 8).all() and (seen[:, -3:] > 247).all()
    plain = build.make_source(config, "train", ())
    assert plain.info.columns == ("text",) and set(plain[0]) == {"name", "text"}
    with pytest.raises(MissingColumn, match="no label"):
        build.make_source(config, "train", ("label",))


def test_of_several_captions_the_first_and_none_that_is_blank():
    class Pictures(list):
        info = Info("pictures", ("image", "caption"))

    rows = Pictures([{"name": "a.png", "caption": ("one  two", "three")}, {"name": "b.png", "caption": " \t "}])
    assert Described(rows)[0] == {"name": "a.png", "text": "one two"}
    with pytest.raises(ValueError, match=r"b\.png: its caption is blank"):
        all_texts(Described(rows))


def test_a_users_picture_is_seen_as_in_training(photos):
    config = config_of(**{"data.source": "pictures", "data.path": str(photos), "conditioner.image_size": 8})
    source, kind = build.make_source(config, "validation", ("conditioning",)), condition()
    given = {"describe": [str(photos / "val" / f"{i}.png") for i in range(3)]}
    values, names = kind.read(given)
    assert names == given["describe"]
    batch = {"conditioning": np.stack([source[i]["conditioning"] for i in range(3)]).astype(np.float32) / 127.5 - 1}
    jax.tree.map(np.testing.assert_allclose, kind.parse(values), kind.from_batch(batch))


@pytest.mark.parametrize("stem", ["patches", "convolutions"])
def test_the_empty_condition_knows_no_picture(stem):
    kind = condition(SECTION | {"stem": stem})
    params = kind.init(jax.random.key(0))
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    told = kind.apply(params, kind.from_batch({"conditioning": pictures}))["context"]
    assert told.shape == (2, 4, 16) and not np.allclose(told[0], told[1])
    hidden = kind.apply(params, {"picture": pictures, "shown": np.zeros(2, np.float32)})["context"]
    empty = kind.apply(params, kind.nulls(2))["context"]
    np.testing.assert_allclose(hidden, empty, atol=1e-6)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: condition().parse([np.zeros((8, 8, 3), np.uint8)]), "float"),
        (lambda: condition().parse([np.full((8, 8, 3), 200.0)]), "bring it to"),
        (lambda: condition().parse(["photo.png"]), "float"),
        (lambda: condition(SECTION | {"image_size": 9}).check(), "multiple of patch_size=4"),
        (lambda: condition(SECTION | {"patch_size": 0}).check(), "both above 0"),
        (lambda: condition(SECTION | {"image_size": 0}).check(), "both above 0"),
        (lambda: condition(SECTION | {"image_size": (8, 8)}).check(), "both above 0"),
        (lambda: condition(SECTION | {"stem": "convolution"}).check(), "stem='convolution'.*convolutions"),
        (lambda: condition(SECTION | {"stem": "convolutions", "image_size": 12, "patch_size": 6}).check(), "a power of two"),
        (lambda: condition().check_inputs({"picture": np.zeros((2, 4, 4, 3)), "shown": np.ones(2)}), "8, 8, 3"),
        (lambda: condition().check_inputs({"picture": np.zeros((2, 8, 8, 3), np.uint8), "shown": np.ones(2)}), "are uint8"),
        (lambda: condition().check_inputs({"picture": np.full((2, 8, 8, 3), 9.0), "shown": np.ones(2)}), "to 9: bring it"),
        (lambda: condition().check_inputs(np.zeros((2, 8, 8, 3))), "a dict of picture, shown, as arrays; this is float64"),
        (lambda: condition(size=(32, 32)).check(), "is of text"),
        (lambda: build.check(config_of(**{"conditioner.image_size": 36})), "multiple of patch_size=8"),
    ],
)
def test_what_is_no_picture(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_sentences_have_no_pictures():
    with pytest.raises(MissingColumn, match="conditioning"):
        build.make_source(config_of(**{"data.source": "sentences"}), "train", ("conditioning",))


def test_objects_that_a_caption_names():
    named = shapes.objects_named("a picture of a small striped Red circle above a ring, next to an orange star")
    assert named == [("red", "circle"), ("", "ring"), ("orange", "star")]
    for text, scene in shapes.prompts(40, 2):
        assert shapes.objects_named(text) == [thing.words for thing in scene.things]


def test_measures_of_descriptions():
    own = ["a red circle", "a blue star above a red ring", "the green cross"]
    lines = ["a big red circle", "a red ring below a blue star", "a green star"]
    found = described(lines, own, str.split, of_shapes=True)
    assert found["named"] == pytest.approx(2 / 3) and found["other_named"] == 0
    assert found["colours"] == 1 and found["other_colours"] == 0
    # words in both, of those of both: 3 of 4 and 3, 6 of 7 and 7, 1 of 3 and 3
    assert found["overlap"] == pytest.approx((6 / 7 + 12 / 14 + 2 / 6) / 3)
    assert "named" not in described(lines, own, str.split, of_shapes=False)


@pytest.mark.slow
def test_a_tiny_model_from_pictures_to_sentences(tmp_path, capsys):
    config, workdir = config_of(**{"data.path": str(tmp_path / "data")}), tmp_path / "run"
    experiment.run(config, workdir)
    said = capsys.readouterr().out
    assert "64 texts, conditioning pictures to train on" in said
    example = workdir / "diffusion" / "example.png"  # a held-out picture, for the last line to name
    assert said.splitlines()[-1].endswith(f"--describe {example}") and Image.open(example).size == (32, 32)
    values = json.loads((workdir / "evaluation" / "0000" / "results.json").read_text())
    assert {"named", "other_named", "overlap", "other_overlap"} <= set(values) and 0 <= values["overlap"] <= 1
    assert list((workdir / "diffusion" / "images").glob("*.png"))
    ldm = ldm_jax.load(workdir)
    image, _ = shapes.render_all([scene for _, scene in shapes.prompts(1)], 40)
    Image.fromarray(image[0]).save(tmp_path / "0.png")
    flags = {"describe": [str(tmp_path / "0.png"), str(example)], "num": 2, "seed": 3}
    drawn = draw(ldm, flags)
    assert drawn.images.shape == (4, 24, 1) and drawn.words == [flags["describe"][0]] * 2 + [flags["describe"][1]] * 2
    cond = ldm.embed(ldm.params, [image[0].astype(np.float32) / 127.5 - 1])
    assert cond["context"].shape == (1, 16, 16)
    with pytest.raises(ValueError, match="takes a picture to describe"):
        choose_mode(ldm, {"prompt": ["a red circle"]})
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        draw(ldm, {"describe": [str(tmp_path / "nothing.png")]})
