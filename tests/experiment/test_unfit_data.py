"""Data that change, or that don't fit, under an experiment."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax import api, build
from ldm_jax.data.folder import folder
from ldm_jax.experiment import latents
from ldm_jax.experiment.first_stage import validation_batches
from ldm_jax.experiment.pictures import held_out
from ldm_jax.experiment.stage import Experiment
from tests.test_habits import config_of


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(path)


def of_classes(root, *names, count=4):
    for split in ("train", "val"):
        for number, name in enumerate(names):
            for i in range(count):
                picture(root / split / name / f"{i}.png", 60 * number + i)


def config(root, name="flowers64", **fields):
    fields = {"data.path": str(root), "data.image_size": 16, "first_stage.resolution": 16, "evaluation.num": 0} | fields
    return config_of(name, **fields)


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_broken_pictures_are_passed_by_in_every_look_at_the_data(tmp_path, monkeypatch):
    of_classes(tmp_path / "data", "cat", "dog")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "cat" / "3.png").write_bytes(b"broken")
    monkeypatch.setattr(latents, "encoder", lambda *_: lambda images: np.zeros((len(images), 4, 4, 8), np.float32))
    skip = config(tmp_path / "data", **{"data.in_memory": False, "data.on_error": "skip"})
    with Experiment(skip, tmp_path / "run") as experiment:
        shown = held_out(experiment, 8)
        assert shown.words == ["cat"] * 3 + ["dog"] * 5  # the next one in place of the broken one, and its words
        assert shown.inputs.tolist() == [0] * 3 + [1] * 5
        seen = [np.asarray(batch["image"]) for batch in validation_batches(experiment, 8)]
        assert len(seen) == 1 and np.array_equal(seen[0][3], seen[0][4])
        assert len(latents.open_cache(experiment, SimpleNamespace(), {"a": np.zeros(1)})) == 7
    raising = config(tmp_path / "data", **{"data.in_memory": False})
    with Experiment(raising, tmp_path / "another") as experiment:
        for look in (held_out, validation_batches):
            with pytest.raises(ValueError, match=r"3\.png cannot be read"):
                list(look(experiment, 8))


def test_classes_of_other_names_are_refused_and_nothing_is_written(tmp_path):
    """A model knows its classes by number: cat, dog, rose are 0, 1, 2; without cat, dog would be drawn as cats."""
    root, run = tmp_path / "data", tmp_path / "run"
    of_classes(root, "cat", "dog", "rose")
    with Experiment(config(root), run) as experiment:
        assert experiment.condition.parse(["dog"]).tolist() == [1]
    before = (run / "classes.json").read_bytes()
    with Experiment(config(root), run):
        pass
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / "kitten")
    with pytest.raises(ValueError, match="begun with cat, dog, rose; the data have dog, kitten, rose"):
        Experiment(config(root), run)
    assert (run / "classes.json").read_bytes() == before


def test_classes_and_boxes_have_names_of_their_own(tmp_path):
    parts = {
        "room": {"kind": "class", "n_classes": 3, "embed_dim": 8},
        "things": config_of("layout_shapes")["conditioner"],
    }
    whole = config(tmp_path, conditioner={"kind": "combined", "null_probability": 0.1, "parts": parts})
    info = SimpleNamespace(class_names=("indoor", "outdoor"), box_names=("chair", "dog", "tree"))
    build.make_condition(whole).learn(SimpleNamespace(info=info), tmp_path)
    found = api.load_condition(whole, tmp_path)
    assert found.parts["room"].names == ("indoor", "outdoor")
    assert "classes: chair, dog, tree" in found.parts["things"].takes
    with pytest.raises(ValueError, match="unknown class 'dog'"):
        found.parts["room"].parse(["dog"])


def test_a_prompt_beside_a_picture_says_what_of_captions_is_lost(tmp_path, capsys):
    """A combination of two conditions, of which one reads prompts of four tokens, first and last among them."""
    rows = []
    for i in range(8):
        picture(tmp_path / "data" / f"{i}.png", 20 * i)
        split = "train" if i < 4 else "val"
        rows.append({"file_name": f"{i}.png", "caption": f"a photo of number {i}", "split": split})
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = {"kind": "text", "n_embed": 8, "n_layer": 1, "max_seq_len": 4, "vocab_size": 64, "tokenizer": "words"}
    small = {"kind": "superres", "scale": 4, "degradation": "bicubic", "noise_levels": 0}
    parts = {"prompt": text, "small": small}
    network = {"network.in_channels": 7, "network.use_spatial_transformer": True, "network.context_dim": 8}
    whole = config(tmp_path / "data", **network, conditioner={"kind": "combined", "null_probability": 0.1, "parts": parts})
    with Experiment(whole, tmp_path / "run") as experiment:
        assert experiment.condition.length == 4
        shown = held_out(experiment, 4)
        assert shown.inputs["prompt"].shape == (4, 4)
    assert "4 of 4 captions" in capsys.readouterr().out


def test_latents_of_another_first_stage_are_measured_again_unless_they_were_learnt(tmp_path, monkeypatch):
    of_classes(tmp_path / "data", "cat", "dog")
    fields = {"latents.cache": False, "latents.scale_batches": 1, "diffusion_train.batch_size": 8}
    with Experiment(config(tmp_path / "data", **fields), tmp_path / "run") as experiment:
        stage, path = build.make_first_stage(experiment.config), tmp_path / "run" / "latents.json"
        params = [jax.jit(stage.init)(jax.random.key(seed)) for seed in (0, 1)]
        found = []
        for chosen in (params[0], params[0], params[1]):
            monkeypatch.setattr(experiment, "first_stage_params", lambda chosen=chosen: chosen)
            latents.measure_latents(experiment)
            found.append(json.loads(path.read_text()))
        assert found[0] == found[1] and found[1]["scale"] != found[2]["scale"]
        assert latents.measured_of(experiment, params[1]) and not latents.measured_of(experiment, params[0])
        (tmp_path / "run" / "diffusion" / "checkpoints" / "00000004").mkdir(parents=True)
        with pytest.raises(ValueError, match="has learnt the latents of the one before"):
            latents.measured_of(experiment, params[0])
        path.write_text(json.dumps({"scale": 1.0, "shift": 0.0}))  # as earlier versions wrote it
        assert latents.measured_of(experiment, params[0])


def test_label_maps_with_classes_that_there_are_not_are_refused_at_the_start(tmp_path):
    root = tmp_path / "data"
    rows = []
    for i in range(6):
        picture(root / f"{i}.png", i)
        Image.fromarray(np.full((16, 16), 255 if i == 4 else i, np.uint8)).save(root / f"{i}_map.png")
        rows.append({"file_name": f"{i}.png", "label_map_file_name": f"{i}_map.png", "split": "val" if i < 2 else "train"})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(folder(root, "train", ("image", "label_map"))) == 4
    fields = {"data.in_memory": False, "first_stage.path": ""}
    with pytest.raises(ValueError, match=r"4\.png: class 255 in 100.0% of its pixels"):
        Experiment(config(root, "semantic64", **fields), tmp_path / "run")
