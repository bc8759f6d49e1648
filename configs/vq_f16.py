"""First stage vq-f16: 256 x 256 x 3 -> 16 x 16 x 8, 16,384 codes. rFID 5.15, PSNR 20.83 on OpenImages validation.

    python train.py --config=configs/vq_f16.py --config.data.path=OPENIMAGES

Batch 14, learning rate 4.5e-6 x 14; published after 1,101,166 steps; PatchGAN of 2 layers, weight 0.75, from step
250,001. 69,593,371 parameters.
"""

from ml_collections import ConfigDict

from configs import vq_f8


def get_config() -> ConfigDict:
    config = vq_f8.get_config()
    config.name = "vq_f16"
    config.first_stage.ch_mult = (1, 1, 2, 2, 4)
    config.first_stage.attn_resolutions = (16,)
    config.first_stage.z_channels = 8
    config.first_stage.embed_dim = 8
    config.first_stage_loss.disc_weight = 0.75
    config.first_stage_loss.disc_start = 250_001
    config.first_stage_loss.disc_layers = 2
    config.first_stage_train.steps = 1_101_166
    config.first_stage_train.batch_size = 14
    config.first_stage_train.learning_rate = 6.3e-5
    return config
