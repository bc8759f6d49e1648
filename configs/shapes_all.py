"""All of `shapes`: one to three objects anywhere, striped and dotted too, on a network of 4.7 million parameters.

    python train.py --config=configs/shapes_all.py

The longer sibling of configs/shapes.py, for prompts with two objects: "a red circle above a striped blue square". About two
hours of one core: docs/training.md has what it learnt.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    config.name = "shapes_all"
    config.data.examples = (50_000, 1_000)
    config.data.counts = (0.45, 0.45, 0.1)
    config.data.fills = (0.6, 0.2, 0.2)
    config.data.spread = 1.0
    config.first_stage_train.steps = 6000
    config.network.model_channels = 96
    config.network.context_dim = config.conditioner.n_embed = 96
    config.conditioner.position_std = 0.3  # its captions say which colour belongs to which shape: docs/training.md
    config.conditioner.conv_kernel = 7
    config.network.context_waves = 3  # and where things are
    config.diffusion.scale = 0.4  # with 0.8 as many updates teach less of both
    config.diffusion_train.steps = 12_000
    config.diffusion_train.ema_decay = 0.999
    config.evaluation.evaluators.prompts.every = 3000
    config.evaluation.evaluators.two = ConfigDict({"type": "prompts", "every": 3000, "num": 240, "objects": 2})
    config.log.images_every = 3000
    config.checkpoint.every = 1000
    return config
