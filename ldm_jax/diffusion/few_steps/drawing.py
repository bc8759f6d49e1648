"""What objectives of few steps draw and compare alike: pairs of times, the noised latents, losses of rows."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.level import Level, diffuse, expand
from ldm_jax.diffusion.schedules import Schedule
from ldm_jax.diffusion.times import TIMES, Times, make_times
from ldm_jax.primitives.arrays import row_normal
from ldm_jax.primitives.choices import choose

Metrics = dict[str, jax.Array]


def times_of(times: str | Times, options: Mapping[str, Any] | None = None) -> Times:
    """A time sampler from a name in `TIMES`, or itself. Importance sampling, which looks at past losses, is not one."""
    if times == "importance":
        raise ValueError("times='importance' follows the losses of the diffusion objective alone: choose another for this one")
    if not isinstance(times, str):
        return times
    known = inspect.signature(choose(TIMES, times, "times")).parameters
    for name in options or {}:
        if name not in known:
            raise ValueError(f"times_options.{name}: times={times!r} takes {', '.join(known) or 'no options'}")
    return make_times(times, **(options or {}))


def level_of_rows(times: Times, key: jax.Array, rows: jax.Array, batch_size: int, schedule: Schedule) -> Level:
    """Levels [B], the rows in random order: stratified times spread over any part of the batch, and two draws with two keys are
    independent of each other."""
    of_order, of_times = jax.random.split(key)
    return times(of_times, jax.random.permutation(of_order, batch_size)[rows], batch_size, schedule)[0]


def noised(x0: jax.Array, key: jax.Array, rows: jax.Array, level: Level) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x_t, x0, eps), float32 or wider."""
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    eps = row_normal(key, rows, x0.shape[1:]).astype(x0.dtype)
    return diffuse(x0, eps, level), x0, eps


def leading_rows(share: float, rows: jax.Array, batch_size: int) -> tuple[int, jax.Array]:
    """The rows that do the dearer work, the first round(share * batch_size) of the whole batch: how many of `rows`, the first
    ones, are to do it, so that the rest costs nothing, and which of these are among them, bool [count]. Where the batch is cut
    into parts as `training.state.accumulated` cuts it, every part does as many, and those that are too many don't count."""
    leading, parts = round(share * batch_size), max(1, batch_size // len(rows))
    count = -(-leading // parts)
    return count, rows[:count] < leading


def check_share(name: str, value: float) -> None:
    """ValueError unless it lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: must lie from 0 to 1")


def check_least(**values: float) -> None:
    """ValueError unless these numbers are finite and at least 0."""
    for name, value in values.items():
        if not 0 <= value < np.inf:
            raise ValueError(f"{name}={value}: must be a finite number of at least 0")


def check_guidance(scale: float, mix: float = 0.0) -> None:
    """ValueError unless the scale is finite and at least 0 and the mix in [0, 1)."""
    if not 0 <= scale < np.inf:
        raise ValueError(f"guidance_scale={scale}: must be a finite number of at least 0; 1 is off")
    if not 0 <= mix < 1:
        raise ValueError(f"guidance_mix={mix}: must lie in [0, 1)")


def row_mean(a: jax.Array) -> jax.Array:
    """The mean of every row, [B]."""
    return a.reshape(len(a), -1).mean(1)


def adaptive(error: jax.Array, power: float, constant: float) -> jax.Array:
    """error / (error + constant)^power per row, the divisor without gradient (Geng et al. 2024, 2025)."""
    return error / jax.lax.stop_gradient(error + constant) ** power


def where_rows(which: jax.Array | None, a: jax.Array, b: jax.Array) -> jax.Array:
    """a in the rows `which`, bool [B] (None: nowhere), b elsewhere."""
    return b if which is None else jnp.where(expand(which[: len(b)], b), a, b)


def report(loss: jax.Array, error: jax.Array, level: Level) -> tuple[jax.Array, Metrics]:
    """What an objective returns: the mean of `loss` [B], and the metrics of rows and their means."""
    total = jnp.mean(loss)
    rowwise = {"loss_per_sample": error, "t": level.t, "log_snr": level.log_snr}
    return total, {"loss": total, "loss_simple": jnp.mean(error)} | rowwise
