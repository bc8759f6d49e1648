"""What people do with the commands: repeat a flag, give odd numbers, damage a file, run from elsewhere. Nothing is compiled."""

import copy
import functools
import importlib.metadata
import importlib.util
import inspect
import json
import math
import os
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax import build, diffusion, experiment, weights
from ldm_jax.api.load import resolve
from ldm_jax.build.check import check_numbers
from ldm_jax.cli import configs
from ldm_jax.cli.train import main as train_command
from ldm_jax.cli.train import tidy
from ldm_jax.data.tokenizer import caption_texts
from ldm_jax.experiment import check_places, stage
from ldm_jax.primitives.arrays import key_of
from ldm_jax.primitives.files import of_this_machine, read_json, write_json
from ldm_jax.training import lock
from ldm_jax.workdir import (
    BY_STEPS,
    FREE_FIELDS,
    FREE_SECTIONS,
    SINCE,
    absolute,
    check_samples_folder,
    check_workdir,
    flatten,
    make_samples_folder,
    open_workdir,
    summary,
)

ROOT = Path(__file__).resolve().parents[1]


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def config_of(name="shapes", **overrides):
    config = module(ROOT / "configs" / f"{name}.py").get_config()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
    return build.with_lists(config.to_dict())


# Numbers that can't be meant, by the field's whole name


@pytest.mark.parametrize(
    "name, value",
    [
        ("diffusion_train.batch_size", 0),
        ("first_stage_train.batch_size", -8),
        ("diffusion_train.ema_decay", 1.5),
        ("diffusion_train.ema_decay", -0.5),
        ("first_stage_train.ema_decay", 1.0),
        ("conditioner.null_probability", 1.5),
        ("conditioner.null_probability", -0.1),
        ("conditioner.conv_kernel", 2),
        ("conditioner.conv_kernel", -1),
        ("first_stage_loss.kl_weight", -1.0),
        ("diffusion_train.learning_rate", math.nan),
        ("diffusion_train.learning_rate", math.inf),
        ("diffusion_train.learning_rate", 0.0),
        ("network.dropout", 2.0),
        ("first_stage.dropout", -0.1),
        ("seed", -1),
        ("seed", 2**64),
        ("latents.scale", -0.5),
        ("latents.scale_batches", 0),
        ("diffusion_train.accumulate", 0),
        ("diffusion_train.clip_norm", -1.0),
        ("diffusion_train.warmup_steps", 10**6),
        ("sampling.steps", 0),
        ("sampling.guidance_scale", math.nan),
        ("checkpoint.keep", 0),
        ("checkpoint.every", -1),
        ("log.images_every", -1),
        ("evaluation.batch_size", 0),
        ("diffusion.offset_noise", -0.1),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_by_name(name, value):
    config = config_of()
    *path, last = name.split(".")
    section = config
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(ValueError, match=rf"config\.{name}=.*: must be") as error:
        build.check(config)
    assert ("finite" in str(error.value)) == (not math.isfinite(value))


# Names, paths and texts that may be anything as far as `check` can see, and what switches
FREE = {
    "name", "data.name", "data.path", "data.palette", "data.train_split", "data.validation_split", "first_stage.path",
    "conditioner.tokenizer", "first_stage_train.start_from", "diffusion_train.start_from", "sampling.guidance_scale",
    "first_stage_loss.perceptual_path", "first_stage_loss.perceptual_linear_path", "latents.shift",
    "first_stage_loss.log_variance", "log.wandb", "diffusion_train.lora.targets",
}  # fmt: skip


def fields_of(config, section=""):
    for name, value in config.items():
        if isinstance(value, dict):
            yield from fields_of(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value


def test_nonsense_in_any_field_is_refused_by_its_name(tmp_path):
    """A text that is no name, a negative number, one that is none: no field of the default is too obscure to be looked at."""
    config, left = config_of(), []
    for name, value in fields_of(config):
        if name in FREE or name.endswith("_column") or isinstance(value, bool):
            continue
        first = value[0] if isinstance(value, list) and value else value
        wrong = ["nonsense"] if isinstance(first, str) else [-7, math.nan]
        for each in wrong if value != [] else []:
            damaged = copy.deepcopy(config)
            *section, field = name.split(".")
            place = functools.reduce(dict.__getitem__, section, damaged)
            place[field] = [each] if isinstance(value, list) else each
            try:
                experiment.check(damaged, tmp_path)
                left.append(f"{name}={each} was taken")
            except ValueError as error:
                if name not in str(error) or "\n" in str(error):
                    left.append(f"{name}={each}: {error}")
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"first_stage_loss__r1_weight": 1.0}, "r1_weight=1.0 has no effect without config.first_stage_loss.disc_weight"),
        ({"first_stage_loss__lecam_weight": 0.1}, "lecam_weight=0.1 has no effect"),
        ({"first_stage_loss__alternate": True}, "alternate=True has no effect"),
        ({"first_stage_loss__disc_actnorm": True}, "disc_actnorm=True has no effect"),
        ({"first_stage__unit_codes": True}, "unit_codes=True has no effect without config.first_stage.n_embed"),
        ({"checkpoint__snapshots": 5}, "snapshots=5 has no effect without config.diffusion_train.post_hoc"),
        ({"data__crop": "random"}, "crop='random': config.latents.cache=True would hold one crop"),
        ({"data__short_side": 16}, "short_side=16: must be at least config.data.image_size=32"),
    ],
)
def test_what_would_have_no_effect_is_refused(fields, message):
    """Every field of the default: `test_fields.py`."""
    with pytest.raises(ValueError, match=f"config.*{message}"):
        check_numbers(config_of(**fields))


