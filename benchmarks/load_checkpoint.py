"""Time and peak memory of loading a Stable Diffusion 1 sized U-Net (859,520,964 parameters).

    python benchmarks/load_checkpoint.py [--dtype float16] [--folder /tmp/load_checkpoint]       # next to safetensors
    python benchmarks/load_checkpoint.py --diffusers --rounds 3 [--dtype float16]                # next to diffusers

Writes random weights once, loads them in turns, each time in a fresh process with a warm page cache, prints one line each, and
removes the files. Peak memory is above that of the process with its imports.

Without `--diffusers` the files are a CompVis .ckpt and the same tensors as .safetensors. With it (torch, diffusers,
transformers and accelerate are needed) they are a Stable Diffusion pipeline in a folder, as diffusers writes it, with that
U-Net and with a small autoencoder and text encoder. `ldm_jax.load` reads it, and `StableDiffusionPipeline.from_pretrained`; and
either reads the U-Net's folder alone. diffusers maps the file, and leaves its pages on the disk until they are used: it is
quoted also with every weight read once ("a look at all"), and with `disable_mmap`, which gives the weights memory of their own,
as ours have. Files in float16 become bfloat16 here, where float16 is not computed in, and stay float16 there. "CPU" is the
process's own time, which other programs disturb less.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LOADERS = ("safetensors.numpy.load_file", "ours, numpy", "ours, numpy (.ckpt)", "ours, jax", "ours, jax (.ckpt)")
COMPUTED = {"float16": "bfloat16"}  # what a file's type becomes with us
LOOK = ", and a look at all"
OWN_MEMORY = ", disable_mmap"
PIPELINES = ("ours, pipeline", *("diffusers, pipeline" + how for how in ("", LOOK, OWN_MEMORY)))
NETWORKS = ("ours, U-Net", *("diffusers, U-Net" + how for how in ("", LOOK, OWN_MEMORY)))


def make(folder: Path, dtype: str) -> None:
    from configs import stable_diffusion_1
    from ldm_jax.weights import compvis_files, layouts, safetensors_files, torch_files
    from ldm_jax.weights.descriptions import compvis
    from ldm_jax.weights.stored import Stored

    config = stable_diffusion_1.get_config().to_dict()
    noise = np.random.default_rng(0).standard_normal(1 << 24, np.float32).astype(dtype)

    def tensor(shape: tuple[int, ...]) -> Stored:
        return Stored(shape, noise.dtype, lambda: np.resize(noise, shape))

    tensors = {compvis_files.NETWORK + weight.name: tensor(weight.shape) for weight in layouts.unet(config["network"])}
    description = {name: config[name] for name in ("network", "diffusion", "latents")}
    description |= {"first_stage": {"kind": "none"}, "conditioner": {"kind": "none"}}
    torch_files.write(folder / "model.ckpt", {"state_dict": tensors})
    safetensors_files.write(folder / "model.safetensors", tensors)
    os.sync()  # else writing competes with the first reader
    (folder / "config.yaml").write_text(json.dumps(compvis.compose(description)))  # JSON is YAML


def make_pipeline(folder: Path, dtype: str) -> None:
    """Stable Diffusion 1's U-Net, with an autoencoder and a text encoder of few layers, written by diffusers."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    widths = {"hidden_size": 768, "intermediate_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1}
    parts = {
        "unet": diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        "vae": diffusers.AutoencoderKL(block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                                       up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4),
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=1000, **widths)),
        "scheduler": diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear",
                                             beta_start=0.00085, beta_end=0.012),
    }  # fmt: skip
    none = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
    diffusers.StableDiffusionPipeline(**parts, **none, requires_safety_checker=False).save_pretrained(folder)
    os.sync()


