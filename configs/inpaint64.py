"""Inpainting of photos at 64 px: the diffusion model alone, on two CPU cores in five to ten minutes.

    python train.py --config=configs/flowers64.py --config.data.path=FLOWERS          # its first stage is shared
    python train.py --config=configs/inpaint64.py --config.data.path=FLOWERS

FLOWERS is any folder of photos. Holes are drawn anew at every visit: strokes, boxes, and borders for outpainting.
"""

from ml_collections import ConfigDict

from configs import superres64


def get_config() -> ConfigDict:
    config = superres64.get_config()
    config.name = "inpaint64"

    config.conditioner = ConfigDict()
    config.conditioner.kind = "inpaint"
    config.conditioner.masks = ("thin", "medium", "thick", "box", "border")
    config.conditioner.mask_area = (0.05, 0.5)  # of the picture
    config.conditioner.null_probability = 0.0

    config.network.in_channels = 9  # four of the latents, four of the masked picture's, and the mask
    config.network.num_classes = None
    return config
