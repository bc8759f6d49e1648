"""Tiny models of every kind, with random weights: for tests of what is done with a model, not of how good it is."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import LatentDiffusion, build
from ldm_jax.api import Specification
from ldm_jax.data.tokenizer import train_tokenizer

CONFIG = {
    "name": "tiny",
    "data": {"image_size": 8},
    "first_stage": {
        "kind": "kl", "path": "", "in_channels": 3, "out_ch": 3, "resolution": 8, "ch": 4, "ch_mult": [1, 1],
        "num_res_blocks": 1, "attn_resolutions": [], "attn_type": "none", "z_channels": 4, "double_z": True,
        "embed_dim": 4, "n_embed": 0, "norm_num_groups": 2, "dropout": 0.0,
    },
    "network": {
        "kind": "unet", "in_channels": 4, "out_channels": 4, "model_channels": 8, "num_res_blocks": 1,
        "attention_resolutions": [1], "channel_mult": [1], "num_heads": -1, "num_head_channels": 4,
        "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 8, "use_scale_shift_norm": True,
        "resblock_updown": False, "norm_num_groups": 4, "dropout": 0.0,
    },
    "conditioner": {"kind": "text", "n_embed": 8, "n_layer": 1, "max_seq_len": 6, "vocab_size": 16, "tokenizer": "words"},
    "diffusion": {"schedule": "cosine", "prediction": "v", "loss": "l2", "weighting": "simple", "time_sampling": "uniform"},
    "sampling": {"sampler": "dpmpp_2m", "steps": 3, "grid": "trailing", "guidance_scale": 3.0},
}  # fmt: skip
CONDITIONERS = {
    "none": {},
    "text": CONFIG["conditioner"],
    "class": {"n_classes": 4, "embed_dim": 8},
    "superres": {"scale": 4},
    "inpaint": {},
    "semantic": {"n_stages": 1, "in_channels": 3, "out_channels": 2},
    "retrieval": {"neighbours": 2},
    "layout": {"n_embed": 8, "n_layer": 1, "max_seq_len": 8, "vocab_size": 102},
}
CLASSES = ("circle", "square", "star")


@functools.cache
def model(kind: str = "text") -> LatentDiffusion:
    """8 x 8 pixels, 4 x 4 latents."""
    network = CONFIG["network"] | {"attention_resolutions": []}  # the middle has attention all the same
    if kind in ("none", "superres", "inpaint", "semantic"):
        network |= {"use_spatial_transformer": False, "context_dim": None}
        network["in_channels"] += {"none": 0, "superres": 3, "inpaint": 5, "semantic": 2}[kind]
    config = CONFIG | {"network": network, "conditioner": CONDITIONERS[kind] | {"kind": kind}}
    tokenizer = None
    if kind == "text":
        tokenizer = train_tokenizer(["a red circle", "a blue star"])
        path = Path(tempfile.mkdtemp()) / "tokenizer.json"
        tokenizer.save(path)
        config["conditioner"]["tokenizer"] = str(path)
    if kind in ("superres", "inpaint"):
        config["sampling"] = config["sampling"] | {"guidance_scale": 1.0}
    return random_model(config, tokenizer)


def random_model(config, tokenizer=None) -> LatentDiffusion:
    """The model of a config, no weight zero."""
    condition = build.make_condition(config, CLASSES, tokenizer)

    def init(key):
        return {"first_stage": build.make_first_stage(config).init(key), **build.make_diffusion_init(config, condition)(key)}

    rng = np.random.default_rng(0)

    def draw(path, leaf):  # by numpy: nothing to compile, and no layer is zero
        noise = rng.standard_normal(leaf.shape, np.float32)
        spread = leaf.size / leaf.shape[-1] if path[-1].key == "kernel" else 25.0
        return jnp.asarray(noise / np.sqrt(spread) + (path[-1].key == "scale"))

    params = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))
    return LatentDiffusion(Specification(config, condition, 0.5, 0.25), params)
