"""Four-fold super-resolution of photos, 16 to 64 pixels: the diffusion model alone, on two CPU cores in five to ten minutes.

    python train.py --config=configs/flowers64.py --config.data.path=FLOWERS          # its first stage is shared
    python train.py --config=configs/superres64.py --config.data.path=FLOWERS

FLOWERS is any folder of photos. The low-resolution picture is shrunk bicubically, gets noise of a drawn level, and lies beside
the latents; the network is told the level. degradation "bsrgan_light" is for pictures as they come from the world; at 16 pixels
little is left after it.
"""

from ml_collections import ConfigDict

from configs import flowers64


def get_config() -> ConfigDict:
    config = flowers64.get_config()
    config.name = "superres64"
    config.stages = ("latents", "diffusion", "evaluation")
    config.first_stage.path = "runs/flowers64"
    config.latents.cache = False

    config.conditioner = ConfigDict()
    config.conditioner.kind = "superres"
    config.conditioner.scale = 4
    config.conditioner.degradation = "bicubic"  # "bicubic" | "bsrgan_light"
    config.conditioner.noise_levels = 100  # of 1000; 0: no noise is added
    config.conditioner.null_probability = 0.0

    config.network.in_channels = 7  # four of the latents, three of the picture
    config.network.num_classes = config.conditioner.noise_levels
    config.network.use_spatial_transformer = False
    config.network.context_dim = None
    config.sampling.guidance_scale = 1.0
    config.evaluation.num = 0
    return config
