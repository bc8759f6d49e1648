"""All of `shapes`: one to three objects anywhere, striped and dotted too, on a network four times the default's size.

    python train.py --config=configs/shapes_all.py

The longer sibling of configs/shapes.py, for prompts with two objects: "a red circle above a striped blue square".
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.plain_first_stage(config)
    config.name = "shapes_all"
    config.data.counts = (0.5, 0.4, 0.1)
    config.data.fills = (0.6, 0.2, 0.2)
    config.data.spread = 1.0
    config.first_stage_train.steps = 6000
    config.network.model_channels = 128
    config.network.context_waves = 3  # its captions say where things are: docs/training.md
    config.conditioner.n_embed = 128
    config.conditioner.n_layer = 2
    config.network.context_dim = 128
    config.diffusion_train.steps = 20_000
    config.diffusion_train.batch_size = 64
    config.diffusion_train.ema_decay = 0.999
    config.checkpoint.every = 1000
    config.sampling.guidance_scale = 3.0
    return config
