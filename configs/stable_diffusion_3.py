"""Stable Diffusion 3 medium, fine-tuned by LoRA on images with captions at 1024 (Esser et al. 2024).

    python train.py --config=configs/stable_diffusion_3.py --config.data.path=PICTURES

A transformer of 24 blocks and 1,536 numbers a token (2,028,328,000 parameters, and a table of 192 x 192 positions, which isn't
learnt), latents of 128 x 128 x 16; two CLIP towers and T5's encoder, all frozen. Rectified flow, its times drawn by a logistic
normal and shifted by 3. For 3.5 medium: depth 24, `qk_norm`, `dual_attention_layers` 0 to 12, a table of 384; for 3.5 large:
depth 38, hidden_size 2,432, 38 heads, `qk_norm`. T5 alone has 4.8 billion parameters: without it, leave `text_encoder_3` and
its tokenizer out.
"""

from ml_collections import ConfigDict

from configs import kl_f8, paper

FOLDER = "weights/stable-diffusion-3-medium-diffusers"
CLIP = {"vocab_size": 49408, "max_position_embeddings": 77}


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.name = "stable_diffusion_3"
    config.dtype = "bfloat16"
    config.data.image_size = 1024
    config.first_stage = kl_f8.get_config().first_stage
    config.first_stage.path = f"{FOLDER}/vae"
    config.first_stage.resolution = 1024
    config.first_stage.z_channels = config.first_stage.embed_dim = 16
    config.first_stage.use_quant_conv = False
    config.first_stage.use_post_quant_conv = False
    config.latents.scale = 1.5305
    config.latents.shift = 0.0609
    config.network = ConfigDict()
    config.network.kind = "mmdit"
    config.network.depth = 24
    config.network.hidden_size = 1536
    config.network.num_heads = 24
    config.network.context_dim = 4096
    config.network.pooled_dim = 2048
    config.network.patch_size = 2
    config.network.input_size = 128
    config.network.in_channels = 16
    config.network.position_table = 192
    config.network.qk_norm = False
    config.network.dual_attention_layers = ()
    config.network.second_time = False
    config.network.remat = "blocks"
    config.conditioner = ConfigDict()
    config.conditioner.kind = "sd3"
    config.conditioner.towers = ConfigDict()
    config.conditioner.towers.text_encoder = CLIP | {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "hidden_act": "quick_gelu", "projection_dim": 768, "eos_token_id": 2,
    }  # fmt: skip
    config.conditioner.towers.text_encoder_2 = CLIP | {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "hidden_act": "gelu", "projection_dim": 1280, "eos_token_id": 2,
    }  # fmt: skip
    config.conditioner.towers.text_encoder_3 = {
        "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
    }  # fmt: skip
    config.conditioner.max_sequence_length = 256
    config.conditioner.path = FOLDER
    config.conditioner.tokenizer = (f"{FOLDER}/tokenizer", f"{FOLDER}/tokenizer_2", f"{FOLDER}/tokenizer_3")
    config.conditioner.null_probability = 0.1
    for name in ("linear_start", "linear_end", "timesteps"):  # of a table of betas
        del config.diffusion[name]
    config.diffusion.schedule = "flow"
    config.diffusion.shift = 3.0
    config.diffusion.prediction = "flow"
    config.diffusion.time_sampling = "logit_normal"
    config.diffusion_train.start_from = FOLDER
    config.diffusion_train.lora.rank = 16
    config.diffusion_train.lora.targets = ("qkv", "proj")
    config.diffusion_train.steps = 2_000
    config.diffusion_train.batch_size = 4
    config.diffusion_train.learning_rate = 1e-4
    config.diffusion_train.warmup_steps = 100
    config.diffusion_train.ema_decay = 0.0
    config.sampling.sampler = "euler"
    config.sampling.grid = "linspace"
    config.sampling.steps = 28
    config.sampling.guidance_scale = 7.0
    return config
