"""A first stage for photos of flowers at 64 px, kl-f4, with perceptual and adversarial terms, on two CPU cores.

    python train.py --config=configs/flowers_kl.py --config.data.path=FLOWERS

The perceptual features are those of an untrained network ("random"), because no weights come with this library; with
VGG16's and LPIPS's files set first_stage_loss.perceptual_path, perceptual_linear_path, perceptual_widths and a weight of 1.
Without the adversarial term: --config.first_stage_loss.disc_weight=0.0.
"""

from ml_collections import ConfigDict

from configs import flowers64, shapes


def get_config() -> ConfigDict:
    config = flowers64.get_config()
    config.name = "flowers_kl"
    shapes.first_stage_only(config)
    config.first_stage_train.steps = 2000
    config.first_stage_loss.perceptual_weight = 0.1
    config.first_stage_loss.perceptual_path = "random"
    config.first_stage_loss.perceptual_widths = (8, 16, 32, 32, 32)
    config.first_stage_loss.disc_weight = 0.5
    config.first_stage_loss.disc_start = 800
    config.first_stage_loss.disc_ndf = 16
    config.first_stage_loss.disc_layers = 2
    config.first_stage_loss.disc_learning_rate = 5e-4
    config.first_stage_train.batch_size = 4
    config.log.validation_every = 500
    return config
