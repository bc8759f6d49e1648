"""Emoji at 64 px from their captions, text-conditional: a first stage and a diffusion model on two CPU cores.

    python train.py --config=configs/emoji64.py --config.data.path=EMOJI

EMOJI is a folder of images with a metadata.jsonl that has the columns `file_name` and `caption`, and a `split` column or
val/ folder for validation. Half an hour gives the colours and the outlines that captions ask for.
"""

from ml_collections import ConfigDict

from configs import flowers64, shapes


def get_config() -> ConfigDict:
    config = flowers64.get_config()
    config.name = "emoji64"
    config.data.flip = False  # captions say left and right
    config.conditioner = shapes.get_config().conditioner
    config.conditioner.token_std = 0.02  # as the reference
    config.conditioner.tokenizer = "wordpiece"
    config.conditioner.vocab_size = 2048
    config.conditioner.max_seq_len = 32
    config.network.context_dim = config.conditioner.n_embed
    config.sampling.guidance_scale = 3.0
    return config
