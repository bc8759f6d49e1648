"""First stage kl-f4: 256 x 256 x 3 -> 64 x 64 x 3, KL-regularized. rFID 0.27, PSNR 27.53 on OpenImages validation.

    python train.py --config=configs/kl_f4.py --config.data.path=OPENIMAGES

OpenImages resized to 384, random crops of 256. Published after 176,991 steps; batch 10 on one A100, learning rate
4.5e-6 x 10. PatchGAN of 3 layers, weight 0.5, from step 50,001; LPIPS, weight 1; the KL weight 1e-6 is against a
reconstruction summed over pixels. 55,312,063 parameters.
"""

from ml_collections import ConfigDict

from configs import paper, shapes


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "kl_f4"
    shapes.first_stage_only(config)
    config.data.crop = "random"
    config.data.short_side = 384
    config.first_stage.kind = "kl"
    config.first_stage.path = ""
    config.first_stage.double_z = True
    config.first_stage.n_embed = 0
    config.first_stage_loss.reduction = "sum"
    config.first_stage_loss.disc_weight = 0.5
    config.first_stage_loss.disc_start = 50_001
    config.first_stage_train.steps = 176_991
    config.first_stage_train.batch_size = 10
    config.first_stage_train.learning_rate = 4.5e-5
    return config
