"""LDM-KL-8 on LSUN-Churches 256, unconditional. FID 4.02 (400 DDIM steps, eta 0), precision 0.64, recall 0.52.

    python train.py --config=configs/lsun_churches.py --config.data.path=LSUN/churches --config.first_stage.path=runs/kl_f8

One A100; 500,000 steps by the paper. Batch 96; the learning rate 5e-5 is not scaled by it (--scale_lr False), after
10,000 steps of warm-up. L1 loss, betas end at 0.0155. The reference's "400 steps" are 500. 294,966,916 parameters.
"""

from ml_collections import ConfigDict

from configs import kl_f8, paper


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "lsun_churches"
    config.data.flip = True
    config.first_stage = kl_f8.get_config().first_stage
    config.first_stage.path = "runs/kl_f8"
    config.latents.scale = 0.0
    config.network.in_channels = 4
    config.network.out_channels = 4
    config.network.model_channels = 192
    config.network.attention_resolutions = (1, 2, 4, 8)
    config.network.channel_mult = (1, 2, 2, 4, 4)
    config.network.num_heads = 8
    config.network.num_head_channels = -1
    config.network.use_scale_shift_norm = True
    config.network.resblock_updown = True
    config.diffusion.linear_end = 0.0155
    config.diffusion.loss = "l1"
    config.diffusion_train.steps = 500_000
    config.diffusion_train.batch_size = 96
    config.diffusion_train.learning_rate = 5e-5
    config.diffusion_train.warmup_steps = 10_000
    config.sampling.steps = 500
    return config
