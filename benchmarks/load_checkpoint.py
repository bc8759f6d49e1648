"""Time and peak memory of loading a Stable Diffusion 1 sized U-Net (859,520,964 parameters), next to safetensors.

    python benchmarks/load_checkpoint.py [--dtype float16] [--folder /tmp/load_checkpoint]

Writes random weights once (a CompVis .ckpt and the same tensors as .safetensors), loads them in fresh processes with a
warm page cache, prints one line each, and removes the files. Peak memory is above that of the process with its imports.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LOADERS = ("safetensors.numpy.load_file", "ours, numpy", "ours, numpy (.ckpt)", "ours, jax", "ours, jax (.ckpt)")


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


def measure(loader: str, folder: Path) -> None:
    import jax
    import safetensors.numpy

    from ldm_jax import weights

    jax.numpy.zeros(()).block_until_ready()
    path = folder / ("model.ckpt" if ".ckpt" in loader else "model.safetensors")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if loader.startswith("safetensors"):
        tree = safetensors.numpy.load_file(path)
    elif "numpy" in loader:
        tree = jax.tree.map(np.asarray, weights.read(path).params)
    else:
        tree = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)), weights.read(path).params)
        jax.block_until_ready(tree)
    seconds = time.perf_counter() - start
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    size = path.stat().st_size
    numbers = sum(leaf.size for leaf in jax.tree.leaves(tree))
    speed = f"{seconds:6.2f} s  {size / seconds / 1e9:5.2f} GB/s"
    print(f"{loader:30} {speed}  peak {peak / size:4.2f} x file  {numbers:,} numbers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/load_checkpoint"))
    parser.add_argument("--loader", choices=LOADERS)
    options = parser.parse_args()
    if options.loader:
        return measure(options.loader, options.folder)
    options.folder.mkdir(parents=True)
    try:
        make(options.folder, options.dtype)
        for loader in LOADERS:
            command = [sys.executable, __file__, "--folder", str(options.folder), "--loader", loader]
            subprocess.run(command, check=True)
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
