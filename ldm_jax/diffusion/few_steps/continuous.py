"""Consistency models in continuous time (Lu & Song 2024, "Simplifying, stabilizing and scaling continuous-time consistency
models"): sCM on TrigFlow, x_t = cos(t) x0 + sin(t) eps, t in [0, pi/2], for data of deviation 1.

    f(x_t, t) = cos(t) x_t - sin(t) F(x_t, t)                         F the network: the x0 of prediction "v"; f(x, 0) = x
    g = cos(t) df/dt = -cos^2(t) (F - dx/dt) - r cos(t) sin(t) (x_t + dF/dt),     dF/dt = dx/dt d_x F + d_t F by one `jax.jvp`
    L = |F_theta - F - g / (|g| + c)|^2                               algorithm 1, F and g without gradient, c = 0.1

dx/dt is cos(t) eps - sin(t) x0 when training from data (sCT), and F of the frozen model, guided if wanted, when distilling
(sCD). r rises from 0 to 1 over the first `warmup` updates. |g| is the root mean square of a row, whatever its size. The
paper's learned weight of times is left at 1: the distribution of times is what weighs them. Any variance-preserving schedule
serves: t here is the angle, the network is told the schedule's own time.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.clock import make_clock
from ldm_jax.diffusion.few_steps import drawing
from ldm_jax.diffusion.few_steps.discrete import guided_teacher
from ldm_jax.diffusion.level import Prediction, expand
from ldm_jax.diffusion.objectives import Objective, Problem
from ldm_jax.diffusion.parameterization import PredictionType, target
from ldm_jax.diffusion.schedules import Schedule
from ldm_jax.diffusion.times import Times


def scm(
    schedule: Schedule,
    prediction: PredictionType,
    *,
    times: str | Times = "log_normal",
    times_options: Mapping[str, Any] | None = None,
    warmup: int = 10_000,
    constant: float = 0.1,
) -> Objective:
    """sCT, from data; see above, and `objectives.make_objective` for what one is.

    Args:
      warmup: updates after which r is 1; 0: at once.
      constant: c.

    Raises:
      ValueError: another prediction than "v" of a variance-preserving schedule, numbers out of range.
    """
    return _objective(schedule, prediction, times, times_options, warmup, constant, None)


def scm_distillation(
    schedule: Schedule,
    prediction: PredictionType,
    *,
    times: str | Times = "log_normal",
    times_options: Mapping[str, Any] | None = None,
    warmup: int = 10_000,
    constant: float = 0.1,
    guidance_scale: float = 1.0,
) -> Objective:
    """sCD, from `problem.teacher`; `guidance_scale`: of the teacher, 1 is off. The rest as in `scm`."""
    drawing.check_guidance(guidance_scale)
    return _objective(schedule, prediction, times, times_options, warmup, constant, guidance_scale)


def tangent(problem: Problem, clock: Any, x: jax.Array, tau: jax.Array, v: jax.Array, r: Any) -> tuple[jax.Array, jax.Array]:
    """(F, g) at x [B, ..., C] and angles tau [B], along v = dx/dt; no gradient passes."""

    def F(x: jax.Array, tau: jax.Array) -> jax.Array:
        return problem.network(problem.params, x, clock.at(tau).t, None).astype(x.dtype)

    output, slope = jax.jvp(F, (x, tau), (v, jnp.ones_like(tau)))
    cos, sin = expand(jnp.cos(tau), x), expand(jnp.sin(tau), x)
    return jax.lax.stop_gradient((output, -(cos**2) * (output - v) - r * cos * sin * (x + slope)))


def _objective(
    schedule: Schedule,
    prediction: PredictionType,
    times: str | Times,
    times_options: Mapping[str, Any] | None,
    warmup: int,
    constant: float,
    scale: float | None,
) -> Objective:
    clock = make_clock(schedule, prediction, "scm")
    if clock.straight:
        raise ValueError(f"scm is of angles: choose prediction='v' with a variance-preserving schedule; got {schedule}")
    drawing.check_least(warmup=warmup, constant=constant)
    draw = drawing.times_of(times, times_options)

    def objective(problem: Problem, x0: jax.Array, key: jax.Array, rows: jax.Array, batch_size: int):
        of_times, of_noise = jax.random.split(key)
        tau = clock.of(drawing.level_of_rows(draw, of_times, rows, batch_size, schedule))
        level = clock.at(tau)
        x, x0, eps = drawing.noised(x0, of_noise, rows, level)
        v = target("v", Prediction(x0, eps), level) if scale is None else guided_teacher(problem, x, level.t, scale)
        r = jnp.minimum(1.0, problem.step / warmup) if warmup else 1.0
        output, g = tangent(problem, clock, x, tau, v, r)
        norm = jnp.sqrt(drawing.row_mean(jnp.square(g)))
        aim = output + g / expand(norm + constant, g)
        error = drawing.row_mean(jnp.square(problem.network(problem.params, x, level.t, None).astype(x.dtype) - aim))
        return drawing.report(error, jnp.square(norm), level)

    return objective
