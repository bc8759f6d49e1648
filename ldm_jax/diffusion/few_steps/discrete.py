"""Consistency models in discrete time: f(x_t, t) is where the probability-flow ODE leads from x_t, the same along a
trajectory.

    L = lambda(i) d(f_theta(x_{i+1}, t_{i+1}), f_target(x_i, t_i)),    lambda = 1 / (s_{i+1} - s_i),   s = sigma / alpha

Training from data alone (Song et al. 2023, eq. 10; improved, iCT: Song & Dhariwal 2023): both points have the same x0 and eps,
the target is theta itself without gradient, d the pseudo-Huber sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(D), and the
grid is EDM's (rho 7) of N(k) = min(s0 2^floor(k / K'), s1) + 1 levels at update k, K' = floor(K / (log2(s1 / s0) + 1)). Times
follow the log-normal distribution of noise_ratio, put on the grid: times="log_normal" with mean -1.1 and std 2.0 for data of
deviation 0.5, so mean -0.4 for latents of deviation 1.

Distillation (Song et al. 2023, eq. 7): x_i is where one DDIM step of the frozen model leads from x_{i+1}, guided if wanted,
and the target is the average of the parameters.

f is the x0 that the network predicts. It must be x itself at no noise, and bounded in all noise: "v", "flow" and "edm" are so
by construction. The lowest level of the grid is exactly clean.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.few_steps import drawing
from ldm_jax.diffusion.level import Level, Prediction, diffuse, expand
from ldm_jax.diffusion.objectives import Objective, Problem
from ldm_jax.diffusion.parameterization import PredictionType, of_schedule, predict
from ldm_jax.diffusion.schedules import Schedule
from ldm_jax.diffusion.times import Times

BOUNDED = ("v", "flow", "edm")


def consistency(
    schedule: Schedule,
    prediction: PredictionType,
    *,
    steps: int,
    times: str | Times = "log_normal",
    times_options: Mapping[str, Any] | None = None,
    fewest: int = 10,
    most: int = 1280,
    lowest: float = 0.004,
    highest: float = 160.0,
    huber: float = 0.00054,
    target: str = "online",
) -> Objective:
    """Consistency training, iCT; see above, and `objectives.make_objective` for what one is.

    Args:
      steps: K, of the whole training.
      fewest, most: s0 and s1, intervals of the grid at first and at last.
      lowest, highest: noise_ratio of the grid's ends above clean, as far as the schedule reaches.
      huber: c over sqrt(D).
      target: "online", the parameters themselves, or "average".

    Raises:
      ValueError: another prediction than "v", "flow" or "edm", numbers out of range.
    """
    grid = _Grid(schedule, steps, fewest, most, lowest, highest)
    return _objective(schedule, prediction, grid, drawing.times_of(times, times_options), huber, target, "consistency", None)


def consistency_distillation(
    schedule: Schedule,
    prediction: PredictionType,
    *,
    times: str | Times = "log_normal",
    times_options: Mapping[str, Any] | None = None,
    intervals: int = 40,
    lowest: float = 0.004,
    highest: float = 160.0,
    huber: float = 0.00054,
    target: str = "average",
    guidance_scale: float = 1.0,
) -> Objective:
    """Consistency distillation of `problem.teacher`; arguments as in `consistency`, on a grid of so many intervals all along.
    `guidance_scale`: of the teacher; 1 is off."""
    drawing.check_guidance(guidance_scale)
    grid = _Grid(schedule, 1, intervals, intervals, lowest, highest)
    draw = drawing.times_of(times, times_options)
    return _objective(schedule, prediction, grid, draw, huber, target, "consistency_distillation", guidance_scale)


class _Grid:
    """Pairs of neighbouring levels on EDM's grid of as many intervals as the update has."""

    def __init__(self, schedule: Schedule, steps: int, fewest: int, most: int, lowest: float, highest: float):
        if not 1 <= fewest <= most:
            raise ValueError(f"intervals from {fewest} to {most}: there is at least 1, and they do not become fewer")
        if steps < 1:
            raise ValueError(f"steps={steps}: must be at least 1")
        ends = [float(schedule(np.float64(t)).noise_ratio) for t in schedule.span]
        low, high = max(lowest, ends[0]), min(highest, ends[1])
        if not 0 < low < high < np.inf:
            raise ValueError(f"lowest={lowest}, highest={highest}: must be 0 < lowest < highest, as far as {schedule} reaches")
        self.schedule, self.fewest, self.most = schedule, fewest, most
        self.low, self.high = low ** (1 / 7), high ** (1 / 7)
        self.period = max(math.floor(steps / (math.floor(math.log2(most / fewest)) + 1)), 1)

    def intervals(self, update: Any) -> jax.Array:
        """How many at this update, float32."""
        doubled = self.fewest * 2.0 ** jnp.floor(jnp.asarray(update, jnp.float32) / self.period)
        return jnp.minimum(doubled, float(self.most))

    def pair(self, ratio: jax.Array, intervals: jax.Array) -> tuple[Level, Level, jax.Array]:
        """The levels (above, below) around noise_ratio [B] and 1 / the difference of theirs; the lowest one is clean."""
        place = (jnp.maximum(ratio, 0.0) ** (1 / 7) - self.low) / (self.high - self.low)
        i = jnp.clip(jnp.floor(place * intervals), 0, intervals - 1)

        def at(i: jax.Array) -> jax.Array:
            return (self.low + i / intervals * (self.high - self.low)) ** 7

        above, below = at(i + 1), jnp.where(i == 0, 0.0, at(i))
        return self._level(above), self._level(below), 1 / (above - below)

    def _level(self, ratio: jax.Array) -> Level:
        level, clean = self.schedule.from_log_snr(-2 * jnp.log(jnp.maximum(ratio, 1e-8))), ratio == 0
        return Level(level.t, jnp.where(clean, 1.0, level.alpha), jnp.where(clean, 0.0, level.sigma))


