"""LDM-VQ-4 on Conceptual Captions, text-to-image (text2img256). FID 16.79, IS 13.89 (100 DDIM steps, eta 0).

    python train.py --config=configs/conceptual_captions.py --config.data.path=CC --config.first_stage.path=runs/vq_f4

Batch 28 (its number of steps is not published; 390,000 is the LAION model's), learning rate 2e-6 x 28. Captions are
77 word pieces of bert-base-uncased, padded and unmasked, through a transformer of 32 layers trained along.
403,623,939 parameters, and 186,154,682 of the transformer.
"""

from ml_collections import ConfigDict

from configs import imagenet_f4, paper


def get_config() -> ConfigDict:
    config = imagenet_f4.get_config()
    config.name = "conceptual_captions"
    config.data.flip = False
    config.network.num_heads = -1
    config.network.num_head_channels = 32
    config.network.context_dim = 640
    config.conditioner = paper.text(640, 32)
    config.conditioner.null_probability = 0.0
    config.diffusion_train.steps = 390_000
    config.diffusion_train.batch_size = 28
    config.diffusion_train.learning_rate = 5.6e-5
    config.sampling.steps = 100
    config.sampling.guidance_scale = 1.0
    return config
