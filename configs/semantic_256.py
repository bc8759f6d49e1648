"""LDM-VQ-4 on Flickr landscapes, semantic synthesis at 256 (semantic_synthesis256). No score is published.

    python train.py --config=configs/semantic_256.py --config.data.path=LANDSCAPES --config.first_stage.path=runs/vq_f4

360,000 steps of batch 48 by the paper, learning rate 1e-6 x 48; L1 loss; betas end at 0.0205. A one-hot map of 182
classes is halved twice (bilinear, not antialiased), mapped to 3 channels and concatenated: 6 in. The listed attention
factors (32, 16, 8) are never reached: only the middle attends. 215,229,315 parameters, and 546 of the map's rescaler.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "semantic_256"
    config.data.crop = "random"
    config.network.in_channels = 6
    config.network.model_channels = 128
    config.network.attention_resolutions = (32, 16, 8)
    config.network.channel_mult = (1, 4, 8)
    config.network.num_heads = 8
    config.network.num_head_channels = -1
    config.conditioner = ConfigDict()
    config.conditioner.kind = "semantic"
    config.conditioner.n_stages = 2
    config.conditioner.method = "bilinear"
    config.conditioner.multiplier = 0.5
    config.conditioner.in_channels = 182
    config.conditioner.out_channels = 3
    config.conditioner.bias = False
    config.conditioner.null_probability = 0.0
    config.diffusion.linear_end = 0.0205
    config.diffusion.loss = "l1"
    config.diffusion_train.steps = 360_000
    config.diffusion_train.batch_size = 48
    config.diffusion_train.learning_rate = 4.8e-5
    return config
