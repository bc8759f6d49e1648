"""Time of Inception's features, pictures in and features out, against pytorch-fid's network in torch on the same cores.

    python benchmarks/features_vs_torch.py --size=64 --batch=16 --rounds=7

Needs torch and pytorch-fid (`pip install pytorch-fid`); no weights are fetched: both have the same random ones, torch's written
to a file that our reader reads, and their features must agree. Both run in one process, in turns, in float32, on as many
threads as the process has cores (`taskset` chooses them). On a busy machine set OMP_WAIT_POLICY=PASSIVE, or PyTorch's threads
lose most of their time waiting for one another. Ours is what the evaluation command runs: 8-bit pictures in; features, logits
and spatial features out. Torch's gets numbers in [0, 1] and returns features, in its own layout and in channels_last, which
pytorch-fid doesn't use. Resizing to 299 x 299 is in both. Quoted are medians of the rounds, and the medians of the ratios
within a round, for the machine's speed may drift.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytorch_fid.inception as published
import torch

from ldm_jax import scoring
from ldm_jax.training import sharding


def theirs(seed: int = 0) -> published.InceptionV3:
    """pytorch-fid's network with random weights that keep the size of what goes through it."""
    drawn = torch.Generator().manual_seed(seed)

    def fill(network: torch.nn.Module) -> None:
        for name, value in network.state_dict().items():
            if value.ndim > 1:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=drawn)
            elif name.endswith(("bn.weight", "running_var")):
                value.uniform_(0.8, 1.2, generator=drawn)
            elif value.is_floating_point():
                value.normal_(0, 0.1, generator=drawn)

    kept: list[torch.nn.Module] = []

    def instead(network: torch.nn.Module, weights: dict) -> None:
        fill(network)
        kept.append(network)

    with (
        mock.patch.object(published, "load_state_dict_from_url", lambda *_, **__: {}),
        mock.patch.object(torch.nn.Module, "load_state_dict", instead),
    ):
        net = published.InceptionV3().eval()
    net.whole = kept  # a list: no submodule
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="side of the pictures")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu", action="store_true", help="the process's own time, of all cores, where others disturb")
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    net = theirs()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        torch.save(net.whole[0].state_dict(), path)
        network = scoring.load(f"inception:{path}")
    run = network.on(sharding.make_mesh(devices=jax.devices()[:1]))
    pixels = np.random.default_rng(0).integers(0, 256, (options.batch, options.size, options.size, 3), np.uint8)
    images = jax.device_put(pixels)
    plain = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float() / 255
    last = plain.contiguous(memory_format=torch.channels_last)

    def look(inputs: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return net(inputs)[0].squeeze((2, 3)).numpy()

    def in_layout(inputs: torch.Tensor, layout: torch.memory_format) -> Callable[[], float]:
        def go() -> float:
            net.to(memory_format=layout)
            start = clock()
            look(inputs)
            return clock() - start

        return go

    def our_time() -> float:
        start = clock()
        run(images)
        return clock() - start

    start = time.perf_counter()
    found = run(images)["features"]
    compiling = time.perf_counter() - start
    expected = look(plain)
    apart = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(
        f"batch {options.batch}, {options.size} x {options.size} pixels, {cores} core(s), jax {jax.__version__}, torch "
        f"{torch.__version__}; features differ by {apart:.1e} of the largest; first call {compiling:.1f} s",
        flush=True,
    )
    if not apart < 1e-4:
        raise SystemExit("the networks differ")
    functions = {"ours": our_time, "torch": in_layout(plain, torch.contiguous_format),
                 "torch, channels_last": in_layout(last, torch.channels_last)}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round in range(options.rounds + 1):
        for name, function in functions.items():
            seconds = function()
            if round:  # the first warms up
                times[name].append(seconds)
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        ratio = statistics.median(a / b for a, b in zip(times["ours"], seconds))
        print(f"{name:22} {middle:.3f} s, {options.batch / middle:.1f} pictures a second; ours / this: {ratio:.2f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process, both networks in it: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
