"""Retrieval-augmented drawing of shapes, at 32 px: conditioned on vectors of a picture's four nearest others. The diffusion
model alone, on two CPU cores in five to twelve minutes; two minutes before that make the embedding and the data base.

    python train.py                                     # configs/shapes.py; its first stage is shared
    python -m ldm_jax.probes train --kind contrastive --data runs/shapes --steps 500 --out runs/shapes_words
    python -m ldm_jax.retrieval build --data runs/shapes --embedder runs/shapes_words --out runs/shapes_neighbours
    python train.py --config=configs/retrieval_small.py
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    config.name = "retrieval_small"
    config.stages = ("latents", "diffusion", "evaluation")
    config.first_stage.path = "runs/shapes"

    config.conditioner = ConfigDict()
    config.conditioner.kind = "retrieval"
    config.conditioner.neighbours = 4
    config.conditioner.database = "runs/shapes_neighbours"
    config.conditioner.null_probability = 0.1

    config.network.context_dim = 64  # the length of the vectors
    config.sampling.guidance_scale = 2.0
    return config
