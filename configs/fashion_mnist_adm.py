"""Fashion-MNIST with the class added to the embedding of the time, as Dhariwal & Nichol (2021) tell it, instead of attended to.

    python train.py --config=configs/fashion_mnist.py --config.data.path=DATA           # its first stage is shared
    python train.py --config=configs/fashion_mnist_adm.py --config.data.path=DATA

The diffusion model alone, on two CPU cores in six minutes.
"""

from ml_collections import ConfigDict

from configs import fashion_mnist


def get_config() -> ConfigDict:
    config = fashion_mnist.get_config()
    config.name = "fashion_mnist_adm"
    config.stages = ("latents", "diffusion", "evaluation")
    config.first_stage.path = "runs/fashion_mnist"

    config.conditioner = ConfigDict()
    config.conditioner.kind = "label"
    config.conditioner.n_classes = 10
    config.conditioner.null_probability = 0.1

    config.network.num_classes = 11  # ten, and the empty one
    config.network.use_spatial_transformer = False
    config.network.context_dim = None
    return config
