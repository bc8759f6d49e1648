"""Fashion-MNIST through TensorFlow Datasets, class-conditional, on two CPU cores.

    pip install -e ".[tfds]"                                            # once, to prepare the data; not to train
    python -m ldm_jax.data.tfds_source fashion_mnist DATA [ARCHIVES]    # ARCHIVES: the four .gz files, if you have them
    python train.py --config=configs/fashion_mnist.py --config.data.path=DATA

The grey 28 x 28 pictures are enlarged to 32 x 32, in three equal channels.
"""

from ml_collections import ConfigDict

from configs import flowers64, shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    shapes.plain_first_stage(config)
    config.name = "fashion_mnist"
    config.data.source = "tfds"
    config.data.name = "fashion_mnist"
    config.data.validation_split = "test"
    config.data.flip = False
    config.conditioner = flowers64.get_config().conditioner
    config.conditioner.n_classes = 11  # ten, and the empty one
    config.network.context_dim = config.conditioner.embed_dim
    config.sampling.guidance_scale = 2.0

    config.evaluation.num = 500
    return config
