"""Shortcut models (Frans et al. 2024, "One step diffusion via shortcut models"): the network is told how far it steps.

    x_{t - d} = x_t - d u(x_t, t, d)                                                          eq. 3
    u(x_t, t, 2d) = u(x_t, t, d) / 2 + u(x_{t - d}, t - d, d) / 2                             self-consistency, eq. 4
    L = |u(x_t, t, 0) - v|^2 + |u(x_t, t, 2d) - stop_gradient(u_target)|^2                    eq. 5

Size 0 is flow matching. Of a batch's rows `share` are of the second kind, with 2d = T 2^-k and t on the grid of that size, the
targets from the average of the parameters. Where d is the smallest size the two halves are asked for with size 0, and with
guidance, which larger steps inherit. In the clock tau of the process, as `mean_flow`; it needs no derivative.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.clock import make_clock
from ldm_jax.diffusion.few_steps import drawing
from ldm_jax.diffusion.level import Prediction, expand
from ldm_jax.diffusion.objectives import Objective, Problem
from ldm_jax.diffusion.parameterization import PredictionType, target
from ldm_jax.diffusion.schedules import Schedule
from ldm_jax.diffusion.times import Times
from ldm_jax.primitives.arrays import row_keys


def shortcut(
    schedule: Schedule,
    prediction: PredictionType,
    *,
    times: str | Times = "uniform",
    times_options: Mapping[str, Any] | None = None,
    share: float = 0.25,
    finest: int = 128,
    guidance_scale: float = 1.0,
) -> Objective:
    """The objective; see above, and `objectives.make_objective` for what one is.

    Args:
      times: of the rows of flow matching.
      share: of the rows, those of self-consistency. They cost two more forward passes of themselves alone, with guidance four.
      finest: how many steps of the smallest size make the whole way, a power of two.
      guidance_scale: of the smallest steps' targets; 1 is off.

    Raises:
      ValueError: a process whose velocity `prediction` is not, numbers out of range.
    """
    clock = make_clock(schedule, prediction, "shortcut")
    draw = drawing.times_of(times, times_options)
    drawing.check_share("share", share)
    drawing.check_guidance(guidance_scale)
    if finest < 2 or finest & (finest - 1):
        raise ValueError(f"finest={finest}: must be a power of two, at least 2")
    sizes = finest.bit_length() - 1  # of 2d: T, T/2, ..., T 2/finest

    def objective(problem: Problem, x0: jax.Array, key: jax.Array, rows: jax.Array, batch_size: int):
        of_times, of_size, of_place, of_noise = jax.random.split(key, 4)
        count, leading = drawing.leading_rows(share, rows, batch_size)
        tau = clock.of(drawing.level_of_rows(draw, of_times, rows, batch_size, schedule))
        k = jax.vmap(lambda key: jax.random.randint(key, (), 0, sizes))(row_keys(of_size, rows[:count]))
        place = jax.vmap(jax.random.uniform)(row_keys(of_place, rows[:count]))
        double = clock.end * 0.5**k
        begin = clock.end - double * jnp.floor(place * 2.0**k)
        tau = tau.at[:count].set(jnp.where(leading, begin, tau[:count]))
        level = clock.at(tau)
        x, x0, eps = drawing.noised(x0, of_noise, rows, level)
        wanted, s = target(clock.prediction, Prediction(x0, eps), level), jnp.zeros_like(tau)
        if count:
            smallest = k == sizes - 1
            halves = _two_steps(problem, clock, x[:count], begin, double / 2, smallest, guidance_scale)
            wanted = wanted.at[:count].set(drawing.where_rows(leading, halves, wanted[:count]))
            s = s.at[:count].set(jnp.where(leading, level.t[:count] - clock.at(begin - double).t, 0.0))
        output = problem.network(problem.params, x, level.t, s)
        error = drawing.row_mean(jnp.square(output - jax.lax.stop_gradient(wanted)))
        return drawing.report(error, error, level)

    return objective


def _two_steps(
    problem: Problem, clock: Any, x: jax.Array, tau: jax.Array, d: jax.Array, smallest: jax.Array, scale: float
) -> jax.Array:
    """The mean velocity of two steps of length d from x at tau, by the average of the parameters."""

    def u(x: jax.Array, tau: jax.Array) -> jax.Array:
        t = clock.at(tau).t
        s = jnp.where(smallest, 0.0, t - clock.at(tau - d).t)
        led = plain = problem.network(problem.ema, x, t, s)
        if scale != 1:
            null = problem.network(problem.ema, x, t, s, without=True)
            led = drawing.where_rows(smallest, null + scale * (plain - null), plain)
        return led.astype(x.dtype)

    first = u(x, tau)
    second = u(x - expand(d, x) * first, tau - d)
    return (first + second) / 2
