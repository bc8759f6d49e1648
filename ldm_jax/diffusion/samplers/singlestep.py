"""Solvers with several evaluations a step, and samplers that wrap samplers with noise: ancestral, churn, restart.

`heun` integrates y of a constant parameterization by the trapezoid rule. The two-stage solvers evaluate once more in the middle
of log-SNR, which needs the schedule: what level is that? Steps to exactly clean take one evaluation (Euler), as everywhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.level import PURE_NOISE, Denoiser, Level, expand
from ldm_jax.diffusion.parameterization import PredictionType, target
from ldm_jax.diffusion.samplers.first_order import posterior_variance
from ldm_jax.diffusion.samplers.protocol import (
    Sampler,
    State,
    gaussian,
    memoryless,
    move,
    noise_to,
    solvable,
    split,
    without_memory,
)
from ldm_jax.diffusion.schedules import Schedule


def heun(prediction: PredictionType = "eps") -> Sampler:
    """Heun's method in noise_ratio ('eps': EDM, k-diffusion) or in flow time ('flow'). Order 2, 2 NFE per step."""

    def init(x: jax.Array, grid: Level) -> State:
        solvable(prediction, grid)
        return memoryless(x, grid)

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        predicted = denoise(state.x, level)
        y = target(prediction, predicted, level)
        euler = move(prediction, state.x, y, level, to)

        def corrected() -> jax.Array:
            return move(prediction, state.x, (y + target(prediction, denoise(euler, to), to)) / 2, level, to)

        return State(jax.lax.cond(to.sigma == 0, lambda: euler, corrected), predicted.x0)

    return Sampler(init, step)


def two_stage(prediction: PredictionType, schedule: Schedule, eta: float) -> Sampler:
    """The exponential midpoint rule on y of `prediction`: order 2, 2 NFE per step; eta > 0: to a quieter level, then noise."""

    def init(x: jax.Array, grid: Level) -> State:
        solvable(prediction, grid)
        return memoryless(x, grid)

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        predicted = denoise(state.x, level)
        y = target(prediction, predicted, level)
        var = eta**2 * posterior_variance(level, to)
        down = Level(to.t, to.alpha, jnp.sqrt(jnp.maximum(to.sigma**2 - var, 0)))

        def midpoint() -> jax.Array:
            clean = down.sigma == 0
            middle = schedule.from_log_snr(jnp.where(clean, level.log_snr, (level.log_snr + down.log_snr) / 2))
            y_middle = target(prediction, denoise(move(prediction, state.x, y, level, middle), middle), middle)
            return move(prediction, state.x, y_middle, level, down)

        x = jax.lax.cond(to.sigma == 0, lambda: move(prediction, state.x, y, level, down), midpoint)
        return State(x + expand(jnp.sqrt(var), x) * gaussian(key, x) if eta else x, predicted.x0)

    return Sampler(init, step)


def dpm2(schedule: Schedule) -> Sampler:
    """DPM-Solver-2 (Lu et al. 2022a) on eps, k-diffusion's dpm_2. Order 2, 2 NFE per step."""
    return two_stage("eps", schedule, 0.0)


def dpm2_ancestral(schedule: Schedule, eta: float = 1.0) -> Sampler:
    """k-diffusion's dpm_2_ancestral, for VP, VE and flow. 2 NFE per step."""
    return two_stage("eps", schedule, eta)


def dpmpp_2s(schedule: Schedule) -> Sampler:
    """DPM-Solver++(2S), Lu et al. 2022b, algorithm 1 with r = 1/2. Order 2, 2 NFE per step."""
    return two_stage("x0", schedule, 0.0)


def dpmpp_2s_ancestral(schedule: Schedule, eta: float = 1.0) -> Sampler:
    """k-diffusion's dpmpp_2s_ancestral, for VP, VE and flow. 2 NFE per step."""
    return two_stage("x0", schedule, eta)


def churned(
    sampler: Sampler, schedule: Schedule, churn: float, low: float = 0.0, high: float = float("inf"), noise_scale: float = 1.0
) -> Sampler:
    """Karras et al. 2022, algorithm 2: before each step the noise is raised by gamma = min(churn / steps, sqrt(2) - 1) where
    noise_ratio is within [low, high]; then the memoryless, deterministic `sampler` steps from there. No NFE of its own."""

    def init(x: jax.Array, grid: Level) -> State:
        state = without_memory(sampler, x, grid, "churned")
        return state._replace(memory=jnp.float32(min(churn / (len(grid) - 1), 2**0.5 - 1)))

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        within = (level.noise_ratio >= low) & (level.noise_ratio <= high)
        gamma = jnp.where(within, state.memory, 0.0)
        raised = schedule.from_log_snr(level.log_snr - 2 * jnp.log1p(gamma))
        raised = jax.tree.map(lambda a, b: jnp.where(gamma > 0, a, b), raised, level)
        x = noise_to(state.x, level, raised, noise_scale * gaussian(key, state.x))
        return sampler.step(State(x, state.x0), denoise, raised, to, None)._replace(memory=state.memory)

    return Sampler(init, step)


