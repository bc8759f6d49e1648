"""Multistep solvers: one evaluation a step, and the last few answers remembered.

Each expresses predictions as y, a constant parameterization, and moves x with a weighted mean of the latest ones,

    x_{n+1} = move(x_n, sum_j w[n, j] y_{n-j}),

so a solver is its table of weights [steps, order], made from the grid before the first step (in float64 if the grid is known).
Through y_{n-j} at positions p_{n-j} goes a polynomial P of s = (p - p_n) / (p_{n+1} - p_n); with the moments
m_k = <s^k> of the step's measure the weights solve sum_j s_j^k w_j = m_k. All that distinguishes the solvers:

    solver             y     position p         moments
    lms                eps   noise_ratio        1/(k+1)                              Adams-Bashforth, exact
    plms, ipndm        eps   the step's number  1/(k+1)                              as if the grid were uniform
    deis               eps   -lambda            exact for e^p                        Zhang & Chen 2023
    dpm_multistep      eps   lambda             exact for e^-lambda, or as published Lu et al. 2022a
    dpmpp_2m, _3m      x0    lambda             exact for e^lambda, or as published  Lu et al. 2022b

lambda = log_snr / 2. Warm-up, and lower orders at the end, are rows with zeros.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..level import Denoiser, Level, expand, namespace
from ..parameterization import Kind, target
from .protocol import Sampler, State, gaussian, move

Positions = Callable[[Level], Any]
Moments = Callable[[Any, int], Any]


def half_log_snr(grid: Level) -> Any:
    """lambda = log(alpha / sigma)."""
    return 0.5 * grid.log_snr


def multistep(kind: Kind, weights: Callable[[Level], Any], eta: float = 0.0) -> Sampler:
    """The solver with this table: `weights(grid) -> [steps, order]`, newest answer first. `eta` > 0: the SDE (x0 only)."""

    def init(x: jax.Array, grid: Level) -> State:
        table = jnp.asarray(weights(grid), x.dtype)
        past = jnp.zeros((table.shape[1] - 1, *x.shape), x.dtype)
        return State(x, jnp.zeros_like(x), (jnp.int32(0), table, past))

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        index, table, past = state.memory
        prediction = denoise(state.x, level)
        ys = jnp.concatenate([target(kind, prediction, level)[None], past])
        y = jnp.tensordot(table[index], ys, 1)
        x = move_sde(state.x, y, level, to, eta, key) if eta else move(kind, state.x, y, level, to)
        return State(x, prediction.x0, (index + 1, table, ys[:-1]))

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
        xp = namespace(grid.alpha)
        steps = len(grid) - 1
        orders = np.minimum(np.arange(steps) + 1, order)
        if lower_final:
            orders = np.minimum(orders, steps - np.arange(steps))
        p = position(grid)
        clean = (grid.sigma[1:] == 0) | ~xp.isfinite(p[:-1]) | ~xp.isfinite(p[1:])
        p = xp.where(xp.isfinite(p), p, 0.0)
        h = xp.where(clean, 1.0, p[1:] - p[:-1])
        m = moments(h, order)
        table = xp.zeros((steps, order))
        for k in range(1, order + 1):
            back = np.maximum(np.arange(steps)[:, None] - np.arange(k), 0)
            s = (p[back] - p[:-1, None]) / h[:, None]
            s = xp.where((orders[:, None] < k) | clean[:, None], -1.0 * np.arange(k), s)
            rows = xp.linalg.solve(s[:, None, :] ** np.arange(k)[:, None], m[:, :k, None])[..., 0]
            rows = xp.concatenate([rows, xp.zeros((steps, order - k))], 1)
            table = xp.where(((k == 1) | (orders == k) & ~clean)[:, None], rows, table)
        return table

    return weights


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
    """What the DPM-Solver papers' code, and all that follow it, use: 1/2 for the first moment at order 2 ('midpoint'), and at
    order 3 exact ones but for the last, which is halved; that makes their third order a second one (see `dpmpp_3m`)."""

    def moments(h: Any, order: int) -> Any:
        if order <= 2:
            return namespace(h).broadcast_to(np.array([1.0, 0.5])[:order], (*h.shape, order))
        return exponential(rate)(h, order) * np.array([1.0] * (order - 1) + [0.5])

    return moments


def dpm_multistep(
    order: int = 2, kind: Kind = "x0", exact: bool = False, eta: float = 0.0, lower_final: bool = False
) -> Sampler:
    """DPM-Solver (kind 'eps') and DPM-Solver++ (kind 'x0'), multistep, of order 1 to 3. 1 NFE per step.

    `exact` integrates the interpolating polynomial exactly ('heun' in diffusers at order 2) instead of as published.
    `eta` 1 is SDE-DPM-Solver++, which exists for x0 only.
    """
    if kind not in ("x0", "eps") or (eta and kind != "x0"):
        raise ValueError(f"dpm_multistep integrates kind 'x0' or 'eps', and with eta > 0 'x0'; got {kind!r} with eta = {eta}.")
    if order not in (1, 2, 3):
        raise ValueError(f"dpm_multistep has orders 1, 2 and 3; got {order}.")
    rate = 1.0 + eta if kind == "x0" else -1.0
    if exact or order < 3:
        moments = exponential(rate) if exact else published(rate)
        return multistep(kind, adams(order, half_log_snr, moments, lower_final), eta)
    return multistep(kind, _published_third(rate, lower_final), eta)


def _published_third(rate: float, lower_final: bool) -> Callable[[Level], Any]:
    """Order 3 as published, whose warm-up and final second-order steps are midpoint ones."""

    def weights(grid: Level) -> Any:
        xp = namespace(grid.alpha)
        third = adams(3, half_log_snr, published(rate), lower_final)(grid)
        second = adams(2, half_log_snr, published(rate), lower_final)(grid)
        second = xp.concatenate([second, xp.zeros_like(second[:, :1])], 1)
        return xp.where(third[:, 2:] == 0, second, third)

    return weights


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
    return multistep("eps", adams(order, lambda grid: np.arange(len(grid)) * 1.0, uniform))


def deis(order: int = 3) -> Sampler:
    """DEIS, log-rho Adams-Bashforth (Zhang & Chen 2023): polynomials in log(noise_ratio), integrated exactly. 1 NFE."""
    return multistep("eps", adams(order, half_log_snr, exponential(-1.0)))
