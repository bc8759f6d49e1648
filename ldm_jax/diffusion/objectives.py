"""Training objectives: E_{t, eps} w(t) |target - network(x_t, t)|^p, in every parameterization.

    objective = make_objective(schedule, "v", weighting="min_snr")
    loss, metrics = objective(Problem(network, params), x0, key, rows, batch_size)

An objective is a function (problem, x0, key, rows, batch_size) -> (loss, metrics). `Problem` holds what it may need: the
network, its parameters and their average, the step. `rows` are the numbers of x0's rows in the whole update: what a row draws
depends on (key, row) alone, so the mean over the parts of a batch is the loss of the batch. `diffusion_loss` is the same for a
network of (x, t) in a notebook.

Learned variances follow Nichol & Dhariwal 2021: the second half of the network's channels, v in [-1, 1], interpolates the log
of the reverse step's variance between the posterior's and the forward process's (their beta), and learns from the step's term
of the variational bound, whose mean gets no gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.denoiser import Network, from_x0
from ldm_jax.diffusion.level import CLEAN, Level, Prediction, diffuse, expand
from ldm_jax.diffusion.parameterization import PREDICTIONS, PredictionType, of_schedule, predict, target
from ldm_jax.diffusion.schedules import Discrete, Schedule, make_schedule
from ldm_jax.diffusion.times import TIMES, History, Times, importance, make_times
from ldm_jax.diffusion.weightings import Weighting, make_weighting, variational_bound
from ldm_jax.primitives.arrays import row_normal
from ldm_jax.primitives.choices import check_choice, choose

PyTree = Any
Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Problem(NamedTuple):
    """What an objective may need.

    Attributes:
      network: (params, x [B, ..., C], t [B], s=None, without=False, guidance=None) -> output. `s` [B]: how far it is to step,
        in units of t, for networks that take that; `guidance` [B]: a guidance scale, told to networks that take one. `without`:
        under the empty condition. x may be the first rows of the batch alone.
      params: the parameters to differentiate with respect to.
      ema: their running average, for objectives with a target network.
      step: the number of the update, int32 scalar.
      schedule, prediction, input_scale: the process; `make_objective` puts its own in their place.
      history: the losses that importance sampling of times looks at (`times.loss_history`).
      dropped: bool [B], rows whose condition is the empty one; None: no row's is.
      teacher: (x, t, without=False) -> output of a frozen model of the same process, for objectives that learn from one.
    """

    network: Callable[..., jax.Array]
    params: PyTree
    ema: PyTree = None
    step: Any = 0
    schedule: Schedule | None = None
    prediction: PredictionType = "eps"
    input_scale: Callable[[Level], Any] | None = None
    history: History | None = None
    dropped: jax.Array | None = None
    teacher: Callable[..., jax.Array] | None = None


Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def huber(c: float) -> Loss:
    """Pseudo-Huber (Song & Dhariwal 2023): sqrt(|d|^2 + c^2) - c per sample, over its root mean square d."""

    def loss(output: jax.Array, wanted: jax.Array) -> jax.Array:
        return jnp.sqrt(_mean(jnp.square(output - wanted)) + c**2) - c

    return loss


def smooth_l1(c: float) -> Loss:
    """Pseudo-Huber element by element: 2 c (sqrt(d^2 + c^2) - c), which is d^2 for small d."""
    return lambda output, wanted: _mean(2 * c * (jnp.sqrt(jnp.square(output - wanted) + c**2) - c))


LOSSES: dict[str, Loss] = {
    "l1": lambda output, wanted: _mean(jnp.abs(output - wanted)),
    "l2": lambda output, wanted: _mean(jnp.square(output - wanted)),
    "huber": huber(1e-3),
}


def make_objective(
    schedule: str | Schedule,
    prediction: PredictionType,
    *,
    weighting: str | Weighting = "simple",
    weighting_options: Mapping[str, Any] | None = None,
    times: str | Times = "uniform",
    times_options: Mapping[str, Any] | None = None,
    loss: str | Loss = "l2",
    offset_noise: float = 0.0,
    input_perturbation: float = 0.0,
    learned_variance: bool = False,
    simple_weight: float = 1.0,
    elbo_weight: float = 0.0,
    log_variance: Callable[[PyTree, Level], jax.Array] | None = None,
) -> Objective:
    """The diffusion loss as an objective: mean over rows of weight * loss, with the process given here.

    Args:
      schedule: one of `SCHEDULES`, or its name.
      weighting, times, loss: names in `WEIGHTINGS`, `TIMES` (or "importance", Nichol & Dhariwal 2021, which reads
        `problem.history`) and `LOSSES`, or functions; the `.._options` are those of a named one's factory.
      offset_noise: strength of N(0, 1) per row and channel that is added to the noise (Guttenberg 2023); 0 is off.
      input_perturbation: x_t is made with eps + strength * N(0, 1), the target keeps eps (Ning et al. 2023; 0.1); 0 is off.
      learned_variance: the network has twice the channels, see above. Needs a table and elbo_weight > 0.
      simple_weight, elbo_weight: the loss is simple_weight * weighted loss + elbo_weight * bound (the reference's
        l_simple_weight and original_elbo_weight). Of a table the bound is one step's term in nats per dimension, so that the
        hybrid loss of Nichol & Dhariwal (lambda = 0.001, N = 1000) is elbo_weight 1; of a continuous schedule it is the whole
        integral.
      log_variance: (params, level) -> u [B], learned uncertainty: a row's loss e becomes e / exp(u) + u (the reference's
        learn_logvar; EDM2's head).

    Returns:
      objective(problem, x0 [B, ..., C], key, rows int32 [B], batch_size, noise=None) -> (loss, metrics). `batch_size` counts
      the rows of the whole update; `noise` is eps itself, given. Metrics: scalars loss, loss_simple (unweighted) and, if
      elbo_weight > 0, loss_elbo; per row [B] loss_per_sample, t, log_snr.

    Raises:
      ValueError: an unknown name, a negative strength or weight, a learned variance without a table or a bound.
    """
    schedule = make_schedule(schedule)
    strengths = {"offset_noise": offset_noise, "input_perturbation": input_perturbation}
    for name, value in (strengths | {"simple_weight": simple_weight, "elbo_weight": elbo_weight}).items():
        if not 0 <= value < np.inf:
            raise ValueError(f"{name}={value} must be a finite number of at least 0.")
    if learned_variance and not isinstance(schedule, Discrete):
        raise ValueError(f"learned_variance is of the steps of a table and {schedule} is continuous: set it to False.")
    if learned_variance and not elbo_weight:
        raise ValueError("learned_variance learns from the variational bound alone: give an elbo_weight above 0.")
    if isinstance(prediction, str):
        check_choice(prediction, PREDICTIONS, "prediction")
    prediction, input_scale = of_schedule(prediction, schedule), schedule.input_scale
    if isinstance(weighting, str):
        weighting = make_weighting(weighting, schedule, **(weighting_options or {}))
    by_history = times == "importance"
    if isinstance(times, str) and not by_history:
        check_choice(times, (*TIMES, "importance"), "times")
        times = make_times(times, **(times_options or {}))
    compare = choose(LOSSES, loss, "loss") if isinstance(loss, str) else loss
    if learned_variance:
        step_bound = _step_bound(schedule, prediction)
    elif elbo_weight:
        bound, steps = variational_bound(schedule), schedule.size if isinstance(schedule, Discrete) else 1

    def objective(
        problem: Problem, x0: jax.Array, key: jax.Array, rows: jax.Array, batch_size: int, noise: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if by_history and problem.history is None:
            raise ValueError("times='importance' looks at past losses: give Problem(history=times.loss_history()).")
        draw = importance(problem.history, **(times_options or {})) if by_history else times
        of_time, of_noise, of_offset, of_input = jax.random.split(key, 4)
        level, correction = draw(of_time, rows, batch_size, schedule)
        x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
        eps = row_normal(of_noise, rows, x0.shape[1:]).astype(x0.dtype) if noise is None else noise
        if offset_noise:
            eps = eps + offset_noise * row_normal(of_offset, rows, (*(1,) * (x0.ndim - 2), x0.shape[-1]))
        seen = eps + input_perturbation * row_normal(of_input, rows, x0.shape[1:]) if input_perturbation else eps
        x = diffuse(x0, seen, level)
        scaled = x if input_scale is None else x * expand(input_scale(level), x)
        output = problem.network(problem.params, scaled, level.t, None).astype(x0.dtype)
        channels = x0.shape[-1] * (2 if learned_variance else 1)
        if output.shape != (*x0.shape[:-1], channels):
            raise ValueError(
                f"The network returned shape {output.shape} for x of shape {x.shape}; it must have {channels} channels"
                f"{', half of them for the variance' if learned_variance else ''}."
            )
        mean, variance = output[..., : x0.shape[-1]], output[..., x0.shape[-1] :]
        error = compare(mean, target(prediction, Prediction(x0, eps), level))
        each = weighting(level, prediction) * error
        if log_variance is not None:
            u = log_variance(problem.params, level)
            each = each / jnp.exp(u) + u
        total = simple_weight * jnp.mean(correction * each)
        metrics = {"loss_simple": jnp.mean(error)}
        if elbo_weight:
            if learned_variance:
                terms = step_bound(x, x0, jax.lax.stop_gradient(mean), variance, level)
            else:
                terms = bound(level, prediction) / steps * error
            metrics["loss_elbo"] = jnp.mean(correction * terms)
            total = total + elbo_weight * metrics["loss_elbo"]
        rowwise = {"loss_per_sample": error, "t": level.t, "log_snr": level.log_snr}
        return total, {"loss": total} | metrics | rowwise

    return objective


def diffusion_loss(
    network: Network,
    schedule: Schedule,
    prediction: PredictionType,
    x0: jax.Array,
    key: jax.Array,
    *,
    noise: jax.Array | None = None,
    **options: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of `network(x_t, t[B]) -> output` on a whole batch x0 [B, ..., C]: `make_objective`, which has the
    `options`, for a network that is a function of (x, t). `noise`: eps itself, given."""
    objective = make_objective(schedule, prediction, **options)
    problem = Problem(lambda params, x, t, s: network(x, t), None)
    return objective(problem, x0, key, jnp.arange(len(x0)), len(x0), noise=noise)


