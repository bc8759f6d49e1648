"""What a first stage of `shapes` loses: which shapes are read right in pictures that it encoded and decoded.

    python train.py --workdir=runs/first --config.stages="('first_stage','latents')" --config.latents.cache=False
    python -m benchmarks.read_back runs/first runs/shapes

480 scenes of one object and 480 of two, of fills and spread as the model was trained with, none of them trained on; latents are
drawn from the posterior.
"""

import argparse
import dataclasses

import jax
import numpy as np

import ldm_jax
from ldm_jax import build
from ldm_jax.data import shapes
from ldm_jax.data.shapes.scene import SHAPES

STREAM, BATCH = 31, 60


def look(ldm: ldm_jax.Autoencoder | ldm_jax.LatentDiffusion, objects: int, count: int, size: int) -> None:
    counts = tuple(float(n == objects) for n in (1, 2, 3))
    mix = dataclasses.replace(build.make_mix(ldm.specification.config), counts=counts)
    scenes = [shapes.draw_scene(0, index, stream=STREAM, mix=mix)[0] for index in range(count)]
    images = np.stack([shapes.render(scene, size)[0] for scene in scenes]).astype(np.float32) / 127.5 - 1
    decoded = []
    for start in range(0, count, BATCH):
        rows = np.minimum(np.arange(start, start + BATCH), count - 1)  # one compilation
        latents = ldm.encode(ldm.params, images[rows], jax.random.key(start))
        decoded.append(np.asarray(ldm.decode(ldm.params, latents))[: count - start])
    back = np.clip(np.concatenate(decoded), -1, 1)
    psnr = np.mean(10 * np.log10(4 / np.mean((back - images) ** 2, axis=(1, 2, 3))))
    right = shapes.check_all(back, scenes)
    print(f"  {objects} object(s): {psnr:.2f} dB, shapes {right['shape'].mean():.3f}, colours {right['colour'].mean():.3f}")
    if objects == 1:
        kinds, small = np.array([scene.things[0].shape for scene in scenes]), np.array([s.things[0].size == 0 for s in scenes])
        shares = (f"{name} {right['shape'][small & (kinds == k)].mean():.2f}" for k, name in enumerate(SHAPES))
        print(f"    large {right['shape'][~small].mean():.3f}; small: {', '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--count", type=int, default=480)
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    for workdir in options.workdirs:
        print(workdir, flush=True)
        ldm = ldm_jax.load(workdir)
        for objects in (1, 2):
            look(ldm, objects, options.count, options.size)


if __name__ == "__main__":
    main()
