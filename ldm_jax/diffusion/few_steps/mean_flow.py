"""MeanFlow (Geng et al. 2025, "Mean flows for one-step generative modeling"): the network is told two times and predicts the
average velocity between them.

    u(x_t, r, t) = 1 / (t - r) int_r^t v(x_tau, tau) d tau       x_r = x_t - (t - r) u        one evaluation, any distance
    u = v - (t - r) du/dt,   du/dt = v d_x u + d_t u             eq. 6 and 8, the total derivative by one `jax.jvp`

The loss is |u_theta - stop_gradient(v - (t - r) du_theta/dt)|^2 with v the velocity of the pair, eps - x0 (eq. 9 to 11), its
rows divided by (error + c)^p (eq. 22, p = 1). Where r = t it is flow matching: of a batch's rows `share` have r < t.

Guidance inside training (eq. 13, 19 to 21; appendix B.1): v becomes omega v + kappa u(x, t, t | c) + (1 - omega - kappa) u(x,
t, t | null) with omega = scale (1 - kappa), whose field is that of guidance with this scale; rows without a condition keep v.
Sampling then takes one evaluation a step, guidance included.

Improved MeanFlow (Geng et al. 2025, "Improved mean flows", section 4.1): v inside the derivative is the network's own u(x, t,
t), so that what is regressed, u + (t - r) stop_gradient(du/dt), is a function of x_t alone.

Written for times tau in which the network's prediction is the velocity (`clock`): rectified flow and "v" of
variance-preserving processes alike. The network is told t and t - r. Norms and attention pass the derivative on; flash kernels
have no forward mode.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.clock import make_clock
from ldm_jax.diffusion.few_steps import drawing
from ldm_jax.diffusion.level import Level, Prediction, expand
from ldm_jax.diffusion.objectives import Objective, Problem
from ldm_jax.diffusion.parameterization import PredictionType, target
from ldm_jax.diffusion.schedules import Schedule
from ldm_jax.diffusion.times import Times


def mean_flow(
    schedule: Schedule,
    prediction: PredictionType,
    *,
    times: str | Times = "logit_normal",
    times_options: Mapping[str, Any] | None = None,
    share: float = 0.25,
    guidance_scale: float = 1.0,
    guidance_mix: float = 0.0,
    improved: bool = False,
    power: float = 1.0,
    constant: float = 1e-3,
) -> Objective:
    """The objective; see above, and `objectives.make_objective` for what one is.

    Args:
      times: both times of a row are drawn from it; the later one is t.
      share: of the rows, those with r < t. They cost two more forward passes, of themselves alone.
      guidance_scale, guidance_mix: omega' = omega / (1 - kappa) and kappa; scale 1 is off. Guidance costs a forward pass, a mix
        above 0 another one.
      improved: the network's own velocity inside the derivative.
      power, constant: p and c of the adaptive weight, of a row's mean square; power 0 weighs rows alike.

    Raises:
      ValueError: a process whose velocity `prediction` is not, numbers out of range.
    """
    clock = make_clock(schedule, prediction, "mean_flow")
    draw = drawing.times_of(times, times_options)
    drawing.check_share("share", share)
    drawing.check_guidance(guidance_scale, guidance_mix)
    drawing.check_least(power=power, constant=constant)

    def objective(problem: Problem, x0: jax.Array, key: jax.Array, rows: jax.Array, batch_size: int):
        of_first, of_second, of_noise = jax.random.split(key, 3)
        tau, other = (
            clock.of(drawing.level_of_rows(draw, key, rows, batch_size, schedule)) for key in (of_first, of_second)
        )
        count, leading = drawing.leading_rows(share, rows, batch_size)
        steps = jnp.zeros(len(x0), bool).at[:count].set(leading)
        tau, end = jnp.where(steps, jnp.maximum(tau, other), tau), jnp.where(steps, jnp.minimum(tau, other), tau)
        level, to = clock.at(tau), clock.at(end)
        x, x0, eps = drawing.noised(x0, of_noise, rows, level)
        pair = target(clock.prediction, Prediction(x0, eps), level)
        v, tangent = _velocities(problem, x, level, pair, count, guidance_scale, guidance_mix, improved)

        def along(x: jax.Array, tau: jax.Array) -> jax.Array:
            t = clock.at(tau).t
            return problem.network(problem.params, x, t, t - to.t[:count])

        wanted = v
        if count:
            _, slope = jax.jvp(along, (x[:count], tau[:count]), (tangent, jnp.ones(count, tau.dtype)))
            wanted = v.at[:count].add(-expand((tau - end)[:count], x) * slope.astype(v.dtype))
        output = problem.network(problem.params, x, level.t, level.t - to.t)
        error = drawing.row_mean(jnp.square(output - jax.lax.stop_gradient(wanted)))
        return drawing.report(drawing.adaptive(error, power, constant), error, level)

    return objective


def _velocities(
    problem: Problem, x: jax.Array, level: Level, pair: jax.Array, count: int, scale: float, mix: float, own: bool
) -> tuple[jax.Array, jax.Array]:
    """What the network is to average, of all rows, and along what the derivative is taken, of the first `count`; `pair`: the
    velocity of (x0, eps)."""

    def now(rows: int, without: bool = False) -> jax.Array:
        x_, t = x[:rows], level.t[:rows]
        told = {"without": True} if without else {}
        return jax.lax.stop_gradient(problem.network(problem.params, x_, t, jnp.zeros_like(t), **told)).astype(x.dtype)

    own, guided = own and count > 0, scale != 1
    plain = now(len(x) if mix and guided else count) if own or (mix and guided) else None
    if not guided:
        return pair, plain if own else pair[:count]
    null, omega = now(len(x), without=True), scale * (1 - mix)

    def field(v: jax.Array) -> jax.Array:
        rows = len(v)
        led = omega * v + (1 - omega - mix) * null[:rows] + (mix * plain[:rows] if mix else 0)
        return drawing.where_rows(problem.dropped, v, led)

    v = field(pair)
    return v, field(plain[:count]) if own else v[:count]