def edm(schedule: Schedule, churn: float = 40.0, low: float = 0.05, high: float = 50.0, noise_scale: float = 1.003) -> Sampler:
    """The stochastic sampler of Karras et al. 2022, algorithm 2, with their ImageNet constants. 2 NFE per step."""
    return churned(heun(heun_prediction(schedule)), schedule, churn, low, high, noise_scale)


def heun_prediction(schedule: Schedule) -> PredictionType:
    """What `heun` integrates on this schedule: eps, in noise_ratio, or flow where the noisiest level is pure noise (alpha 0 or
    next to it), at which noise_ratio is infinite or as good as that."""
    return "flow" if float(schedule(np.float64(schedule.span[1])).alpha) < PURE_NOISE else "eps"


def restart(sampler: Sampler, schedule: Schedule, low: float, high: float, steps: int = 4, repeats: int = 2) -> Sampler:
    """Xu et al. 2023: when `sampler` (memoryless) first gets to noise_ratio <= low, the sample is noised up to `high` and
    brought back in `steps` steps uniform in log-SNR, `repeats` times. repeats x steps more NFE (times the sampler's own)."""

    def again(x: jax.Array, x0: jax.Array, denoise: Denoiser, to: Level, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        fractions = jnp.linspace(0.0, 1.0, steps + 1)
        top = -2 * jnp.log(jnp.float32(high))
        levels = schedule.from_log_snr(top + fractions * (to.log_snr - top))
        levels = jax.tree.map(lambda a, b: a.at[-1].set(b), levels, to)

        def once(carry: Any, key: jax.Array) -> tuple[Any, None]:
            noise_key, step_key = split(key)
            noised = noise_to(carry[0], to, levels[0], gaussian(noise_key, x))

            def inner(state: State, xs: Any) -> tuple[State, None]:
                return sampler.step(state, denoise, *xs), None

            state, _ = jax.lax.scan(inner, State(noised, carry[1]), (levels[:-1], levels[1:], split(step_key, steps)))
            return (state.x, state.x0), None

        return jax.lax.scan(once, (x, x0), split(key, repeats))[0]

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        if key is None or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise ValueError("restart draws noise of its own many times a step: pass a key, or one per sample.")
        step_key, restart_key = split(key)
        state = sampler.step(state, denoise, level, to, step_key)
        crossed = (level.noise_ratio > low) & (to.noise_ratio <= low) & (to.sigma > 0)
        x, x0 = jax.lax.cond(crossed, lambda: again(state.x, state.x0, denoise, to, restart_key), lambda: (state.x, state.x0))
        return State(x, x0)

    return Sampler(lambda x, grid: without_memory(sampler, x, grid, "restart"), step)


def sample_adaptive(
    denoise: Denoiser,
    schedule: Schedule,
    x: jax.Array,
    start: Level,
    stop: Level,
    *,
    rtol: float = 0.05,
    atol: float = 0.0078,
    first_step: float = 0.05,
    max_evaluations: int = 2000,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """DPM-Solver++ 2S with an embedded first order for step control (DPM-Solver-12, Lu et al. 2022a, appendix C), one
    `lax.while_loop` from `start` to `stop` (both with alpha, sigma > 0). Tolerances are k-diffusion's; errors are measured over
    the whole batch: vmap for independent samples. Returns x at `stop` and {"evaluations", "accepted", "rejected"}.
    """
    if not (float(start.noise_ratio) > float(stop.noise_ratio) > 0) or float(start.alpha) == 0:
        raise ValueError(
            f"The adaptive sampler runs down in noise between levels that are neither pure noise nor clean: {start}, {stop}."
        )
    begin, end = (0.5 * float(level.log_snr) for level in (start, stop))

    def at(lam: jax.Array) -> Level:
        return schedule.from_log_snr(2 * lam)

    def going(carry: Any) -> jax.Array:
        lam, *_, counts = carry
        return (lam < end - 1e-5) & (counts["evaluations"] < max_evaluations)

    def attempt(carry: Any) -> Any:
        lam, h, x, previous, counts = carry
        h = jnp.minimum(h, end - lam)
        level, middle, to = at(lam), at(lam + h / 2), at(lam + h)
        y = denoise(x, level).x0
        y_middle = denoise(move("x0", x, y, level, middle), middle).x0
        rough, fine = move("x0", x, y, level, to), move("x0", x, y_middle, level, to)
        scale = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(rough), jnp.abs(previous)))
        error = jnp.sqrt(jnp.mean(jnp.square((rough - fine) / scale)))
        accept = error <= 1
        factor = jnp.clip(0.9 * jnp.maximum(error, 1e-8) ** -0.5, 0.2, 5.0)
        tally = {"evaluations": 2, "accepted": accept.astype(jnp.int32), "rejected": (~accept).astype(jnp.int32)}
        counts = jax.tree.map(jnp.add, counts, tally)
        keep = lambda new, old: jnp.where(accept, new, old)  # noqa: E731
        return keep(lam + h, lam), h * factor, keep(fine, x), keep(rough, previous), counts

    zero = {name: jnp.int32(0) for name in ("evaluations", "accepted", "rejected")}
    x = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
    carry = (jnp.asarray(begin, x.dtype), jnp.asarray(first_step, x.dtype), x, x, zero)
    _, _, x, _, counts = jax.lax.while_loop(going, attempt, carry)
    return x, counts
