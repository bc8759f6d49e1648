"""Latent diffusion for language: sentences of a small grammar by their kind (statement, denial, question, command), both stages
on two CPU cores.

    python train.py --config=configs/sentences.py
    python sample.py --workdir runs/sentences --label question --num 8
    python -m ldm_jax.evaluation --workdir runs/sentences --num 1000

An autoencoder of sequences turns 16 tokens into 16 latents of 8 numbers; a diffusion transformer draws those. docs/text.md says
what to expect, and how to train on text files of your own.
"""

from ml_collections import ConfigDict

from configs import shapes


def get_config() -> ConfigDict:
    config = shapes.get_config()
    shapes.as_published(config)
    config.name = "sentences"
    config.data.medium = "text"
    config.data.source = "sentences"  # or "folder", of .txt and .jsonl files
    config.data.image_size = 16  # tokens of a sentence, with its begin and its end
    config.data.examples = (50_000, 4_000)
    config.data.tokenizer = "words"  # "words" | "wordpiece", learnt of the training set | path of a tokenizer.json
    config.data.vocab_size = 160  # at most
    config.data.too_long = "raise"  # texts of more tokens: "raise" | "cut" (and say how many)

    config.first_stage = ConfigDict()
    config.first_stage.kind = "text"
    config.first_stage.path = ""  # as in shapes.py
    config.first_stage.latents = 16  # tokens of a latent; divides the tokens of a sentence
    config.first_stage.embed_dim = 8  # numbers of each
    config.first_stage.width = 64  # of encoder and decoder inside
    config.first_stage.depth = 1  # blocks of the encoder, and of both halves of the decoder
    config.first_stage.resampler_depth = 1  # blocks in which the latents look at the tokens
    config.first_stage.heads = 4
    config.first_stage.dropout = 0.0  # of the encoder's input
    config.first_stage_loss = ConfigDict()
    config.first_stage_loss.kl_weight = 0.001  # of the divergence from N(0, 1), in nats a sentence, as the likelihood is
    config.first_stage_train.steps = 1500
    config.first_stage_train.batch_size = 32
    config.first_stage_train.optimizer = "adamw"
    config.first_stage_train.learning_rate = 3e-3
    config.first_stage_train.warmup_steps = 50
    config.first_stage_train.best = "validation/token_accuracy"

    config.network = ConfigDict()
    config.network.kind = "dit"
    config.network.dims = 1
    config.network.depth = 4
    config.network.hidden_size = 128
    config.network.num_heads = 4
    config.network.patch_size = 1
    config.network.input_size = config.first_stage.latents
    config.network.in_channels = config.first_stage.embed_dim
    config.network.num_classes = 4
    config.network.learn_sigma = False
    config.network.second_time = False
    config.conditioner = ConfigDict()
    config.conditioner.kind = "label"
    config.conditioner.n_classes = 4
    config.conditioner.null_probability = 0.1
    config.diffusion_train.steps = 4000
    config.diffusion_train.batch_size = 64
    config.diffusion_train.learning_rate = 4e-3
    config.diffusion_train.ema_decay = 0.995
    config.sampling.sampler = "dpmpp_2s_ancestral"  # fresh noise on the way repairs words; the default's has half as many right
    config.sampling.steps = 25
    config.sampling.guidance_scale = 2.0
    config.evaluation.prompts = 0
    config.evaluation.num = 1000  # sentences that are drawn and measured after training
    config.evaluation.batch_size = 64
    config.log.images_every = 2000
    config.log.validation_every = 1000
    config.checkpoint.every = 500
    return config