def check_bounded(prediction: PredictionType, what: str) -> None:
    """ValueError unless the x0 of this prediction can be a consistency function."""
    if isinstance(prediction, str) and prediction not in BOUNDED:
        raise ValueError(
            f"{what} needs an x0 that is x where there is no noise and bounded where there is only noise; that of "
            f"prediction={prediction!r} is not. Choose {', '.join(map(repr, BOUNDED))}"
        )


def guided_teacher(problem: Problem, x: jax.Array, t: jax.Array, scale: float) -> jax.Array:
    """What the frozen model says of x at t, led by `scale`; ValueError without one."""
    if problem.teacher is None:
        raise ValueError("this objective learns from a frozen model: give Problem(teacher=...)")
    output = problem.teacher(x, t)
    if scale != 1:
        null = problem.teacher(x, t, without=True)
        output = null + scale * (output - null)
    return jax.lax.stop_gradient(output[..., : x.shape[-1]]).astype(x.dtype)


def _objective(
    schedule: Schedule,
    prediction: PredictionType,
    grid: _Grid,
    draw: Times,
    huber: float,
    target: str,
    what: str,
    scale: float | None,
) -> Objective:
    check_bounded(prediction, what)
    drawing.check_least(huber=huber)
    if target not in ("online", "average"):
        raise ValueError(f"target={target!r}: must be 'online' or 'average'")
    prediction = of_schedule(prediction, schedule)

    def scaled(x: jax.Array, level: Level) -> jax.Array:
        return x if schedule.input_scale is None else x * expand(schedule.input_scale(level), x)

    def objective(problem: Problem, x0: jax.Array, key: jax.Array, rows: jax.Array, batch_size: int):
        of_times, of_noise = jax.random.split(key)
        drawn = drawing.level_of_rows(draw, of_times, rows, batch_size, schedule)
        above, below, weight = grid.pair(drawn.noise_ratio, grid.intervals(problem.step))

        def f(params: Any, x: jax.Array, level: Level) -> jax.Array:
            output = problem.network(params, scaled(x, level), level.t, None).astype(x.dtype)
            return predict(prediction, x, output[..., : x.shape[-1]], level).x0

        x, x0, eps = drawing.noised(x0, of_noise, rows, above)
        pair = Prediction(x0, eps)
        if scale is not None:
            pair = predict(prediction, x, guided_teacher(problem, scaled(x, above), above.t, scale), above)
        wanted = f(problem.params if target == "online" else problem.ema, diffuse(*pair, below), below)
        square = jnp.square(f(problem.params, x, above) - jax.lax.stop_gradient(wanted))
        total, c = square.reshape(len(x), -1).sum(1), huber * math.sqrt(math.prod(x.shape[1:]))
        return drawing.report(weight * (jnp.sqrt(total + c**2) - c), drawing.row_mean(square), above)

    return objective