def loading(loader: str, folder: Path, dtype: str) -> tuple[Path, Callable[[], Any]]:
    """What the loader reads, and the loader itself, which returns arrays; imports are done."""
    library, _, what = loader.partition(", ")
    if library == "diffusers":
        import diffusers
        import torch

        kind = diffusers.StableDiffusionPipeline if what.startswith("pipeline") else diffusers.UNet2DConditionModel
        none = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor")) if what.startswith("pipeline") else {}

        def by_diffusers() -> Any:
            place = folder if what.startswith("pipeline") else folder / "unet"
            own = {"disable_mmap": True} if loader.endswith(OWN_MEMORY) else {}
            found = kind.from_pretrained(place, torch_dtype=getattr(torch, dtype), **none, **own)
            modules = [found.unet, found.vae, found.text_encoder] if none else [found]
            tensors = [tensor for module in modules for tensor in module.parameters()]
            if loader.endswith(LOOK):
                with torch.inference_mode():
                    sum(float(tensor.view(torch.uint8).flatten()[::64].max()) for tensor in tensors)  # every cache line
            return [tensor.detach() for tensor in tensors]

        return (folder if none else folder / "unet"), by_diffusers

    import jax
    import safetensors.numpy

    import ldm_jax
    from ldm_jax import weights
    from ldm_jax.api import pretrained

    jax.numpy.zeros(()).block_until_ready()
    into = np.dtype(jax.numpy.dtype(COMPUTED.get(dtype, dtype)))
    path = folder / ("model.ckpt" if ".ckpt" in loader else "model.safetensors")
    if loader.startswith("safetensors"):
        return path, lambda: jax.tree.leaves(safetensors.numpy.load_file(path))
    if "numpy" in loader:
        return path, lambda: jax.tree.leaves(jax.tree.map(np.asarray, weights.read(path).params))
    if what == "pipeline":
        return folder, lambda: jax.block_until_ready(jax.tree.leaves(ldm_jax.load(folder, dtype=into).params))
    if what == "U-Net":
        path = folder / "unet"
        return path, lambda: jax.block_until_ready(jax.tree.leaves(pretrained.on_device(weights.read(path).params, into)))
    return path, lambda: jax.block_until_ready(
        [jax.device_put(np.asarray(leaf)) for leaf in jax.tree.leaves(weights.read(path).params)]
    )


def measure(loader: str, folder: Path, dtype: str) -> None:
    path, load = loading(loader, folder, dtype)
    before, start, worked = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    arrays = load()
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    size = sum(file.stat().st_size for file in path.rglob("*.safetensors")) if path.is_dir() else path.stat().st_size
    numbers = sum(int(np.prod(array.shape)) for array in arrays)
    print(json.dumps({"seconds": seconds, "cpu": worked, "size": size, "peak": peak / size, "numbers": numbers}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--folder", type=Path, default=Path("/tmp/load_checkpoint"))
    parser.add_argument("--diffusers", action="store_true", help="next to diffusers, a folder in its layout")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--do", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do == "make":
        return (make_pipeline if options.diffusers else make)(options.folder, options.dtype)
    if options.do:
        return measure(options.do, options.folder, options.dtype)
    options.folder.mkdir(parents=True)
    loaders = PIPELINES + NETWORKS if options.diffusers else LOADERS
    found: dict[str, list[dict]] = {loader: [] for loader in loaders}

    def run(what: str) -> str:
        command = [sys.executable, __file__, "--folder", str(options.folder), "--dtype", options.dtype, "--do", what]
        command += ["--diffusers"] if options.diffusers else []
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    try:
        run("make")
        for _ in range(options.rounds):
            for loader in loaders:
                found[loader].append(json.loads(run(loader).splitlines()[-1]))
    finally:
        shutil.rmtree(options.folder)
    print(f"{options.dtype}, {len(os.sched_getaffinity(0))} core(s), median (smallest to largest) of {options.rounds}")
    for loader, rounds in found.items():
        times, last = sorted(each["seconds"] for each in rounds), rounds[-1]
        middle, peak = statistics.median(times), max(each["peak"] for each in rounds)
        speed = f"{middle:6.2f} s ({times[0]:.2f} to {times[-1]:.2f})  {last['size'] / middle / 1e9:5.2f} GB/s"
        speed += f"  CPU {statistics.median(each['cpu'] for each in rounds):6.2f} s"
        print(f"{loader:38} {speed}  peak {peak:4.2f} x file  {last['numbers']:,} numbers")


if __name__ == "__main__":
    main()
