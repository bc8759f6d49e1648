"""Films and volumes through the whole program: what is refused by name, training over eight devices, resuming, sample.py."""

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax import build, media
from ldm_jax.api import Specification
from ldm_jax.drawing.modes import draw
from ldm_jax.media.film import strips
from tests.runs import assert_eight_devices_learn_what_one_does, assert_same_weights, kill_after

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "data.image_size": (4, 16, 16),
    "data.examples": (16, 8),
    "first_stage.ch": 4,
    "first_stage.ch_mult": (1, 1),
    "first_stage.norm_num_groups": 2,
    "first_stage_train.batch_size": 8,
    "first_stage_train.steps": 8,
    "first_stage_train.warmup_steps": 2,
    "first_stage_train.optimizer": "adamw",
    "latents.scale_batches": 2,
    "network.model_channels": 8,
    "network.channel_mult": (1,),
    "network.attention_resolutions": (1,),
    "network.num_head_channels": 8,
    "network.norm_num_groups": 4,
    "network.context_dim": 16,
    "diffusion_train.start_from": "",
    "conditioner.n_embed": 16,
    "diffusion_train.batch_size": 8,
    "diffusion_train.steps": 8,
    "diffusion_train.warmup_steps": 2,
    "diffusion_train.optimizer": "adamw",
    "sampling.steps": 2,
    "evaluation.prompts": 4,
    "evaluation.batch_size": 4,
    "log.every": 4,
    "log.validation_every": 8,
    "log.validation_images": 4,
    "log.images_every": 8,
    "checkpoint.every": 4,
}


