"""Eight devices make the updates that one makes, for the media that have no file of their own (sound, text and films have)."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import build
from ldm_jax.training import sharding

pytestmark = pytest.mark.slow
COMMON = {
    "first_stage_train.batch_size": 8,
    "first_stage_train.steps": 24,
    "first_stage_train.warmup_steps": 2,
    "latents.scale_batches": 2,
    "diffusion_train.batch_size": 8,
    "diffusion_train.steps": 24,
    "diffusion_train.warmup_steps": 2,
}
AUTOENCODER = {"first_stage.ch": 4, "first_stage.norm_num_groups": 2}
UNET = {
    "network.model_channels": 8, "network.channel_mult": (1,), "network.attention_resolutions": (1,),
    "network.num_head_channels": 4, "network.norm_num_groups": 4,
}  # fmt: skip
DIT = {
    "first_stage.width": 16, "first_stage.heads": 2, "first_stage.embed_dim": 4, "network.in_channels": 4, "network.depth": 1,
    "network.hidden_size": 16, "network.num_heads": 2, "network.context_dim": 16, "conditioner.n_embed": 16,
    "conditioner.n_layer": 1, "data.examples": (64, 16),
}  # fmt: skip
MEDIA = {
    "spoken_waveforms": AUTOENCODER | UNET | {
        "data.image_size": (1024,), "data.sound.window": 256, "data.sound.hop": 64, "first_stage.ch_mult": (1, 1, 2),
        "first_stage.kernel_size": 5, "first_stage_loss.stft_windows": (64, 256), "network.context_dim": 16,
        "conditioner.n_embed": 16,
    },
    "vessels": AUTOENCODER | UNET | {"data.image_size": (8, 8, 8), "data.examples": (32, 8), "first_stage.ch_mult": (1, 1)},
    "captions": DIT | {"first_stage.latents": 8, "network.input_size": 8},
}  # fmt: skip


def config_of(name):
    """A config of the folder, tiny, as the program reads it."""
    config = importlib.import_module(f"configs.{name}").get_config()
    for field, value in {**COMMON, **MEDIA[name], "first_stage.path": ""}.items():
        *section, field = field.split(".")
        with config.ignore_type():
            functools.reduce(lambda place, part: place[part], section, config)[field] = value
    return build.with_lists(config.to_dict())


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("spoken_waveforms", "first_stage"),
        ("spoken_waveforms", "diffusion"),
        ("vessels", "first_stage"),
        ("captions", "first_stage"),
        ("captions", "diffusion"),
    ],
)
def test_eight_devices_learn_what_one_does(name, stage):
    """On a mesh of 4 x 2. By gradient descent, as Adam and Muon make a whole step of a gradient that is rounding alone."""
    assert jax.device_count() == 8
    config = config_of(name)
    config[f"{stage}_train"] |= {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 1.0}
    program = build.make_program(config, stage)
    rng = np.random.default_rng(0)

    def draw(path, x):
        tokens = config["data"]["medium"] == "text" and path[-1].key == "image"
        if jnp.issubdtype(x.dtype, jnp.floating) and not tokens:
            return rng.standard_normal(x.shape).astype(x.dtype)
        return rng.integers(0, 3, x.shape).astype(x.dtype)

    batch, constants = (jax.tree_util.tree_map_with_path(draw, some) for some in (program.batch, program.constants))
    found = []
    for devices, shape in ((1, (1, 1)), (8, (4, 2))):
        mesh = sharding.make_mesh(*shape, devices=jax.devices()[:devices])
        state = sharding.init_sharded(mesh, program.init_state, 0)
        step = program.compile(mesh, constants)
        for i in range(2):
            state, metrics = step(state, sharding.to_device(mesh, batch), jax.random.key(i))
        found.append(jax.device_get((state.params, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), *found)
