"""How many steps a time budget has room for, from what a step takes on this machine.

    seconds = looking and measuring  (over already)
            + starting               (reading pictures, compiling both stages and the sampler; measured or estimated from that)
            + looking on             (validations, pictures on the way and at the end: in steps' time, see `Plan`)
            + steps of both stages

All is counted again with a reserve. A forward pass is taken as a third of a step, and an encoder as half an autoencoder.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build
from ldm_jax.data.survey import Survey
from ldm_jax.own_data.decision import Config, apply
from ldm_jax.primitives.arrays import key_of
from ldm_jax.training import sharding

AUTOENCODER = 0.3  # of the steps' time
RESERVE = 0.05  # of what is left
LEAST = 20  # steps of each stage that make a picture at all
SHOWN, DRAWN = 16, 64  # pictures drawn at a look on the way, and at the end
LOOKS = 3  # validations and pictures on the way, the last step's among them


@dataclass(frozen=True)
class Cost:
    """Seconds on this machine: `start`, until a stage's first step is over (mostly compiling), and `step`, the median of the
    next ones, which looked at `batch` pictures each."""

    start: float
    step: float
    batch: int


@dataclass(frozen=True)
class Plan:
    """Steps of both stages, and the seconds that are expected of `starting`, `looking` on and the `steps` themselves."""

    steps: tuple[int, int]
    starting: float
    looking: float
    training: float


def measure(config: Config, stage: str, seconds: float = 4.0, most: int = 30) -> Cost:
    """Runs the training step of "first_stage" or "diffusion" on empty pictures, for about so long."""
    began = time.perf_counter()
    mesh = sharding.make_mesh(*(config["mesh"].get(axis, 1) for axis in sharding.AXES))
    program = build.make_program(config, stage)
    state = sharding.init_sharded(mesh, program.init_state, config["seed"])
    constants = jax.tree.map(lambda x: jnp.full(x.shape, 0.02, x.dtype), program.constants)
    step = program.compile(mesh, constants)
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.batch)
    rows = sharding.local_rows(mesh, len(jax.tree.leaves(batch)[0]))
    batch = sharding.to_device(mesh, jax.tree.map(lambda x: x[rows], batch))
    taken: list[float] = []
    for number in range(most + 1):
        if number > 3 and sum(taken) > seconds:
            break
        before = time.perf_counter()
        state, metrics = step(state, batch, key_of(config["seed"]))
        jax.block_until_ready(metrics)
        if number:
            taken.append(time.perf_counter() - before)
        else:
            start = time.perf_counter() - began
    return Cost(start, float(np.median(taken)), config[f"{stage}_train"]["batch_size"])


def budget(seconds: float, costs: tuple[Cost, Cost], found: Survey, config: Config) -> Plan:
    """The steps that fit into the seconds that are left. ValueError, with what would be enough, where hardly any do."""
    first, second = costs
    image = first.step / first.batch, second.step / second.batch  # of training on one picture
    pictures = found.train + found.held_out
    validated = min(found.held_out or found.train, config["log"]["validation_images"])
    encoded = found.train + second.batch * config["latents"]["scale_batches"]
    # programs besides the two steps: reconstructing, encoding twice, validation, drawing, each a good part of a step's
    starting = pictures * found.seconds + 1.8 * (first.start + second.start) + encoded * image[0] / 6
    passes = config["sampling"]["steps"] * (1 if config["sampling"]["guidance_scale"] == 1 else 2)
    drawing = passes * image[1] / 3 + image[0] / 6
    looking = LOOKS * (validated * (image[0] + image[1]) / 3 + SHOWN * drawing) + DRAWN * drawing
    left = (seconds - starting - looking) * (1 - RESERVE)
    steps = int(AUTOENCODER * left / first.step), int((1 - AUTOENCODER) * left / second.step)
    if min(steps) < LEAST:
        enough = starting + looking + 5 * LEAST * max(first.step / AUTOENCODER, second.step / (1 - AUTOENCODER))
        raise ValueError(
            f"{max(seconds, 0):.0f} s are left, and starting and drawing alone take about {starting + looking:.0f} s here: "
            f"give {np.ceil((enough - seconds) / 60):.0f} minutes more"
        )
    return Plan(steps, starting, looking, steps[0] * first.step + steps[1] * second.step)


def with_steps(config: Config, steps: tuple[int, int]) -> dict[str, Any]:
    """The config with these steps of the two stages, and what goes with them: warm-up, the length of averages, how often it is
    looked at and saved."""
    first, second = steps
    fields: dict[str, Any] = {
        "first_stage_train.steps": first,
        "first_stage_train.warmup_steps": min(20, first // 10),
        "diffusion_train.steps": second,
        "diffusion_train.warmup_steps": min(30, second // 10),
        "diffusion_train.ema_decay": round(min(0.9999, max(0.8, 1 - 20 / second)), 4),
        "log.every": max(1, min(100, min(steps) // 10)),
        "log.images_every": max(1, -(-second // LOOKS)),
        "log.validation_every": max(1, -(-max(steps) // LOOKS)),
        "checkpoint.every": max(1, min(1000, -(-max(steps) // (2 * LOOKS)))),
    }
    return apply(config, fields)


def in_words(seconds: float, spent: float, costs: tuple[Cost, Cost], plan: Plan) -> str:
    """What the plan rests on, in one line."""
    first, second = costs
    return (
        f"{seconds / 60:g} minutes: {spent:.0f} s are over; starting takes about {plan.starting:.0f} s, validations and "
        f"pictures {plan.looking:.0f} s; measured here: a step of the autoencoder {1e3 * first.step:.0f} ms, of diffusion "
        f"{1e3 * second.step:.0f} ms; so {plan.steps[0]} and {plan.steps[1]} steps"
    )