def test_a_start_that_is_not_there_is_refused_before_anything_is_trained(tmp_path):
    for name in ("first_stage", "diffusion"):
        with pytest.raises(ValueError, match=f"config.{name}_train.start_from='.*nowhere': there is no such"):
            experiment.run(config_of(**{f"{name}_train__start_from": str(tmp_path / "nowhere")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["log.every", "log.images_every", "log.validation_every", "checkpoint.every"])
def test_zero_is_off(name):
    section, field = name.split(".")
    config = config_of()
    config[section][field] = 0
    check_numbers(config)


@pytest.mark.parametrize("dtype, words", [("float16", "loss scaling"), ("float8", "config.dtype")])
def test_precisions_without_what_they_need_are_refused(dtype, words):
    with pytest.raises(ValueError, match=words):
        build.check(config_of(dtype=dtype))


# Seeds


def test_seeds_of_64_bits_differ():
    seeds = (0, 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1)
    drawn = {tuple(np.asarray(jax.random.key_data(key_of(seed))).tolist()) for seed in seeds}
    assert len(drawn) == len(seeds)
    assert jax.random.key_data(key_of(7)).tolist() == jax.random.key_data(jax.random.key(7)).tolist()
    for seed in (-1, 2**64, 1.5, "1"):
        with pytest.raises(ValueError, match="must be a whole number from 0 to"):
            key_of(seed)


# The command line


@pytest.mark.parametrize(
    "given, left",
    [
        (["--config.a=(1,)", "--config.b=2", "--config.a=(1,2)"], ["--config.b=2", "--config.a=(1,2)"]),
        (["--config.a", "(1,)", "-config.a=(1,2)"], ["-config.a=(1,2)"]),
        (["--config.a", "-1", "--config.a", "-2"], ["--config.a=-2"]),
        (["--config.flip", "--config.a=1"], ["--config.flip", "--config.a=1"]),
        (["--config.flip", "--config.flip=False"], ["--config.flip=False"]),
        (["--config", __file__, "--workdir", "w", "--workdir=v"], [f"--config={__file__}", "--workdir", "w", "--workdir=v"]),
        (["--config", "shapes", "--config.seed=1"], ["--config=shapes", "--config.seed=1"]),
    ],
)
def test_the_last_of_a_repeated_field_is_meant(given, left):
    assert tidy(["train.py", *given]) == ["train.py", *left]


@pytest.mark.parametrize(
    "typed, said",
    [
        ("--config=shaeps", "--config=shaeps: there is no such file, nor .* Did you mean 'shapes'"),
        ("--workdri=x", "--workdri is no flag. Did you mean 'workdir'"),
        ("shapes", "'shapes': flags begin with -- .--config=shapes"),
        ("--config.data.iamge_size=3", "--config.data.iamge_size: no such field of the config. Did you mean 'image_size'"),
        ("--noconfig.data.flop", "--config.data.flop: no such field of the config. Did you mean 'flip'"),
        ("--config.nothing.at.all=3", "--config.nothing.at.all: no such field of the config. config has checkpoint, compiler"),
        ("--config.data=3", "--config.data is a group of fields"),
        ("--config.seed=x", "--config.seed=x: 'x' is no whole number"),
        ("--config.data.flip=maybe", "--config.data.flip=maybe: 'maybe' is neither true nor false"),
        ("--config.seed", "Missing value for flag --config.seed"),
        ("--minutes=3", "--minutes goes with --data"),
        ("--data=/nowhere", "--data=/nowhere: there is no such folder"),
        ("--data=/ --config=shapes", "--data decides the config: leave --config out"),
        ("--data=/ --minutes=0", "--minutes=0: how long"),
        ("--data=/ --size=20", "--size=20: a multiple of 8"),
        ("--data=/ --num_processes=2", "--data measures one machine"),
        ("--config=kl_f8 --unconditional", "--unconditional: kl_f8 trains a first stage alone"),
        ("--help=dat", "--help=dat: no such group of fields. Did you mean 'data'"),
    ],
)
def test_what_is_mistyped_ends_in_one_line(typed, said, capsys):
    with pytest.raises(SystemExit, match=said) as ended:
        train_command(["train.py", *typed.split()])
    assert "\n" not in str(ended.value) and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:12", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
        {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
    ],
    ids=["JAX's", "Slurm's"],
)
def test_a_folder_is_not_measured_by_several_processes(variables, monkeypatch, tmp_path, capsys):
    """Each would choose steps of its own, and find the others only then."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="--data measures one machine: write the config with one process"):
        train_command(["train.py", f"--data={tmp_path}"])
    assert capsys.readouterr().out == ""


def test_help_lists_configs_and_the_fields_of_a_group(capsys):
    train_command(["train.py", "--help"])
    said = capsys.readouterr().out
    assert re.search(r"^  flowers64 +Photos of five kinds of flowers at 64 px, class-conditional: ", said, re.MULTILINE)
    assert "--unconditional" in said
    train_command(["train.py", "--config=flowers64", "--help=diffusion_train"])
    said = capsys.readouterr().out
    for line in ("steps=1200 +updates", "accumulate=1 +in how many parts a batch", "ema_decay=0.998 +of the averaged"):
        assert re.search(rf"  --config.diffusion_train.{line}", said), said
    train_command(["train.py", "-h", "conditioner", "--config=flowers64"])
    assert re.search(r"n_classes=6 +five, and the empty one", capsys.readouterr().out)
    assert "\n  --config.diffusion_train.lora.rank=0 " in said  # groups in groups, a field a line
    train_command(["train.py", "--help=diffusion_train.lora"])
    assert capsys.readouterr().out.startswith("  --config.diffusion_train.lora.rank=0 ")
    train_command(["train.py", "--help=config"])
    assert "--config.seed=0" in (said := capsys.readouterr().out) and "image_size" not in said


@pytest.mark.parametrize("stages", [("first_stage", "latents"), ("latents", "diffusion"), ("first_stage", "evaluation")])
def test_a_config_of_a_first_stage_alone_trains_no_more(stages):
    config = configs.load(configs.find("flowers_kl")[0]).to_dict() | {"stages": stages}
    with pytest.raises(ValueError, match="describes a first stage alone, without config.latents, .*config.first_stage.path"):
        build.check(config)


def test_every_field_of_the_default_is_explained():
    """Sections of networks aside, which have the names of the reference's files."""
    bare = []
    config = configs.load(configs.find("shapes")[0])
    for section in ("", "mesh", "data", "first_stage_loss", "first_stage_train", "latents", "diffusion", "diffusion_train",
                    "sampling", "evaluation", "log", "checkpoint"):  # fmt: skip
        said = configs.comments(section, [configs.find("shapes")[0]])
        fields = [name for name, value in (config[section] if section else config).items() if not hasattr(value, "keys")]
        bare += [f"{section}.{name}" for name in fields if not said.get(name)]
    assert not bare


def test_a_config_may_take_an_argument_and_lie_anywhere(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from configs import flowers64\n\n\ndef get_config(size='64'):\n    config = flowers64.get_config()\n"
        "    config.data.image_size = int(size)\n    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    assert configs.load(*configs.find("mine.py")).data.image_size == 64
    assert configs.load(*configs.find("mine.py:32")).data.image_size == 32
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="empty.py: it has no get_config"):
        configs.load(*configs.find("empty.py"))


# Working directories


def test_a_directory_in_use_is_refused_before_anything_is_done(tmp_path):
    workdir = tmp_path / "runs" / "x"
    config = config_of(data__path=str(tmp_path / "data"), data__examples=(32, 32))
    with lock.hold(workdir), pytest.raises(ValueError, match=f"runs/x is in use by process {os.getpid()} on"):
        experiment.run(config, workdir)
    assert os.listdir(workdir) == []


@pytest.mark.parametrize(
    "field, value",
    [("network.remat", "blocks"), ("network.scan_blocks", True), ("network.attention", "xla"), ("first_stage.remat", "dots")],
)
def test_how_a_network_is_computed_may_differ_between_runs(tmp_path, field, value):
    """Who runs out of memory goes on with less of it; flags that a first run did not have are no other experiment."""
    plain, changed = config_of(), copy.deepcopy(config_of())
    section, name = field.split(".")
    changed[section][name] = value
    changed["diffusion_train"]["accumulate"] = 2
    for i, (first, then) in enumerate(((plain, changed), (changed, plain))):
        (tmp_path / str(i)).mkdir()
        write_json(tmp_path / str(i) / "config.json", first)
        check_workdir(then, tmp_path / str(i))
    changed["network"]["norm_eps"] = 1e-3
    with pytest.raises(ValueError, match="network.norm_eps: 'absent' there, 0.001 now"):
        check_workdir(changed, tmp_path / "0")


def test_runs_of_earlier_versions_go_on_where_a_config_has_a_new_field(tmp_path):
    """A field that is added to the configs, with a value that changes nothing, is named in workdir.SINCE."""
    default = module(ROOT / "configs" / "shapes.py").get_config().to_dict()
    fields = {name for name in flatten(default) if "." in name and name not in FREE_FIELDS}
    compared = {name for name in fields if name.split(".")[0] not in FREE_SECTIONS}
    new = compared - {f"{section}.{name}" for section, names in SINCE.items() for name in flatten(names)}
    at_first = (Path(__file__).parent / "fields_at_first.txt").read_text().split()
    assert sorted(name for name in new - set(at_first) if name != "diffusion.options") == []
    config = config_of()
    earlier = {
        name: {field: value for field, value in section.items() if field not in SINCE.get(name, ())}
        if isinstance(section, dict)
        else section
        for name, section in config.items()
    }
    assert "token_std" not in earlier["conditioner"] and "scale" not in earlier["diffusion"]
    later = {name: {**SINCE[name], **section} if name in SINCE else section for name, section in earlier.items()}
    (tmp_path / "earlier").mkdir()
    write_json(tmp_path / "earlier" / "config.json", earlier)
    check_workdir(later, tmp_path / "earlier")
    changed = later | {"diffusion": later["diffusion"] | {"scale": 0.4}}
    with pytest.raises(ValueError, match=r"diffusion\.scale: 1\.0 there, 0\.4 now"):
        check_workdir(changed, tmp_path / "earlier")


def test_stages_and_places_may_differ_between_runs_and_a_longer_one_goes_on(tmp_path):
    config = config_of(diffusion_train__decay="constant")
    open_workdir(config, tmp_path)
    free = {"stages": ("diffusion",), "log": config["log"] | {"every": 1}, "mesh": {"data": 2, "fsdp": 4, "tensor": 1}}
    check_workdir(config | free, tmp_path)
    longer = config["diffusion_train"] | {"steps": config["diffusion_train"]["steps"] + 1}
    check_workdir(config | {"diffusion_train": longer}, tmp_path)
    with pytest.raises(ValueError, match="diffusion_train.learning_rate: .* there, 1.0 now"):
        check_workdir(config | {"diffusion_train": longer | {"learning_rate": 1.0}}, tmp_path)
    config = config_of(diffusion_train__decay="cosine")
    open_workdir(config, tmp_path / "cosine")
    longer = config["diffusion_train"] | {"steps": config["diffusion_train"]["steps"] + 1}
    with pytest.raises(ValueError, match="start_from="):
        check_workdir(config | {"diffusion_train": longer}, tmp_path / "cosine")


def test_an_objective_that_depends_on_the_steps_does_not_go_on_with_more(tmp_path):
    """Its grid at an update would be another one: 1000 steps end with 1280 intervals, of 4000 there are 40 by then."""
    known = diffusion.few_steps.OBJECTIVES.items()
    assert set(BY_STEPS) == {name for name, kind in known if "steps" in inspect.signature(kind.make).parameters}
    for objective in ("consistency", "shortcut"):
        config = config_of(diffusion_train__decay="constant", diffusion__objective=objective)
        open_workdir(config, tmp_path / objective)
        check_workdir(config, tmp_path / objective)
        longer = config | {"diffusion_train": config["diffusion_train"] | {"steps": config["diffusion_train"]["steps"] + 1}}
        if objective in BY_STEPS:
            with pytest.raises(ValueError, match=r"diffusion_train\.steps: .*\n.*A grid that is laid over all steps can't go"):
                check_workdir(longer, tmp_path / objective)
        else:
            check_workdir(longer, tmp_path / objective)


def test_a_directory_of_a_training_killed_before_it_wrote_anything_is_taken(tmp_path):
    (tmp_path / ".config.json.4242.tmp").write_text("{")
    (tmp_path / f".{lock.NAME}.host.4242.1").write_text("")
    check_workdir(config_of(), tmp_path)
    open_workdir(config_of(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [f".{lock.NAME}.host.4242.1", "config.json", "versions.json"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tmp").write_text("important")
    (tmp_path / "other" / ".latents.json.17.tmp").write_text("")
    open_workdir(config_of(), tmp_path)
    assert os.listdir(tmp_path / "other") == ["thesis.tmp"]


def test_a_clone_that_is_not_installed_on_a_machine_without_git_is_recorded(tmp_path, monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    monkeypatch.setenv("PATH", str(tmp_path))
    open_workdir(config_of(), tmp_path / "run")
    (run,) = read_json(tmp_path / "run" / "versions.json")["runs"]
    assert run["git"] == run["jax"] == "unknown" and run["ldm_jax"] == ldm_jax.__version__


@pytest.mark.parametrize("damage", ["empty", "half", "zeroed", "bit", "list"])
def test_damaged_small_files_are_named_with_the_way_out(tmp_path, damage):
    open_workdir(config_of(), tmp_path)
    for name in ("config.json", "versions.json"):
        path = tmp_path / name
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        damaged = {
            "empty": b"",
            "half": data[: len(data) // 2],
            "zeroed": bytes(len(data)),
            "bit": bytes(flipped),
            "list": b"[]",
        }
        path.write_bytes(damaged[damage])
        if name == "config.json":
            with pytest.raises(ValueError, match=f"{path}.*[Rr]estore it"):
                check_workdir(config_of(), tmp_path)
            with pytest.raises(ValueError, match=f"{path}.*[Rr]estore it"):
                ldm_jax.load(tmp_path)
            path.write_bytes(data)
    open_workdir(config_of(), tmp_path)  # the record is set aside and begun again
    assert read_json(tmp_path / "versions.json")["runs"][-1]["jax"] == jax.__version__
    assert (tmp_path / "versions.damaged").is_file() or damage == "list"


@pytest.mark.parametrize("left", ["versions.json", "diffusion/checkpoints/10/about"])
def test_a_working_directory_without_its_config_is_not_called_somebody_elses(tmp_path, left):
    """As one that was copied in part."""
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("{}")
    with pytest.raises(ValueError, match="has lost its config.json, or was copied without it: bring that back"):
        check_workdir(config_of(), tmp_path)


def test_paths_of_a_config_are_kept_absolute(tmp_path, monkeypatch):
    (tmp_path / "A" / "runs" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "A")
    open_workdir(config_of(first_stage__path="runs/other"), Path("runs/x"))
    stored = json.loads((tmp_path / "A" / "runs" / "x" / "config.json").read_text())
    assert stored["first_stage"]["path"] == str(tmp_path / "A" / "runs" / "other")
    monkeypatch.chdir(tmp_path)
    check_workdir(config_of(first_stage__path="A/runs/other"), Path("A/runs/x"))


def test_a_tokenizer_for_each_text_encoder_is_a_list_of_paths(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    config = config_of()
    config["conditioner"]["tokenizer"] = ["one", "two", "words"]
    assert absolute(config)["conditioner"]["tokenizer"] == [str(tmp_path / "one"), str(tmp_path / "two"), "words"]
    with pytest.raises(ValueError, match="config.conditioner.tokenizer: s3://bucket/two is an address"):
        config["conditioner"]["tokenizer"] = ["one", "s3://bucket/two"]
        check_places(config, tmp_path / "run")


def test_a_path_written_relative_by_an_earlier_version_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "A" / "runs" / "other").mkdir(parents=True)
    workdir = tmp_path / "A" / "runs" / "x"
    workdir.mkdir()
    monkeypatch.chdir("/")
    assert resolve("runs/other", workdir, "config.first_stage.path").samefile(tmp_path / "A" / "runs" / "other")
    with pytest.raises(FileNotFoundError, match="config.first_stage.path='runs/gone' does not exist"):
        resolve("runs/gone", workdir, "config.first_stage.path")


# Where pictures go


def test_a_place_for_pictures_is_made_before_anything_is_drawn(tmp_path, monkeypatch):
    checkpoint = tmp_path / "m.ckpt"
    checkpoint.write_bytes(b"")
    assert make_samples_folder(checkpoint, None) == tmp_path / "samples" / "0000"
    assert make_samples_folder(checkpoint, None) == tmp_path / "samples" / "0001"
    with monkeypatch.context() as patched:  # another command makes the next one between a look and its making
        patched.setattr(Path, "exists", lambda self, **_: self.name not in ("0000", "0001", "0002"))
        assert make_samples_folder(checkpoint, None) == tmp_path / "samples" / "0002"
        assert make_samples_folder(checkpoint, None) == tmp_path / "samples" / "0003"
        assert not Path("samples").is_dir()
    assert make_samples_folder(tmp_path, str(tmp_path / "out")).is_dir()
    (tmp_path / "out" / "grid.png").write_bytes(b"")
    with pytest.raises(FileExistsError, match="choose another --out"):
        make_samples_folder(tmp_path, str(tmp_path / "out"))
    for name in ("grid.txt", "grid.webp", "film.gif", "0000.jpg", "0003.wav", "sentences.txt"):
        mine = tmp_path / f"of {name}"
        mine.mkdir()
        (mine / name).symlink_to("nowhere")  # a link is a user's, too
        for look in (check_samples_folder, make_samples_folder):  # before a model is read, and before anything is drawn
            with pytest.raises(FileExistsError, match="holds pictures; choose another --out"):
                look(tmp_path, str(mine))
    (tmp_path / "out" / "grid.png").rename(tmp_path / "out" / "notes.txt")
    assert make_samples_folder(tmp_path, str(tmp_path / "out")).is_dir()
    monkeypatch.chdir(tmp_path)
    Path("sealed").mkdir()
    Path("sealed", "samples").write_bytes(b"")  # nothing can be made there
    assert make_samples_folder(Path("sealed").absolute(), None) == Path("samples/0004")


def test_printed_commands_can_be_pasted(tmp_path):
    workdir = tmp_path / "my runs (1)"
    (workdir / "diffusion" / "checkpoints").mkdir(parents=True)
    line = next(line for line in summary(workdir).splitlines() if "draw more" in line)
    assert shlex.split(line)[-1] == str(workdir)


# Captions


def test_what_captions_lose_is_said_at_the_start(tmp_path, capsys):
    rows = tmp_path / "photos"
    rows.mkdir()
    with open(rows / "metadata.jsonl", "w", encoding="utf-8") as file:
        for i in range(40):
            Image.fromarray(np.full((32, 32, 3), 6 * i, np.uint8)).save(rows / f"{i}.png")
            text = "a very long caption of very many words indeed and then some more" if i < 3 else f"word{i} circle"
            file.write(json.dumps({"file_name": f"{i}.png", "caption": text}) + "\n")
    config = config_of(
        data__source="folder", data__path=str(rows), conditioner__max_seq_len=6, conditioner__vocab_size=12,
        diffusion_train__batch_size=8, first_stage_train__batch_size=8,
        data__train_split="train[:90%]", data__validation_split="train[90%:]",
    )  # fmt: skip
    with stage.Experiment(config, tmp_path / "run") as made:
        captions = [text.split() for text in caption_texts(made.sources["train"])]
    long = sum(len(words) > 4 for words in captions)  # two of the six tokens are its ends
    said = capsys.readouterr().out
    assert f"data: {long} of {len(captions)} captions are longer than 6 tokens and are cut, " in said
    assert "words became [UNK]" in said


# Addresses where folders are meant


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workdir=s3://bucket/run"],
        ["--workdir=s3:/bucket/run"],  # as pathlib leaves it
        ["--config.first_stage.path=s3://bucket/first"],
        ["--config.diffusion_train.start_from=s3://bucket/run"],
        ["--config.data.source=folder", "--config.data.path=https://example.org/pictures"],
        ["--data=gs://bucket/pictures"],
    ],
)
def test_a_bucket_is_no_folder(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train_command(["train.py", *arguments])
    said = str(stopped.value)
    assert "://" in said and "is an address" in said and "mount the bucket" in said and "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_reading_and_writing_models_and_pictures_take_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = {
        "load": lambda: ldm_jax.load("s3://bucket/run"),
        "a checkpoint": lambda: weights.read("s3://bucket/model.safetensors"),
        "--out": lambda: make_samples_folder(tmp_path, "gs://bucket/samples"),
    }
    for what, call in calls.items():
        with pytest.raises(ValueError, match=f"{what}: .*bucket.* is an address"):
            call()
    assert list(tmp_path.iterdir()) == []
    odd = tmp_path / "gs:"  # a folder of this name may be meant where it is
    odd.mkdir()
    assert of_this_machine("gs:/", "--workdir").is_dir()


def test_a_first_stage_that_is_not_there_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="config.first_stage.path='runs/gone' does not exist"):
        train_command(["train.py", "--config.first_stage.path=runs/gone"])
    assert list(tmp_path.iterdir()) == []


def test_a_first_stage_gives_as_many_channels_as_it_takes():
    with pytest.raises(ValueError, match="config.first_stage.out_ch=6: must be 3, config.first_stage.in_channels"):
        build.check(config_of(first_stage__out_ch=6))


def test_a_summary_names_pictures_where_there_are_some(tmp_path):
    """Many configs have no evaluation, and some no pictures on the way."""
    (tmp_path / "diffusion" / "checkpoints").mkdir(parents=True)
    assert "  pictures " not in summary(tmp_path)
    for folder in (tmp_path / "diffusion" / "images", tmp_path / "evaluation"):
        folder.mkdir()
        assert f"  pictures   {folder}\n" in summary(tmp_path)
