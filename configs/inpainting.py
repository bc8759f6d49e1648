"""LDM-4 (big), inpainting on Places (inpainting_big). FID 1.50 after fine-tuning at 512 (paper, table 7).

    python train.py --config=configs/inpainting.py --config.data.path=PLACES --config.first_stage.path=runs/vq_f4_noattn

8 V100s; 360,000 steps of batch 128 by the paper, learning rate 1e-6. L1 loss; betas end at 0.0205. The condition is
the masked image's latents (3) and the mask at the latents' size (1): 7 channels in. The mask shrinks by taking the
top left pixel, in [-1, 1]; holes are cut in [0, 1], so they are -1. The released configuration scales its rate by a
warm-up over 1,000 steps to 0.1 and a cosine over 50,000 to 0.0001. 387,245,827 parameters.
"""

from ml_collections import ConfigDict

from configs import paper, vq_f4_noattn


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "inpainting"
    config.data.crop = "random"
    config.first_stage = vq_f4_noattn.get_config().first_stage
    config.first_stage.path = "runs/vq_f4_noattn"
    config.network.in_channels = 7
    config.network.model_channels = 256
    config.network.num_heads = 8
    config.network.num_head_channels = -1
    config.network.resblock_updown = True
    config.conditioner.kind = "inpaint"
    config.conditioner.masks = ("thin", "medium", "thick", "box", "border")
    config.conditioner.mask_area = (0.05, 0.5)
    config.diffusion.linear_end = 0.0205
    config.diffusion.loss = "l1"
    config.diffusion_train.steps = 360_000
    config.diffusion_train.batch_size = 128
    config.diffusion_train.learning_rate = 1e-6
    config.diffusion_train.warmup_steps = 1000
    config.diffusion_train.decay = "cosine"
    config.sampling.steps = 50
    return config
