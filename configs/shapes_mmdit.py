"""The default's data and first stage, drawn by a multimodal transformer and rectified flow (Esser et al. 2024).

    python train.py && python train.py --config=configs/shapes_mmdit.py
    python sample.py --workdir runs/shapes_mmdit --prompt "a red circle"

Text and picture have weights of their own and attend to one another, as in Stable Diffusion 3. A small one learns slower than
the default's U-Net: docs/training.md says how much.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    config.name = "shapes_mmdit"
    config.first_stage.path = "runs/shapes"
    config.stages = ("latents", "diffusion", "evaluation")
    config.network = ConfigDict()
    config.network.kind = "mmdit"
    config.network.depth = 4
    config.network.hidden_size = 128
    config.network.num_heads = 4
    config.network.context_dim = config.conditioner.n_embed
    config.network.pooled_dim = 0  # of a vector that is added to the embedding of t; conditioner.kind "text" gives none
    config.network.patch_size = 1
    config.network.input_size = 8
    config.network.in_channels = config.first_stage.embed_dim
    config.network.position_table = 0  # 0: sines, computed
    config.network.qk_norm = True
    config.network.dual_attention_layers = ()
    config.network.second_time = False
    config.diffusion.schedule = "flow"
    config.diffusion.scale = 1.0  # of a cosine, which this is not
    config.diffusion.prediction = "flow"
    config.diffusion.time_sampling = "logit_normal"
    config.diffusion_train.learning_rate = 4e-3
    config.sampling.sampler = "dpmpp_2m"
    return config
