"""Stable Diffusion 1.x, fine-tuned on images with captions at 512.

    python train.py --config=configs/stable_diffusion_1.py --config.data.path=PICTURES --config.first_stage.path=weights/sd1/vae

Runs on one GPU of 24 GB with bfloat16 and remat at batch 4. The learning rate 1e-5 is that of fine-tuning; the model
itself was trained with 1e-4 after 10,000 steps of warm-up, at batch 2,048. Betas from 0.00085 to 0.012, latents of 64
x 64 x 4 scaled by 0.18215, eight heads at every level, CLIP ViT-L/14 frozen. 859,520,964 parameters, and 123,060,480
of CLIP.
"""

from ml_collections import ConfigDict

from configs import text_to_image


def get_config() -> ConfigDict:
    config = text_to_image.get_config()
    config.name = "stable_diffusion_1"
    config.dtype = "bfloat16"
    config.data.image_size = 512
    config.first_stage.path = "weights/stable-diffusion-v1-5/vae"
    config.network.context_dim = 768
    config.conditioner = ConfigDict()
    config.conditioner.kind = "clip_text"
    config.conditioner.vocab_size = 49408
    config.conditioner.hidden_size = 768
    config.conditioner.intermediate_size = 3072
    config.conditioner.num_hidden_layers = 12
    config.conditioner.num_attention_heads = 12
    config.conditioner.max_position_embeddings = 77
    config.conditioner.hidden_act = "quick_gelu"
    config.conditioner.layer = "last"
    config.conditioner.path = "weights/stable-diffusion-v1-5/text_encoder"  # not trained
    config.conditioner.tokenizer = "weights/stable-diffusion-v1-5/tokenizer"
    config.conditioner.null_probability = 0.1
    config.diffusion_train.steps = 15_000
    config.diffusion_train.batch_size = 4
    config.diffusion_train.learning_rate = 1e-5
    config.diffusion_train.warmup_steps = 500
    config.diffusion_train.clip_norm = 1.0
    config.sampling.steps = 50
    config.sampling.guidance_scale = 7.5
    return config
