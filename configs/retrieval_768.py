"""Retrieval-augmented diffusion at 768 (rdm768x768): CLIP vectors of neighbours, or of a text, as cross-attention
tokens.

    python -m ldm_jax.retrieval build --data LAION --embedder CLIP --index scann --out DATABASE
    python train.py --config=configs/retrieval_768.py --config.data.path=LAION --config.first_stage.path=runs/kl_f16 \
        --config.conditioner.database=DATABASE

Learning rate 1e-4 (batch and steps are not published); betas end at 0.015; latents of 48 x 48 x 16 scaled by
0.22765929. Up to 20 tokens of width 768, CLIP ViT-L/14 image or text vectors, texts normalized. 1,335,480,400
parameters.
"""

from ml_collections import ConfigDict

from configs import kl_f16, paper


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "retrieval_768"
    config.data.image_size = 768
    config.first_stage = kl_f16.get_config().first_stage
    config.first_stage.path = "runs/kl_f16"
    config.latents.scale = 0.22765929
    config.network.in_channels = 16
    config.network.out_channels = 16
    config.network.model_channels = 448
    config.network.attention_resolutions = (4, 2, 1)
    config.network.use_spatial_transformer = True
    config.network.context_dim = 768
    config.network.remat = True
    config.conditioner.kind = "retrieval"
    config.conditioner.neighbours = 20
    config.conditioner.database = ""  # a folder that python -m ldm_jax.retrieval build made
    config.conditioner.null_probability = 0.1
    config.diffusion.linear_end = 0.015
    config.diffusion_train.steps = 500_000
    config.diffusion_train.batch_size = 256
    config.diffusion_train.learning_rate = 1e-4
    config.sampling.steps = 100
    config.sampling.guidance_scale = 5.0
    return config
