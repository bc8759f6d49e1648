"""First stage vq-f4-noattn: vq-f4 without any attention. rFID 1.06, PSNR 25.21 on OpenImages validation.

    python train.py --config=configs/vq_f4_noattn.py --config.data.path=OPENIMAGES

For images of any size: the first stage of the inpainting model. Published after 658,131 steps; PatchGAN from step 11.
53,219,486 parameters.
"""

from ml_collections import ConfigDict

from configs import vq_f4


def get_config() -> ConfigDict:
    config = vq_f4.get_config()
    config.name = "vq_f4_noattn"
    config.first_stage.attn_type = "none"
    config.first_stage_loss.disc_start = 11
    config.first_stage_train.steps = 658_131
    return config
