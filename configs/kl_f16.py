"""First stage kl-f16: 256 x 256 x 3 -> 16 x 16 x 16, KL-regularized. rFID 0.87, PSNR 24.08 on OpenImages validation.

    python train.py --config=configs/kl_f16.py --config.data.path=OPENIMAGES

As kl-f4, with attention at 16 x 16 and batches of 6; published after 442,998 steps. Used by retrieval-augmented
diffusion at 768 x 768. Diffusers' converter drops the attention at 16 x 16. 69,610,963 parameters.
"""

from ml_collections import ConfigDict

from configs import kl_f4


def get_config() -> ConfigDict:
    config = kl_f4.get_config()
    config.name = "kl_f16"
    config.first_stage.ch_mult = (1, 1, 2, 2, 4)
    config.first_stage.attn_resolutions = (16,)
    config.first_stage.z_channels = 16
    config.first_stage.embed_dim = 16
    config.first_stage_train.steps = 442_998
    config.first_stage_train.batch_size = 6
    config.first_stage_train.learning_rate = 2.7e-5
    return config
