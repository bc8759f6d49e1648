"""LDM-KL-8-G, the 1.45B text-to-image model on LAION-400M (txt2img-1p4B). FID 12.63 on MS-COCO (250 DDIM, guidance 1.5).

    python train.py --config=configs/text_to_image.py --config.data.path=LAION --config.first_stage.path=runs/kl_f8

390,000 steps of batch 680 by the paper, learning rate 1e-4. Betas from 0.00085 to 0.012; latents scaled by 0.18215.
The released weights are the averaged ones. 872,300,484 parameters, and 581,994,042 of the transformer.
"""

from ml_collections import ConfigDict

from configs import kl_f8, paper


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "text_to_image"
    config.first_stage = kl_f8.get_config().first_stage
    config.first_stage.path = "runs/kl_f8"
    config.latents.scale = 0.18215
    config.network.in_channels = 4
    config.network.out_channels = 4
    config.network.model_channels = 320
    config.network.attention_resolutions = (4, 2, 1)
    config.network.channel_mult = (1, 2, 4, 4)
    config.network.num_heads = 8
    config.network.num_head_channels = -1
    config.network.use_spatial_transformer = True
    config.network.context_dim = 1280
    config.network.remat = True
    config.conditioner = paper.text(1280, 32)
    config.diffusion.linear_start = 0.00085
    config.diffusion.linear_end = 0.012
    config.diffusion_train.steps = 390_000
    config.diffusion_train.batch_size = 680
    config.diffusion_train.learning_rate = 1e-4
    config.sampling.steps = 250
    config.sampling.guidance_scale = 1.5
    return config
