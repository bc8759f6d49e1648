"""Multistep solvers: one evaluation a step, and the last few answers remembered.

Each expresses predictions as y, a constant parameterization, and moves x with a weighted mean of the latest ones,

    x_{n+1} = move(x_n, sum_j w[n, j] y_{n-j}),

so a solver is its table of weights [steps, order], made from the grid before the first step (in float64 if the grid is known).
Through y_{n-j} at positions p_{n-j} goes a polynomial P of s = (p - p_n) / (p_{n+1} - p_n); with the moments
m_k = <s^k> of the step's measure the weights solve sum_j s_j^k w_j = m_k. All that distinguishes the solvers:

    solver             y     position p         moments
    lms                eps   noise_ratio        1/(k+1)                              Adams-Bashforth, exact
    plms, pndm, ipndm  eps   the step's number  1/(k+1)                              as if the grid were uniform
    deis               eps   lambda             exact for e^-lambda                  Zhang & Chen 2023
    dpm_multistep      eps   lambda             exact for e^-lambda, or as published Lu et al. 2022a
    dpmpp_2m, _3m      x0    lambda             exact for e^lambda, or as published  Lu et al. 2022b
    dpm_solver         both  lambda             the same, from an anchor further back
    unipc              both  lambda             the same, then corrected             Zhao et al. 2023

lambda = log_snr / 2. Warm-up, and lower orders at the end, are rows with zeros.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.level import Denoiser, Level, expand, namespace
from ldm_jax.diffusion.parameterization import PredictionType, target
from ldm_jax.diffusion.samplers.protocol import Sampler, State, gaussian, mean, move, solvable
from ldm_jax.diffusion.schedules import Discrete, Schedule
from ldm_jax.primitives.choices import choose

Positions = Callable[[Level], Any]
Moments = Callable[[Any, int], Any]


def half_log_snr(grid: Level) -> Any:
    """lambda = log(alpha / sigma)."""
    return 0.5 * grid.log_snr


def step_number(grid: Level) -> Any:
    """0, 1, 2, ...: pretends that the grid is uniform."""
    return np.arange(len(grid)) * 1.0


def multistep(
    prediction: PredictionType,
    weights: Callable[[Level], Any],
    eta: float = 0.0,
    warm_up: tuple[int, Callable[..., jax.Array]] | None = None,
) -> Sampler:
    """The solver with this table: `weights(grid) -> [steps, order]`, newest answer first. `eta` > 0: the SDE (x0 only).
    `warm_up` = (n, average): in the first n steps, unless they go to exactly clean, y is average(x, y, f, level, to), f
    evaluating y anywhere."""

    def init(x: jax.Array, grid: Level) -> State:
        solvable(prediction, grid)
        table = jnp.asarray(weights(grid), x.dtype)
        past = (jnp.zeros_like(x),) * (table.shape[1] - 1)
        return State(x, jnp.zeros_like(x), (jnp.int32(0), table, past))

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        index, table, past = state.memory

        def evaluate(x: jax.Array, level: Level) -> jax.Array:
            return target(prediction, denoise(x, level), level)

        predicted = denoise(state.x, level)
        ys = (target(prediction, predicted, level), *past)
        y = mean(table[index], ys)
        if warm_up is not None:
            steps, average = warm_up
            warm = (index < steps) & (to.sigma > 0)  # at exactly clean there is nothing to evaluate
            y = jax.lax.cond(warm, lambda: average(state.x, ys[0], evaluate, level, to), lambda: y)
        x = move_sde(state.x, y, level, to, eta, key) if eta else move(prediction, state.x, y, level, to)
        return State(x, predicted.x0, (index + 1, table, ys[:-1]))

    return Sampler(init, step)


def move_sde(x: jax.Array, x0: jax.Array, level: Level, to: Level, eta: float, key: jax.Array | None) -> jax.Array:
    """The reverse SDE with x0 held constant, exactly (Lu et al. 2022b, eq. 19; eta as in k-diffusion; 1 is the SDE).

    e^-h = sigma_to alpha / (alpha_to sigma), so that nothing is singular at clean ends or pure noise, in VP, VE or flow.
    """
    decay = to.sigma * level.alpha / (to.alpha * level.sigma)
    kept = to.sigma / level.sigma * decay**eta
    x = expand(kept, x) * x + expand(to.alpha - kept * level.alpha, x) * x0
    return x + expand(to.sigma * jnp.sqrt(1 - decay ** (2 * eta)), x) * gaussian(key, x)


def adams(order: int, position: Positions, moments: Moments, lower_final: bool = False) -> Callable[[Level], Any]:
    """The table of weights of the interpolating polynomial. `lower_final` counts orders down at the end of the grid;
    a step to exactly clean, infinitely long in lambda, always has order 1."""
    if order < 1:
        raise ValueError(f"A multistep solver has order 1 or more; got {order}.")

    def weights(grid: Level) -> Any:
        steps = len(grid) - 1
        orders = np.minimum(np.arange(steps) + 1, order)
        if lower_final:
            orders = np.minimum(orders, steps - np.arange(steps))
        nodes = [np.maximum(np.arange(steps) - j, 0) for j in range(order)]
        return interpolatory(position(grid), np.arange(steps), np.arange(steps) + 1, nodes, orders, moments)

    return weights


def interpolatory(p: Any, base: Any, end: Any, nodes: list[Any], orders: Any, moments: Moments) -> Any:
    """Weights [steps, len(nodes)] of steps from p[base] to p[end] with the first `orders` of the nodes, indices into the grid.
    A step with an infinite end has one weight, on the first node; nodes infinitely far away (pure noise) have none."""
    xp = namespace(p)
    at = xp.stack(nodes, -1)
    finite = xp.isfinite(p[base]) & xp.isfinite(p[end])
    near = xp.cumprod(xp.isfinite(p[at]), -1).sum(-1)
    orders = xp.where(finite, xp.minimum(orders, xp.maximum(near, 1)), 1)
    p = xp.where(xp.isfinite(p), p, 0.0)
    h = xp.where(finite, p[end] - p[base], 1.0)
    s = (p[at] - p[base][:, None]) / h[:, None]
    table = xp.zeros(s.shape)
    for k in range(1, len(nodes) + 1):
        rows = (orders == k)[:, None]
        safe = xp.where(rows, s[:, :k], np.arange(k) * 1.0)
        w = xp.linalg.solve(safe[:, None, :] ** np.arange(k)[:, None], moments(h, k)[..., None])[..., 0]
        table = xp.where(rows, xp.concatenate([w, xp.zeros((len(h), len(nodes) - k))], 1), table)
    return table


def uniform(h: Any, order: int) -> Any:
    """Moments of s on [0, 1]: 1 / (k + 1)."""
    return namespace(h).broadcast_to(1.0 / np.arange(1, order + 1), (*h.shape, order))


def exponential(rate: float) -> Moments:
    """Moments of s under the weight e^(rate h s) on [0, 1], by Gauss-Legendre quadrature."""
    nodes, mass = np.polynomial.legendre.leggauss(32)
    s = (nodes + 1) / 2

    def moments(h: Any, order: int) -> Any:
        xp = namespace(h)
        density = mass * xp.exp(rate * h[:, None] * s - xp.maximum(rate * h, 0)[:, None])
        return (density / density.sum(-1, keepdims=True)) @ s[:, None] ** np.arange(order)

    return moments


def published(rate: float) -> Moments:
    """What the DPM-Solver papers' code, and all that follow it, use: at order 2 a first moment of 1/2 ('midpoint'), at order 3
    exact ones but for the last, which is halved; that makes the third order a second one."""

    def moments(h: Any, order: int) -> Any:
        if order == 2:
            return namespace(h).broadcast_to(np.array([1.0, 0.5]), (*h.shape, 2))
        return exponential(rate)(h, order) * np.array([1.0, 1.0, 0.5])[:order]

    return moments


def dpm_multistep(
    order: int = 2, prediction: PredictionType = "x0", exact: bool = False, eta: float = 0.0, lower_final: bool = False
) -> Sampler:
    """DPM-Solver (prediction 'eps') and DPM-Solver++ (prediction 'x0'), multistep, of order 1 to 3. 1 NFE per step.

    `exact` integrates the interpolating polynomial exactly ('heun' in diffusers at order 2) instead of as published.
    `eta` 1 is SDE-DPM-Solver++, which exists for x0 only.
    """
    if eta and prediction != "x0":
        raise ValueError(f"The SDE solver integrates prediction 'x0'; got {prediction!r} with eta = {eta}.")
    moments = dpm_moments(order, prediction, exact, eta)
    return multistep(prediction, adams(order, half_log_snr, moments, lower_final), eta)


def dpm_moments(order: int, prediction: PredictionType, exact: bool, eta: float = 0.0) -> Moments:
    """Moments in lambda for y of this type: under e^lambda for x0, e^-lambda for eps, e^((1 + eta) lambda) for the SDE."""
    if order not in (1, 2, 3):
        raise ValueError(f"DPM-Solver has orders 1, 2 and 3; got {order}.")
    rate = choose({"x0": 1.0 + eta, "eps": -1.0}, prediction, "prediction")
    return exponential(rate) if exact else published(rate)


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M), Lu et al. 2022b, algorithm 2. Order 2, 1 NFE per step."""
    return dpm_multistep(2)


