"""Pictures in words: captions of `shapes` drawn for a picture, both stages on two CPU cores. The reverse of configs/shapes.py.

    python train.py --config=captions
    python sample.py --workdir runs/captions --describe PHOTO.png --num 4
    python -m ldm_jax.evaluation --workdir runs/captions --num 1000

The autoencoder and the diffusion transformer are those of configs/sentences.py; the transformer looks at the picture's patches
by cross-attention. Pictures of a folder, with their captions: --config.data.source=pictures --config.data.path=FOLDER.
"""

from ml_collections import ConfigDict

from configs import sentences, shapes


def get_config() -> ConfigDict:
    config = sentences.get_config()
    config.name = "captions"
    config.data.source = "shapes"  # or "pictures": a folder of them with captions
    config.data.image_size = 24  # tokens of a caption, with its begin and its end
    config.data.examples = shapes.get_config().data.examples
    config.data.counts = (0.6, 0.4, 0.0)
    config.data.spread = 1.0
    config.data.too_long = "cut"
    config.first_stage.latents = 24
    config.first_stage_train.steps = 700
    config.latents.posterior = "mode"  # places after the end, of which the autoencoder knows nothing, would be noise
    config.network.input_size = config.first_stage.latents
    del config.network.num_classes
    config.network.num_classes = None
    config.network.context_dim = 64
    config.conditioner = ConfigDict()
    config.conditioner.kind = "picture"
    config.conditioner.image_size = 32  # the side of the pictures that are looked at
    config.conditioner.stem = "convolutions"  # how a patch becomes a token | "patches": by one linear map
    config.conditioner.patch_size = 8  # a token of the context for each square of so many pixels
    config.conditioner.n_embed = 64
    config.conditioner.n_layer = 2
    config.conditioner.heads = 4
    config.conditioner.dim_head = 16
    config.conditioner.null_probability = 0.1
    config.diffusion.scale = 0.5  # of the cosine, twice the noise: with little of it words can be read off
    config.diffusion_train.batch_size = 32
    config.diffusion_train.steps = 3000
    return config
