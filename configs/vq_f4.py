"""First stage vq-f4: 256 x 256 x 3 -> 64 x 64 x 3, 8,192 codes. rFID 0.58, PSNR 27.43 on OpenImages validation.

    python train.py --config=configs/vq_f4.py --config.data.path=OPENIMAGES

Random crops of 256 from OpenImages, without resizing; batch 8 on one A100, learning rate 4.5e-6 x 8; published after
533,066 steps. LPIPS, weight 1; PatchGAN of 3 layers, weight 0.75, from the start. The reference's VQ training code is
broken and its README points to taming-transformers, whose codebook loss puts beta 0.25 on the codebook's term, not on
the commitment (legacy_beta). 55,322,782 parameters.
"""

from ml_collections import ConfigDict

from configs import paper, shapes


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "vq_f4"
    shapes.first_stage_only(config)
    config.data.crop = "random"
    config.data.short_side = -1
    config.first_stage.path = ""
    config.first_stage_train.steps = 533_066
    config.first_stage_train.batch_size = 8
    config.first_stage_train.learning_rate = 3.6e-5
    return config