def config_of(name="moving_shapes", **changes):
    """A config of the folder, tiny, as the program reads it."""
    config = importlib.import_module(f"configs.{name}").get_config()
    for field, value in {**TINY, **changes}.items():
        *section, field = field.split(".")
        with config.ignore_type():
            functools.reduce(lambda place, part: place[part], section, config)[field] = value
    return build.with_lists(config.to_dict())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("moving_shapes", {"data.image_size": (16, 16)}, "image_size=.*medium='film' has 3 sides"),
        ("moving_shapes", {"first_stage.dims": 2, "first_stage.strides": (), "first_stage.kernel_size": 3},
         "config.first_stage.dims=2: must be 3, the sides of config.data.image_size"),
        ("moving_shapes", {"network.dims": 2, "network.strides": (), "network.kernel_size": 3,
                           "network.factorised_attention": False}, "config.network.dims=2: must be 3"),
        ("moving_shapes", {"network.dims": 4}, "config.network.dims=4: must be 1, 2 or 3"),
        ("moving_shapes", {"network.kernel_size": (1, 2, 3)}, "config.network.kernel_size=.*must be odd"),
        ("moving_shapes", {"first_stage.strides": (1, 2, 4)}, "config.first_stage.strides=.*: must be 1 or 2"),
        ("moving_shapes", {"first_stage.strides": (1, 2)}, "3 numbers"),
        ("moving_shapes", {"data.image_size": (4, 16, 17)}, "sides must be multiples of 1 x 2 x 2"),
        ("moving_shapes", {"data.medium": "volume"}, "config.data.source .of medium='volume'.='moving_shapes'"),
        ("moving_shapes", {"first_stage.in_channels": 1}, "in_channels=1: medium='film' gives arrays of 3 channels"),
        ("moving_shapes", {"data.flip": True}, "left and right, which a flip exchanges"),
        ("moving_shapes", {"data.frame_step": 0}, "config.data.frame_step=0"),
        ("moving_shapes", {"data.short_side": 40}, "config.data.short_side=40: of pictures"),
        ("moving_shapes", {"conditioner": "superres64"}, "kind='superres' is told pictures"),
        ("moving_shapes", {"first_stage.path": "", "first_stage_loss.alignment_weight": 1.0},
         "alignment_weight: features are of pictures"),
        ("vessels", {"data.image_size": 16, "data.window": (5, 5)}, "config.data.window=.5, 5.: two numbers"),
        ("vessels", {"data.image_size": 16, "data.window": (0, float("inf"))}, "config.data.window=.0, inf.: two numbers"),
        ("vessels", {"data.image_size": (16, 16, 17)}, "all sides must be multiples of 2"),
        ("shapes", {"data.image_size": (4, 16, 16)}, "medium='image' has 2 sides"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(name, changes, message):
    other = changes.pop("conditioner", None)
    config = config_of(name, **changes)
    if other is not None:  # of that config
        config["conditioner"] = build.with_lists(importlib.import_module(f"configs.{other}").get_config().conditioner.to_dict())
    with pytest.raises(ValueError, match=message):
        build.check(config)


def test_lpips_sees_frames_one_by_one():
    """Of a film the mean over its frames, and sounds have none."""
    config = config_of(**{"first_stage_loss.perceptual_weight": 1.0, "first_stage_loss.perceptual_path": "random",
                          "first_stage_loss.perceptual_widths": (4, 4, 4, 4, 4)})  # fmt: skip
    program = build.make_first_stage_program(config)
    rng = np.random.default_rng(0)  # positive: linear layers are, and no distance is all but nothing
    shapes = program.constants["perceptual"]
    params = {"perceptual": jax.tree.map(lambda x: rng.uniform(0, 1, x.shape).astype(np.float32), shapes)}
    x, y = jax.random.normal(jax.random.key(0), (2, 2, 3, 16, 16, 3))
    frames = jnp.stack([program.distance(params, x[:, i], y[:, i]) for i in range(3)])
    assert frames.min() > 1e-3 and not np.allclose(frames[0], frames[1], rtol=1e-2)
    np.testing.assert_allclose(program.distance(params, x, y), frames.mean(0), rtol=1e-5)
    config["first_stage"] |= {"dims": 1, "strides": (2,), "kernel_size": 3}
    config["data"]["image_size"] = (16,)
    with pytest.raises(ValueError, match="LPIPS sees pictures, or frames"):
        build.make_first_stage_program(config)


def specification(**changes):
    """A tiny model of films, without words."""
    config = config_of(**changes)
    config["conditioner"] = {"kind": "none"}
    config["network"] |= {"use_spatial_transformer": False, "context_dim": None}
    return Specification(config, build.make_condition(config), 0.5, 0.25)


def model(**changes):
    spec = specification(**changes)
    init = build.make_diffusion_init(spec.config, spec.condition)
    shapes = jax.eval_shape(lambda key: {"first_stage": spec.first_stage.init(key), **init(key)}, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(leaf):  # by numpy: nothing to compile, and no layer is zero
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / 8)

    return ldm_jax.LatentDiffusion(spec, jax.tree.map(draw, shapes))


def test_a_model_of_films_draws_films_of_any_length():
    ldm = model()
    key = jax.random.key(0)
    assert ldm.specification.image_size == (4, 16, 16)
    film = ldm.sample(ldm.params, key, num=1)
    assert film.shape == (1, 4, 16, 16, 3) and bool(jnp.isfinite(film).all())
    assert jax.eval_shape(lambda p: ldm.sample(p, key, num=1, size=(6, 8, 16)), ldm.params).shape == (1, 6, 8, 16, 3)
    moved = ldm.image_to_image(ldm.params, key, film, strength=0.5)
    assert moved.shape == film.shape
    wider = ldm.outpaint(ldm.params, key, film, top=2, right=4)
    assert wider.shape == (1, 4, 18, 20, 3)
    np.testing.assert_array_equal(wider[:, :, 2:, :16], film)
    with pytest.raises(ValueError, match="give 3 whole numbers"):
        ldm.sample(ldm.params, key, num=1, size=(16, 16))
    with pytest.raises(ValueError, match="multiples of 1 x 2 x 2"):
        ldm.sample(ldm.params, key, num=1, size=(3, 16, 15))


def test_the_command_draws_films(tmp_path):
    """--size with three sides; flags of pictures are refused; GIF and strip are written, and nothing twice."""
    ldm = model()
    drawn = draw(ldm, {"num": 2, "size": "4x16x16"})
    assert drawn.images.shape == (2, 4, 16, 16, 3)
    with pytest.raises(ValueError, match="write it FRAMESxHEIGHTxWIDTH"):
        draw(ldm, {"size": "16x16"})
    with pytest.raises(ValueError, match="this model can't panorama, it can sample, image_to_image"):
        draw(ldm, {"panorama": True, "size": "4x16x16"})
    film = media.make_medium(ldm.config["data"])
    film.save(tmp_path, "grid", drawn.images, drawn.words * 2, singly=True)
    with Image.open(tmp_path / "0001.gif") as gif, Image.open(tmp_path / "0001.png") as row:
        assert gif.n_frames == 4 and gif.size == (16, 16) and row.size == (4 * 16 + 3, 16)
    with pytest.raises(FileExistsError):
        film.save(tmp_path, "grid", drawn.images, drawn.words * 2, singly=True)
    np.testing.assert_array_equal(film.read(tmp_path / "0001.gif").shape, (4, 16, 16, 3))
    with pytest.raises(ValueError, match="0001.png has one frame: a picture"):
        film.read(tmp_path / "0001.png")


def test_a_strip_shows_every_frame():
    films = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 5, 1)).astype(np.float32)
    shown = strips(films)
    assert shown.shape == (2, 4, 3 * 6 - 1, 3) and (shown[:, :, 5] == 1).all() and (shown[:, :, 11] == 1).all()
    for i in range(3):
        np.testing.assert_array_equal(shown[:, :, 6 * i : 6 * i + 5], films[:, i].repeat(3, -1))


