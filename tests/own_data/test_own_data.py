"""What is decided of a folder of pictures: condition, split, size, model, steps; and that it is written down whole."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from ldm_jax import build, own_data
from ldm_jax.build.check import check_numbers
from ldm_jax.cli import configs
from ldm_jax.cli import own_data as command
from ldm_jax.cli.train import parse
from ldm_jax.data.shapes.builder import prepare
from ldm_jax.data.source import select
from ldm_jax.data.survey import Survey, survey
from ldm_jax.data.tokenizer import train_tokenizer
from ldm_jax.own_data import Cost, Machine

CPU, GPUS = Machine(False, 1, 8e9), Machine(True, 3, 64e9)
FOUND = Survey(
    kind="folder", path="/photos/My Birds/", name="", train=1000, held_out=0, splits=("train", ""), caption="", label="",
    class_names=(), words=0, different=0, sides=((500, 300), (120, 640)), modes=(("RGB", 2),), seconds=0.01, said="1000 images",
)  # fmt: skip
BASE = configs.load(configs.find("shapes")[0]).to_dict()


def found(**changes):
    return dataclasses.replace(FOUND, **changes)


def reason(decision, what):
    return dict(decision.reasons)[what]


def picture(path, size=(40, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 0 if mode in ("L", "1") else (10, 20, 30, 40)[: len(mode)]).save(path)


# The decision


@pytest.mark.parametrize(
    "changes, kind, said",
    [
        ({}, "none", "neither captions (metadata.csv"),
        ({"label": "label", "class_names": ("a",)}, "none", "one class only"),
        ({"label": "label", "class_names": tuple("abc")}, "class", "3 classes"),
        ({"label": "label", "class_names": ("00", "01", "02")}, "class", "if they are parts of one set, --unconditional"),
        ({"label": "label", "class_names": tuple(map(str, range(501)))}, "none", "501 classes of 1000 pictures say little"),
        ({"caption": "text", "words": 11, "different": 90}, "text", "at most 16 tokens (90 different words)"),
        ({"caption": "text", "words": 900, "different": 9000}, "text", "at most 77 tokens"),
    ],
)
def test_captions_before_classes_before_neither(changes, kind, said):
    decision = own_data.decide(found(**changes), CPU)
    section = decision.fields["conditioner"]
    assert section["kind"] == kind and said in reason(decision, "condition")
    assert decision.fields["sampling.guidance_scale"] == {"none": 1.0, "class": 2.0, "text": 3.0}[kind]
    if kind == "class":
        assert section["n_classes"] == 4 and decision.fields["data.label_column"] == "label"
    if kind == "text":
        assert decision.fields["data.caption_column"] == "text"
        assert section["tokenizer"] == ("words" if changes["different"] < 500 else "wordpiece")


@pytest.mark.parametrize(
    "sides, machine, size, chosen",
    [
        ([(128, 128)], CPU, 0, 64),
        ([(128, 128)], GPUS, 0, 128),
        ([(48, 48)], CPU, 0, 32),
        ([(16, 16)], CPU, 0, 32),
        ([(4000, 3000)], GPUS, 0, 256),
        ([(4000, 3000)], CPU, 0, 64),
        ([(4000, 3000)], CPU, 128, 128),
        ([(40, 500)] * 3 + [(300, 300)] * 7, CPU, 0, 32),  # more than a quarter are narrow
        ([(40, 500)] * 1 + [(300, 300)] * 9, CPU, 0, 64),
    ],
)
def test_the_size_is_one_that_most_pictures_have(sides, machine, size, chosen):
    decision = own_data.decide(found(sides=tuple(sides)), machine, size=size)
    assert decision.fields["data.image_size"] == decision.fields["first_stage.resolution"] == chosen
    latent = chosen // 2 ** (len(decision.fields["first_stage.ch_mult"]) - 1)
    assert latent <= (32 if machine.accelerator else 16)
    assert all(decision.fields[f"{stage}_train.batch_size"] % machine.devices == 0 for stage in ("first_stage", "diffusion"))


@pytest.mark.parametrize("count, cut, held", [(2, 50, 1), (10, 90, 1), (11, 91, 1), (100, 95, 5), (2934, 95, 147)])
def test_a_twentieth_is_held_out_where_there_is_no_split(count, cut, held):
    decision = own_data.decide(found(train=count), CPU)
    fields = decision.fields
    assert (fields["data.train_split"], fields["data.validation_split"]) == (f"train[:{cut}%]", f"train[{cut}%:]")
    assert reason(decision, "held out").startswith(f"{held}, ")


def test_no_picture_is_on_both_sides_or_on_none():
    for count in range(2, 600):
        fields, rows = own_data.decide(found(train=count), CPU).fields, {"": [{"name": str(i)} for i in range(count)]}
        parts = [select(rows, fields[f"data.{split}_split"], "name", "") for split in ("train", "validation")]
        assert all(parts) and sorted(int(row["name"]) for part in parts for row in part) == list(range(count))


def test_splits_of_the_folder_are_kept_and_one_picture_is_too_few():
    fields = own_data.decide(found(held_out=7, splits=("train", "test")), CPU).fields
    assert (fields["data.train_split"], fields["data.validation_split"]) == ("train", "test")
    with pytest.raises(ValueError, match="holds 1 picture: .* at least 2"):
        own_data.decide(found(train=1), CPU)


@pytest.mark.parametrize(
    "path, name",
    [("/photos/My Birds (2)/", "my_birds_2"), ("C:\\pictures\\V\u00f6gel", "v\u00f6gel"), ("/", "own_data")],
)
def test_the_name_is_fit_for_a_folder(path, name):
    assert own_data.decide(found(path=path), CPU).fields["name"] == name


def test_what_does_not_fit_into_memory_stays_on_disk():
    assert own_data.decide(found(train=10**6), CPU).fields["data.in_memory"] is False
    assert own_data.decide(FOUND, CPU).fields["data.in_memory"] is True


KINDS = ({}, {"label": "class", "class_names": tuple("ab")}, {"caption": "text", "words": 7, "different": 3000})


@pytest.mark.parametrize(
    "machine, side, kinds",
    [
        (CPU, 64, KINDS[1:2]),
        *(pytest.param(machine, side, KINDS, marks=pytest.mark.slow) for machine in (CPU, GPUS) for side in (32, 64, 128, 500)),
    ],
)
def test_what_is_decided_can_work(machine, side, kinds):
    """Every part of the model fits the others, by the check that a run begins with."""
    for changes in kinds:
        decision = own_data.decide(found(sides=((side, side),), **changes), machine)
        config = own_data.with_steps(own_data.apply(BASE, decision.fields), (100, 200))
        build.check(build.with_lists(config))


# Steps


def test_steps_fill_the_time_that_starting_and_looking_leave():
    config = own_data.apply(BASE, own_data.decide(FOUND, CPU).fields)
    costs = Cost(10.0, 0.1, 8), Cost(20.0, 0.4, 16)
    plan = own_data.budget(1800, costs, FOUND, config)
    # 10 s to read 1000 pictures, 1.8 times 30 s to compile, and encoding; pictures without guidance
    assert 64 < plan.starting < 74 and 0 < plan.looking < 60
    assert plan.steps[0] * 0.1 + plan.steps[1] * 0.4 == pytest.approx(0.95 * (1800 - plan.starting - plan.looking), abs=0.5)
    assert plan.steps[0] * 0.1 == pytest.approx(0.3 * plan.training, abs=0.2)
    twice = own_data.budget(3600, costs, FOUND, config)
    assert 2 * plan.steps[1] < twice.steps[1] < 2.3 * plan.steps[1]
    slower = own_data.budget(1800, (costs[0], Cost(20.0, 0.8, 16)), FOUND, config)
    assert slower.steps[1] < plan.steps[1] / 2
    with pytest.raises(ValueError, match="starting and drawing alone take about .* give . minutes more"):
        own_data.budget(60, costs, FOUND, config)


@pytest.mark.parametrize("steps", [(20, 20), (400, 150), (30_000, 10_000), (21, 10**6)])
def test_what_goes_with_steps_can_work(steps):
    config = own_data.with_steps(BASE, steps)
    check_numbers(config)
    assert (config["first_stage_train"]["steps"], config["diffusion_train"]["steps"]) == steps
    assert config["diffusion_train"]["ema_decay"] <= 1 - 4 / steps[1] and config["log"]["every"] <= min(steps)


# The file


def test_the_file_that_is_written_gives_the_config_again(tmp_path):
    for changes in ({}, {"label": "class", "class_names": tuple("ab")}, {"caption": "text", "words": 7, "different": 9}):
        config = own_data.with_steps(own_data.apply(BASE, own_data.decide(found(**changes), CPU).fields), (40, 50))
        path = tmp_path / f"c{len(changes)}.py"
        path.write_text(own_data.script(BASE, config, 'of "C:\\new\\""" pictures'), encoding="utf-8")
        again = configs.load(path).to_dict()
        assert again == config and [type(v) for v in again["data"].values()] == [type(v) for v in config["data"].values()]
    assert own_data.script(BASE, BASE, "nothing").count("config.") == 0
    nested = own_data.apply(BASE, {"data": BASE["data"] | {"more": {"a": {"b": (1,)}, "c": "x"}}})
    changed = own_data.apply(nested, {"data": BASE["data"] | {"more": {"a": {"b": (2,)}, "c": "x"}}})
    for config in (nested, changed):
        path.write_text(own_data.script(BASE, config, "nested groups"), encoding="utf-8")
        assert configs.load(path).to_dict() == config
    assert own_data.script(nested, changed, "").count("    config.data.more.a.b = (2,)") == 1


