"""How well models of shapes obey their captions at few steps: held-out prompts of one object, drawn and read back.

    python benchmarks/few_steps.py --workdir runs/shapes --sampler dpmpp_2m --steps 1 2 4 8 20
    python benchmarks/few_steps.py --workdir runs/shapes_mean_flow --steps 1 2 4 8

Prints a line for every number of steps: the share of pictures with the right shape, the right colour, both, and pictures a
second, decoded, on the second batch (the first compiles). With --out they are added to a JSON file besides.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

import ldm_jax
from ldm_jax import build
from ldm_jax.data import shapes
from ldm_jax.primitives.files import write_json


def measure(ldm, prompts, steps: int, sampler: str | None, scale: float | None, batch_size: int) -> dict[str, float]:
    """Shares of right pictures, and pictures a second; every batch is as large as the first."""
    images, seconds = [], []
    for start in range(0, len(prompts), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(prompts) - 1)
        began = time.monotonic()
        cond = ldm.embed(ldm.params, [prompts[i][0] for i in rows])
        key = jax.random.fold_in(jax.random.key(0), start)
        drawn = ldm.sample(ldm.params, key, cond, steps=steps, sampler=sampler, guidance_scale=scale)
        images.append(np.asarray(drawn)[: len(prompts) - start])
        seconds.append(time.monotonic() - began)
    right = shapes.check_all(np.concatenate(images), [scene for _, scene in prompts])
    found = {name: float(np.mean(right[name])) for name in ("shape", "colour", "bound")}
    return found | {"pictures_per_second": batch_size / min(seconds[1:] or seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--sampler", help="default: the config's")
    parser.add_argument("--guidance_scale", type=float, help="default: the config's")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--num", type=int, default=240)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    ldm = ldm_jax.load(flags.workdir)
    print(ldm.describe(), flush=True)
    prompts = shapes.prompts(flags.num, 1, 0, build.make_mix(ldm.config))
    sampler = flags.sampler or ldm.config["sampling"]["sampler"]
    for steps in flags.steps:
        found = measure(ldm, prompts, steps, flags.sampler, flags.guidance_scale, flags.batch_size)
        said = ", ".join(f"{name} {found[name]:.1%}" for name in ("shape", "colour", "bound"))
        print(f"{sampler} {steps}: {said} right; {found['pictures_per_second']:.1f} pictures/s", flush=True)
        if flags.out:
            known = json.loads(flags.out.read_text()) if flags.out.exists() else []
            write_json(flags.out, [*known, {"workdir": flags.workdir, "sampler": sampler, "steps": steps, **found}])


if __name__ == "__main__":
    main()
