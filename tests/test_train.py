"""The main job, small: train.py and sample.py as a user runs them. A tiny model, so pictures mean nothing here."""

import ast
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax import experiment
from ldm_jax.drawing.modes import draw
from ldm_jax.training.checkpoint import best_in, load_averaged, load_part
from tests.runs import STAGES, assert_same_weights, kill_after

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "data.examples": "(96,32)",
    "first_stage.ch": 8,
    "first_stage.ch_mult": "(1,1)",
    "first_stage_train.batch_size": 8,
    "first_stage_train.steps": 20,
    "first_stage_train.warmup_steps": 2,
    "first_stage_train.optimizer": "adamw",
    "first_stage_train.ema_decay": 0.9,
    "latents.scale_batches": 2,
    "network.model_channels": 16,
    "network.channel_mult": "(1,)",
    "network.attention_resolutions": "(1,)",
    "network.num_head_channels": 8,
    "network.norm_num_groups": 4,
    "network.context_dim": 16,
    "conditioner.n_embed": 16,
    "conditioner.n_layer": 1,
    "diffusion_train.batch_size": 8,
    "diffusion_train.steps": 20,
    "diffusion_train.warmup_steps": 2,
    "diffusion_train.optimizer": "adamw",
    "diffusion_train.post_hoc": "(0.05,0.1)",
    "sampling.steps": 3,
    "evaluation.prompts": 4,
    "evaluation.batch_size": 4,
    "evaluation.evaluators.prompts.every": 10,
    "evaluation.evaluators.prompts.num": 4,
    "diffusion_train.best": "prompts/shape",
    "log.every": 5,
    "log.validation_every": 10,
    "log.validation_images": 8,
    "log.images_every": 20,
    "checkpoint.every": 10,
    "checkpoint.snapshots": 10,
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Data and compiled programs are shared between the runs of this module."""
    home = tmp_path_factory.mktemp("home")
    return {**os.environ, "HOME": str(home), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def command(workdir, **overrides):
    flags = [f"--config.{name}={value}" for name, value in {**TINY, **overrides}.items()]
    return [sys.executable, str(ROOT / "train.py"), "--workdir", str(workdir), *flags]


def run(arguments, environment):
    return subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def trained(environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = run(command(workdir), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done.stdout


def losses(workdir, stage, name="train/loss"):
    lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_one_command_leaves_everything_a_user_expects(trained):
    workdir, said = trained
    for path in (
        "config.json",
        "versions.json",
        "tokenizer.json",
        "latents.json",
        "latents/rows-00000-of-00001",
        "first_stage/images/reconstructions_0000020.png",
        "diffusion/images/samples_0000020.png",
        "diffusion/images/samples_0000020.txt",
        "evaluation/0000/validation.png",
        "evaluation/0000/1_objects.txt",
        "evaluation/0000/results.json",
    ):
        assert (workdir / path).is_file(), path
    assert list((workdir / "diffusion").glob("events*"))
    assert set(losses(workdir, "diffusion")) == {5, 10, 15, 20}
    assert "evaluation: 4 held-out prompts with 1 object: shape" in said
    lines = [json.loads(line) for line in (workdir / "diffusion" / "metrics.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["prompts/shape"] for line in lines if "prompts/shape" in line}
    assert set(judged) == {10, 20}
    step, score = best_in(workdir / "diffusion" / "checkpoints")
    assert -score == judged[step] == max(judged.values())
    for stage in ("first_stage", "diffusion"):
        assert re.search(rf"{stage}: parameters: .* M; \d+ MB with the average .*; compiling\n", said)
        assert re.search(rf"{stage}: compiled in \d+:\d\d; at most \d+\.\d\d GB of ", said)
    assert "Downloading" not in said and "data: rendering shapes into" in said
    last = said.strip().splitlines()[-1]  # a command that runs as it stands, with a condition that the model knows
    assert re.search(rf"draw more +python \S*sample.py --workdir {workdir} --prompt ('.+'|\w+)$", last), last
    assert json.loads((workdir / "versions.json").read_text())["runs"][0]["jax"] == jax.__version__


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(("first_stage", "latents", "diffusion"), marks=pytest.mark.slow),
        ("first_stage", "latents"),  # which keeps what the diffusion model, a stage of another command, will be told
    ],
)
def test_the_same_command_again_trains_nothing(trained, environment, stages):
    workdir, _ = trained
    before = [losses(workdir, stage) for stage in ("first_stage", "diffusion")]
    done = run(command(workdir, stages=str(stages).replace(" ", "")), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "first_stage: already trained, 20 steps" in done.stdout and "images encoded" not in done.stdout
    assert ("diffusion: already trained, 20 steps" in done.stdout) == ("diffusion" in stages)
    assert [losses(workdir, stage) for stage in ("first_stage", "diffusion")] == before


@pytest.mark.slow
def test_kill_and_resume_is_bit_exact_in_both_stages(trained, environment, tmp_path):
    """Killed (SIGKILL) in each stage after a checkpoint; the weights at the end are those of the run never stopped."""
    workdir = tmp_path / "killed"
    for stage in ("first_stage", "diffusion"):
        process = subprocess.Popen(
            command(workdir), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        kill_after(process, workdir / stage / "checkpoints" / "10")
        assert not (workdir / stage / "checkpoints" / "20").exists(), "finished before it could be killed"
    done = run(command(workdir), environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "diffusion: going on from step" in done.stdout
    assert_same_weights(trained[0], workdir)
    for stage in STAGES:
        later = losses(workdir, stage)
        assert {step: later[step] for step in (15, 20)} == {step: losses(trained[0], stage)[step] for step in (15, 20)}


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(environment, tmp_path):
    workdir = tmp_path / "stopped"
    process = subprocess.Popen(
        command(workdir, **{"first_stage_train.steps": 5000}),
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (workdir / "first_stage" / "metrics.jsonl").is_file() or "train/loss" not in (
        workdir / "first_stage" / "metrics.jsonl"
    ).read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 75
    assert shlex.split(said.split("its state is saved. To go on: ")[1].splitlines()[0])[1:] == process.args[1:]
    step = int(said.split("stopped at step ")[1].split(";")[0])
    assert (workdir / "first_stage" / "checkpoints" / str(step) / "commit_success.txt").is_file()


def test_another_config_is_refused_with_the_difference(trained):
    with pytest.raises(ValueError, match="holds another experiment") as error:
        experiment.run(tiny_config(**{"network.model_channels": 32}), trained[0])
    assert "network.model_channels: 16 there, 32 now" in str(error.value)


FOLDER = {"data.source": "folder", "evaluation.evaluators.prompts.every": 0, "diffusion_train.best": "validation/loss"}


def tiny_config(**overrides):
    spec = importlib.util.spec_from_file_location("shapes_config", ROOT / "configs" / "shapes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    for name, value in {**TINY, **overrides}.items():
        value = ast.literal_eval(value) if isinstance(value, str) and value.startswith("(") else value
        config.update_from_flattened_dict({name: value})
    return config.to_dict()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"network.num_head_channels": 7}, "head"),
        ({"data.image_size": 31}, "multiples of 2"),
        ({"network.out_channels": 3}, "latents have 8 channels"),
        ({"diffusion.schedule": "cosin"}, "cosine"),
        ({"diffusion.prediction": "epsilon"}, "eps"),
        ({"diffusion.weighting": "minsnr"}, "min_snr"),
        ({"diffusion.time_sampling": "unifrm"}, "uniform"),
        ({"sampling.sampler": "dimm"}, "ddim"),
        ({"sampling.steps": 0}, "step"),
        ({"diffusion_train.optimizer": "sdg"}, "optimizer='sdg'"),
        ({"diffusion_train.optimizer": "sgd", "diffusion_train.weight_decay": 0.1}, "weight_decay=0.1: sgd of optax has none"),
        ({"diffusion_train.batch_size": 12}, "batch_size=12 does not divide over 8 devices"),
        ({"mesh.fsdp": 3}, "fsdp=3"),
        ({**FOLDER, "data.path": ""}, "config.data.path is empty"),
        ({**FOLDER, "data.path": "/nowhere"}, "/nowhere"),
        ({"data.source": "folder"}, "only what is drawn of 'shapes' (conditioner.kind='text')"),
        ({"data.source": "foldr"}, "Did you mean 'folder'"),
        ({"data.flip": True}, "left and right"),
        ({"data.counts": (0, 0, 0)}, "not all zero"),
        ({"conditioner.kind": "txt"}, "Did you mean 'text'"),
        ({"conditioner.kind": "superres"}, "lacks scale, degradation, noise_levels"),
        ({"first_stage.kind": "vq"}, "codebook"),
        ({"first_stage_loss.pixel": "l3"}, "pixel='l3'"),
        ({"dtype": "float8"}, "config.dtype"),
        ({"stages": ("first_stag",)}, "Did you mean 'first_stage'"),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_written(overrides, message, tmp_path):
    config = tiny_config(**{"data.path": str(tmp_path / "data"), **overrides})
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        experiment.run(config, tmp_path / "new")
    assert message in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_typo_in_a_flag_is_named(environment, tmp_path):
    done = run(command(tmp_path / "new", **{"diffusion_train.bacth_size": 8}), environment)
    assert done.returncode == 1 and "no such field of the config. Did you mean 'batch_size'" in done.stderr


def test_a_folder_of_ones_own_is_not_taken_for_a_workdir(environment, tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    done = run(command(tmp_path), environment)
    assert done.returncode == 1 and "not empty and not a working directory" in done.stderr
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_sample_writes_a_grid_and_single_pictures_and_overwrites_nothing(trained, environment, tmp_path):
    workdir, _ = trained
    arguments = [sys.executable, str(ROOT / "sample.py"), "--workdir", str(workdir)]
    arguments += ["--num", "2", "--guidance_scale", "2", "--out", str(tmp_path / "out")]
    arguments += ["--prompt", "a red circle", "--prompt", "a green ring"]
    done = run(arguments, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    width, height = Image.open(tmp_path / "out" / "grid.png").size
    assert width == 2 * 34 + 2 and height > 2 * 34 + 2 + 2 * 10  # a line of words above each row
    assert len(list((tmp_path / "out").glob("0*.png"))) == 4
    again = run(arguments, environment)
    assert again.returncode == 1 and "Traceback" not in again.stderr
    assert "holds pictures; choose another --out" in again.stderr


# The research API on the same model


@pytest.fixture(scope="module")
def ldm(trained):
    return ldm_jax.load(trained[0])


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"prompt": ["a circel"]}, "near: circle"),
        ({"label": ["circle"], "prompt": ["a circle"]}, "--label or --prompt"),
    ],
)
def test_sample_refuses_in_one_sentence(ldm, flags, message):
    with pytest.raises(ValueError, match=message) as error:
        draw(ldm, flags)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_average_of_another_width_is_chosen_after_training(ldm, trained):
    def network(model):
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(model.params["network"])])

    raw = load_part(trained[0] / "diffusion" / "checkpoints", "params")["network"]
    raw = np.concatenate([np.ravel(x) for x in jax.tree.leaves(raw)])
    narrow, wide = (network(ldm_jax.load(trained[0], ema_width=width)) for width in (0.05, 0.2))
    # an average over the last few of 20 updates is nearer to the last one
    assert 0 < np.linalg.norm(narrow - raw) < np.linalg.norm(wide - raw)
    earlier = network(ldm_jax.load(trained[0], which=15, ema_width=0.2))  # where there is no checkpoint
    assert not np.array_equal(earlier, wide)
    with pytest.raises(ValueError, match=r"lies in \(0, 0.28\]"):
        ldm_jax.load(trained[0], ema_width=0.5)


@pytest.mark.slow
def test_training_goes_on_from_a_trained_model(trained, tmp_path):
    """With a learning rate of next to nothing the network stays the one it started from; another network is refused."""
    model = ldm_jax.load(trained[0])
    tuned = {
        "diffusion_train.start_from": str(trained[0]),
        "first_stage.path": str(trained[0]),
        "diffusion_train.steps": 2,
        "diffusion_train.warmup_steps": 0,
        "diffusion_train.learning_rate": 1e-12,
        "diffusion_train.weight_decay": 0.0,
        "diffusion_train.ema_decay": 0.0,
        "stages": ("latents", "diffusion"),
    }
    experiment.run(tiny_config(**tuned), tmp_path / "tuned")
    again = ldm_jax.load(tmp_path / "tuned")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), model.params["network"], again.params["network"])
    with pytest.raises(ValueError, match="is another model: .* there, .* here"):
        experiment.run(tiny_config(**tuned, **{"network.model_channels": 32}), tmp_path / "other")


@pytest.mark.slow
def test_a_low_rank_change_of_a_trained_model(trained, tmp_path):
    """The model that it starts from stays as it is, and only the change is trained, kept and averaged."""
    base = ldm_jax.load(trained[0])
    adapting = {
        "diffusion_train.start_from": str(trained[0]),
        "first_stage.path": str(trained[0]),
        "conditioner.tokenizer": str(trained[0] / "tokenizer.json"),
        "diffusion_train.lora.rank": 2,
        "diffusion_train.lora.alpha": 4.0,
        "diffusion_train.steps": 6,
        "diffusion_train.learning_rate": 1e-2,
        "diffusion_train.post_hoc": "()",
        "checkpoint.snapshots": 0,
        "stages": ("latents", "diffusion"),
    }
    with pytest.raises(ValueError, match="lora.rank adapts a model: name it in config.diffusion_train.start_from"):
        experiment.run(tiny_config(**adapting | {"diffusion_train.start_from": ""}), tmp_path / "none")
    with pytest.raises(ValueError, match="leave config.latents.scale at 0"):
        experiment.run(tiny_config(**adapting | {"latents.scale": 9.0, "latents.standardise": False}), tmp_path / "other")
    experiment.run(tiny_config(**adapting), tmp_path / "lora")
    checkpoints = tmp_path / "lora" / "diffusion" / "checkpoints"
    for part in ("params", "ema"):
        assert load_part(checkpoints, part).keys() == {"lora"}
    learnt = load_averaged(checkpoints)["lora"]
    numbers = sum(x.size for x in jax.tree.leaves(learnt))
    assert numbers < 0.2 * sum(x.size for x in jax.tree.leaves(base.params["network"]))
    assert sum(x.size for x in jax.tree.leaves(load_part(checkpoints, "opt_state"))) < 2 * numbers + 10

    ldm = ldm_jax.load(tmp_path / "lora")
    assert ldm.params.keys() == base.params.keys()
    jax.tree.map(np.testing.assert_array_equal, ldm.params["conditioner"], base.params["conditioner"])
    kernel = ldm.params["network"]["middle_block_1"]["transformer_blocks_0"]["attn2"]["to_q"]["kernel"]
    before = base.params["network"]["middle_block_1"]["transformer_blocks_0"]["attn2"]["to_q"]["kernel"]
    change = np.linalg.svd(np.asarray(kernel - before), compute_uv=False)
    assert change[1] > 1e-4 and change[2] < 1e-3 * change[0]
    other = ldm.params["network"]["out_2"]["kernel"], base.params["network"]["out_2"]["kernel"]
    np.testing.assert_array_equal(*other)

    lora = ldm_jax.load_lora(tmp_path / "lora")
    base.save_lora(lora, tmp_path / "file.safetensors")
    again = base.with_lora(tmp_path / "file.safetensors").params["network"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, ldm.params["network"])
    cond = ldm.embed(ldm.params, ["a red circle"])
    assert np.isfinite(ldm.sample(ldm.params, jax.random.key(0), cond)).all()
    longer = {"diffusion_train.steps": 8, "diffusion_train.decay": "constant"}
    with pytest.raises(ValueError, match="holds another experiment"):
        experiment.run(tiny_config(**adapting | longer | {"diffusion_train.lora.rank": 3}), tmp_path / "lora")
