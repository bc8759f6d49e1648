"""Latent consistency models (Luo et al. 2023): consistency distillation of a guided model, the guidance scale an input.

    x_n = DDIM(x_{n+k}, null + w (conditional - null))                             the frozen model, w ~ U[least, most] a row
    L = d(f_theta(x_{n+k}, t_{n+k}, w), f_target(x_n, t_n, w))                     eq. 13 and 14, algorithm 1
    f(x, t, w) = c_skip(t) x + c_out(t) x0(x, t, w)                                `denoiser.consistency_boundary`

d is the pseudo-Huber sqrt((a - b)^2 + c^2) - c of every number, the target the average of the parameters. The pairs are
neighbours on the "trailing" grid of `intervals` steps: of a table of 1,000, 50 intervals skip k = 20. A network with
`guidance_dim` is told w; one without (a low-rank change of the teacher: LCM-LoRA, Luo et al. 2023b) is not, and learns what
serves all of them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.denoiser import consistency_boundary, make_denoiser
from ldm_jax.diffusion.few_steps import drawing
from ldm_jax.diffusion.grids import trailing
from ldm_jax.diffusion.level import Level, Prediction, diffuse, expand
from ldm_jax.diffusion.objectives import Objective, Problem
from ldm_jax.diffusion.parameterization import PredictionType, of_schedule, predict
from ldm_jax.diffusion.recipe import starts_at_pure_noise
from ldm_jax.diffusion.schedules import Schedule
from ldm_jax.primitives.arrays import row_keys


def latent_consistency(
    schedule: Schedule,
    prediction: PredictionType,
    *,
    intervals: int = 50,
    least_scale: float = 2.0,
    most_scale: float = 14.0,
    huber: float = 1e-3,
    target: str = "average",
) -> Objective:
    """The objective; see above, and `objectives.make_objective` for what one is.

    Args:
      intervals: of the grid.
      least_scale, most_scale: between which the guidance scale of a row is drawn; 1 is off.
      huber: c.
      target: "average" of the parameters, or "online", the parameters themselves.

    Raises:
      ValueError: noise to be predicted from pure noise, numbers out of range.
    """
    drawing.check_guidance(least_scale)
    drawing.check_guidance(most_scale)
    drawing.check_least(huber=huber)
    if least_scale > most_scale:
        raise ValueError(f"least_scale={least_scale}: must be at most most_scale={most_scale}")
    if target not in ("online", "average"):
        raise ValueError(f"target={target!r}: must be 'online' or 'average'")
    if prediction == "eps" and starts_at_pure_noise(schedule):
        raise ValueError("latent_consistency: prediction='eps' leaves x0 unknown at pure noise, where this schedule starts")
    prediction = of_schedule(prediction, schedule)
    grid = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), trailing(schedule, intervals))

    def objective(problem: Problem, x0: jax.Array, key: jax.Array, rows: jax.Array, batch_size: int):
        of_step, of_scale, of_noise = jax.random.split(key, 3)
        step = jax.vmap(lambda key: jax.random.randint(key, (), 0, intervals))(row_keys(of_step, rows))
        w = jax.vmap(partial(jax.random.uniform, minval=least_scale, maxval=most_scale))(row_keys(of_scale, rows))
        above, below = grid[step], grid[step + 1]
        x, x0, _ = drawing.noised(x0, of_noise, rows, above)

        def f(params: Any, x: jax.Array, level: Level) -> jax.Array:
            network = lambda x, t: problem.network(params, x, t, None, guidance=w)  # noqa: E731
            return consistency_boundary(make_denoiser(network, prediction, schedule.input_scale))(x, level).x0

        end = diffuse(*guided(problem, x, above, w), below)
        wanted = f(problem.params if target == "online" else problem.ema, end, below)
        off = f(problem.params, x, above) - jax.lax.stop_gradient(wanted)
        loss = drawing.row_mean(jnp.sqrt(jnp.square(off) + huber**2) - huber)
        return drawing.report(loss, drawing.row_mean(jnp.square(off)), above)

    def guided(problem: Problem, x: jax.Array, level: Level, w: jax.Array) -> Prediction:
        if problem.teacher is None:
            raise ValueError("this objective learns from a frozen model: give Problem(teacher=...)")
        seen = x if schedule.input_scale is None else x * expand(schedule.input_scale(level), x)
        conditional, null = (problem.teacher(seen, level.t, without=without) for without in (False, True))
        output = null + expand(w, x) * (conditional - null)
        output = jax.lax.stop_gradient(output[..., : x.shape[-1]]).astype(x.dtype)
        return predict(prediction, x, output, level)

    return objective
