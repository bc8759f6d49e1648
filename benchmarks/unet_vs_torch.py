"""Time of a Stable-Diffusion-shaped U-Net, forward and training step, against diffusers' PyTorch on the same CPU.

    python benchmarks/unet_vs_torch.py --width=64 --batch=4 --rounds=5

Needs the extra `parity` (torch, diffusers). On a busy machine set OMP_WAIT_POLICY=PASSIVE, or PyTorch's threads lose
most of their time waiting for one another. Both run in one process, in turns, in float32, PyTorch with channels_last;
quoted are medians and their ratio, for the machine's speed may drift. A training step is the gradient of a squared error
and an AdamW update.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from ldm_jax.models import UNet, count, initialize

MULT, HEAD, CONTEXT = (1, 2, 4, 4), 32, 256


def ours(width: int, inputs: dict[str, np.ndarray]) -> tuple[Callable, Callable, int]:
    net = UNet(
        in_channels=4,
        out_channels=4,
        model_channels=width,
        num_res_blocks=2,
        attention_resolutions=(4, 2, 1),
        channel_mult=MULT,
        num_head_channels=HEAD,
        use_spatial_transformer=True,
        context_dim=CONTEXT,
    )
    x, t, target = (jnp.asarray(inputs[name]) for name in ("x", "t", "target"))
    cond = {"context": jnp.asarray(inputs["context"])}
    params = initialize(net, jax.random.key(0), x, t, cond)
    optimizer = optax.adamw(1e-4, weight_decay=1e-2)
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

    return lambda: jax.block_until_ready(forward(params)), train, count(params)


def theirs(width: int, inputs: dict[str, np.ndarray]) -> tuple[Callable, Callable, int]:
    widths = tuple(width * mult for mult in MULT)
    net = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
        attention_head_dim=tuple(w // HEAD for w in widths),  # the number of heads, in spite of its name
        cross_attention_dim=CONTEXT,
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, weight_decay=1e-2)

    def image(name: str) -> torch.Tensor:
        return torch.from_numpy(inputs[name].transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)

    x, target = image("x"), image("target")
    t, context = torch.from_numpy(inputs["t"]), torch.from_numpy(inputs["context"])

    def forward() -> None:
        with torch.inference_mode():
            net(x, t, context)

    def train() -> None:
        optimizer.zero_grad()
        (net(x, t, context).sample - target).square().mean().backward()
        optimizer.step()

    return forward, train, sum(parameter.numel() for parameter in net.parameters())


def compare(name: str, first: Callable, second: Callable, rounds: int) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for round in range(rounds + 1):
        for record, function in zip(times, (first, second), strict=True):
            start = time.perf_counter()
            function()
            if round:  # the first compiles
                record.append(time.perf_counter() - start)
    a, b = map(statistics.median, times)
    print(f"{name}: ours {a:.3f} s, torch {b:.3f} s, ratio {a / b:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    shape = (options.batch, options.size, options.size, 4)
    inputs = {
        "x": rng.standard_normal(shape, np.float32),
        "target": rng.standard_normal(shape, np.float32),
        "context": rng.standard_normal((options.batch, 77, CONTEXT), np.float32),
        "t": rng.uniform(0, 1000, options.batch).astype(np.float32),
    }
    forward, train, parameters = ours(options.width, inputs)
    torch_forward, torch_train, torch_parameters = theirs(options.width, inputs)
    if parameters != torch_parameters:
        raise SystemExit(f"the networks differ: {parameters:,} and {torch_parameters:,} parameters")
    print(f"{parameters:,} parameters, batch {options.batch}, {options.size} x {options.size} x 4, jax {jax.__version__}")
    compare("forward", forward, torch_forward, options.rounds)
    compare("training step", train, torch_train, options.rounds)


if __name__ == "__main__":
    main()
