"""First stage vq-f8-n256: vq-f8 with 256 codes. rFID 1.49, PSNR 22.35 on OpenImages validation.

    python train.py --config=configs/vq_f8_n256.py --config.data.path=OPENIMAGES

Published after 1,608,649 steps; PatchGAN of 3 layers, weight 0.75, from step 250,001. 67,652,783 parameters.
"""

from ml_collections import ConfigDict

from configs import vq_f8


def get_config() -> ConfigDict:
    config = vq_f8.get_config()
    config.name = "vq_f8_n256"
    config.first_stage.n_embed = 256
    config.first_stage_loss.disc_weight = 0.75
    config.first_stage_loss.disc_start = 250_001
    config.first_stage_loss.disc_layers = 3
    config.first_stage_train.steps = 1_608_649
    return config