def dpmpp_3m(exact: bool = True) -> Sampler:
    """DPM-Solver++(3M). Order 3, 1 NFE per step. `exact=False` is the published code, whose second divided difference is
    weighed by half of what the integral asks for: order 2, with a smaller constant than 2M's."""
    return dpm_multistep(3, exact=exact)


def dpmpp_2m_sde(eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M), VP, VE and flow alike. 1 NFE per step."""
    return dpm_multistep(2, eta=eta)


def dpmpp_3m_sde(eta: float = 1.0, exact: bool = True) -> Sampler:
    """SDE-DPM-Solver++(3M). 1 NFE per step."""
    return dpm_multistep(3, eta=eta, exact=exact)


def lms(order: int = 4) -> Sampler:
    """Linear multistep of k-diffusion: Adams-Bashforth in noise_ratio. 1 NFE per step."""
    return multistep("eps", adams(order, lambda grid: grid.noise_ratio, uniform))


def ipndm(order: int = 4) -> Sampler:
    """Improved PNDM (Zhang & Chen 2023): Adams-Bashforth coefficients of a uniform grid, on DDIM. 1 NFE per step."""
    return multistep("eps", adams(order, step_number, uniform))


def deis(order: int = 3, lower_final: bool = False) -> Sampler:
    """DEIS, log-rho Adams-Bashforth (Zhang & Chen 2023): polynomials in log(noise_ratio), integrated exactly. 1 NFE."""
    return multistep("eps", adams(order, half_log_snr, exponential(-1.0), lower_final))


def plms() -> Sampler:
    """PLMS (Liu et al. 2022) as CompVis runs it: `ipndm` whose first step evaluates twice. 1 NFE per step, and one."""

    def average(x: jax.Array, y: jax.Array, f: Callable, level: Level, to: Level) -> jax.Array:
        return (y + f(move("eps", x, y, level, to), to)) / 2

    return multistep("eps", adams(4, step_number, uniform), warm_up=(1, average))


def pndm(schedule: Schedule) -> Sampler:
    """PNDM (Liu et al. 2022): three pseudo Runge-Kutta steps, then `ipndm`. The middle of a step is the mean time, rounded up,
    in a table, and the mean quantile on a continuous schedule. 1 NFE per step, and nine."""

    def average(x: jax.Array, y: jax.Array, f: Callable, level: Level, to: Level) -> jax.Array:
        if isinstance(schedule, Discrete):
            middle = schedule(jnp.ceil((level.t + to.t) / 2))
        else:
            u, v = (jnp.clip(schedule.quantile(each.log_snr), 0, 1) for each in (level, to))
            middle = schedule.at((u + v) / 2)
        y2 = f(move("eps", x, y, level, middle), middle)
        y3 = f(move("eps", x, y2, level, middle), middle)
        y4 = f(move("eps", x, y3, level, to), to)
        return (y + 2 * y2 + 2 * y3 + y4) / 6

    return multistep("eps", adams(4, step_number, uniform), warm_up=(3, average))
