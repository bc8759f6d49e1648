"""First stage kl-f32: 256 x 256 x 3 -> 8 x 8 x 64, KL-regularized. rFID 2.04, PSNR 22.27 on OpenImages validation.

    python train.py --config=configs/kl_f32.py --config.data.path=OPENIMAGES

As kl-f16, with attention at 8 x 8 too; published after 406,763 steps. 103,880,131 parameters.
"""

from ml_collections import ConfigDict

from configs import kl_f16


def get_config() -> ConfigDict:
    config = kl_f16.get_config()
    config.name = "kl_f32"
    config.first_stage.ch_mult = (1, 1, 2, 2, 4, 4)
    config.first_stage.attn_resolutions = (16, 8)
    config.first_stage.z_channels = 64
    config.first_stage.embed_dim = 64
    config.first_stage_train.steps = 406_763
    return config
