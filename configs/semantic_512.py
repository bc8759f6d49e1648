"""Semantic synthesis at 512, fine-tuned from semantic_256 (semantic_synthesis512); it works on larger maps
convolutionally.

    python train.py --config=configs/semantic_512.py --config.data.path=LANDSCAPES --config.first_stage.path=runs/vq_f4

Batch 8, learning rate 1e-6 x 8 (its number of steps is not published), latents of 128 x 128. 215,229,315 parameters.
"""

from ml_collections import ConfigDict

from configs import semantic_256


def get_config() -> ConfigDict:
    config = semantic_256.get_config()
    config.name = "semantic_512"
    config.data.image_size = 512
    config.diffusion_train.steps = 100_000
    config.diffusion_train.batch_size = 8
    config.diffusion_train.learning_rate = 8e-6
    return config