# Looking


def test_a_folder_is_looked_into(tmp_path):
    for i in range(6):
        picture(tmp_path / "birds" / "ab"[i % 2] / f"{i}.png", (40 + i, 30), ("RGB", "RGBA", "L")[i % 3])
    (tmp_path / "birds" / "a" / "broken.png").write_bytes(b"\x89PNG\r\n")
    seen = survey(tmp_path / "birds")
    assert (seen.kind, seen.train, seen.held_out, seen.splits) == ("folder", 7, 0, ("train", ""))
    assert (seen.caption, seen.label, seen.class_names) == ("", "label", ("a", "b"))
    assert dict(seen.modes) == {"RGB": 2, "clear": 2, "grey": 2, "unread": 1} and (45, 30) in seen.sides and seen.seconds > 0
    said = reason(own_data.decide(seen, CPU), "pictures")
    assert "laid on white" in said and "grey as three equal channels" in said and "1 of 7 looked at can't be read" in said
    assert survey(tmp_path / "birds", conditions=False).label == ""
    for i in range(6):
        (tmp_path / "birds" / "ab"[i % 2] / f"{i}.txt").write_text(f"bird number {i}, sitting")
    (tmp_path / "birds" / "a" / "broken.png").unlink()
    seen = survey(tmp_path / "birds")
    assert (seen.caption, seen.label, seen.words, seen.different) == ("caption", "", 5, 10)


