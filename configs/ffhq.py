"""LDM-VQ-4 on FFHQ 256, unconditional. FID 4.98 (200 steps, eta 1), precision 0.73, recall 0.50.

    python train.py --config=configs/ffhq.py --config.data.path=FFHQ --config.first_stage.path=runs/vq_f4

One A100; 635,000 steps by the paper. Batch 42, learning rate 2e-6 x 42. Faces are not flipped. 274,056,163
parameters.
"""

from ml_collections import ConfigDict

from configs import celebahq


def get_config() -> ConfigDict:
    config = celebahq.get_config()
    config.name = "ffhq"
    config.diffusion_train.steps = 635_000
    config.diffusion_train.batch_size = 42
    config.diffusion_train.learning_rate = 8.4e-5
    config.sampling.sampler = "ddpm"
    return config
