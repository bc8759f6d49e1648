"""Pictures of Stable Diffusion 1, decoded, beside diffusers' on the same device: how long it takes, and how alike they are.

    python -m benchmarks.sampling_vs_torch                            # one GPU, bfloat16, guided DDIM, 50 steps, 512 px
    python -m benchmarks.sampling_vs_torch --width=32 --size=64 --steps=4 --dtype=float32 --device=cpu

Needs the extra `parity` (torch, diffusers, transformers). diffusers writes a pipeline of random weights, `ldm_jax.load` reads
it, and both draw from the same prompt embeddings and noise, in turns within one process. `--compile` adds diffusers with
`torch.compile` on its U-Net and its decoder. Times are medians by the clock, the first draw left out; it is quoted for itself.
The difference is that of pictures in [0, 1], and is only meant to be small in float32.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs the same memory
import diffusers
import jax
import numpy as np
import torch
import transformers

import ldm_jax

TOKENS = 77
FULL = 320  # channels of the published U-Net; narrower ones are for trying this


def make(folder: Path, width: int, side: int) -> None:
    """A pipeline of random weights. Its text encoder has one layer, for embeddings are given."""
    torch.manual_seed(0)
    text = {"hidden_size": 768, "intermediate_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1, "vocab_size": 1000}
    stages = tuple(width * 2 // 5 * mult for mult in (1, 2, 4, 4)) if width == FULL else (32,) * 4
    parts = {
        "unet": diffusers.UNet2DConditionModel(
            sample_size=side // 8, cross_attention_dim=768, block_out_channels=tuple(width * mult for mult in (1, 2, 4, 4))
        ),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=stages, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4, layers_per_block=2, sample_size=side,
        ),
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
        "scheduler": diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False,
            set_alpha_to_one=False,
        ),
    }  # fmt: skip
    none = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
    diffusers.StableDiffusionPipeline(**parts, **none, requires_safety_checker=False).save_pretrained(folder)


@dataclasses.dataclass(frozen=True)
class Given:
    """What both draw from: embeddings of the prompts and of the empty one [B, 77, 768], unit noise [B, height, width, 4]."""

    prompt: np.ndarray
    empty: np.ndarray
    noise: np.ndarray
    steps: int
    guidance: float


def by_us(ldm: Any, given: Given) -> Callable[[], np.ndarray]:
    context, negative, noise = (jax.device_put(each) for each in (given.prompt, given.empty, given.noise))
    options = {"sampler": "ddim", "steps": given.steps, "guidance_scale": given.guidance, "negative": {"context": negative}}

    def draw() -> np.ndarray:
        drawn = ldm.sample(ldm.params, jax.random.key(0), {"context": context}, noise=noise, **options)
        return (np.asarray(drawn, np.float32) + 1) / 2

    return draw


def by_diffusers(pipe: Any, given: Given, unet: Any, decode: Callable) -> Callable[[], np.ndarray]:
    prompt, negative, latents = (
        torch.from_numpy(np.ascontiguousarray(each)).to(pipe.device, pipe.dtype)
        for each in (given.prompt, given.empty, given.noise.transpose(0, 3, 1, 2))
    )
    options = {"num_inference_steps": given.steps, "guidance_scale": given.guidance, "output_type": "np"}
    options |= {"height": 8 * latents.shape[2], "width": 8 * latents.shape[3]}

    def draw() -> np.ndarray:
        pipe.unet, pipe.vae.decode = unet, decode
        return pipe(prompt_embeds=prompt, negative_prompt_embeds=negative, latents=latents, **options).images

    return draw


def seconds(draw: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    began = time.perf_counter()
    drawn = draw()
    return time.perf_counter() - began, drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=FULL)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--folder", default="", help="where the pipeline is kept; default: a temporary folder")
    args = parser.parse_args()
    if args.dtype == "float32":  # neither rounds products to fewer bits
        jax.config.update("jax_default_matmul_precision", "highest")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        if not (folder / "model_index.json").is_file():
            make(folder, args.width, args.size)
        none = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
        dtype = getattr(torch, args.dtype)
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **none).to(args.device)
        ldm = ldm_jax.load(folder, dtype=args.dtype)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    device, versions = jax.devices()[0].device_kind, f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    print(f"{device}, jax {jax.__version__}, {versions}")
    print(f"{args.size} px, {args.steps} steps of DDIM, guidance {args.guidance}, {args.dtype}, {args.width} channels")
    parts = {"diffusers": (pipe.unet, pipe.vae.decode)}
    if args.compile:
        parts["compiled"] = torch.compile(pipe.unet), torch.compile(pipe.vae.decode)
    rng = np.random.default_rng(0)
    for batch in args.batch:
        shapes = (TOKENS, 768), (TOKENS, 768), (args.size // 8, args.size // 8, 4)
        given = Given(*(rng.standard_normal((batch, *shape), np.float32) for shape in shapes), args.steps, args.guidance)
        runs = {"ours": by_us(ldm, given)} | {name: by_diffusers(pipe, given, *each) for name, each in parts.items()}
        first = {name: seconds(draw) for name, draw in runs.items()}
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, draw in runs.items():
                taken[name].append(seconds(draw)[0])
        median = {name: statistics.median(each) for name, each in taken.items()}
        apart = np.abs(first["ours"][1].clip(0, 1) - first["diffusers"][1]).max()
        for name, each in median.items():
            said = f"{each:.3f} s, {batch / each:.2f} pictures/s, the first {first[name][0]:.1f} s"
            print(f"batch {batch}: {name:10} {said}, ratio {median['ours'] / each:.2f}", flush=True)
        print(f"batch {batch}: the pictures differ by at most {apart:.1e}", flush=True)


if __name__ == "__main__":
    main()
