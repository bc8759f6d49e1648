"""First stage vq-f8: 256 x 256 x 3 -> 32 x 32 x 4, 16,384 codes. rFID 1.14, PSNR 23.07 on OpenImages validation.

    python train.py --config=configs/vq_f8.py --config.data.path=OPENIMAGES

OpenImages resized to 384, random crops of 256; batch 10, learning rate 4.5e-6 x 10; published after 971,043 steps;
PatchGAN of 2 layers, weight 0.6, from step 1. The first stage of the class-conditional ImageNet model LDM-8.
67,717,295 parameters.
"""

from ml_collections import ConfigDict

from configs import vq_f4


def get_config() -> ConfigDict:
    config = vq_f4.get_config()
    config.name = "vq_f8"
    config.data.short_side = 384
    config.first_stage.ch_mult = (1, 2, 2, 4)
    config.first_stage.attn_resolutions = (32,)
    config.first_stage.z_channels = 4
    config.first_stage.embed_dim = 4
    config.first_stage.n_embed = 16384
    config.first_stage_loss.disc_weight = 0.6
    config.first_stage_loss.disc_start = 1
    config.first_stage_loss.disc_layers = 2
    config.first_stage_train.steps = 971_043
    config.first_stage_train.batch_size = 10
    config.first_stage_train.learning_rate = 4.5e-5
    return config
