"""Both gradients of convolutions on a CPU: XLA's own, and as the products of `ldm_jax.models.convolution.linear_on_cpu`.

    python -m benchmarks.convolution_gradients --rounds 21
    python -m benchmarks.convolution_gradients --shapes 1x256x256x128x128

A shape is batch x height x width x inputs x outputs; the window is 3 x 3. In turns within this process; medians, and the median
of the ratios. Beside them the memory that each needs for itself.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp

from ldm_jax.models.convolution import linear_on_cpu

SHAPES = (
    "32x8x8x64x64", "32x8x8x128x64", "32x4x4x64x64", "4x32x32x64x64", "4x32x32x192x64", "4x16x16x384x128", "4x8x8x256x256",
    "4x8x8x512x256", "4x4x4x512x256", "1x128x128x128x64", "1x256x256x64x64", "1x256x256x128x128",
)  # fmt: skip
PAIRS = ((1, 1), (1, 1))


def by_xla(x: jax.Array, kernel: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    convolve = partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding=PAIRS, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.vjp(convolve, x, kernel)[1](y)


def by_products(x: jax.Array, kernel: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    (gradients,) = jax.linear_transpose(
        lambda tangents: linear_on_cpu([(tangents[0], kernel), (x, tangents[1])], (1, 1), PAIRS), (x, kernel)
    )(y)
    return gradients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; XLA, products, ratio, MB of each")
    for shape in options.shapes:
        batch, height, width, inputs, outputs = map(int, shape.split("x"))
        shapes = (batch, height, width, inputs), (3, 3, inputs, outputs), (batch, height, width, outputs)
        arrays = [jax.random.normal(jax.random.key(i), each, jnp.float32) for i, each in enumerate(shapes)]
        programs = [jax.jit(each).lower(*arrays).compile() for each in (by_xla, by_products)]
        for one, other in zip(*(program(*arrays) for program in programs), strict=True):
            scale = jnp.abs(one).max()
            if not jnp.abs(one - other).max() < 1e-4 * scale:
                raise SystemExit(f"{shape}: the gradients differ by {jnp.abs(one - other).max()} of {scale}")
        times: list[list[float]] = [[], []]
        for _ in range(options.rounds):
            for program, seconds in zip(programs, times, strict=True):
                began = time.perf_counter()
                jax.block_until_ready(program(*arrays))
                seconds.append(time.perf_counter() - began)
        xla, products = (1e3 * statistics.median(each) for each in times)
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
        memory = [program.memory_analysis().temp_size_in_bytes / 2**20 for program in programs]
        print(f"{shape:20} {xla:8.2f} ms {products:8.2f} ms {ratio:6.2f} {memory[0]:6.0f} {memory[1]:6.0f}", flush=True)


if __name__ == "__main__":
    main()
