"""A first stage for shapes at 32 px, vq-f4 with 256 codes, on two CPU cores.

    python train.py --config=configs/shapes_vq.py

No perceptual and no adversarial term: these pictures have flat colours. configs/flowers_vq.py has both.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    shapes.plain_first_stage(config)
    config.name = "shapes_vq"
    shapes.first_stage_only(config)
    config.first_stage.kind = "vq"
    config.first_stage.double_z = False
    config.first_stage.n_embed = 256
    config.first_stage_loss.reduction = "mean"
    config.first_stage_loss.codebook = "ema"
    config.first_stage_loss.codebook_kmeans = 16
    config.first_stage_loss.codebook_restart = 0.1
    return config
