"""LDM-VQ-8 on ImageNet 256, class-conditional (cin256). FID 15.82, IS 78.82 (200 steps, eta 1, no guidance).

    python train.py --config=configs/imagenet_f8.py --config.data.path=IMAGENET --config.first_stage.path=runs/vq_f8

One A100; 2M steps by the paper. Batch 64, learning rate 1e-6 x 64. A class is one token of cross-attention from a
table of 1,000 without an empty class, so there is no classifier-free guidance; 7.77 is with a classifier's. Heads are
32 wide (8, 16 and 32 of them), which diffusers' converter gets wrong. 394,984,196 parameters, 512,000 in the table.
"""

from ml_collections import ConfigDict

from configs import paper, vq_f8


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "imagenet_f8"
    config.data.flip = True
    config.first_stage = vq_f8.get_config().first_stage
    config.first_stage.path = "runs/vq_f8"
    config.network.in_channels = 4
    config.network.out_channels = 4
    config.network.model_channels = 256
    config.network.attention_resolutions = (4, 2, 1)
    config.network.channel_mult = (1, 2, 4)
    config.network.use_spatial_transformer = True
    config.network.context_dim = 512
    config.conditioner = paper.classes(1000, 512, null_label=-1)
    config.diffusion_train.steps = 2_000_000
    config.diffusion_train.batch_size = 64
    config.diffusion_train.learning_rate = 6.4e-5
    config.sampling.sampler = "ddpm"
    return config
