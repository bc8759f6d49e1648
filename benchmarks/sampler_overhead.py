"""What the sampling loop costs beside the network: `sample` against a bare scan that only calls the network.

    python benchmarks/sampler_overhead.py [--steps 20] [--rounds 40] [--batch 4]

The network is a chain of matrix products, sized on this machine to take about 2 ms a call; the latents are 32x32x4. Both
loops are jitted and run in turns within one process on one core; counted is processor time, which a shared machine disturbs
least, and quoted are medians and the median ratio. Deterministic solvers should stay under 1.02; a stochastic one also draws
a normal number per latent value and step, which on a CPU costs more than all else that a solver does.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ldm_jax.diffusion import make_denoiser, make_grid, make_sampler, make_schedule, sample, start

SAMPLERS = ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "plms", "lms", "dpmpp_2m_sde")
WIDTH = 1024


def seconds(run, x) -> float:
    begin = time.process_time()
    jax.block_until_ready(run(x))
    return time.process_time() - begin


def make_network(depth: int):
    weights = jax.random.normal(jax.random.key(0), (depth, WIDTH, WIDTH)) / WIDTH**0.5

    def network(x, t):
        h = x.reshape(-1, WIDTH)
        h = jax.lax.fori_loop(0, depth, lambda i, h: jnp.tanh(h @ weights[i]), h)
        return h.reshape(x.shape) + 1e-6 * t[:, None, None, None]

    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()

    schedule = make_schedule("scaled_linear")
    grid = make_grid("leading", schedule, args.steps, end=schedule(0.0))
    x = start(jax.random.key(1), (args.batch, 32, 32, 4), grid)
    times = jnp.asarray(grid.t[:-1], jnp.float32)

    def bare(network):
        def body(x, t):
            return network(x, jnp.broadcast_to(t, x.shape[:1])), None

        return jax.jit(lambda x: jax.lax.scan(body, x, times)[0])

    depth = 4
    for _ in range(4):  # as many products as make 2 ms
        run = bare(make_network(depth))
        run(x)
        taken = statistics.median(seconds(run, x) for _ in range(5)) / args.steps
        depth = max(1, round(depth * 2e-3 / taken))
    network = make_network(depth)
    reference = bare(network)
    seconds(reference, x)

    print(f"{'sampler':<14}{'ms per step':>12}{'ms, network':>13}{'ratio':>8}")
    for name in SAMPLERS:
        sampler = make_sampler(name, schedule)
        run = jax.jit(lambda x, s=sampler: sample(make_denoiser(network, "eps"), s, x, grid, jax.random.key(2)))
        seconds(run, x)
        calls = args.steps + (name == "plms")
        pairs = [(seconds(run, x) / calls, seconds(reference, x) / args.steps) for _ in range(args.rounds)]
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        ours, theirs = (1e3 * statistics.median(column) for column in zip(*pairs))
        print(f"{name:<14}{ours:>12.3f}{theirs:>13.3f}{ratio:>8.3f}")


if __name__ == "__main__":
    main()
