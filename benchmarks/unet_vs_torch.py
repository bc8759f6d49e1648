"""Time of a Stable-Diffusion-shaped U-Net, forward and training step, against diffusers' PyTorch on the same device.

    python benchmarks/unet_vs_torch.py --width=64 --batch=4 --rounds=5
    python benchmarks/unet_vs_torch.py --device=cuda --dtype=bfloat16 --width=320 --heads=8 --context=768 --size=64 --compile

Needs the extra `parity` (torch, diffusers). On a busy machine set OMP_WAIT_POLICY=PASSIVE, or PyTorch's threads lose
most of their time waiting for one another. Both run in one process, in turns, PyTorch with channels_last; quoted are medians
and their ratio, for the machine's speed may drift. A training step is the gradient of a squared error and an AdamW update.
In bfloat16 the forward pass has weights of that type, and the training step float32 ones (`torch.autocast` over there).
The second line is Stable Diffusion 1's U-Net; `--compile` adds diffusers' under `torch.compile`.
"""

import argparse
import copy
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs the same memory
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from ldm_jax.models import UNet, count, initialize

MULT, HEAD = (1, 2, 4, 4), 32
PAUSE = 0.3  # seconds before each run, until the other's threads sleep


def ours(options: argparse.Namespace, inputs: dict[str, np.ndarray]) -> tuple[Callable, Callable, int]:
    net = UNet(
        in_channels=4,
        out_channels=4,
        model_channels=options.width,
        num_res_blocks=2,
        attention_resolutions=(4, 2, 1),
        channel_mult=MULT,
        num_heads=options.heads or -1,
        num_head_channels=-1 if options.heads else HEAD,
        use_spatial_transformer=True,
        context_dim=options.context,
        dtype=options.dtype,
    )
    x, t, target = (jnp.asarray(inputs[name]) for name in ("x", "t", "target"))
    cond = {"context": jnp.asarray(inputs["context"])}
    params = initialize(net, jax.random.key(0), x, t, cond)
    optimizer = optax.adamw(1e-4, weight_decay=1e-2)
    stored = jax.tree.map(lambda a: a.astype(options.dtype), params)
    forward = jax.jit(lambda params: net.apply({"params": params}, x, t, cond))

    def step(params: dict, state: optax.OptState) -> tuple[dict, optax.OptState, jax.Array]:
        def loss_fn(params: dict) -> jax.Array:
            return jnp.square(net.apply({"params": params}, x, t, cond) - target).mean()

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    jitted = jax.jit(step, donate_argnums=(0, 1))
    training = [jax.tree.map(jnp.copy, params), optimizer.init(params)]

    def train() -> None:
        *training[:], loss = jitted(*training)
        jax.block_until_ready(loss)

    return lambda: jax.block_until_ready(forward(stored)), train, count(params)


def theirs(
    options: argparse.Namespace, inputs: dict[str, np.ndarray], compiled: bool = False
) -> tuple[Callable, Callable, int]:
    widths, dtype = tuple(options.width * mult for mult in MULT), getattr(torch, options.dtype)
    net = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
        attention_head_dim=options.heads or tuple(w // HEAD for w in widths),  # the number of heads, in spite of its name
        cross_attention_dim=options.context,
    ).to(options.device, memory_format=torch.channels_last)
    stored, parameters = copy.deepcopy(net).to(dtype), sum(parameter.numel() for parameter in net.parameters())
    if compiled:
        net, stored = torch.compile(net), torch.compile(stored)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, weight_decay=1e-2)

    def image(name: str) -> torch.Tensor:
        array = torch.from_numpy(inputs[name].transpose(0, 3, 1, 2)).to(options.device)
        return array.contiguous(memory_format=torch.channels_last)

    x, target = image("x"), image("target")
    t, context = (torch.from_numpy(inputs[name]).to(options.device) for name in ("t", "context"))
    half, half_context = x.to(dtype), context.to(dtype)

    def finish() -> None:
        if options.device == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        with torch.inference_mode():
            stored(half, t, half_context)
        finish()

    def train() -> None:
        optimizer.zero_grad()
        with torch.autocast(options.device, dtype, enabled=dtype != torch.float32):
            loss = (net(x, t, context).sample.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        finish()

    return forward, train, parameters


def serve(who: str, options: argparse.Namespace, pipe: Connection) -> None:
    """In a process of its own: builds one of the networks, says how many parameters it has, runs what it is asked for."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.size, options.size, 4)
    inputs = {
        "x": rng.standard_normal(shape, np.float32),
        "target": rng.standard_normal(shape, np.float32),
        "context": rng.standard_normal((options.batch, 77, options.context), np.float32),
        "t": rng.uniform(0, 1000, options.batch).astype(np.float32),
    }
    if who == "ours":
        forward, train, parameters = ours(options, inputs)
        said = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    else:
        torch.set_num_threads(options.threads)
        forward, train, parameters = theirs(options, inputs, compiled=who == "torch.compile")
        said = f"torch {torch.__version__}"
    pipe.send((parameters, said))
    runs = {"forward": forward, "training step": train}
    while (asked := pipe.recv()) is not None:
        time.sleep(PAUSE)
        runs[asked]()  # as in training, where one follows another: after a pause memory and cores are slower
        start = time.perf_counter()
        for _ in range(options.repeat):
            runs[asked]()
        pipe.send((time.perf_counter() - start) / options.repeat)


def compare(name: str, pipes: dict[str, Connection], rounds: int) -> None:
    times: dict[str, list[float]] = {who: [] for who in pipes}
    for round in range(rounds + 1):
        for who, pipe in pipes.items():
            pipe.send(name)
            seconds = pipe.recv()
            if round:  # the first compiles
                times[who].append(seconds)
    for who in list(pipes)[1:]:
        ratio = statistics.median(a / b for a, b in zip(times["ours"], times[who], strict=True))
        ours, other = (statistics.median(times[each]) for each in ("ours", who))
        print(f"{name}: ours {ours:.4f} s, {who} {other:.4f} s, ratio {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=0, help=f"of every level; 0: heads {HEAD} wide")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of a turn, one after another")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="PyTorch's; ours is JAX's default")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    pipes, context = {}, multiprocessing.get_context("spawn")
    for who in ("ours", "torch", "torch.compile")[: 3 if options.compile else 2]:
        pipes[who], other = context.Pipe()
        context.Process(target=serve, args=(who, options, other), daemon=True).start()
        other.close()  # the child's alone: if it ends, we read so
    told = {who: pipe.recv() for who, pipe in pipes.items()}
    if len({parameters for parameters, _ in told.values()}) > 1:
        raise SystemExit(f"the networks differ: {', '.join(f'{who} {n:,}' for who, (n, _) in told.items())} parameters")
    print(f"{told['ours'][0]:,} parameters, batch {options.batch}, {options.size} x {options.size} x 4, {options.dtype}")
    print(", ".join(said for _, said in told.values()), flush=True)
    for name in ("forward", "training step"):
        compare(name, pipes, options.rounds)
    for pipe in pipes.values():
        pipe.send(None)


if __name__ == "__main__":
    main()
