"""Photos of several kinds at 64 px, class-conditional, in latents of 8 x 8 pixels.

    python train.py --config=configs/photos64.py --config.data.path=PHOTOS
    python sample.py --workdir runs/photos64 --label roses

PHOTOS is a folder as configs/flowers64.py takes it. That config has latents of 16 x 16 pixels; here they are half as wide and
high, of 16 channels, past shortcuts (Chen et al. 2024, "Deep compression autoencoder for efficient high-resolution diffusion
models"), so that the second stage sees more pictures in the same time. On the 2,934 flowers of flowers64 the first stage gives
held-out photos back with 24.8 dB, and one sees which flower is drawn, after about an hour on two cores: docs/start.md.
"""

from ml_collections import ConfigDict

from configs import flowers64, shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    config.name = "photos64"

    config.data.source = "folder"
    config.data.image_size = 64
    config.data.flip = True

    stage = config.first_stage
    stage.resolution = 64
    stage.ch_mult = (1, 2, 4, 8)  # halved three times
    with config.ignore_type():
        stage.num_res_blocks = (0, 1, 1, 1)  # at 64 px only the resolution changes
    stage.z_channels = stage.embed_dim = 16
    config.first_stage_train.steps = 3000
    config.first_stage_train.learning_rate = 4e-3

    config.network.in_channels = config.network.out_channels = 16
    config.network.model_channels = 96

    config.conditioner = flowers64.get_config().conditioner

    config.diffusion_train.steps = 4000
    config.diffusion_train.ema_decay = 0.998

    config.sampling.guidance_scale = 2.0
    config.sampling.steps = 30

    config.evaluation.prompts = 0
    config.evaluation.num = 1000
    return config
