"""First stage kl-f8: 256 x 256 x 3 -> 32 x 32 x 4, KL-regularized. rFID 0.90, PSNR 24.19 on OpenImages validation.

    python train.py --config=configs/kl_f8.py --config.data.path=OPENIMAGES

As kl-f4, with batches of 4; published after 246,803 steps. The first stage of the LSUN-Churches and the 1.45B text-
to-image models, and, trained on, of Stable Diffusion 1. 83,653,863 parameters.
"""

from ml_collections import ConfigDict

from configs import kl_f4


def get_config() -> ConfigDict:
    config = kl_f4.get_config()
    config.name = "kl_f8"
    config.first_stage.ch_mult = (1, 2, 4, 4)
    config.first_stage.z_channels = 4
    config.first_stage.embed_dim = 4
    config.first_stage_train.steps = 246_803
    config.first_stage_train.batch_size = 4
    config.first_stage_train.learning_rate = 1.8e-5
    return config
