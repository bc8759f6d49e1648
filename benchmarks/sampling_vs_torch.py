"""Pictures of Stable Diffusion 1, decoded, beside diffusers' on the same device: how long a draw takes, and whether both draw alike.

    python -m benchmarks.sampling_vs_torch                                    # one GPU, bfloat16, guided DDIM, 50 steps, 512 px
    python -m benchmarks.sampling_vs_torch --width=32 --size=64 --steps=4 --dtype=float32 --device=cpu

Needs the extra `parity` (torch, diffusers, transformers). diffusers writes a pipeline of random weights, `ldm_jax.load` reads it, and
both draw from the same prompt embeddings and the same noise, in turns within one process. "compiled" is diffusers with
`torch.compile` on its U-Net and its decoder. Times are medians by the clock, the first draw left out; it is quoted for itself.
The difference is that of pictures in [0, 1], and is only meant to be small in float32.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
    args = parser.parse_args()
    if args.dtype == "float32":  # neither rounds products to fewer bits
        jax.config.update("jax_default_matmul_precision", "highest")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dtype = getattr(torch, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.width, args.size)
        none = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **none).to(args.device)
        pipe.set_progress_bar_config(disable=True)
        ldm = ldm_jax.load(folder, dtype=args.dtype)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}")
    print(f"{args.size} px, {args.steps} steps of DDIM, guidance {args.guidance}, {args.dtype}, {args.width} channels")
    rng, eager = np.random.default_rng(0), (pipe.unet, pipe.vae.decode)
    for batch in args.batch:
        prompt, empty = (rng.standard_normal((batch, TOKENS, 768), np.float32) for _ in range(2))
        noise = rng.standard_normal((batch, args.size // 8, args.size // 8, 4), np.float32)
        context, negative, z = (jax.device_put(each) for each in (prompt, empty, noise))

        def ours() -> np.ndarray:
            options = {"sampler": "ddim", "steps": args.steps, "guidance_scale": args.guidance}
            drawn = ldm.sample(
                ldm.params, jax.random.key(0), {"context": context}, negative={"context": negative}, noise=z, **options
            )
            return (np.asarray(drawn, np.float32) + 1) / 2

        def on_torch(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(args.device, dtype)

        given = {"prompt_embeds": on_torch(prompt), "negative_prompt_embeds": on_torch(empty)}
        given["latents"] = on_torch(np.ascontiguousarray(noise.transpose(0, 3, 1, 2)))

        def theirs() -> np.ndarray:
            options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance, "output_type": "np"}
            return pipe(**given, **options, height=args.size, width=args.size).images

        def compiled() -> np.ndarray:
            pipe.unet, pipe.vae.decode = quick
            try:
                return theirs()
            finally:
                pipe.unet, pipe.vae.decode = eager

        runs = {"ours": ours, "diffusers": theirs}
        if args.compile:
            quick = torch.compile(pipe.unet), torch.compile(pipe.vae.decode)
            runs["compiled"] = compiled
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
