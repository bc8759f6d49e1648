"""Small pipelines of Stable Diffusion XL with random weights, as diffusers saves them."""

import json
from pathlib import Path

import diffusers
import torch
import transformers

torch.set_num_threads(1)  # more wait for one another on a machine that has other work
SIDE = 32  # pixels
PIECES = ("a", "b", "c", "d", "e", "h", "i", "l", "o", "r", "s", "t", "u")
BLOCKS = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}


def randomized(model):
    """Every parameter drawn anew: the zeros and ones of an initialisation would hide mistakes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) / max(1.0, parameter[0].numel() ** 0.5))
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.15 + ("norm" in name and name.endswith("weight")))
    return model.eval()


def tokenizer(folder: Path, pad: str):
    """CLIP's, of a few letters."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["!", *PIECES, *(f"{piece}</w>" for piece in PIECES), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = {"unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    return transformers.CLIPTokenizer(*files, **ends, pad_token=pad, model_max_length=16)


def tower(width: int, projection: int | None, act: str, heads: int = 2):
    """A text encoder over `tokenizer`'s 29 pieces."""
    config = transformers.CLIPTextConfig(
        vocab_size=29, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=heads,
        max_position_embeddings=16, hidden_act=act, projection_dim=projection or width, eos_token_id=28, bos_token_id=27,
        pad_token_id=1,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return randomized(kind(config))


def unet(numbers: int, context: int, **more):
    """A U-Net that is told a text of 12 numbers and so many sizes, 8 sinusoids each."""
    fields = BLOCKS | {
        "in_channels": 4, "out_channels": 4, "sample_size": SIDE // 2, "cross_attention_dim": context,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4), "transformer_layers_per_block": (1, 2), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 12 + 8 * numbers,
    }  # fmt: skip
    return randomized(diffusers.UNet2DConditionModel(**fields | more))


def autoencoder(**more):
    """Half the size, 4 channels."""
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    fields = BLOCKS | ends | {"latent_channels": 4, "sample_size": SIDE, "scaling_factor": 0.7, "force_upcast": True}
    return randomized(diffusers.AutoencoderKL(**fields | more))


def with_heads_of_64():
    """Parts of the base model with what no single file says and all published ones have: heads of 64, norms of 32
    groups, the published model's scale of latents."""
    layers = {"block_out_channels": (64, 128), "norm_num_groups": 32, "attention_head_dim": (1, 2)}
    return {
        "vae": autoencoder(block_out_channels=(32, 64), norm_num_groups=32, scaling_factor=0.13025),
        "text_encoder": tower(64, None, "quick_gelu", 1),
        "text_encoder_2": tower(128, 12, "gelu", 2),
        "unet": unet(6, 192, **layers),
    }


SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def pipeline(folder: Path, refiner: bool = False, scheduler=None, **more):
    """The pipeline, saved in `folder`."""
    scheduler = scheduler or diffusers.EulerDiscreteScheduler(**SCHEDULER, timestep_spacing="leading")
    last = {"text_encoder_2": tower(20, 12, "gelu"), "tokenizer_2": tokenizer(folder / "words_2", "!")}
    common = {"vae": autoencoder(), "scheduler": scheduler} | last
    if refiner:
        kind, own = diffusers.StableDiffusionXLImg2ImgPipeline, {"text_encoder": None, "tokenizer": None}
        common |= {"unet": unet(5, 20), "requires_aesthetics_score": True}
    else:
        kind = diffusers.StableDiffusionXLPipeline
        own = {"text_encoder": tower(16, None, "quick_gelu"), "tokenizer": tokenizer(folder / "words", "<|endoftext|>")}
        common |= {"unet": unet(6, 36)}
    made = kind(**(common | own | more), **({} if refiner else {"add_watermarker": False}))
    made.save_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made
