"""Where the time of a training step goes, of both stages of a config, and what share of the matrix peak it reaches.

    python -m benchmarks.training_step                                   configs/shapes.py
    python -m benchmarks.training_step --config=flowers64 --stage=diffusion

The parts are programs of their own, run in turns within this process: the loss, its gradient, the optimizer's update, and the
whole step as training compiles it. Operations are those of the program before the compiler sees it, a multiplication and an
addition counted as two; the peak is that of a product of two float32 matrices of 2,048 rows and columns, in the same turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldm_jax import build
from ldm_jax.cli import configs
from ldm_jax.cli.overrides import overridden
from ldm_jax.training.state import Step

SIDE = 2048


def example(shapes: Any, key: jax.Array) -> Any:
    """Arrays of these shapes: standard normal, integers 0."""

    def one(x: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jax.random.normal(key, x.shape, x.dtype)
        return jnp.zeros(x.shape, x.dtype)

    return jax.tree.map(one, shapes)


def operations(function: Callable, arguments: tuple) -> float:
    """Of the program before the compiler sees it, as a CPU's: of a GPU's JAX counts none."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    with jax.default_device(jax.devices("cpu")[0]):
        return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def parts(config: dict, stage: str) -> dict[str, tuple[Callable, tuple]]:
    """What is timed, by name: a function and its arguments."""
    program, key = build.make_program(config, stage), jax.random.key(0)
    state, batch, constants = jax.jit(program.init_state)(key), example(program.batch, key), example(program.constants, key)
    rows = len(jax.tree.leaves(batch)[0])
    now = Step(state.step, state.ema, jnp.arange(rows, dtype=jnp.int32), rows)
    grad_fn = program.gradients[0]

    def look(params: Any, batch: Any) -> Any:
        return grad_fn({**constants, **params}, batch, key, now)

    grads = jax.jit(lambda params, batch: look(params, batch).grads)(state.params, batch)

    def update(grads: Any, state: Any) -> Any:
        updates, opt_state = program.optimizer.update(grads, state.opt_state, state.params)
        return optax.apply_updates({name: state.params[name] for name in updates}, updates), opt_state

    return {
        "loss": (lambda params, batch: look(params, batch).loss, (state.params, batch)),
        "gradient": (lambda params, batch: look(params, batch).grads, (state.params, batch)),
        "optimizer": (update, (grads, state)),
        "step": (lambda state, batch: program.step(state, batch, key, constants), (state, batch)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="shapes")
    parser.add_argument("--stage", nargs="+", default=["first_stage", "diffusion"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="such as first_stage.ch=32")
    args = parser.parse_args()
    config = overridden(configs.load(*configs.find(args.config)), [f"--config.{each}" for each in args.set])
    matrix = jnp.ones((SIDE, SIDE))
    runs = {"peak": (jax.jit(jnp.dot), (matrix, matrix), 2 * SIDE**3)}
    for stage in args.stage:
        for name, (function, arguments) in parts(config.to_dict(), stage).items():
            compiled = jax.jit(function).lower(*arguments).compile()
            runs[f"{stage}: {name}"] = compiled, arguments, operations(function, arguments)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds + 1):  # the first round warms up
        for name, (function, arguments, _) in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    peak = runs["peak"][2] / median["peak"]
    print(f"matrix peak {peak / 1e9:.0f} GFLOP/s")
    for name, (_, _, count) in runs.items():
        if name != "peak":
            share = count / median[name] / peak
            print(f"{name:24} {1e3 * median[name]:8.1f} ms {count / 1e9:8.2f} GFLOP {share:6.1%} of the peak")


if __name__ == "__main__":
    main()
