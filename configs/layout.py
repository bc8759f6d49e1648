"""LDM-VQ-4 on OpenImages, layout-to-image (layout2img-openimages256). FID 32.02, IS 15.92 (200 DDIM steps, eta 0).

    python train.py --config=configs/layout.py --config.data.path=OPENIMAGES --config.first_stage.path=runs/vq_f4

4.4M steps by the paper. Batch 24, learning rate 2e-6 x 24; L1 loss; betas end at 0.0205. A layout is 92 tokens: 30
objects (class, top left and bottom right corner on a grid of 90 x 90) and the crop; 8191 is none. Transformers are 3
blocks deep. 246,277,379 parameters, and 58,858,496 of the token transformer.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "layout"
    config.data.crop = "random"
    config.network.model_channels = 128
    config.network.use_spatial_transformer = True
    config.network.transformer_depth = 3
    config.network.context_dim = 512
    config.conditioner = ConfigDict()
    config.conditioner.kind = "layout"
    config.conditioner.n_embed = 512
    config.conditioner.n_layer = 16
    config.conditioner.max_seq_len = 92
    config.conditioner.vocab_size = 8192
    config.conditioner.null_probability = 0.0
    config.diffusion.linear_end = 0.0205
    config.diffusion.loss = "l1"
    config.diffusion_train.steps = 4_400_000
    config.diffusion_train.batch_size = 24
    config.diffusion_train.learning_rate = 4.8e-5
    return config
