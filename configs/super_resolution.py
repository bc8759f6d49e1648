"""LDM-BSR: four-fold super-resolution of ImageNet crops by concatenation (bsr_sr). No score is published for this model.

    python train.py --config=configs/super_resolution.py --config.data.path=IMAGENET --config.first_stage.path=runs/vq_f4

860,000 steps by the paper. Batch 64, learning rate 1e-6 x 64; betas end at 0.0155. The condition is the degraded
image of 64 x 64 pixels itself, beside the latents: 6 channels in, 3 out. Attention only at a down-sampling of 8 and
in the middle. The paper's own super-resolution model is larger (169M); this is the released one. 113,622,563
parameters.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "super_resolution"
    config.data.crop = "random"
    config.network.in_channels = 6
    config.network.model_channels = 160
    config.network.attention_resolutions = (16, 8)
    config.network.channel_mult = (1, 2, 2, 4)
    config.conditioner.kind = "superres"
    config.conditioner.scale = 4
    config.conditioner.degradation = "bsrgan_light"
    config.conditioner.noise_levels = 0
    config.diffusion.linear_end = 0.0155
    config.diffusion_train.steps = 860_000
    config.diffusion_train.batch_size = 64
    config.diffusion_train.learning_rate = 6.4e-5
    config.sampling.steps = 100
    return config
