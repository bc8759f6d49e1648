"""Shapes where boxes say, at 32 px: the diffusion model alone, on two CPU cores in ten to twenty minutes.

    python train.py                                     # configs/shapes.py; its first stage is shared
    python train.py --config=configs/layout_shapes.py

One or two objects anywhere. A layout is six tokens, three an object: its class and two corners on a grid of 12 x 12; the
colour is left open.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    config.name = "layout_shapes"
    config.stages = ("latents", "diffusion", "evaluation")
    config.data.counts = (0.8, 0.2, 0.0)
    config.data.spread = 1.0
    config.first_stage.path = "runs/shapes"

    config.conditioner = ConfigDict()
    config.conditioner.kind = "layout"
    config.conditioner.n_embed = 64
    config.conditioner.n_layer = 2
    config.conditioner.heads = 4
    config.conditioner.dim_head = 32
    config.conditioner.max_seq_len = 6  # two objects; two tokens more would tell the crop
    config.conditioner.vocab_size = 145  # 12 x 12 corners, and none
    config.conditioner.null_probability = 0.1

    config.diffusion.scale = 0.4  # places are learnt where there is much noise
    config.diffusion_train.steps = 3000
    config.sampling.guidance_scale = 2.0
    return config
