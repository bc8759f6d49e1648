"""Photos of five kinds of flowers at 64 px, class-conditional: a first stage and a diffusion model on two CPU cores.

    python train.py --config=configs/flowers64.py --config.data.path=FLOWERS

FLOWERS is a folder of images in class folders under train/ and val/, or with a `label` column in metadata.jsonl, such as
TensorFlow's flower_photos. Half an hour gives the colours and the layout of flowers, not petals; every step more helps.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    shapes.plain_first_stage(config)
    config.name = "flowers64"

    config.data.source = "folder"
    config.data.image_size = 64
    config.data.flip = True

    config.first_stage.resolution = 64
    config.first_stage_train.steps = 1000
    config.first_stage_train.batch_size = 8

    config.network.model_channels = 64
    config.network.channel_mult = (1, 1)
    config.network.attention_resolutions = (2,)
    config.network.context_dim = 64

    config.conditioner = ConfigDict()
    config.conditioner.kind = "class"
    config.conditioner.n_classes = 6  # five, and the empty one
    config.conditioner.embed_dim = 64
    config.conditioner.null_probability = 0.1

    config.diffusion_train.steps = 1200
    config.diffusion_train.batch_size = 16
    config.diffusion_train.ema_decay = 0.998

    config.sampling.guidance_scale = 2.0
    config.sampling.steps = 30

    config.evaluation.num = 500
    return config
