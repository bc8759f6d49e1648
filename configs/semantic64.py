"""Street scenes from semantic maps at 64 px, 12 classes: both stages on two CPU cores in a quarter of an hour.

    python train.py --config=configs/semantic64.py --config.data.path=CAMVID

CAMVID is a folder of images with a metadata.jsonl that has the columns `file_name` and `label_map_file_name`, PNGs of class
numbers, such as CamVid's. A few hundred pictures: crops are drawn anew at every visit.
"""

from ml_collections import ConfigDict

from configs import flowers64


def get_config() -> ConfigDict:
    config = flowers64.get_config()
    config.name = "semantic64"
    config.data.crop = "random"
    config.latents.cache = False

    config.conditioner = ConfigDict()
    config.conditioner.kind = "semantic"
    config.conditioner.in_channels = 12  # classes
    config.conditioner.n_stages = 2  # halved twice, as the first stage does
    config.conditioner.method = "bilinear"
    config.conditioner.multiplier = 0.5
    config.conditioner.out_channels = 8
    config.conditioner.bias = False
    config.conditioner.null_probability = 0.1

    config.network.in_channels = 12  # four of the latents, eight of the map
    config.network.use_spatial_transformer = False
    config.network.context_dim = None
    config.sampling.guidance_scale = 1.5
    config.evaluation.num = 0
    return config
