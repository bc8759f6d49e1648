"""First stage kl-f16 on ImageNet (the reference's autoencoder_kl_16x16x16.yaml): the same model and loss, other data.

    python train.py --config=configs/kl_f16_imagenet.py --config.data.path=IMAGENET

Random crops of 256 from images resized by nearest-neighbour degradation; batch 12, gradients accumulated over 2, so
24 here, learning rate 4.5e-6 x 24. No score is published.
"""

from ml_collections import ConfigDict

from configs import kl_f16


def get_config() -> ConfigDict:
    config = kl_f16.get_config()
    config.name = "kl_f16_imagenet"
    config.first_stage_train.batch_size = 24
    config.first_stage_train.learning_rate = 1.08e-4
    return config
