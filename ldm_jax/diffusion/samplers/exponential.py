"""Two more exponential integrators on the tables of `multistep`: with an anchor (DPM-Solver, singlestep) and with a corrector
(UniPC). Both cost one evaluation per interval of the grid.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.level import Denoiser, Level, namespace
from ldm_jax.diffusion.parameterization import PredictionType, target
from ldm_jax.diffusion.samplers.multistep import Moments, dpm_moments, half_log_snr, interpolatory
from ldm_jax.diffusion.samplers.protocol import Sampler, State, mean, move, solvable


def dpm_solver(order: int = 2, prediction: PredictionType = "x0", exact: bool = False, lower_final: bool = True) -> Sampler:
    """DPM-Solver (prediction 'eps', Lu et al. 2022a) and DPM-Solver++ (prediction 'x0', 2022b), singlestep, of order 1 to 3.

    `order` intervals of the grid are the stages of one step of the solver, so a grid of N steps takes N evaluations. On a
    grid uniform in log-SNR these are the papers' r1 = 1/2, and 1/3, 2/3. `exact` integrates the stages' polynomial exactly.
    `lower_final`: the last intervals have lower orders, as `dpm_solver_fast`; without it N must be a multiple of the order.
    """
    moments = dpm_moments(order, prediction, exact)

    def init(x: jax.Array, grid: Level) -> State:
        solvable(prediction, grid)
        steps = len(grid) - 1
        orders = _group_orders(steps, order, lower_final)
        may_be_clean = not isinstance(grid.sigma, np.ndarray) or grid.sigma[-1] == 0
        if may_be_clean and not lower_final and order > 1:
            raise ValueError("A step to exactly clean has order 1: set lower_final, or use a grid that stops above clean.")
        if may_be_clean:
            orders[-1] = 1
        index = np.arange(steps)
        anchor = index - (orders - 1)
        p = half_log_snr(grid)
        xp = namespace(p)
        nodes = [np.maximum(index - j, 0) for j in range(order)]
        table = interpolatory(p, anchor, index + 1, nodes, orders, moments)
        if order == 3 and not exact:  # the papers' third order leaves the middle stage out
            outer = interpolatory(
                p, anchor, index + 1, [nodes[0], nodes[2]], np.minimum(orders, 2), dpm_moments(2, prediction, True)
            )
            outer = xp.stack([outer[:, 0], xp.zeros(steps), outer[:, 1]], -1)
            table = xp.where((orders == 3)[:, None], outer, table)
        past = (jnp.zeros_like(x),) * (order - 1)
        first_level = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), grid[0])
        memory = (jnp.int32(0), jnp.asarray(table, x.dtype), jnp.asarray(orders), past, x, first_level)
        return State(x, jnp.zeros_like(x), memory)

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        index, table, orders, past, *anchor = state.memory
        predicted = denoise(state.x, level)
        ys = (target(prediction, predicted, level), *past)
        here = [state.x, level]
        anchor = jax.tree.map(lambda new, old: jnp.where(orders[index] == 1, new, old), here, anchor)
        x = move(prediction, anchor[0], mean(table[index], ys), anchor[1], to)
        return State(x, predicted.x0, (index + 1, table, orders, ys[:-1], *anchor))

    return Sampler(init, step)


def _group_orders(steps: int, order: int, lower_final: bool) -> np.ndarray:
    """1, 2, .. order, again and again; with `lower_final` never more than what leaves an interval of order 1 at the end."""
    if not lower_final and steps % order:
        raise ValueError(f"{steps} steps are no multiple of the order {order}: set lower_final or change the steps.")
    cycle = np.arange(steps) % order + 1
    if not lower_final:
        return cycle
    rest = steps % order or order
    tail = {3: [1, 2, 1], 2: [1, 2], 1: [1]}[rest] if order == 3 else [1] * rest
    cycle[steps - rest :] = tail
    return cycle


def unipc(
    order: int = 2, prediction: PredictionType = "x0", variant: str = "bh2", lower_final: bool = True, correct: bool = True
) -> Sampler:
    """UniPC (Zhao et al. 2023) of order 1 to 3, on x0 or eps. 1 NFE per step: the answer that the predictor's point gets also
    corrects that point, before the next step starts from it.

    Predictor and corrector are the exact exponential Adams formulas, the corrector's polynomial passing through the new answer
    too; only at order 2 and order 1 respectively the paper takes rho = 1/2 instead, which is where `variant` B(h) enters.
    """
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant is 'bh1' or 'bh2'; got {variant!r}.")
    exact = dpm_moments(order, prediction, exact=True)
    sign = 1.0 if prediction == "x0" else -1.0

    def moments(h: Any, count: int) -> Any:
        if count != 2:
            return exact(h, count)
        xp = namespace(h)
        half = 0.5 * xp.ones_like(h) if variant == "bh2" else 0.5 * h * sign / -xp.expm1(-h * sign)
        return xp.stack([xp.ones_like(h), half], -1)

    def init(x: jax.Array, grid: Level) -> State:
        solvable(prediction, grid)
        steps = len(grid) - 1
        index = np.arange(steps)
        orders = np.minimum(index + 1, order)
        if lower_final:
            orders = np.minimum(orders, steps - index)
        nodes = [np.maximum(index - j, 0) for j in range(order)]
        p = half_log_snr(grid)
        predictor = interpolatory(p, index, index + 1, nodes, orders, moments)
        corrector = _corrector(p, index, nodes, orders, moments)
        past = (jnp.zeros_like(x),) * order
        before = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), grid[0])
        memory = (jnp.int32(0), jnp.asarray(predictor, x.dtype), jnp.asarray(corrector, x.dtype), past, x, before)
        return State(x, jnp.zeros_like(x), memory)

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        index, predictor, corrector, past, x_before, before = state.memory
        predicted = denoise(state.x, level)
        ys = (target(prediction, predicted, level), *past)
        x = state.x
        if correct:
            corrected = move(prediction, x_before, mean(corrector[index], ys), before, level)
            x = jnp.where(index > 0, corrected, x)
        ahead = move(prediction, x, mean(predictor[index], ys[:-1]), level, to)
        return State(ahead, predicted.x0, (index + 1, predictor, corrector, ys[:-1], x, level))

    return Sampler(init, step)


def _corrector(p: Any, index: np.ndarray, nodes: list[Any], orders: Any, moments: Moments) -> Any:
    """Row n: the weights that redo the step from n-1 to n with the answer at n as first node."""
    previous = np.maximum(index - 1, 0)
    ahead = [np.maximum(index, 1), *(node[previous] for node in nodes)]
    return interpolatory(p, previous, np.maximum(index, 1), ahead, orders[previous] + 1, moments)
