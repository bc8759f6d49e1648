"""Infilling: sentences with holes are completed by diffusion over the latents of whole ones; on two CPU cores, after the model
of configs/sentences.py, whose first stage it shares.

    python train.py --config=configs/sentences_infill.py --config.first_stage.path=runs/sentences
    python sample.py --workdir runs/sentences_infill --infill "the ___ dog that ___ does not sleep." --infill "do the ..."
    python -m ldm_jax.evaluation --workdir runs/sentences_infill --num 1000
"""

from ml_collections import ConfigDict

from configs import sentences


def get_config() -> ConfigDict:
    config = sentences.get_config()
    config.name = "sentences_infill"
    config.first_stage.path = "runs/sentences"
    config.latents.cache = False  # what is known is drawn anew at every visit
    config.conditioner = ConfigDict()
    config.conditioner.kind = "infill"
    config.conditioner.vocab_size = config.data.vocab_size
    config.conditioner.n_embed = 64
    config.conditioner.n_layer = 2
    config.conditioner.heads = 4
    config.conditioner.dim_head = 16
    config.conditioner.null_probability = 0.1
    del config.network.num_classes
    config.network.num_classes = None
    config.network.context_dim = config.conditioner.n_embed
    config.diffusion_train.batch_size = 32
    config.diffusion_train.steps = 3000
    config.sampling.guidance_scale = 1.0
    return config
