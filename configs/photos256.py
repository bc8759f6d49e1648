"""Photos at 256 px in latents of 8 x 8 pixels, unconditional, small enough for two CPU cores and a night.

    python train.py --config=configs/photos256.py --config.data.path=PHOTOS
    python sample.py --workdir runs/photos256 --num 16

The first stage shrinks 32 times, past shortcuts (Chen et al. 2024, "Deep compression autoencoder for efficient high-resolution
diffusion models"), into 32 channels. It has been run for a few steps only: the night is an estimate. docs/first_stages.md says
what was measured of shortcuts.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    config.name = "photos256"

    config.data.source = "folder"
    config.data.image_size = 256
    config.data.flip = True
    config.data.in_memory = False

    stage = config.first_stage
    stage.resolution = 256
    stage.ch_mult = (1, 2, 4, 8, 8, 16)  # halved five times
    with config.ignore_type():
        stage.num_res_blocks = (0, 1, 1, 1, 1, 1)  # at 256 px only the resolution changes
    stage.z_channels = stage.embed_dim = 32
    stage.norm_num_groups = 8
    config.network.in_channels = config.network.out_channels = 32
    config.first_stage_train.steps = 8_000
    config.first_stage_train.batch_size = 4
    config.first_stage_train.learning_rate = 2e-3

    config.conditioner = ConfigDict()
    config.conditioner.kind = "none"
    config.network.model_channels = 128
    config.network.channel_mult = (1, 2)
    config.network.attention_resolutions = (1, 2)
    config.network.use_spatial_transformer = False
    with config.ignore_type():
        config.network.context_dim = None
    config.diffusion_train.steps = 20_000
    config.diffusion_train.batch_size = 32
    config.diffusion_train.learning_rate = 2e-3
    config.diffusion_train.ema_decay = 0.999

    config.sampling.guidance_scale = 1.0
    config.sampling.steps = 30
    config.log.images_every = 3000
    config.log.validation_every = 1500
    config.evaluation.prompts = 0
    config.evaluation.num = 1000
    return config