def _step_bound(schedule: Discrete, prediction: PredictionType) -> Callable[..., jax.Array]:
    """Per row, nats per dimension: KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)), and -log p(x0 | x_t) at t = 0. Nichol &
    Dhariwal 2021, eq. 15, without the discretized decoder of pixels, as latents have no bins."""
    bar = schedule.alpha_bar
    before = np.append(1.0, bar[:-1])
    beta = 1 - bar / before
    posterior = beta * (1 - before) / (1 - bar)
    posterior[0] = posterior[1]  # 0, of which there is no log
    table = jnp.asarray(np.stack([np.log(posterior), np.log(beta)]), jnp.float32)

    def bound(x: jax.Array, x0: jax.Array, mean: jax.Array, variance: jax.Array, level: Level) -> jax.Array:
        t = jnp.round(level.t).astype(jnp.int32)
        least, most = (expand(row[t], x) for row in table)
        log_p = least + (variance + 1) / 2 * (most - least)
        first = expand(t == 0, x)
        to = jax.tree.map(lambda a, b: jnp.where(t == 0, b, a), schedule(jnp.maximum(level.t - 1, 0.0)), CLEAN)
        kept = jnp.sqrt(jnp.maximum(to.sigma**2 - jnp.where(t == 0, 0.0, jnp.exp(table[0][t])), 0))
        at = Level(to.t, to.alpha, kept)  # mean of x_{t-1} given (x0, eps)
        difference = diffuse(*from_x0(x, x0, level), at) - diffuse(*predict(prediction, x, mean, level), at)
        square = jnp.square(difference) * jnp.exp(-log_p)
        kl = 0.5 * (log_p - least - 1 + jnp.exp(least - log_p) + square)
        nll = 0.5 * (jnp.log(2 * jnp.pi) + log_p + square)
        return _mean(jnp.where(first, nll, kl))

    return bound


def _mean(a: jax.Array) -> jax.Array:
    return a.reshape(a.shape[0], -1).mean(1)