@pytest.mark.parametrize("name, column", [("text", "caption"), ("class", "label")])
def test_other_names_of_columns_are_found(tmp_path, name, column):
    for i in range(4):
        picture(tmp_path / f"{i}.png")
    rows = [json.dumps({"file_name": f"{i}.png", name: "ab"[i % 2]}) for i in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert getattr(survey(tmp_path), column) == name


def test_a_table_comes_before_text_files_with_boxes(tmp_path):
    for i in range(4):
        picture(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"0 0.5 0.5 0.{i} 0.2")
    assert survey(tmp_path).caption == ""
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.png,a bird\n" for i in range(4)))
    seen = survey(tmp_path)
    assert (seen.caption, seen.words, seen.different) == ("text", 2, 2)


@pytest.mark.parametrize(
    "caption, words",
    [
        ("\u4e00\u53ea\u7ea2\u8272\u7684\u9e1f\u7ad9\u5728\u6811\u679d\u4e0a", 11),  # a character is a token
        ("long_hair, blue_eyes", 7),
        ("A re\u0301sume\u0301, naïve", 4),
    ],
)
def test_captions_are_as_long_as_for_the_tokenizer(tmp_path, caption, words):
    for i in range(4):
        picture(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption, encoding="utf-8")
    seen = survey(tmp_path)
    tokenizer = train_tokenizer([caption])
    assert seen.words == tokenizer.count(caption) == words
    section = own_data.decide(seen, CPU).fields["conditioner"]
    assert section["max_seq_len"] >= words + 2 and not tokenizer.losses([caption], section["max_seq_len"]).cut


def test_what_is_held_out_needs_captions_or_classes_too(tmp_path):
    for name in ("train/a/1.png", "train/a/2.png", "train/b/3.png", "train/b/4.png", "val/5.png"):
        picture(tmp_path / "classes" / name)
    for name in ("train/1.png", "val/2.png"):
        picture(tmp_path / "captions" / name)
    (tmp_path / "captions/train/metadata.csv").write_text("file_name,caption\n1.png,a bird")
    for place, column in (("classes", "label"), ("captions", "caption")):
        message = f"/{place}/val: there is no column '{column}'; .* held out need a {column}, .*--unconditional"
        with pytest.raises(ValueError, match=message):
            own_data.decide(survey(tmp_path / place), CPU)
        assert own_data.decide(survey(tmp_path / place, conditions=False), CPU).fields["conditioner"] == {"kind": "none"}
    (tmp_path / "captions/val/2.txt").write_text("a cat")
    assert own_data.decide(survey(tmp_path / "captions"), CPU).fields["conditioner"]["kind"] == "text"
    (tmp_path / "classes/train/b").rename(tmp_path / "b")  # one class, which says nothing
    assert own_data.decide(survey(tmp_path / "classes"), CPU).fields["conditioner"] == {"kind": "none"}


def test_columns_and_splits_that_are_named_are_those_that_count(tmp_path):
    said = {"caption": "a bird", "description": "a red bird"}
    rows = [said | {"file_name": f"{i}.png", "species": "ab"[i // 4 % 2], "split": f"fold{i % 4}"} for i in range(12)]
    for row in rows:
        picture(tmp_path / row["file_name"])
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = ("fold0", "fold1")
    seen = survey(tmp_path, splits=splits)
    assert (seen.caption, seen.words, seen.train, seen.held_out, seen.splits) == ("caption", 2, 3, 3, splits)
    seen = survey(tmp_path, names={"caption": "description", "label": "species"}, splits=splits)
    assert (seen.caption, seen.words, seen.label) == ("description", 3, "")
    seen = survey(tmp_path, names={"label": "species"}, splits=splits)
    assert (seen.caption, seen.label, seen.class_names) == ("", "species", ("a", "b"))
    with pytest.raises(ValueError, match="no column 'caption'; .* They say caption, "):
        survey(tmp_path, names={"caption": "title"}, splits=splits)


def test_what_cannot_be_trained_on_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        survey(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no images"):
        survey(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of 1 pictures can be read"):
        survey(tmp_path)


def test_a_prepared_tfds_data_set_is_found_by_any_of_its_folders(tmp_path):
    prepare(tmp_path, resolution=32, train=6, validation=3)
    (version,) = tmp_path.glob("shapes/*/1.0.0")
    for place in (tmp_path, version.parent, version):
        seen = survey(place)
        assert (seen.kind, seen.path, seen.train, seen.held_out) == ("tfds", str(tmp_path), 6, 3)
        assert seen.caption == "caption" and seen.name.startswith("shapes/32px")
        fields = own_data.decide(seen, CPU).fields
        source = build.make_source(own_data.apply(BASE, fields), "validation", ("caption",))
        assert len(source) == 3 and re.fullmatch(r"shapes_32px_\w+", fields["name"])


def test_a_prepared_tfds_data_set_is_found_from_inside_and_by_links(tmp_path, monkeypatch):
    prepare(tmp_path / "data", resolution=32, train=6, validation=3)
    (version,) = (tmp_path / "data").glob("shapes/*/1.0.0")
    (tmp_path / "link").symlink_to(version, target_is_directory=True)
    for place, path in ((version, "."), (version.parent, "1.0.0"), (version.parent, "."), (tmp_path, "link"), (version, "..")):
        monkeypatch.chdir(place)
        seen = survey(path)
        assert (seen.kind, seen.path, seen.train) == ("tfds", str(tmp_path / "data"), 6)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "{oops", '{"features": {}, "version": {"version_str": "0.0.0"}}', '{"name": "a", "version": "1.0.0"}']
)
@pytest.mark.parametrize("below", ["", "cat", ".cache/huggingface", ".cache/a/1.0.0"])
def test_other_files_called_dataset_info_are_no_tfds_data_sets(tmp_path, text, below):
    for i in range(4):
        picture(tmp_path / "cat" / f"{i}.png")
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    (tmp_path / below / "dataset_info.json").write_text(text)
    seen = survey(tmp_path)
    assert (seen.kind, seen.train) == ("folder", 4)


# Without a condition


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    ["shapes", "superres64"]
    + [pytest.param(name, marks=SLOW) for name in ("flowers64", "dit_xl_2", "layout_shapes", "fashion_mnist_adm")],
)
def test_any_config_can_be_unconditional(name):
    config = command.without_condition(configs.load(configs.find(name)[0])).to_dict()
    condition = build.make_condition(config)
    assert condition.kind == "none" and condition.columns == () and config["sampling"]["guidance_scale"] == 1.0
    build.make_program(build.with_lists(config), "diffusion").shapes  # noqa: B018 -- every module is traced


# The command, measuring left out


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(own_data, "measure", lambda config, stage: Cost(5.0, 0.01, config[f"{stage}_train"]["batch_size"]))
    monkeypatch.setattr(command, "machine", lambda: CPU)
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        picture(tmp_path / "birds" / "ab"[i % 2] / f"{i}.png")

    def run(*flags):
        return command.config_for(*parse(["train.py", "--data=birds", *flags]), 0.0)

    monkeypatch.setattr(command.time, "monotonic", lambda: 10.0)
    return run


def test_the_command_says_and_writes_what_it_chose(quick, tmp_path, capsys):
    config, workdir, text = quick("--minutes=2", "--config.seed=7", "--config.data.flip=True")
    said = capsys.readouterr().out
    assert str(workdir) == "runs/birds" and config["seed"] == 7 and config["data"]["flip"] is True
    assert said.startswith("birds: looking\n") and "2 classes; --label draws" in said and "2 minutes: 10 s are over" in said
    assert "    config.data.image_size" not in said and "    config.conditioner.kind = 'class'" in said
    path = tmp_path / "again.py"
    path.write_text(text)
    assert configs.load(path).to_dict() == config and configs.about(path) == "Chosen for the pictures in birds"
    assert config["data"]["path"] == str(tmp_path / "birds")


def test_the_command_goes_on_with_what_it_decided_before(quick, tmp_path, capsys):
    from ldm_jax.workdir import open_workdir

    config, workdir, text = quick("--minutes=2")
    open_workdir(build.with_lists(config), workdir, text)
    assert (workdir / "config.py").read_text() == text
    capsys.readouterr()
    for flags in ([], ["--minutes=2"], ["--workdir=runs/birds"]):
        assert quick(*flags) == (config, workdir, text)
    assert "going on with what was decided before" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was planned for 2 minutes: choose another --workdir"):
        quick("--minutes=3")
    with pytest.raises(ValueError, match="other flags"):
        quick("--unconditional")
    picture(tmp_path / "cats" / "1.png")
    with pytest.raises(ValueError, match="holds a training of .*birds: choose another --workdir"):
        command.config_for(*parse(["train.py", "--data=cats", "--workdir=runs/birds"]), 0.0)


def test_columns_of_the_command_line_are_looked_at(quick, tmp_path, capsys):
    rows = [json.dumps({"file_name": f"{'ab'[i % 2]}/{i}.png", "description": "a red bird", "n": float(i)}) for i in range(8)]
    (tmp_path / "birds" / "metadata.jsonl").write_text("\n".join(rows))
    config, _, _ = quick("--config.data.caption_column=description", "--config.data.flip=True")
    assert config["data"]["caption_column"] == "description" and config["conditioner"]["kind"] == "text"
    assert "captions of at most 8 tokens (3 different words)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no column 'caption'; .* They say description, n besides"):
        quick("--config.data.caption_column=title")


@pytest.mark.parametrize("field, other", [("train_split=train[:50%]", "validation"), ("validation_split=train[50%:]", "train")])
def test_one_part_alone_is_refused(quick, field, other):
    with pytest.raises(ValueError, match=f"give --config.data.{other}_split, too"):
        quick(f"--config.data.{field}")
    config, _, _ = quick("--config.data.train_split=train[:50%]", "--config.data.validation_split=train[50%:]")
    assert config["data"]["train_split"] == "train[:50%]" and config["data"]["validation_split"] == "train[50%:]"


def test_steps_are_not_given_twice(quick):
    with pytest.raises(ValueError, match="--data finds the steps for --minutes"):
        quick("--config.diffusion_train.steps=3")


@pytest.mark.slow
def test_the_cost_of_a_step_is_measured(monkeypatch):
    """The real thing on the smallest of models: the times of all steps but the first, whose median it is."""
    config = own_data.apply(BASE, own_data.decide(found(sides=((32, 32),)), CPU).fields)
    small = {"first_stage.ch": 4, "first_stage.ch_mult": (1, 1, 1), "first_stage.norm_num_groups": 2}
    cost = own_data.measure(own_data.apply(config, small), "first_stage", seconds=0.2)
    assert cost.batch == 8 and 0 < cost.step < cost.start and np.isfinite(cost.step)
