"""Convolutions on a CPU, as XLA does them and in the forms of `ldm_jax.models.convolution`.

    python -m benchmarks.convolutions --rounds 21                             # both gradients: `linear_on_cpu`
    python -m benchmarks.convolutions --shapes 1x256x256x128x128
    python -m benchmarks.convolutions --what forward                          # `by_blocks`
    python -m benchmarks.convolutions --what decoder --shapes 256 --rounds 5  # one picture of 256 px, f = 8

A shape is batch x height x width x inputs x outputs; the window is 3 x 3. In turns within this process; medians, and the median
of the ratios. Beside them the memory that each needs for itself. The decoder has random weights in the shapes of Stable
Diffusion's, without its attention.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.models import Autoencoder, convolution, initialize

SHAPES = {
    "gradients": (
        "32x8x8x64x64", "32x8x8x128x64", "32x4x4x64x64", "4x32x32x64x64", "4x32x32x192x64", "4x16x16x384x128", "4x8x8x256x256",
        "4x8x8x512x256", "4x4x4x512x256", "1x128x128x128x64", "1x256x256x64x64", "1x256x256x128x128",
    ),
    "forward": (
        "8x32x32x64x64", "8x16x16x256x128", "1x256x256x128x128", "1x128x128x256x256", "1x64x64x320x320", "1x64x64x512x512",
        "2x32x32x640x640", "2x16x16x1280x1280", "8x16x16x1280x1280",
    ),
    "decoder": ("256",),
}  # fmt: skip
PAIRS = ((1, 1), (1, 1))
whole = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding=PAIRS, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def gradients_by_xla(x: jax.Array, kernel: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(whole, x, kernel)[1](y)


def gradients_by_products(x: jax.Array, kernel: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    (gradients,) = jax.linear_transpose(
        lambda tangents: convolution.linear_on_cpu([(tangents[0], kernel), (x, tangents[1])], (1, 1), PAIRS), (x, kernel)
    )(y)
    return gradients


def arrays_of(shape: str) -> list[jax.Array]:
    batch, height, width, inputs, outputs = map(int, shape.split("x"))
    shapes = (batch, height, width, inputs), (3, 3, inputs, outputs), (batch, height, width, outputs)
    return [jax.random.normal(jax.random.key(i), each, jnp.float32) for i, each in enumerate(shapes)]


def decoders(side: int) -> tuple[list[Any], list[Any]]:
    """The decoder with XLA's convolutions and as it is, as calls and as programs."""
    net = Autoencoder(ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, attn_resolutions=(), resolution=side, z_channels=4,
                      embed_dim=4, in_channels=3, out_ch=3, double_z=True)  # fmt: skip
    params = initialize(net, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    z, programs, known = jax.random.normal(jax.random.key(1), (1, side // 8, side // 8, 4)), [], convolution.BLOCKS
    for least in ((2**62, 0), known):
        convolution.BLOCKS = least  # read while the program is traced
        programs.append(jax.jit(lambda params, z: net.apply({"params": params}, z, method="decode")).lower(params, z).compile())
    return [partial(program, params, z) for program in programs], programs


def pair(what: str, shape: str) -> tuple[list[Any], list[Any]]:
    """XLA's way and ours, as calls and as programs."""
    if what == "decoder":
        return decoders(int(shape))
    arrays = arrays_of(shape)
    forms = [gradients_by_xla, gradients_by_products]
    if what == "forward":
        arrays, forms = arrays[:2], [whole, partial(convolution.by_blocks, pairs=PAIRS)]
    programs = [jax.jit(form).lower(*arrays).compile() for form in forms]
    return [partial(program, *arrays) for program in programs], programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=SHAPES, default="gradients")
    parser.add_argument("--shapes", nargs="+")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; XLA, ours, ratio, MB of each")
    for shape in options.shapes or SHAPES[options.what]:
        calls, programs = pair(options.what, shape)
        for one, other in zip(*(jax.tree.leaves(call()) for call in calls), strict=True):
            scale = jnp.abs(one).max()
            if not jnp.abs(one - other).max() < 1e-4 * scale:
                raise SystemExit(f"{shape}: they differ by {jnp.abs(one - other).max()} of {scale}")
        times: list[list[float]] = [[], []]
        for _ in range(options.rounds):
            for call, seconds in zip(calls, times, strict=True):
                began = time.perf_counter()
                jax.block_until_ready(call())
                seconds.append(time.perf_counter() - began)
        xla, ours = (1e3 * statistics.median(each) for each in times)
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
        memory = [program.memory_analysis().temp_size_in_bytes / 2**20 for program in programs]
        print(f"{shape:20} {xla:8.2f} ms {ours:8.2f} ms {ratio:6.2f} {memory[0]:6.0f} {memory[1]:6.0f}", flush=True)


if __name__ == "__main__":
    main()