def test_models_of_films_have_no_files_of_the_world(tmp_path):
    with pytest.raises(ValueError, match="format='diffusers' draw pictures, this is a model of film"):
        ldm_jax.save(model(), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["first_stage", "diffusion"])
def test_eight_devices_learn_what_one_does(stage):
    """An adversarial autoencoder of films, and factorised attention over them: the same updates on a mesh of 4 x 2."""
    disc = {"disc_weight": 0.5, "disc_ndf": 4, "disc_layers": 1}
    config = config_of(**{f"first_stage_loss.{name}": value for name, value in disc.items()})
    assert_eight_devices_learn_what_one_does(build.make_program(config, stage))


def running(workdir, home, **how):
    """train.py on tiny films, as a process."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "HOME": str(home)}
    flags = [f"--config.{field}={value}".replace(" ", "") for field, value in TINY.items()]
    flags += [f"--workdir={workdir}", "--config.first_stage.path="]
    command = [sys.executable, "train.py", "--config=configs/moving_shapes.py", *flags]
    return subprocess.Popen(command, env=env, cwd=ROOT, text=True, **how)


@pytest.mark.slow
def test_training_films_resumes_bit_exactly(tmp_path):
    """Killed in each stage after a checkpoint; the weights at the end are those of the run never stopped. Then a film from
    words."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = running(whole, tmp_path, **pipes)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said[-3000:]
    for stage in ("first_stage", "diffusion"):
        process = running(killed, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kill_after(process, killed / stage / "checkpoints" / "4")
    process = running(killed, tmp_path, **pipes)
    out, said = process.communicate(timeout=900)
    assert process.returncode == 0 and "diffusion: going on from step" in out, said[-3000:]
    assert_same_weights(whole, killed)
    results = json.loads((whole / "evaluation" / "0000" / "results.json").read_text())
    assert {"1_objects/direction", "1_objects/all", "1_objects/shuffled/all"} <= set(results)
    assert len(list((whole / "evaluation" / "0000" / "validation").glob("*.gif"))) == 8

    ldm = ldm_jax.load(whole)
    drawn = draw(ldm, {"prompt": ["a red circle moves left"], "num": 1})
    assert drawn.images.shape == (1, 4, 16, 16, 3) and drawn.words == ["a red circle moves left"]
