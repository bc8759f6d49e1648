"""LDM-4-G on ImageNet 256, class-conditional with classifier-free guidance (cin256-v2). FID 3.60, IS 247.7.

    python train.py --config=configs/imagenet_f4.py --config.data.path=IMAGENET --config.first_stage.path=runs/vq_f4

178,000 steps of batch 1,200 by the paper, learning rate 1e-4; guidance 1.5, 250 DDIM steps. The empty class is row
1,000 of a table of 1,001. The released weights are the averaged ones. Attention has one head at every level.
400,920,579 parameters, 512,512 in the table.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "imagenet_f4"
    config.data.flip = True
    config.network.model_channels = 192
    config.network.channel_mult = (1, 2, 3, 5)
    config.network.num_heads = 1
    config.network.num_head_channels = -1
    config.network.use_spatial_transformer = True
    config.network.context_dim = 512
    config.conditioner = paper.classes(1001, 512, null_label=1000)
    config.conditioner.null_probability = 0.1
    config.diffusion_train.steps = 178_000
    config.diffusion_train.batch_size = 1200
    config.diffusion_train.learning_rate = 1e-4
    config.sampling.steps = 250
    config.sampling.guidance_scale = 1.5
    return config
