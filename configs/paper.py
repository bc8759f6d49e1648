"""What the experiments of the paper share; every other config of the paper starts from here.

Rombach, Blattmann, Lorenz, Esser, Ommer: High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022,
with the configurations of CompVis/latent-diffusion. Traps of those configurations, resolved here:

- Learning rates there are per image: the effective one is base_learning_rate x batch x GPUs x accumulated batches. The
  configs state the effective one, for the batch size beside it.
- Their beta_schedule "linear" is linear in the square root of beta: "scaled_linear" here.
- `attention_resolutions` of a U-Net are down-sampling factors; `attn_resolutions` of a first stage are resolutions.
- First stages have attention in the middle even where attn_resolutions is empty; attn_type "none" removes it.
- VQ models diffuse the latents before quantization, unscaled (scale 1); decoding quantizes.
- KL latents are drawn from the posterior, not its mode. Where the reference takes the scale from its first batch, it is
  estimated over many here (latents.scale 0).
- DDIM with S steps there runs 1000 / floor(1000 / S) steps: 500 for 400.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    config.name = "paper"
    config.stages = ("latents", "diffusion")
    config.dtype = "bfloat16"  # parameters, losses and norms' statistics stay float32

    config.data.source = "folder"
    config.data.path = ""
    config.data.image_size = 256
    config.data.in_memory = False
    config.data.workers = 8

    config.first_stage = first_stage()
    config.first_stage_loss.perceptual_weight = 1.0
    config.first_stage_loss.perceptual_path = "weights/vgg16-397923af.pth"
    config.first_stage_loss.perceptual_linear_path = "weights/vgg.pth"
    config.first_stage_loss.kl_weight = 1e-6
    config.first_stage_loss.reduction = "mean"
    config.first_stage_loss.disc_weight = 0.75
    config.first_stage_loss.legacy_beta = True
    config.first_stage_loss.disc_learning_rate = 0.0
    config.first_stage_train.steps = 500_000
    config.first_stage_train.optimizer = "adamw"
    config.first_stage_train.warmup_steps = 0
    config.first_stage_train.decay = "constant"
    config.first_stage_train.b1 = 0.5
    config.first_stage_train.b2 = 0.9
    config.first_stage_train.clip_norm = 0.0

    config.latents.scale = 1.0
    config.latents.standardise = False
    config.latents.cache = False

    config.network = unet()
    config.conditioner = unconditional()

    config.diffusion.schedule = "scaled_linear"
    config.diffusion.linear_start = 0.0015
    config.diffusion.linear_end = 0.0195
    config.diffusion.timesteps = 1000
    config.diffusion.prediction = "eps"

    config.diffusion_train.optimizer = "adamw"
    config.diffusion_train.warmup_steps = 0
    config.diffusion_train.decay = "constant"
    config.diffusion_train.b2 = 0.999
    config.diffusion_train.clip_norm = 0.0
    config.diffusion_train.ema_decay = 0.9999

    config.sampling.sampler = "ddim"  # "ddpm" is DDIM with eta 1
    config.sampling.steps = 200
    config.sampling.grid = "leading"
    config.sampling.guidance_scale = 1.0

    config.log.every = 100
    config.log.images_every = 5000
    config.log.validation_every = 5000
    config.log.validation_images = 1024
    config.checkpoint.every = 5000
    return config


def first_stage() -> ConfigDict:
    """vq-f4, which most of the paper's models use; a path to trained weights goes into `path`."""
    stage = ConfigDict()
    stage.kind = "vq"
    stage.path = "runs/vq_f4"  # the workdir of configs/vq_f4.py, or a checkpoint
    stage.in_channels = 3
    stage.out_ch = 3
    stage.resolution = 256
    stage.ch = 128
    stage.ch_mult = (1, 2, 4)
    stage.num_res_blocks = 2
    stage.attn_resolutions = ()
    stage.attn_type = "vanilla"
    stage.z_channels = 3
    stage.double_z = False
    stage.embed_dim = 3
    stage.n_embed = 8192
    stage.dropout = 0.0
    return stage


def unet() -> ConfigDict:
    """The U-Net of the unconditional face models: attention without a transformer, in three of four levels."""
    network = ConfigDict()
    network.kind = "unet"
    network.in_channels = 3
    network.out_channels = 3
    network.model_channels = 224
    network.num_res_blocks = 2
    network.attention_resolutions = (8, 4, 2)
    network.channel_mult = (1, 2, 3, 4)
    network.num_heads = -1
    network.num_head_channels = 32
    network.use_spatial_transformer = False
    network.transformer_depth = 1
    network.context_dim = None
    network.use_scale_shift_norm = False
    network.resblock_updown = False
    network.dropout = 0.0
    network.second_time = False
    network.guidance_dim = 0
    return network


def unconditional() -> ConfigDict:
    conditioner = ConfigDict()
    conditioner.kind = "none"
    conditioner.null_probability = 0.0
    return conditioner


def classes(n_classes: int, embed_dim: int, null_label: int) -> ConfigDict:
    """A table of classes; `null_label` is the row that stands for no class, -1 if there is none."""
    conditioner = ConfigDict()
    conditioner.kind = "class"
    conditioner.n_classes = n_classes
    conditioner.embed_dim = embed_dim
    conditioner.null_label = null_label
    conditioner.null_probability = 0.0
    return conditioner


def text(n_embed: int, n_layer: int) -> ConfigDict:
    """The paper's transformer over BERT's word pieces, trained with the U-Net."""
    conditioner = ConfigDict()
    conditioner.kind = "text"
    conditioner.n_embed = n_embed
    conditioner.n_layer = n_layer
    conditioner.max_seq_len = 77
    conditioner.vocab_size = 30522
    conditioner.tokenizer = "weights/bert-base-uncased/tokenizer.json"
    conditioner.null_probability = 0.1
    return conditioner
