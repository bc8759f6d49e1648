"""What a training step of a first stage costs: joint against taking turns, and its memory with and without remat.

    python -m benchmarks.first_stage_step                      times, alternated within this process
    python -m benchmarks.first_stage_step --memory --size 256  what the autoencoder keeps for its backward pass; nothing is run

The joint step looks at a batch once; taking turns (`first_stage_loss.alternate`, the reference's order) reconstructs it again
for the discriminator. Both update autoencoder and discriminator. The model is the paper's kl-f8 (or another --config) with
LPIPS on an untrained VGG16 of full size, at a width and a size that the machine can bear. Memory is counted from the
residuals of the gradient, before a compiler sees them: XLA's CPU backend merges what remat computes twice, and saves nothing.
"""

import argparse
import importlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, models
from ldm_jax.experiment.first_stage import load_perceptual


def configure(name: str, size: int, width: int, alternate: bool, remat: bool) -> dict:
    config = importlib.import_module(f"configs.{name}").get_config()
    config.first_stage.resolution = config.data.image_size = size
    config.first_stage.ch = width
    config.first_stage.remat = remat
    config.first_stage_loss.perceptual_path = "random"
    config.first_stage_loss.disc_start = 0
    config.first_stage_loss.alternate = alternate
    return config.to_dict()


def make(*args):
    config = configure(*args)
    program = build.make_first_stage_program(config)
    constants = {"perceptual": load_perceptual(config["first_stage_loss"])} if program.constants else {}
    return program.init_state, jax.jit(program.step, donate_argnums=0), lambda: constants


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="kl_f8")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=64, help="ch of the autoencoder; 128 in the paper")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    x = {"image": jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (args.batch, args.size, args.size, 3)), jnp.float32)}
    key = jax.random.key(0)

    if args.memory:
        for remat in (False, True):
            config = configure(args.config, args.size, args.width, False, remat)
            stage = build.make_first_stage(config)
            params = jax.eval_shape(stage.init, key)

            def residuals(params, x, stage=stage):
                return jax.vjp(lambda params: stage.module.apply({"params": params}, x, True), params)[1]

            kept = jax.eval_shape(residuals, params, x["image"])
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)) - 4 * models.count(params)
            print(f"remat={remat}: {size / 2**30:.2f} GiB kept for the backward pass of {args.batch} images")
        return

    runs = {}
    for name, alternate in (("joint", False), ("turns", True)):
        init, step, constants = make(args.config, args.size, args.width, alternate, False)
        state, fixed = jax.jit(init)(key), constants()
        state, metrics = step(state, x, key, fixed)
        jax.block_until_ready(metrics)
        runs[name] = [step, state, fixed, []]
    for _ in range(args.rounds):
        for run in runs.values():
            began = time.perf_counter()
            run[1], metrics = run[0](run[1], x, key, run[2])
            jax.block_until_ready((run[1].step, metrics))
            run[3].append(time.perf_counter() - began)
    joint, turns = (np.asarray(runs[name][3]) for name in ("joint", "turns"))
    ratio = joint / turns
    print(f"joint {np.median(joint):.3f} s, turns {np.median(turns):.3f} s a step")
    print(f"joint / turns: {np.median(ratio):.2f} (from {ratio.min():.2f} to {ratio.max():.2f} in {args.rounds} pairs)")


if __name__ == "__main__":
    main()
