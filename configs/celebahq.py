"""LDM-VQ-4 on CelebA-HQ 256, unconditional. FID 5.11 (200 DDIM steps, eta 0), precision 0.72, recall 0.49.

    python train.py --config=configs/celebahq.py --config.data.path=CELEBAHQ --config.first_stage.path=runs/vq_f4

One A100; 410,000 steps by the paper. Batch 48, learning rate 2e-6 x 48. Faces are not flipped. 274,056,163
parameters.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "celebahq"
    config.diffusion_train.steps = 410_000
    config.diffusion_train.batch_size = 48
    config.diffusion_train.learning_rate = 9.6e-5
    return config
