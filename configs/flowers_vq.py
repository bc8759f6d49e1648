"""A first stage for photos of flowers at 64 px, vq-f4 with 512 codes, with perceptual and adversarial terms.

    python train.py --config=configs/flowers_vq.py --config.data.path=FLOWERS

The codes start at the clusters of the first latents, follow moving averages, and start again where they fall out of use.
"""

from ml_collections import ConfigDict

from configs import flowers_kl


def get_config() -> ConfigDict:
    config = flowers_kl.get_config()
    config.name = "flowers_vq"
    config.first_stage.kind = "vq"
    config.first_stage.double_z = False
    config.first_stage.n_embed = 512
    config.first_stage_loss.reduction = "mean"
    config.first_stage_loss.disc_weight = 0.75
    config.first_stage_loss.codebook = "ema"
    config.first_stage_loss.codebook_kmeans = 16
    config.first_stage_loss.codebook_restart = 0.1
    return config
