"""A first stage for emoji at 64 px, kl-f4, with perceptual and adversarial terms, on two CPU cores.

    python train.py --config=configs/emoji_kl.py --config.data.path=EMOJI

configs/flowers_kl.py says what the terms are of; configs/emoji64.py says what EMOJI is.
"""

from ml_collections import ConfigDict

from configs import flowers_kl


def get_config() -> ConfigDict:
    config = flowers_kl.get_config()
    config.name = "emoji_kl"
    config.data.flip = False
    return config
